"""Journals as a bystander reads them: what is open in inbox partitions that other workers own, and who asked for what.

It claims nothing and joins nothing. A partition is read from where its owner's last commit says that a next owner
would begin, so that it costs what is open, not what ever was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import confluent_kafka

from llmagentos.streams.admin import Admin
from llmagentos.streams.errors import RecordError
from llmagentos.streams.gate import decode_finished, decode_note
from llmagentos.streams.journal import Note, View
from llmagentos.streams.journal_record import COMMANDS, DECISIONS
from llmagentos.streams.position import END, Position
from llmagentos.streams.settings import Settings
from llmagentos.streams.spans import Spans
from llmagentos.streams.tail import Log
from llmagentos.streams.wire import Codec

__all__ = ["COMMAND", "Mark", "Place", "Served", "Views"]

#: The Kafka header of a command, so that commands are found among a journal's other records without decoding those.
COMMAND: Final = "command"


class Place(NamedTuple):
    """An inbox partition of an agent, and the journal partition of the same number."""

    agent: str
    partition: int


@dataclass(frozen=True, slots=True)
class Served:
    """What the agent's card says: the consumer group that serves it, and the topic that it reads.

    Attributes:
        group: empty: none did as yet.
    """

    group: str
    topic: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A command about a message that is not parked: it was sent to its inbox again, or given up.

    Attributes:
        at: milliseconds since the epoch.
    """

    kind: str
    writer: str
    at: int


class Views:
    """The views of some journal partitions. Blocks; one thread at a time.

    Args:
        served: by agent's name; of one that isn't there, the journal is read from its beginning.
        heard: told of each record and its offset, when its view has taken it in.

    Attributes:
        marks: by inbox place and offset.
    """

    def __init__(
        self,
        settings: Settings,
        codec: Codec,
        served: Mapping[str, Served],
        heard: Callable[[Place, Mapping[str, Any], int], None] | None = None,
    ) -> None:
        self._heard = heard
        self._settings = settings
        self._codec = codec
        self._served = served
        self._spans = Spans(settings, name="views")
        self._views: dict[Place, View] = {}
        self._read_to: dict[Place, int] = {}
        self._noted: dict[Place, Note] = {}
        self.marks: dict[tuple[Place, int], Mark] = {}

    def __getitem__(self, place: Place) -> View:
        """What is open there; nothing, where the agent has no journal."""
        return self._views.get(place) or View()

    def __contains__(self, place: Place) -> bool:
        """Whether it is read."""
        return place in self._views

    def note(self, place: Place) -> Note:
        """What its owner's last commit said, when it was added."""
        return self._noted.get(place, Note())

    @property
    def spans(self) -> Spans:
        """The reader, for other stretches."""
        return self._spans

    def add(self, places: Iterable[Place], since_ms: int, log: Log) -> None:
        """Read these places too, at the next :meth:`refresh`.

        Args:
            since_ms: the time, milliseconds since the epoch, from which on marks are wanted.
            log: looks up offsets by time.

        Raises:
            BrokerError: the cluster does not answer.
        """
        there = log.topics()
        wanted = [place for place in places if place.partition < there.get(self.topic(place.agent), 0)]
        commits = self.commits({place.agent for place in wanted})
        where = [(self.topic(place.agent), place.partition) for place in wanted]
        for place, span in zip(wanted, log.spans(where, Position("time", since_ms), END), strict=True):
            _, metadata = commits[place.agent].get(place.partition, (0, ""))
            note = self._noted[place] = Note.parse(decode_note(metadata))
            view = self._views[place] = View(max(span.low, note.low), note.claim)
            self._read_to[place] = min(span.start, view.position)

    def refresh(self) -> None:
        """Read on to what is the end now.

        Raises:
            BrokerError: the cluster does not answer.
        """
        spans: dict[tuple[str, int], tuple[int, int]] = {}
        places: dict[tuple[str, int], Place] = {}
        for place, at in self._read_to.items():
            where = (self.topic(place.agent), place.partition)
            end = self._spans.ends(*where)[1]
            if end > at:
                spans[where], places[where] = (at, end), place
        for batch in self._spans.read(spans):
            for record in batch:
                self._take(places[cast(str, record.topic()), cast(int, record.partition())], record)
        for where, place in places.items():
            self._read_to[place] = spans[where][1]

    def topic(self, agent: str) -> str:
        """The journal of *agent*."""
        return self._settings.topic(f"journal.{agent}")

    def inbox(self, agent: str) -> str:
        """What *agent* reads."""
        served = self._served.get(agent)
        return self._settings.topic(f"agent.{agent}") if served is None else served.topic

    def _take(self, place: Place, record: confluent_kafka.Message) -> None:
        at, view = cast(int, record.offset()), self._views[place]
        if at < view.position and not record.headers():
            return
        try:
            entry: dict[str, Any] = self._codec.decode(record.value() or b"")
        except RecordError:  # nobody else may write here; its owner says so, loudly
            return
        if at >= view.position:
            view.fold(entry, at)
            if self._heard is not None:
                self._heard(place, entry, at)
        if entry["kind"] in COMMANDS - DECISIONS - {"cancel"} and entry["refers"] < 0:
            self.marks[place, entry["offset"]] = Mark(entry["kind"], entry["writer"], entry["at"])

    def commits(self, agents: Iterable[str]) -> dict[str, dict[int, tuple[int, str]]]:
        """The last commits of these agents' inboxes: offset and metadata, by agent and partition.

        Raises:
            BrokerError: the cluster does not answer.
        """
        found: dict[str, dict[int, tuple[int, str]]] = {}
        of_group: dict[str, list[str]] = {}
        for agent in agents:
            found[agent] = {}
            if (served := self._served.get(agent)) is not None and served.group:
                of_group.setdefault(served.group, []).append(agent)
        for group, served_by_it in of_group.items():  # each is asked once
            agent_of = {self._served[agent].topic: agent for agent in served_by_it}
            for (topic, partition), commit in Admin(self._settings).commits(group, agent_of).items():
                found[agent_of[topic]][partition] = commit
        return found

    def finished(self, agent: str, offsets: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
        """Those (partition, offset) of its inbox that are handled, or in the journal."""
        commits = self.commits([agent])[agent]
        done: set[tuple[int, int]] = set()
        for partition, offset in offsets:
            committed, metadata = commits.get(partition, (0, ""))
            runs = decode_finished(committed, metadata)
            if offset < committed or any(first <= offset <= last for first, last in runs):
                done.add((partition, offset))
        return done

    def close(self) -> None:
        """Let the client go."""
        self._spans.close()
