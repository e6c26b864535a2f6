"""What became of a conversation: each message that an agent was given, with the steps of its handler, as a tree.

It is put together from the messages of the conversation, of all agents, and of what their journals say of them. The
journal keeps what is over for as long as its retention says. What it says is void where a newer claim came before; see
:mod:`llmagentos.streams.journal`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from llmagentos.streams.cancellation import tells_error
from llmagentos.streams.dedup import REDRIVE
from llmagentos.streams.entries import Entry
from llmagentos.streams.errors import LLMAgentOSError
from llmagentos.streams.journal_record import DECISIONS
from llmagentos.streams.message import Message
from llmagentos.streams.pending import decided_by
from llmagentos.streams.settings import Settings

__all__ = ["Invocation", "State", "Step", "StepState", "Timeline"]

#: Of a message: new: nothing is known of its handler; open: it recorded steps, and runs or will run again; waiting:
#: suspended; held: behind others; parked: it failed, and a person is to say what to do; done; failed: it was given
#: up; cancelled: a person ended it; dropped: it was a duplicate, or a person gave it up.
State = Literal["new", "open", "waiting", "held", "parked", "done", "failed", "cancelled", "dropped"]

#: Of a step: waits: for what it says; begun: with at_most_once, and nobody knows more; sent: a message that nobody
#: waits for; late: no answer came in time.
StepState = Literal[
    "done", "failed", "waits", "begun", "sent", "approved", "rejected", "expired", "late", "version"
]  # fmt: skip

_ENDS: Final[dict[str, StepState]] = {
    "result": "done",
    "error": "failed",
    "answer": "done",
    "approve": "approved",
    "reject": "rejected",
    "expired": "expired",
    "version": "version",
}
_BEGINNINGS: Final = frozenset({"begun", "timer", "approval"})

#: As in agents/outputs.py: what stands in an answer's place where none came in time.
_LATE: Final = "late"

_Place = tuple[str, int, int]  # agent, partition, offset


@dataclass(slots=True, eq=False)
class Step:
    """One step of one handler, or a message that it sent.

    Attributes:
        name, number: who it is among the others; of a message that was told, the agent's name.
        kind: step, question, told, timer, approval, version.
        at, ended: when it began, as far as is known, and when its end was recorded; 0: it did not. Milliseconds since
            the epoch.
        about: of a question, its id; of an approval, what is to be decided.
        due: when the wait ends at the latest; 0: never.
        body, content_type: the result, or the answer; of a failed one, why.
        blob: where the result is, when it is too large for the journal.
        by, why: of a decision.
        child: what became of the message that was sent.
    """

    name: str
    number: int
    kind: str
    at: int
    state: StepState
    ended: int = 0
    attempts: int = 1
    about: str = ""
    due: int = 0
    body: bytes = b""
    content_type: str = ""
    blob: str = ""
    by: str = ""
    why: str = ""
    child: Invocation | None = None

    @property
    def asked(self) -> str:
        """The agent that a message was sent to."""
        return self.name.rpartition(" ")[2]

    @property
    def took(self) -> int:
        """Milliseconds; of what goes on, 0."""
        return max(0, self.ended - self.at) if self.ended else 0


@dataclass(slots=True, eq=False)
class Invocation:
    """One message, and what an agent did about it.

    Attributes:
        agent, partition, offset: where it lies.
        message: None where retention has taken it.
        at, ended: when it came, and when it was over; 0: it is not, or nobody knows.
        steps: in the order in which they began.
        answer: what its handler said.
        error: why it failed, or by whom it was cancelled.
        cancelled: by whom, and why, where a person said so; it ends when its handler has.
        tokens: how many came ahead of the answer.
    """

    agent: str
    partition: int
    offset: int
    conversation_id: str
    message_id: str
    message: Message | None = None
    at: int = 0
    ended: int = 0
    state: State = "new"
    steps: list[Step] = field(default_factory=list[Step])
    answer: Message | None = None
    error: str = ""
    tokens: int = 0
    cancelled: str = ""

    @property
    def waits(self) -> list[Step]:
        """What its handler waits for now."""
        return [step for step in self.steps if step.state == "waits"] if self.state not in _OVER else []

    def walk(self) -> Iterator[Invocation]:
        """Itself, and all below it."""
        yield self
        for step in self.steps:
            if step.child is not None:
                yield from step.child.walk()


_OVER: Final = frozenset({"done", "failed", "cancelled", "dropped"})


class Timeline:
    """Puts a conversation together from its records, which may come bit by bit, in any order between partitions.

    Args:
        decode: a message from Confluent wire bytes, for answers that only the journal has any more.
    """

    def __init__(self, settings: Settings, decode: Callable[[bytes], Message]) -> None:
        self._stems = {settings.topic(f"{kind}."): kind for kind in ("agent", "answers", "dead", "journal")}
        self._replies = settings.topic("replies")
        self._answers = settings.topic("answers.")
        self._decode = decode
        self._entries: dict[tuple[str, int, int], Entry] = {}

    def add(self, entry: Entry) -> None:
        """Take in a record of the conversation."""
        self._entries[entry.topic, entry.partition, entry.offset] = entry

    def __len__(self) -> int:
        """How many records there are."""
        return len(self._entries)

    def roots(
        self, finished: Callable[[str, int, int], bool] = lambda agent, partition, offset: False
    ) -> list[Invocation]:
        """The messages that nobody here caused, by time, each with all that came of it.

        Args:
            finished: whether the message at (agent, partition, offset) is handled; asked where no record says.
        """
        sorted_ = self._sorted()
        found = self._invocations(sorted_["agent"])
        self._journals(sorted_["journal"], found)
        by_id = {(each.agent, each.message_id): each for each in reversed(found.values())}
        self._letters(sorted_["dead"], found)
        for entry in sorted_["replies"]:
            self._reply(entry, by_id)
        roots = self._joined(list(found.values()), by_id)
        self._answered(sorted_["answers"], by_id)
        for each in found.values():
            self._finish(each, finished)
        return sorted(roots, key=lambda each: (each.at, each.agent, each.offset))

    # -- inside -------------------------------------------------------------------------------------------------

    def _sorted(self) -> dict[str, list[tuple[str, Entry]]]:
        """(agent, record) by kind of topic; the order inside a partition is kept."""
        sorted_: dict[str, list[Any]] = {kind: [] for kind in (*self._stems.values(), "replies")}
        for key in sorted(self._entries):
            entry = self._entries[key]
            if entry.topic == self._replies:
                sorted_["replies"].append(entry)
                continue
            for stem, kind in self._stems.items():
                if entry.topic.startswith(stem):
                    sorted_[kind].append((entry.topic.removeprefix(stem), entry))
        return sorted_

    def _invocations(self, inbox: Iterable[tuple[str, Entry]]) -> dict[_Place, Invocation]:
        found: dict[_Place, Invocation] = {}
        known: set[tuple[str, str]] = set()
        for agent, entry in inbox:
            message = entry.message
            if message is None:
                continue
            again = (agent, message.message_id) in known and REDRIVE not in entry.headers
            known.add((agent, message.message_id))
            if not again:  # a question that a rerun asked again, or a producer's duplicate: it is handled once
                found[agent, entry.partition, entry.offset] = Invocation(
                    agent,
                    entry.partition,
                    entry.offset,
                    message.conversation_id,
                    message.message_id,
                    message,
                    entry.timestamp,
                )
        return found

    def _journals(self, records: Iterable[tuple[str, Entry]], found: dict[_Place, Invocation]) -> None:
        partitions: dict[tuple[str, int], list[Entry]] = {}
        for agent, entry in records:
            if entry.record is not None and "kind" in entry.record:
                partitions.setdefault((agent, entry.partition), []).append(entry)
        for (agent, partition), entries in partitions.items():
            claims = sorted({entry.record["claim"] for entry in entries if entry.record})
            parts: dict[int, dict[tuple[str, int], Step]] = {}
            for entry in entries:
                fields = entry.record or {}
                claim = fields["claim"]
                if claim >= 0 and any(claim < newer < entry.offset for newer in claims):
                    continue  # its writer was not the owner any more
                offset = fields["offset"]
                place = (agent, partition, offset)
                if place not in found:
                    if fields["kind"] == "drop":
                        continue  # a duplicate
                    found[place] = Invocation(
                        agent, partition, offset, fields["conversation_id"], fields["message_id"], at=fields["at"]
                    )
                self._fold(found[place], fields, parts.setdefault(offset, {}))
            for offset, steps in parts.items():
                if (agent, partition, offset) in found:
                    found[agent, partition, offset].steps = list(steps.values())

    def _fold(self, each: Invocation, fields: dict[str, Any], steps: dict[tuple[str, int], Step]) -> None:
        """Take in the next record of its journal."""
        kind, step = fields["kind"], fields["step"]
        if kind == "cancel":
            if each.state not in _OVER and each.state != "parked" and not each.cancelled:
                by, why = decided_by(step) if step is not None else ("", "")
                each.cancelled = f"cancelled by {by or 'somebody'}{why and ': '}{why}"
        elif step is not None:
            if each.state not in _OVER:
                _take(steps, step, fields["at"], self._decode)
                if kind == "step" and each.state in ("new", "held", "parked"):
                    each.state = "open"
        elif kind == "suspend":
            each.state = "waiting"
            for wait in fields["waits"]:
                _wait(steps, wait, fields["at"])
        elif kind in ("park", "held"):
            each.state = "parked" if kind == "park" else "held"
            each.error = fields["detail"].get("error", "") if kind == "park" else ""
        elif kind == "redrive" and each.state == "parked":
            each.state, each.error = "open", ""
            if fields["record"] is not None:
                steps.clear()  # they were another message's
        elif kind == "done":
            each.state, each.ended, each.error = "done", fields["at"], ""
            if tells_error(fields, each.agent):
                each.state, each.error = ("cancelled", each.cancelled) if each.cancelled else ("failed", "")
        elif kind == "drop":
            each.state, each.ended = "dropped", fields["at"]

    def _letters(self, letters: Iterable[tuple[str, Entry]], found: dict[_Place, Invocation]) -> None:
        for agent, entry in letters:
            fields = entry.record or {}
            each = found.get((agent, fields.get("partition", -1), fields.get("offset", -1)))
            if each is None or not entry.is_dead_letter:
                continue
            if each.state in ("new", "dropped"):
                each.state, each.ended = "failed", fields["died_at"]
            if each.state in ("failed", "parked", "open"):
                each.error = f"{fields['cause']}: {fields['error']}"

    def _reply(self, entry: Any, by_id: dict[tuple[str, str], Invocation]) -> None:
        message = entry.message
        each = None if message is None else by_id.get((message.sender, message.caused_by or ""))
        if each is None or message is None:
            return
        if message.type == "token":
            each.tokens += 1
        else:
            _answer(each, message, entry.timestamp)

    def _joined(self, found: list[Invocation], by_id: dict[tuple[str, str], Invocation]) -> list[Invocation]:
        """Hang each message under the step that sent it; those that nobody here sent."""
        roots: list[Invocation] = []
        for each in found:
            message = each.message
            parent = None if message is None else by_id.get((message.sender, message.caused_by or ""))
            if message is None or parent is None or parent is each:
                roots.append(each)
                continue
            place = message.reply_to
            question = place is not None and place[0].startswith(self._answers)
            step = next((s for s in parent.steps if question and s.about == each.message_id), None)
            if step is None:
                state: StepState = "waits" if question else "sent"
                kind = "question" if question else "told"
                step = Step(f"{kind} {each.agent}", 0, kind, each.at, state, about=each.message_id if question else "")
                step.due = message.deadline or 0
                parent.steps.append(step)
            step.at, step.child = min(step.at, each.at), each
            step.name = f"ask {each.agent}" if question else f"tell {each.agent}"
        return roots

    def _answered(self, answers: Iterable[tuple[str, Entry]], by_id: dict[tuple[str, str], Invocation]) -> None:
        questions: dict[str, Step] = {}
        for each in by_id.values():
            questions |= {step.about: step for step in each.steps if step.kind == "question"}
        seen: set[str] = set()
        for _, entry in answers:
            message = entry.message
            if message is None or (question := message.caused_by) is None:
                continue
            late = _LATE in message.attributes and message.type == "error"
            if not late and (each := by_id.get((message.sender, question))) is not None:
                _answer(each, message, entry.timestamp)
            step = questions.get(question)
            if step is not None and question not in seen:
                seen.add(question)
                step.ended = step.ended or entry.timestamp
                step.state = "late" if late else "failed" if message.type == "error" else "done"
                step.body, step.content_type = message.body, message.content_type

    def _finish(self, each: Invocation, finished: Callable[[str, int, int], bool]) -> None:
        each.steps.sort(key=lambda step: step.at)
        if each.state == "waiting" and not each.waits:
            each.state = "open"  # what it waited for has come
        if each.state in ("new", "open"):
            if each.answer is not None and each.state == "new":
                each.state = "failed" if each.answer.type == "error" else "done"
            elif finished(each.agent, each.partition, each.offset) and not (each.state == "open" and each.steps):
                each.state = "done"
        if each.state in _OVER and not each.ended and each.answer is not None:
            each.ended = each.answer.timestamp


def _answer(each: Invocation, message: Message, at: int) -> None:
    """The first answer counts; one that follows an error was a redrive's."""
    if each.answer is None or (each.answer.type == "error" and message.type != "error"):
        each.answer = message
        each.ended = each.ended or (at if each.state in _OVER else 0)


