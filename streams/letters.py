"""Dead letters for people: what agents could not handle, why, and what has become of it since.

`dead.NAME` keeps each letter whole; whether it is still to be dealt with stands in `journal.NAME`. A message whose
handler failed for good is *parked*: its conversation waits, later messages of it are held. One that could not be
handled for what it is (undecodable, invalid, expired) was *passed*: its conversation goes on without it.
"""

from __future__ import annotations

import difflib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

import confluent_kafka

from llmagentos.streams import unfinished
from llmagentos.streams.entries import Decoder, Entry
from llmagentos.streams.errors import InputError
from llmagentos.streams.partition import murmur2_partition
from llmagentos.streams.position import BEGINNING, END, Position
from llmagentos.streams.settings import Settings
from llmagentos.streams.tail import Log
from llmagentos.streams.views import Place, Views
from llmagentos.streams.where import Where
from llmagentos.streams.wire import Codec

__all__ = ["OPEN", "Group", "Letter", "Letters", "Selection", "State", "groups", "parse_id"]

State = Literal["parked", "passed", "redriving", "dropping", "settled"]

#: States of letters that wait for a person.
OPEN: Final = frozenset({"parked", "passed"})

#: Causes of letters whose message is parked; all others pass.
PARKS: Final = frozenset({"failed", "timeout", "changed-code"})

#: Of an error's text; the letter itself has all of it.
ERROR_MAX: Final = 300

_WISHED: Final[dict[str, State]] = {"": "parked", "redrive": "redriving", "discard": "dropping"}

_ID = re.compile(r"(?:dead\.)?(?P<agent>.+)/(?P<partition>\d+)/(?P<offset>\d+)")
_TYPE = re.compile(r"[A-Za-z_][\w.]*(?=:|$)")
_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.+)$', re.MULTILINE)


@dataclass(slots=True, eq=False)
class Letter:
    """One dead letter, without what it keeps: :meth:`Letters.entry` has that.

    Attributes:
        agent, partition, offset: where it lies: in `dead.AGENT`.
        topic, inbox_partition, inbox_offset: where its message was.
        reason: of the same reason are letters whose exceptions have one type and come from one line.
        state: parked, passed; redriving, dropping: asked for, and its owner hasn't done it yet; settled: over.
        by: who asked for that; empty: nobody, or it is long ago.
        held: messages that wait behind it.
        park: of a parked one, where the journal says so; -1 otherwise.
    """

    agent: str
    partition: int
    offset: int
    topic: str
    inbox_partition: int
    inbox_offset: int
    conversation_id: str
    message_id: str
    cause: str
    error: str
    reason: str
    attempts: int
    died_at: int
    state: State = "settled"
    by: str = ""
    held: int = 0
    park: int = -1

    @property
    def id(self) -> str:
        """As people name it: `dead.AGENT/partition/offset`; by its conversation, where the letter itself is gone."""
        if self.offset < 0:
            return f"(gone) --agent {self.agent} --conversation {self.conversation_id}"
        return f"dead.{self.agent}/{self.partition}/{self.offset}"

    @property
    def place(self) -> Place:
        """The inbox and journal partition that it is about."""
        return Place(self.agent, self.inbox_partition)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters are wanted; what is empty or None selects nothing out.

    Attributes:
        ids: (agent, partition, offset) of letters.
        since_ms: that died at that time, milliseconds since the epoch, or later.
    """

    agents: Sequence[str] = ()
    causes: Sequence[str] = ()
    conversation: str | None = None
    ids: Sequence[tuple[str, int, int]] = ()
    since_ms: int | None = None
    where: Where | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is selected out."""
        return self == Selection()


@dataclass(slots=True)
class Group:
    """Letters of one agent with one cause and reason.

    Attributes:
        first, last: by when they died.
        conversations: how many.
        held: messages that wait behind them.
    """

    first: Letter
    last: Letter
    letters: int = 0
    conversations: int = 0
    held: int = 0
    states: dict[str, int] = field(default_factory=dict[str, int])


