"""What the records of a journal say: their kinds, steps and waits, as in journal.avsc."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

__all__ = [
    "BLANK",
    "CLEANUP",
    "COMMANDS",
    "DECISIONS",
    "FROM_OUTSIDE",
    "KINDS",
    "SUBJECT",
    "Kind",
    "Wait",
    "step_record",
    "waits_of",
]

#: The registry subject of journal records: their full name.
SUBJECT = "llmagentos.Journal"

Kind = Literal[
    "claim", "park", "held", "step", "suspend", "done", "drop", "copy", "sent",
    "redrive", "discard", "approve", "reject", "cancel", "reset",
]  # fmt: skip

#: A person's answer to a handler that asked for it.
DECISIONS = frozenset({"approve", "reject"})
#: Written by people, and so without a claim.
COMMANDS = frozenset({"redrive", "discard", "cancel", "reset"}) | DECISIONS


#: Of records that this release knows.
KINDS: frozenset[str] = frozenset(get_args(Kind))

#: What a record says where it says nothing.
BLANK: Mapping[str, Any] = {
    "claim": -1,
    "offset": -1,
    "conversation_id": "",
    "message_id": "",
    "cause": "",
    "state": "",
    "refers": -1,
    "record": None,
    "outputs": [],
    "step": None,
    "waits": [],
    "detail": {},
}


def step_record(name: str, number: int, outcome: str, **said: Any) -> dict[str, Any]:
    """How a step stands, as in journal.avsc; *said*: its other fields, where they say something."""
    return {
        "name": name,
        "number": number,
        "outcome": outcome,
        "about": "",
        "due": 0,
        "attempts": 1,
        "took_ms": 0,
        "content_type": "",
        "type": "",
        "body": b"",
        "blob": "",
    } | said


#: The steps of a cleanup are counted from here, so that none is taken for one that its handler would have come to.
CLEANUP = 1 << 20

#: Outcomes of steps that come from outside, whatever the handler does.
FROM_OUTSIDE = DECISIONS | {"answer"}


class Wait(NamedTuple):
    """One thing that a suspended handler waits for: the result of a step of its.

    Attributes:
        kind: answer, timer or approval; deadline: of the message, after which its handler is not to go on.
        name, number: of the step.
        about: of an answer, the question's id, which is what names it; of an approval, what is to be decided.
        due: when the wait ends at the latest, milliseconds since the epoch; 0: never.
    """

    kind: str
    name: str
    number: int
    about: str
    due: int

    def ends_by(self, step: Mapping[str, Any]) -> bool:
        """Whether *step*, as in journal.avsc, is what it waits for."""
        if self.kind == "answer":
            return step["about"] == self.about
        return step["outcome"] != self.kind and (step["name"], step["number"]) == (self.name, self.number)


def waits_of(record: Mapping[str, Any]) -> tuple[Wait, ...]:
    """What a record says that is waited for."""
    # The same few kinds and names come again and again, each time as new strings.
    intern = sys.intern
    return tuple(Wait(intern(w["kind"]), intern(w["name"]), w["number"], w["about"], w["due"]) for w in record["waits"])