def _take(
    steps: dict[tuple[str, int], Step], fields: dict[str, Any], at: int, decode: Callable[[bytes], Message]
) -> None:
    """A step's record; of several that end one step, the first counts."""
    outcome = fields["outcome"]
    if outcome == "answer":
        _take_answer(steps, fields, at, decode)
        return
    identity = (fields["name"], fields["number"])
    step = steps.get(identity)
    if outcome in _BEGINNINGS:
        if step is None:
            kind = "step" if outcome == "begun" else outcome
            state: StepState = "begun" if outcome == "begun" else "waits"
            steps[identity] = Step(*identity, kind, at, state, about=fields["about"], due=fields["due"])
        return
    end = _ENDS.get(outcome)
    if end is None or (step is None and outcome in DECISIONS):
        return
    if step is None:
        kind = "version" if outcome == "version" else "step"
        step = steps[identity] = Step(*identity, kind, at - fields["took_ms"], "waits")
    if step.ended:
        return
    step.state, step.ended, step.attempts = end, at, fields["attempts"]
    step.body, step.content_type, step.blob = fields["body"], fields["content_type"], fields["blob"]
    if outcome in DECISIONS:
        step.by, step.why = decided_by(fields)
        step.body = b""


def _take_answer(
    steps: dict[tuple[str, int], Step], fields: dict[str, Any], at: int, decode: Callable[[bytes], Message]
) -> None:
    question = fields["about"]
    step = next((step for step in steps.values() if step.about == question and step.kind == "question"), None)
    if step is None:
        step = steps[question, 0] = Step(fields["name"], 0, "question", at, "waits", about=question)
    if step.ended:
        return
    step.ended, step.state, step.blob = at, "done", fields["blob"]
    if step.blob:
        return
    try:
        answer = decode(fields["body"])
    except LLMAgentOSError:  # of a newer release, say: that there is one is told all the same
        return
    step.state = "late" if _LATE in answer.attributes else "failed" if answer.type == "error" else "done"
    step.body, step.content_type = answer.body, answer.content_type


def _wait(steps: dict[tuple[str, int], Step], wait: dict[str, Any], at: int) -> None:
    """What a suspended handler waits for; a question's own record is its message."""
    if wait["kind"] != "answer" or any(step.about == wait["about"] for step in steps.values()):
        return
    steps[wait["about"], 0] = Step(
        wait["name"], wait["number"], "question", at, "waits", about=wait["about"], due=wait["due"]
    )