def parse_id(text: str) -> tuple[str, int, int]:
    """(agent, partition, offset) of what a person named: `prices/3/17`, or with `dead.` before it.

    Raises:
        InputError: it is no such name.
    """
    found = _ID.fullmatch(text.strip())
    if found is None:
        raise InputError(
            f"{text!r} names no dead letter", fix="it is AGENT/PARTITION/OFFSET, as `llmagentos dead list --each` says"
        )
    return found["agent"], int(found["partition"]), int(found["offset"])


def groups(letters: Iterable[Letter]) -> list[Group]:
    """*letters* by agent, cause and reason, the largest group first."""
    found: dict[tuple[str, str, str], Group] = {}
    conversations: dict[tuple[str, str, str], set[str]] = {}
    for letter in letters:
        key = (letter.agent, letter.cause, letter.reason)
        group = found.get(key)
        if group is None:
            group = found[key] = Group(letter, letter)
            conversations[key] = set()
        group.first = min(group.first, letter, key=lambda one: one.died_at)
        group.last = max(group.last, letter, key=lambda one: one.died_at)
        group.letters += 1
        group.held += letter.held
        group.states[letter.state] = group.states.get(letter.state, 0) + 1
        conversations[key].add(letter.conversation_id)
    for key, group in found.items():
        group.conversations = len(conversations[key])
    return sorted(found.values(), key=lambda group: (-group.letters, group.first.id))


