"""What a test sees of its agents from outside: topics and committed offsets, never the engine's own counters."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import confluent_kafka
from confluent_kafka import KafkaException, TopicPartition

from llmagentos.streams.admin import translate
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.position import BEGINNING, END
from llmagentos.streams.producer import librdkafka_log
from llmagentos.streams.settings import Settings
from llmagentos.streams.tail import Log

__all__ = ["Backlog", "Reader", "Record"]

#: The node is on this machine: it answers within milliseconds, or something is badly wrong.
ANSWER_S = 10.0

#: How often to look whether all is handled; one look is two requests.
LOOK_S = 0.01


@dataclass(frozen=True, slots=True)
class Record:
    """A plain record of any topic."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes | None]


@dataclass(frozen=True, slots=True)
class Backlog:
    """A partition whose messages are not all handled: those from *first* on, *count* offsets of them."""

    topic: str
    partition: int
    first: int
    count: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}] from offset {self.first} on ({self.count})"


class Reader:
    """Reads topics, blocking: call it through ``asyncio.to_thread``. Thread-safe.

    Args:
        group: whose committed offsets it looks at.
    """

    def __init__(self, settings: Settings, group: str) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._log = Log(settings)
        self._commits = confluent_kafka.Consumer(
            client_config(settings, group_id=group, enable_auto_commit=False) | {"logger": librdkafka_log}
        )
        self._partitions: dict[str, int] = {}
        self._closed = False

    def close(self) -> None:
        """Let its clients go; a wait that goes on in another thread ends."""
        self._closed = True
        with self._lock:
            self._commits.close()
            self._log.__exit__()

    def read(self, topics: Iterable[str]) -> list[confluent_kafka.Message]:
        """All that *topics* hold, by time; the order inside a partition is that of its offsets."""
        with self._lock:
            spans = self._log.spans(self._places(topics), BEGINNING, END)
            return [record for record in self._log.read(spans) if record is not None]

    def settle(self, topics: Iterable[str], timeout: float) -> list[Backlog]:
        """Wait until every record of *topics* is handled: its offset is below the committed one.

        Returns:
            What is not, when *timeout* seconds are over.
        """
        until = time.monotonic() + timeout
        while not self._closed:
            # Commits first: what was sent before a commit is in its topic then, so nothing can hide between the two.
            with self._lock:
                places = self._places(topics)
                committed = self._committed(places)
                spans = self._log.spans(places, BEGINNING, END)
            left = [
                Backlog(*span.place, first, span.stop - first)
                for span in spans
                if (first := max(committed[span.place], span.low)) < span.stop
            ]
            if not left or time.monotonic() > until:
                return left
            time.sleep(LOOK_S)
        return []

    def _committed(self, places: list[tuple[str, int]]) -> dict[tuple[str, int], int]:
        try:
            found = self._commits.committed([TopicPartition(*place) for place in places], timeout=ANSWER_S)
        except KafkaException as error:
            raise translate(error.args[0], self._settings, "read committed offsets") from error
        return {(tp.topic, tp.partition): tp.offset for tp in found}  # below zero: nothing is committed

    def _places(self, topics: Iterable[str]) -> list[tuple[str, int]]:
        names = list(topics)
        for name in names:
            if name not in self._partitions:
                found: Any = self._commits.list_topics(name, timeout=ANSWER_S).topics[name]
                if found.error is None:
                    self._partitions[name] = len(found.partitions)
        return [(name, number) for name in names for number in range(self._partitions.get(name, 0))]


def plain(record: confluent_kafka.Message) -> Record:
    """*record* as people look at it."""
    headers = {name: value.encode() if isinstance(value, str) else value for name, value in record.headers() or ()}
    return Record(
        cast(str, record.topic()),
        cast(int, record.partition()),
        cast(int, record.offset()),
        record.key(),
        record.value(),
        headers,
    )
