"""What handlers wait for: answers, timers and people, over all agents; and what people decided.

A handler that waits for long is suspended, and its journal says for what. One that waits and runs has recorded that it
asked for an approval, or began a timer. Questions of handlers that run are in nobody's journal: their agents have them.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, cast

import confluent_kafka
import orjson

from llmagentos.streams.errors import InputError, RecordError
from llmagentos.streams.journal_record import CLEANUP, DECISIONS
from llmagentos.streams.partition import murmur2_partition
from llmagentos.streams.position import BEGINNING, END
from llmagentos.streams.settings import Settings
from llmagentos.streams.tail import Log
from llmagentos.streams.unfinished import Entry
from llmagentos.streams.views import Place, Served, Views
from llmagentos.streams.wire import Codec

__all__ = ["KINDS", "Decided", "Group", "Kind", "Pending", "Pendings", "Selection", "decided_by", "groups"]

Kind = Literal["approval", "answer", "timer"]
KINDS: Final[tuple[Kind, ...]] = ("approval", "answer", "timer")

#: Outcomes of steps that begin a wait.
_BEGINNINGS: Final[Mapping[str, Kind]] = {"approval": "approval", "timer": "timer"}

#: States of messages whose handler may run, and wait meanwhile.
_RUNNING: Final = frozenset({"open", "waiting", "held", "parked"})

#: Outcomes that are people's.
_PERSONS: Final = DECISIONS | {"cancel"}

#: Where in a journal, and of which of its messages.
_Subject = tuple[Place, int]


class Decided(NamedTuple):
    """How a wait ended.

    Attributes:
        outcome: approve, reject; expired: its time was over; result: of a timer.
        by, why: of a decision, who and what they said of it.
        at: milliseconds since the epoch.
        place: where in the journal that stands.
        agent, what: whose approval it was, and what was to be decided, where that is known.
        step: which of its handler's, as people count.
    """

    outcome: str
    by: str
    why: str
    at: int
    place: int
    agent: str = ""
    what: str = ""
    step: int = 1


@dataclass(frozen=True, slots=True)
class Pending:
    """One thing that one handler waits for.

    Attributes:
        agent, partition, offset: the message that it handles.
        kind: what must come.
        name, number: of the step that waits.
        about: of an answer, the question's id; of an approval, what is to be decided.
        since: when it began; of an answer, when its handler was suspended. Milliseconds since the epoch.
        due: when the wait ends at the latest; 0: never.
        suspended: the handler does not run meanwhile.
        held: later messages of its conversation, which wait behind it.
    """

    agent: str
    partition: int
    offset: int
    conversation_id: str
    message_id: str
    kind: Kind
    name: str
    number: int
    about: str
    since: int
    due: int
    suspended: bool
    held: int

    @property
    def place(self) -> Place:
        """The inbox and journal partition that it is about."""
        return Place(self.agent, self.partition)

    @property
    def asked(self) -> str:
        """Of an answer, the agent that was asked."""
        return self.name.rpartition(" ")[2] if self.kind == "answer" else ""

    @property
    def step(self) -> int:
        """Which step of that name it is, as people count."""
        return self.number % CLEANUP + 1


@dataclass(frozen=True, slots=True)
class Selection:
    """Which waits are wanted; what is empty or None selects nothing out.

    Attributes:
        before_ms: that began at that time, milliseconds since the epoch, or earlier.
    """

    agents: Sequence[str] = ()
    kinds: Sequence[str] = ()
    conversation: str | None = None
    before_ms: int | None = None

    def wants(self, pending: Pending) -> bool:
        """Whether *pending* is one of them."""
        return (
            (not self.kinds or pending.kind in self.kinds)
            and self.conversation in (None, pending.conversation_id)
            and (self.before_ms is None or pending.since <= self.before_ms)
        )


@dataclass(slots=True)
class Group:
    """Waits of one agent for the same kind of thing; of answers, from the same agent.

    Attributes:
        oldest: the one that waits longest.
        next_due: when the first of them ends; 0: none does.
        held: messages that wait behind them.
    """

    oldest: Pending
    count: int = 0
    next_due: int = 0
    held: int = 0


@dataclass(slots=True)
class _Begun:
    """The record that began a wait, and what ended it."""

    place: int  # in the journal, now
    first: int  # where it was written first
    kind: Kind
    about: str
    due: int
    at: int
    end: Decided | None = None


@dataclass(slots=True)
class _Steps:
    begun: dict[tuple[str, int], _Begun] = field(default_factory=dict[tuple[str, int], _Begun])
    owner_at: int = -1  # the newest record of its owner


def groups(found: Iterable[Pending]) -> list[Group]:
    """*found* by agent and what is waited for, the largest group first."""
    made: dict[tuple[str, str, str], Group] = {}
    for pending in found:
        key = (pending.agent, pending.kind, pending.asked)
        group = made.get(key)
        if group is None:
            group = made[key] = Group(pending)
        group.count += 1
        group.held += pending.held
        if pending.since < group.oldest.since:
            group.oldest = pending
        if pending.due and (not group.next_due or pending.due < group.next_due):
            group.next_due = pending.due
    return sorted(made.values(), key=lambda group: (-group.count, group.oldest.since))


def decided_by(step: Mapping[str, Any]) -> tuple[str, str]:
    """(who, why) of a person's decision or cancellation, as its record has them; both empty where it is none."""
    try:
        said = orjson.loads(step["body"]) if step["body"] and step["outcome"] in _PERSONS else {}
    except orjson.JSONDecodeError:  # another program wrote it; the decision counts all the same
        return "", ""
    fields = cast("dict[str, Any]", said) if isinstance(said, dict) else {}
    return str(fields.get("by", "")), str(fields.get("why", ""))