class Letters:
    """Reads dead letters, with their state. Use it as a context manager; it blocks, one thread at a time.

    Args:
        views: reads the journals.

    Raises:
        BrokerError, AccessError: the cluster is out of reach, or refuses; also by every method.
    """

    def __init__(self, settings: Settings, decoder: Decoder, views: Views, log: Log) -> None:
        self._settings = settings
        self._decoder = decoder
        self._log = log
        self.views = views
        self._stem = settings.topic("dead.")
        self._read_to: dict[tuple[str, int], int] = {}  # by agent and partition

    def read(
        self, selection: Selection, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Letter]:
        """The letters that are wanted, as they died; of settled ones too.

        Args:
            progress: told how many records were read, of how many.

        Raises:
            InputError: there is no agent, or no letter, of that name.
        """
        found: dict[tuple[Place, str, int], Letter] = {}  # the last letter of each message says how it stands
        letters: list[tuple[Letter, bool]] = []
        for entry in self._entries(selection, progress):
            letter = _letter(self._stem, entry)
            if letter is None:
                continue
            letters.append((letter, _wanted(letter, entry, selection)))
            found[letter.place, letter.topic, letter.inbox_offset] = letter
        wanted = [letter for letter, whether in letters if whether]
        self._look(wanted, {id(letter) for letter in found.values()})
        if Selection(agents=selection.agents, conversation=selection.conversation) == selection:
            wanted += self._without(selection, {(letter.place, letter.inbox_offset) for letter in found.values()})
        missing = set(selection.ids) - {(letter.agent, letter.partition, letter.offset) for letter in wanted}
        if missing:
            agent, partition, offset = min(missing)
            raise InputError(
                f"there is no dead letter {agent}/{partition}/{offset}" + _others(selection),
                fix=f"`llmagentos dead list --each --agent {agent} --all` shows what there is",
            )
        return wanted

    @property
    def codec(self) -> Codec:
        """What the letters are decoded with."""
        return self._decoder.codec

    def died_again(self, chosen: Sequence[Letter]) -> list[Letter]:
        """Letters of the same conversations that came since they were read, and wait."""
        agents = sorted({letter.agent for letter in chosen})
        since = dict(self._read_to)
        conversations = {(letter.agent, letter.conversation_id) for letter in chosen}
        return [
            letter
            for letter in self.read(Selection(agents=agents, since_ms=min(letter.died_at for letter in chosen)))
            if letter.state in OPEN
            and letter.offset >= since.get((letter.agent, letter.partition), 0)
            and (letter.agent, letter.conversation_id) in conversations
        ]

    def entry(self, letter: Letter) -> Entry:
        """The letter whole.

        Raises:
            InputError: retention has taken it.
        """
        topic = self._stem + letter.agent
        picked = {} if letter.offset < 0 else self.views.spans.pick(topic, letter.partition, [letter.offset])
        record = picked.get(letter.offset)
        if record is None:
            raise InputError(
                f"the dead letter of message {letter.message_id} is gone: {topic} does not keep it any more",
                kept="the message, where it is parked",
                fix=f"redrive or drop it: --agent {letter.agent} --conversation {letter.conversation_id}",
            )
        return self._decoder.entry(record)

    def originals(self, letters: Sequence[Letter]) -> dict[str, dict[str, Any]]:
        """What died, as it was read: key, value, headers and timestamp, by letter's id. What is gone is left out."""
        found: dict[str, dict[str, Any]] = {}
        elsewhere: dict[tuple[str, int], dict[int, str]] = {}
        by_partition: dict[tuple[str, int], list[Letter]] = {}
        for letter in letters:
            by_partition.setdefault((letter.agent, letter.partition), []).append(letter)
        for (agent, partition), some in by_partition.items():
            records = self.views.spans.pick(self._stem + agent, partition, [letter.offset for letter in some])
            for letter in some:
                record = records.get(letter.offset)
                fields = None if record is None else self._decoder.entry(record).record
                if fields is not None and fields["value"] is not None:
                    found[letter.id] = {name: fields[name] for name in ("key", "value", "headers", "timestamp")}
                else:  # it was too large for a letter, or never had a value
                    elsewhere.setdefault((letter.topic, letter.inbox_partition), {})[letter.inbox_offset] = letter.id
        for (topic, partition), wanted in elsewhere.items():
            low, end = self.views.spans.ends(topic, partition)
            there = [offset for offset in wanted if low <= offset < end]  # one that is not would be waited for
            for offset, record in self.views.spans.pick(topic, partition, there).items():
                found[wanted[offset]] = _kept(record)
        return found

    # -- reading

    def _entries(self, selection: Selection, progress: Callable[[int, int], None]) -> Iterator[Entry]:
        partitions = {t: n for t, n in self._log.topics().items() if t.startswith(self._stem)}
        start = BEGINNING if selection.since_ms is None else Position("time", selection.since_ms)
        places = self._places(selection, partitions)
        spans = self._log.spans(places, start, END)
        key = None if selection.conversation is None else selection.conversation.encode()
        self._read_to |= {(span.topic.removeprefix(self._stem), span.partition): span.stop for span in spans}
        total, done = sum(map(len, spans)), 0

        def keep(record: confluent_kafka.Message) -> bool:
            nonlocal done
            done += 1
            return key is None or record.key() == key

        for record in self._log.read(spans, keep):
            if record is not None:
                yield self._decoder.entry(record)
                progress(done, total)

    def _places(self, selection: Selection, partitions: dict[str, int]) -> list[tuple[str, int]]:
        """Where the wanted letters can lie. Those of one message lie in one partition, that of its conversation."""
        there = [topic.removeprefix(self._stem) for topic in partitions]
        for agent in {*selection.agents, *(agent for agent, _, _ in selection.ids)}:
            if agent not in there:
                close = difflib.get_close_matches(agent, there, 3)
                raise InputError(
                    f"there are no dead letters of an agent {agent!r}"
                    + (f"; close to it: {', '.join(close)}" if close else ""),
                    fix="`llmagentos agents` lists the agents",
                )
        if selection.ids:
            named = {(self._stem + agent, partition) for agent, partition, _ in selection.ids}
            return sorted(place for place in named if place[1] < partitions[place[0]])
        topics = [self._stem + agent for agent in (selection.agents or there)]
        if selection.conversation is None:
            return [(topic, partition) for topic in topics for partition in range(partitions[topic])]
        key = selection.conversation.encode()
        return [(topic, murmur2_partition(key, partitions[topic])) for topic in topics]

    def _look(self, letters: Sequence[Letter], current: set[int]) -> None:
        """How they stand, by the journals."""
        if not letters:
            return
        self.views.add({letter.place for letter in letters}, min(letter.died_at for letter in letters), self._log)
        self.views.refresh()
        for letter in letters:
            if id(letter) in current:
                self.judge(letter)

    def _without(self, selection: Selection, known: set[tuple[Place, int]]) -> list[Letter]:
        """Parked messages whose letters retention has taken: the journal keeps them for as long as they wait."""
        topics = self._log.topics()
        agents = selection.agents or [
            topic.removeprefix(self._stem) for topic in topics if topic.startswith(self._stem)
        ]
        places = [Place(agent, number) for agent in agents for number in range(topics.get(self.views.topic(agent), 0))]
        self.views.add([place for place in places if place not in self.views], time.time_ns() // 1_000_000, self._log)
        self.views.refresh()
        found: list[Letter] = []
        for place in places:
            for name, conversation in self.views[place].open.items():
                entry = conversation.first
                # One that was never copied is younger than its letter can be gone.
                if entry.state != "parked" or entry.at == entry.park or (place, entry.offset) in known:
                    continue
                if selection.conversation in (None, name):
                    found.append(self._orphan(place, name, entry))
        return found

    def _orphan(self, place: Place, conversation_id: str, entry: unfinished.Entry) -> Letter:
        letter = Letter(
            agent=place.agent,
            partition=-1,
            offset=-1,
            topic=self.views.inbox(place.agent),
            inbox_partition=place.partition,
            inbox_offset=entry.offset,
            conversation_id=conversation_id,
            message_id=entry.message_id,
            cause="failed",
            error=f"not known any more: its letter is gone from {self._stem}{place.agent}",
            reason="gone",
            attempts=0,
            died_at=entry.since,
        )
        self.judge(letter)
        return letter

    def judge(self, letter: Letter) -> None:
        """How the last letter of a message stands, by what is known of its journal."""
        view = self.views[letter.place]
        entry = view.entries.get(letter.inbox_offset)
        letter.held, letter.park = 0, -1
        if entry is not None and entry.state == "parked":
            letter.state = _WISHED[entry.wish]
            letter.held = len(view.open[entry.conversation_id]) - 1
            letter.park = entry.park
        elif letter.cause in PARKS:
            letter.state = "settled"
        else:
            mark = self.views.marks.get((letter.place, letter.inbox_offset))
            over = mark is not None and mark.at >= letter.died_at
            letter.state = "settled" if over else "passed"
            letter.by = mark.writer if mark is not None and over else ""


def _letter(stem: str, entry: Entry) -> Letter | None:
    fields = entry.record
    if not entry.is_dead_letter or fields is None:
        return None
    return Letter(
        agent=entry.topic.removeprefix(stem),
        partition=entry.partition,
        offset=entry.offset,
        topic=fields["topic"],
        inbox_partition=fields["partition"],
        inbox_offset=fields["offset"],
        conversation_id=fields["conversation_id"] or entry.conversation,
        message_id=fields["message_id"] or "",
        cause=sys.intern(fields["cause"]),
        error=fields["error"][:ERROR_MAX],
        reason=sys.intern(_reason(fields["error"], fields["traceback"])),
        attempts=fields["attempts"],
        died_at=fields["died_at"],
    )


def _reason(error: str, traceback: str) -> str:
    """The exception's type, and the line that raised it; empty where it was no exception of a handler."""
    if not traceback:
        return ""
    kind = _TYPE.match(error)
    frames = _FRAME.findall(traceback)
    return " ".join([kind[0] if kind else "", *(":".join(frames[-1]) if frames else "",)]).strip()


def _wanted(letter: Letter, entry: Entry, selection: Selection) -> bool:
    if selection.ids and (letter.agent, letter.partition, letter.offset) not in selection.ids:
        return False
    if selection.conversation is not None and letter.conversation_id != selection.conversation:
        return False
    if selection.causes and letter.cause not in selection.causes:
        return False
    return selection.where is None or selection.where.matches(entry.fields())


def _others(selection: Selection) -> str:
    alone = Selection(ids=selection.ids) == selection
    return "" if alone else " that the other options want too"


def _kept(record: confluent_kafka.Message) -> dict[str, Any]:
    headers = cast("list[tuple[str, Any]]", record.headers() or [])
    return {
        "key": record.key(),
        "value": record.value(),
        "headers": [{"name": name, "value": v.encode() if isinstance(v, str) else v} for name, v in headers],
        "timestamp": record.timestamp()[1],
    }
