"""Reading exact stretches of partitions: from one offset to below another, by hand, outside any group.

Blocking: from a coroutine, call it through ``asyncio.to_thread``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import cast

import confluent_kafka
from confluent_kafka import KafkaException, TopicPartition

from llmagentos.streams.admin import ASK_AGAIN_S, NEW_LEADER
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.errors import BrokerError
from llmagentos.streams.producer import librdkafka_log
from llmagentos.streams.settings import Settings

__all__ = ["Spans", "wake", "watermarks"]

#: Records taken at once; as in the poll thread.
BATCH = 1_000
#: Reading that gets nothing for so long, with more to come, is an error: a new leader is elected within 10 s.
STALLED_S = 30.0
#: A healthy cluster answers a request for offsets within milliseconds; one that elects leaders, in seconds.
ANSWER_S = 10.0
#: Picked offsets that lie further apart than this are sought for rather than read up to: a seek costs a round trip
#: and throws away what was fetched, in which time some 10,000 small records are read.
SEEK_OVER = 5_000
#: Seconds to wait for the answer to a request that is only to wake librdkafka: many times what it takes.
WAKE_S = 0.2


class Spans:
    """One client that reads stretches. Thread-safe: one reading at a time, others wait.

    Args:
        name: of the client.
    """

    def __init__(self, settings: Settings, *, name: str) -> None:
        self._lock = threading.Lock()
        self._consumer = confluent_kafka.Consumer(
            client_config(
                settings,
                client_id=name,
                group_id=f"{settings.prefix}{name}",  # librdkafka wants one; nothing joins or commits
                enable_auto_commit=False,
                enable_auto_offset_store=False,
                auto_offset_reset="earliest",
                fetch_wait_max_ms=10,  # else the broker holds a fetch at the end back for half a second
                fetch_queue_backoff_ms=5,
                allow_auto_create_topics=False,
            )
            | {"logger": librdkafka_log}
        )

    def ends(self, topic: str, partition: int) -> tuple[int, int]:
        """The first offset that is kept, and the one that comes next.

        Raises:
            BrokerError: the cluster does not answer, or there is no such partition.
        """
        try:
            with self._lock:
                return watermarks(self._consumer, topic, partition)
        except KafkaException as error:
            raise _trouble(f"{topic}[{partition}]", error) from error

    def read(self, spans: Mapping[tuple[str, int], tuple[int, int]]) -> Iterator[Sequence[confluent_kafka.Message]]:
        """The records of *spans*, (topic, partition) to (first offset, offset to stop below), in batches.

        Ascending within a partition. What retention has taken is left out.

        Raises:
            BrokerError: the cluster does not answer.
        """
        open_ = {place: span for place, span in spans.items() if span[1] > span[0]}
        if not open_:
            return
        with self._lock:
            consumer = self._consumer
            consumer.incremental_assign([TopicPartition(*place, span[0]) for place, span in open_.items()])
            wake(consumer, open_)
            moved_s = time.monotonic()
            try:
                while open_:
                    batch = self._batch()
                    if batch:
                        moved_s = time.monotonic()
                        yield [record for record in batch if _within(record, spans)]
                    elif time.monotonic() - moved_s > STALLED_S:
                        topic, partition = next(iter(open_))
                        raise BrokerError(
                            f"{topic}[{partition}] gave no record for {STALLED_S:.0f} s",
                            fix="see whether all brokers run: `llmagentos status`",
                        )
                    for tp in consumer.position([TopicPartition(*place) for place in open_]):
                        place = (tp.topic, tp.partition)
                        if tp.offset >= open_[place][1]:
                            del open_[place]
                            consumer.incremental_unassign([TopicPartition(*place)])
            except KafkaException as error:
                raise _trouble(", ".join(f"{topic}[{number}]" for topic, number in open_), error) from error
            finally:
                consumer.unassign()

    def whole(self, topic: str) -> Iterator[Sequence[confluent_kafka.Message]]:
        """Everything that is in *topic* now, in batches; nothing where there is no such topic.

        Raises:
            BrokerError: the cluster does not answer.
        """
        try:
            with self._lock:
                found = self._consumer.list_topics(topic, timeout=ANSWER_S).topics[topic]
        except KafkaException as error:
            raise _trouble(topic, error) from error
        if found.error is None:
            yield from self.read({(topic, partition): self.ends(topic, partition) for partition in found.partitions})

    def pick(self, topic: str, partition: int, offsets: Iterable[int]) -> dict[int, confluent_kafka.Message]:
        """The records at *offsets*; what is gone is left out.

        Raises:
            BrokerError: the cluster does not answer.
        """
        wanted = set(offsets)
        found: dict[int, confluent_kafka.Message] = {}
        for first, last in _runs(sorted(wanted)):
            for batch in self.read({(topic, partition): (first, last + 1)}):
                found |= {cast(int, record.offset()): record for record in batch if record.offset() in wanted}
        return found

    def close(self) -> None:
        """Let the client go."""
        with self._lock:
            self._consumer.close()

    def _batch(self) -> list[confluent_kafka.Message]:
        first = self._consumer.poll(0.05)
        if first is None:
            return []
        batch = [first, *self._consumer.consume(BATCH - 1, 0)]
        for record in batch:
            if (error := record.error()) is not None and not error.retriable():
                raise KafkaException(error)
        return [record for record in batch if record.error() is None]


def watermarks(consumer: confluent_kafka.Consumer, topic: str, partition: int) -> tuple[int, int]:
    """The first offset that the partition keeps, and the one that comes next; asked again while it has no leader.

    Raises:
        KafkaException: Kafka refuses, or has no leader for it within ANSWER_S.
    """
    deadline = time.monotonic() + ANSWER_S
    while True:
        try:
            return consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=ANSWER_S)
        except KafkaException as error:
            passing = error.args[0].retriable() or error.args[0].code() in NEW_LEADER
            if not passing or time.monotonic() > deadline:
                raise
            time.sleep(ASK_AGAIN_S)


def wake(consumer: confluent_kafka.Consumer, places: Iterable[tuple[str, int]], wait_s: float = WAKE_S) -> None:
    """Have librdkafka fetch *places*, which were assigned or resumed, now.

    Its thread for a broker sleeps for up to a second when it has nothing to fetch, and neither wakes it (measured: 0.5
    to 1.0 s to the first record); any request to that broker does (6 ms).

    Args:
        wait_s: how long to wait for the answer, which nobody needs: where the leaders are known, the request is on its
            way at once.
    """
    with suppress(KafkaException):
        consumer.offsets_for_times([TopicPartition(*place, 0) for place in places], timeout=wait_s)


def _within(record: confluent_kafka.Message, spans: Mapping[tuple[str, int], tuple[int, int]]) -> bool:
    return cast(int, record.offset()) < spans[cast(str, record.topic()), cast(int, record.partition())][1]


def _runs(offsets: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, last) of stretches of *offsets* that are read in one go."""
    if not offsets:
        return
    first = offsets[0]
    for before, after in pairwise(offsets):
        if after - before > SEEK_OVER:
            yield first, before
            first = after
    yield first, offsets[-1]


def _trouble(place: str, error: KafkaException) -> BrokerError:
    return BrokerError(f"{place} can't be read: {error.args[0].str()}", fix="see `llmagentos doctor`")
