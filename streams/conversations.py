"""Conversations across all topics: one as a dialogue, found in just the partitions that can hold it, or the recent."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

from confluent_kafka import Message as KafkaMessage

from llmagentos.streams.entries import Decoder, Entry, text
from llmagentos.streams.errors import InputError
from llmagentos.streams.partition import murmur2_partition
from llmagentos.streams.position import END, Position
from llmagentos.streams.settings import Settings
from llmagentos.streams.tail import Log, Span

__all__ = ["Conversation", "Tree", "kinds", "recent"]

#: Kinds of topics that hold messages of conversations; keyed by conversation but for the answers.
_KEYED = ("agent.", "dead.")
_ANSWERS = "answers."
_REPLIES = "replies"
_JOURNALS = "journal."

#: A whole tree is held until its last partition is read, to be shown in time order.
TREE_RECORDS = 200_000

#: Conversations of which a summary is held, the latest; more than anyone lists.
RECENT = 10_000

Place = tuple[str, int]


def kinds(settings: Settings, topics: Iterable[str], *, journals: bool = False) -> list[str]:
    """Those of *topics* that hold messages of conversations; with *journals*, what was done about them too."""
    starts = tuple(settings.topic(kind) for kind in (*_KEYED, _ANSWERS, *([_JOURNALS] if journals else ())))
    return [topic for topic in topics if topic.startswith(starts) or topic == settings.topic(_REPLIES)]


class Tree:
    """One conversation with those that came of it: `C/1` and the like, and others that have it as their root.

    What can hold its records: of topics keyed by conversation, the partition of its key; of `answers.NAME` (keyed by
    question), the partition in whose inbox the asker met it, which is its key's too; and what a question's `reply_to`
    names. Those answers tell of the conversations that came of it. The next child, whose question may have no answer
    yet, is looked for by its name wherever agents ask at all.

    Args:
        partitions: of every topic that may hold it.
    """

    def __init__(self, settings: Settings, conversation: str, partitions: Mapping[str, int]) -> None:
        self.conversation = conversation
        self._answers = settings.topic(_ANSWERS)
        self._journals = settings.topic(_JOURNALS)
        self._inboxes = settings.topic("agent.")
        self._root = conversation.encode()
        self._below = conversation + "/"
        self._partitions: dict[str, int] = {}
        self._keys: set[bytes] = set()
        self._children = 0  # the highest number of a child that was met
        self._places: dict[Place, set[bytes]] = {}
        self.learn(conversation)
        self.grow(partitions)

    def learn(self, name: str) -> None:
        """A conversation of the tree: where it can lie is to be read too."""
        if name.encode() in self._keys:
            return
        self._keys.add(name.encode())
        self._locate(name, self._partitions)
        number = name.removeprefix(self._below)
        if name.startswith(self._below) and number.isdecimal() and int(number) > self._children:
            self._children = int(number)
            self._probe(self._partitions)

    def grow(self, partitions: Mapping[str, int]) -> None:
        """Topics that may hold it; those known already count no more."""
        new = {topic: count for topic, count in partitions.items() if topic not in self._partitions}
        self._partitions |= new
        for key in self._keys:
            self._locate(key.decode(), new)
        self._probe(new)

    def places(self) -> dict[Place, frozenset[bytes]]:
        """Each (topic, partition) that can hold a part, as far as is known, with what is looked for there."""
        return {place: frozenset(keys) for place, keys in self._places.items()}

    def keep(self, record: KafkaMessage) -> bool:
        """Whether *record* may be a part: by its key, or by its bytes where it is keyed by question."""
        key = record.key()
        if key is not None and (key in self._keys or key.startswith(self._below.encode())):
            return True
        if not cast(str, record.topic()).startswith(self._answers):
            return False
        value = record.value()
        return value is not None and self._root in value  # root_conversation holds it as it is

    def belongs(self, entry: Entry) -> bool:
        """Whether *entry* is a part; the tree learns from it where the others are."""
        message = entry.message
        if message is None:
            return entry.key is not None and self._mine(text(entry.key))
        name = message.conversation_id
        if not self._mine(name) and message.root_conversation != self.conversation:
            return False
        self.learn(name)
        if message.reply_to is not None and message.reply_to[0] in self._partitions:
            self._places.setdefault(message.reply_to, set()).add(self._root)
        return True

    def _mine(self, name: str) -> bool:
        return name.startswith(self._below) or name.encode() in self._keys

    def _locate(self, name: str, partitions: Mapping[str, int]) -> None:
        """The places of *name*. One that was read is read again only for a name that the first pass could not know."""
        key = name.encode()
        for topic, count in partitions.items():
            known = name == self.conversation or name.startswith(self._below) or topic.startswith(self._answers)
            for partition in self._at(topic, key, count):
                self._places.setdefault((topic, partition), set()).add(self._root if known else key)

    def _at(self, topic: str, key: bytes, count: int) -> Iterable[int]:
        """Where in *topic* records of *key* are: of an agent over a topic of others anywhere in its journal."""
        foreign = self._inboxes + topic.removeprefix(self._journals) not in self._partitions
        if topic.startswith(self._journals) and foreign:
            return range(count)
        return (murmur2_partition(key, count),)

    def _probe(self, partitions: Mapping[str, int]) -> None:
        if any(topic.startswith(self._answers) for topic in self._partitions):
            inboxes = {topic: count for topic, count in partitions.items() if not topic.startswith(self._answers)}
            self._locate(f"{self._below}{self._children + 1}", inboxes)

    def read(self, log: Log, decoder: Decoder, start: Position, stop: Position) -> list[Entry]:
        """All of it between two positions, in time order.

        Raises:
            InputError: it is too large to be sorted in memory.
        """
        read: dict[Place, frozenset[bytes]] = {}
        found: dict[tuple[str, int, int], Entry] = {}
        while places := {p: keys for p, keys in self.places().items() if not keys <= read.get(p, frozenset())}:
            read |= places
            for record in log.read(log.spans(places, start, stop), self.keep):
                assert record is not None
                entry = decoder.entry(record)
                if self.belongs(entry):
                    found[entry.topic, entry.partition, entry.offset] = entry
                if len(found) > TREE_RECORDS:
                    raise InputError(
                        f"conversation {self.conversation} and what came of it are over {TREE_RECORDS:,} records",
                        fix="narrow it with --from and --to, or name a topic: that is read as a stream",
                    )
        return _in_order(found.values())

    def follow(self, log: Log, decoder: Decoder, start: Position, *, journals: bool = False) -> Iterator[Entry | None]:
        """All of it from *start*, for ever; yields None now and then while nothing comes.

        Args:
            journals: of agents whose topics come into being meanwhile, read their journals too.
        """
        following: set[Place] = set()

        def grow() -> list[Span]:
            if topics := log.look():
                self.grow({topic: topics[topic] for topic in kinds(log.settings, topics, journals=journals)})
            new = [place for place in self._places if place not in following]
            following.update(new)
            return log.spans(new, start, END)

        for record in log.read(grow(), self.keep, follow=True, grow=grow):
            entry = None if record is None else decoder.entry(record)
            if entry is None or self.belongs(entry):
                yield entry


def _in_order(entries: Iterable[Entry]) -> list[Entry]:
    """By time, with the order inside each partition kept (as :class:`~llmagentos.streams.merge.Merge` does)."""
    latest: dict[Place, int] = {}
    timed: list[tuple[int, str, int, int, Entry]] = []
    for entry in sorted(entries, key=lambda e: e.offset):
        place = (entry.topic, entry.partition)
        latest[place] = max(latest.get(place, entry.timestamp), entry.timestamp)
        timed.append((latest[place], *place, entry.offset, entry))
    return [entry for *_, entry in sorted(timed, key=lambda item: item[:4])]


@dataclass(slots=True)
class Conversation:
    """A conversation in short, with all that came of it.

    Attributes:
        first, last: timestamps of its first and last record, milliseconds since the epoch.
        agents: who took part, in the order of their first message.
        state: what the last record says: who is waited for, or how it ended.
    """

    conversation: str
    first: int
    last: int = 0
    messages: int = 0
    agents: list[str] = field(default_factory=list[str])
    state: str = ""

    def add(self, entry: Entry, settings: Settings) -> None:
        """The next record of it, in time order."""
        self.last = max(self.last, entry.timestamp)
        kind, _, agent = entry.topic.removeprefix(settings.prefix).partition(".")
        message = entry.message
        if entry.is_dead_letter and entry.record is not None:
            self.state = f"dead letter of {entry.record['agent']}"
            return
        self.messages += 1
        who = (agent if kind == "agent" else "", message.sender if message is not None and kind != "agent" else "")
        self.agents += [name for name in who if name and name not in self.agents]
        if message is None:
            self.state = "undecodable"
        elif kind in ("agent", "answers"):
            self.state = f"waiting for {agent}"
        elif message.type == "token":
            self.state = f"answer of {message.sender}"
        else:
            self.state = "failed" if message.type == "error" else "answered"


def recent(log: Log, decoder: Decoder, start: Position, stop: Position = END) -> list[Conversation]:
    """The conversations with records between two positions, the latest first; at most :data:`RECENT`."""
    topics = log.topics()
    places = [(topic, partition) for topic in kinds(log.settings, topics) for partition in range(topics[topic])]
    found: OrderedDict[str, Conversation] = OrderedDict()
    for record in log.read(log.spans(places, start, stop)):
        assert record is not None
        entry = decoder.entry(record)
        name = entry.message.root_conversation if entry.message is not None else entry.conversation
        conversation = found.get(name) or Conversation(name, entry.timestamp)
        found[name] = conversation
        found.move_to_end(name)
        conversation.add(entry, log.settings)
        if len(found) > RECENT:
            found.popitem(last=False)
    return list(reversed(found.values()))