class Pendings:
    """Reads what waits. It blocks; one thread at a time.

    Args:
        served: by agent's name, as for :class:`Views`.

    Raises:
        BrokerError, AccessError: the cluster is out of reach, or refuses; also by every method.
    """

    def __init__(self, settings: Settings, codec: Codec, served: Mapping[str, Served], log: Log) -> None:
        self._codec = codec
        self._log = log
        self._stem = settings.topic("journal.")
        self._inbox = settings.topic("agent.")
        self._served = served
        self._steps: dict[_Subject, _Steps] = {}
        self.views = Views(settings, codec, served, self._heard)

    @property
    def codec(self) -> Codec:
        """What it is decoded with."""
        return self._codec

    def close(self) -> None:
        """Let the client go."""
        self.views.close()

    def read(self, selection: Selection) -> list[Pending]:
        """What waits now, the oldest first.

        Raises:
            InputError: there is no agent of that name.
        """
        found = self._read(selection, self.places(selection))
        if not found and selection.conversation is not None:
            # Who wrote its messages may have put them where another partitioner says.
            found = self._read(selection, self.places(replace(selection, conversation=None)))
        return sorted(found, key=lambda pending: (pending.since, pending.agent, pending.partition, pending.offset))

    def places(self, selection: Selection) -> list[Place]:
        """The journal partitions in which it can be."""
        there = self._log.topics()
        agents = {t.removeprefix(self._stem): n for t, n in there.items() if t.startswith(self._stem)}
        for agent in selection.agents:
            if agent not in agents:
                close = difflib.get_close_matches(agent, agents, 3)
                raise InputError(
                    f"there is no agent {agent!r}" + (f"; close to it: {', '.join(close)}" if close else ""),
                    fix="`llmagentos agents` lists the agents",
                )
        found: list[Place] = []
        for agent in selection.agents or agents:
            count = agents[agent]
            # Of an agent over a foreign topic nobody knows which partition a conversation is in.
            if selection.conversation is not None and self._inbox + agent in there:
                found.append(Place(agent, murmur2_partition(selection.conversation.encode(), count)))
            else:
                found += [Place(agent, number) for number in range(count)]
        return found

    # -- one of them --------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read on to what is the end now."""
        self.views.refresh()

    def end_of(self, pending: Pending) -> Decided | None:
        """What ended it first, of what was read; None: nothing."""
        begun = self._begun(pending)
        return None if begun is None else begun.end

    def gone_on(self, pending: Pending, since: int) -> bool:
        """Whether its handler has done something since the journal offset *since*, or its message is over."""
        steps = self._steps.get((pending.place, pending.offset))
        over = pending.offset not in self.views[pending.place].entries
        return over or (steps is not None and steps.owner_at > since)

    def parked(self, pending: Pending) -> bool:
        """Whether its message failed, and its conversation waits for a person again."""
        entry = self.views[pending.place].entries.get(pending.offset)
        return entry is not None and entry.state == "parked" and not entry.wish

    def decisions(self, conversation: str, agents: Sequence[str] = ()) -> list[Decided]:
        """How approvals of a conversation ended, as far back as the journal goes; the first end of each, by time."""
        places = self.places(Selection(agents=agents, conversation=conversation))
        key = conversation.encode()
        spans = self._log.spans([(self.views.topic(p.agent), p.partition) for p in places], BEGINNING, END)
        asked: dict[tuple[str, int, int, str, int], str] = {}
        ended: dict[tuple[str, int, int, str, int], Decided] = {}
        for record in self._log.read(spans, lambda record: record.key() == key):
            entry = None if record is None else self._decoded(record)
            step = None if entry is None else entry["step"]
            if record is None or entry is None or step is None:
                continue
            agent = cast(str, record.topic()).removeprefix(self._stem)
            subject = (agent, cast(int, record.partition()), entry["offset"], step["name"], step["number"])
            if step["outcome"] == "approval":
                asked.setdefault(subject, step["about"])
            elif subject in asked and subject not in ended:
                end = _decided(step, entry["at"], cast(int, record.offset()))
                ended[subject] = end._replace(agent=agent, what=asked[subject])
        return sorted(ended.values(), key=lambda end: end.at)

    # -- inside -------------------------------------------------------------------------------------------------

    def _read(self, selection: Selection, places: Sequence[Place]) -> list[Pending]:
        self.views.add([p for p in places if p not in self.views], time.time_ns() // 1_000_000, self._log)
        self.views.refresh()
        found: list[Pending] = []
        for place in places:
            opened = self.views[place].open
            name = selection.conversation
            wanted = opened.values() if name is None else [opened[name]] if name in opened else []
            for conversation in wanted:
                found += filter(selection.wants, self._of(place, conversation.first, len(conversation) - 1))
        return found

    def _decoded(self, record: confluent_kafka.Message) -> dict[str, Any] | None:
        try:
            return self._codec.decode(record.value() or b"")
        except RecordError:  # nobody else may write here; its owner says so, loudly
            return None

    def _heard(self, place: Place, record: Mapping[str, Any], at: int) -> None:
        view = self.views[place]
        subject = (place, record["offset"])
        step = record["step"]
        if step is None or record["claim"] >= 0:
            known = self._steps.get(subject)
            if known is not None and record["claim"] == view.claim and (step is None or step["outcome"] != "answer"):
                known.owner_at = at
        entry = view.entries.get(record["offset"])
        if step is None or entry is None:
            return
        # What is void, or of what is over, is not among its steps.
        first = next((first for first, now in reversed(entry.steps or ()) if now == at), None)
        if first is None:
            return
        identity = (step["name"], step["number"])
        if (kind := _BEGINNINGS.get(step["outcome"])) is not None:
            begun = self._steps.setdefault(subject, _Steps()).begun
            if (earlier := begun.get(identity)) is not None and earlier.first == first:
                earlier.place = at
            else:
                begun[identity] = _Begun(at, first, kind, step["about"], step["due"], record["at"])
            return
        steps = self._steps.get(subject)
        wait = None if steps is None else steps.begun.get(identity)
        if wait is not None and wait.end is None:
            wait.end = _decided(step, record["at"], at)._replace(agent=place.agent, what=wait.about)

    def _of(self, place: Place, entry: Entry, held: int) -> list[Pending]:
        """What the handler of *entry* waits for."""
        steps = self._steps.get((place, entry.offset))
        begun = {} if steps is None else steps.begun

        def pending(kind: Kind, name: str, number: int, about: str, since: int, due: int, suspended: bool) -> Pending:
            return Pending(
                *place,
                entry.offset,
                entry.conversation_id,
                entry.message_id,
                kind,
                name,
                number,
                about,
                since,
                due,
                suspended,
                held,
            )

        if entry.state == "waiting" and not entry.ready:
            found: list[Pending] = []
            for wait in entry.waits:
                if wait.kind not in KINDS:  # the deadline of its message
                    continue
                known = begun.get((wait.name, wait.number))
                since = entry.since if known is None else known.at
                found.append(pending(wait.kind, wait.name, wait.number, wait.about, since, wait.due, True))
            return found
        if entry.state not in _RUNNING or (entry.state == "parked" and not entry.wish):
            return []
        there = {now for _, now in entry.steps or ()}
        return [
            pending(wait.kind, name, number, wait.about, wait.at, wait.due, False)
            for (name, number), wait in begun.items()
            if wait.end is None and wait.place in there
        ]

    def _begun(self, pending: Pending) -> _Begun | None:
        steps = self._steps.get((pending.place, pending.offset))
        return None if steps is None else steps.begun.get((pending.name, pending.number))


def _decided(step: Mapping[str, Any], at: int, place: int) -> Decided:
    return Decided(step["outcome"], *decided_by(step), at, place, step=step["number"] + 1)
