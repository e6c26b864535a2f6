"""Following partitions by hand: a consumer outside any group, which delivers what arrives.

Answers to questions, replies to clients and journals are read this way: who reads knows the partition, so nothing
has to be assigned, and nothing is committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Sequence

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from llmagentos.streams.endpoints import client_config
from llmagentos.streams.errors import BrokerError, TopicError
from llmagentos.streams.producer import librdkafka_log
from llmagentos.streams.settings import Settings
from llmagentos.streams.spans import wake, watermarks

__all__ = ["Follower"]

log = logging.getLogger(__name__)

#: Records handed over at once; more only adds latency to the first of them.
BATCH = 500

#: Batches handed to the loop and not taken: a long backlog must not pile up there.
AHEAD = 4

#: A poll that finds nothing returns after this, and looks whether it is to stop, or to follow more.
POLL_S = 0.05


class Follower:
    """Reads hand-assigned partitions in a thread, and delivers batches on the event loop.

    All calls to the consumer are made in that thread: confluent-kafka (2.16 at least) holds a lock during a poll that
    it gives to nobody else between one poll and the next, so that any call in another thread waits for ever. Offsets
    are therefore asked by a second client, which never polls.

    Args:
        deliver: called on the loop with records without error, in partition order; must not block.
        name: of the thread and the client id.
    """

    def __init__(
        self, settings: Settings, deliver: Callable[[Sequence[confluent_kafka.Message]], None], *, name: str
    ) -> None:
        self._deliver = deliver
        self._name = name
        self._config = client_config(
            settings,
            client_id=name,
            group_id=f"{settings.prefix}{name}",  # librdkafka wants one; nothing joins or commits
            enable_auto_commit=False,
            enable_auto_offset_store=False,
            auto_offset_reset="latest",
            fetch_wait_max_ms=100,
            fetch_queue_backoff_ms=5,
            allow_auto_create_topics=False,
        ) | {"logger": librdkafka_log}
        self._consumer = confluent_kafka.Consumer(self._config)
        self._offsets: confluent_kafka.Consumer | None = None
        self._asking = threading.Lock()
        self._changes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._followed: dict[tuple[str, int], asyncio.Task[int]] = {}
        self._placed: set[tuple[str, int]] = set()  # those of them that are being read
        self._stopping = threading.Event()
        self._ahead = threading.Semaphore(AHEAD)
        self._assigned = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._poll, name=name, daemon=True)
        self._thread.start()

    async def follow(
        self,
        topic: str,
        partition: int,
        start: int | None = None,
        *,
        starting: Callable[[int], None] = lambda offset: None,
    ) -> int:
        """Deliver what is in the partition from *start* on; a second call for it changes nothing.

        Args:
            start: an offset; None: the end, so that what is appended from now on is delivered.
            starting: told what this returns, before anything is delivered.

        Returns:
            The offset from which it is followed: *start*, or the nearest that the log has.

        Raises:
            TopicError: there is no such partition.
            BrokerError: the cluster does not answer.
        """
        place = (topic, partition)
        task = self._followed.get(place)
        if task is None:
            task = self._followed[place] = asyncio.create_task(self._begin(topic, partition, start, starting))
        try:
            return await asyncio.shield(task)
        except (TopicError, BrokerError):
            self._followed.pop(place, None)
            raise

    def unfollow(self, partitions: Iterable[tuple[str, int]]) -> None:
        """Deliver no more from *partitions*."""
        gone = [place for place in partitions if self._followed.pop(place, None) is not None and place in self._placed]
        if gone:
            self._placed.difference_update(gone)
            self._changes.put(lambda: self._consumer.incremental_unassign([TopicPartition(*place) for place in gone]))

    async def stop(self) -> None:
        """End the thread and close the consumer."""
        self._stopping.set()
        self._assigned.set()
        self._ahead.release()
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._consumer.close)
        if self._offsets is not None:
            await asyncio.to_thread(self._offsets.close)

    async def _begin(self, topic: str, partition: int, start: int | None, starting: Callable[[int], None]) -> int:
        low, end = await asyncio.to_thread(self._watermarks, topic, partition)
        at = end if start is None else max(low, min(start, end))
        if self._followed.get((topic, partition)) is not asyncio.current_task():
            return at  # given up meanwhile
        starting(at)
        self._placed.add((topic, partition))

        def assign() -> None:
            self._consumer.incremental_assign([TopicPartition(topic, partition, at)])
            wake(self._consumer, [(topic, partition)])

        self._changes.put(assign)
        self._assigned.set()
        return at

    def _watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        try:
            with self._asking:
                self._offsets = self._offsets or confluent_kafka.Consumer(self._config)
                return watermarks(self._offsets, topic, partition)
        except KafkaException as error:
            reason: KafkaError = error.args[0]
            if reason.code() in (
                KafkaError.UNKNOWN_TOPIC_OR_PART,
                KafkaError._UNKNOWN_PARTITION,
                KafkaError._UNKNOWN_TOPIC,
            ):
                raise TopicError(
                    f"{topic} has no partition {partition} to follow",
                    fix="deploy the agent whose topic it is; `llmagentos topics` lists what there is",
                ) from None
            raise BrokerError(
                f"could not follow {topic} partition {partition}: {reason.str()}", fix="see `llmagentos doctor`"
            ) from None

    def _poll(self) -> None:
        self._assigned.wait()  # a worker that asks nothing polls nothing
        while not self._stopping.is_set():
            self._change()
            # consume(n, t) waits t for n records; the first one must not wait for the others.
            first = self._consumer.poll(POLL_S)
            if first is None:
                continue
            records = [first, *self._consumer.consume(BATCH, 0)]
            good = [record for record in records if record.error() is None]
            for record in records:
                if (error := record.error()) is not None:
                    log.warning("%s: %s [%s]: %s", self._name, record.topic(), record.partition(), error.str())
            if good and not self._stopping.is_set():
                self._ahead.acquire()
                with contextlib.suppress(RuntimeError):  # the loop was closed between the check and here
                    self._loop.call_soon_threadsafe(self._take, good)

    def _take(self, records: Sequence[confluent_kafka.Message]) -> None:
        try:
            self._deliver(records)
        finally:
            self._ahead.release()

    def _change(self) -> None:
        """Follow and unfollow what was asked for since the last poll."""
        while True:
            try:
                change = self._changes.get_nowait()
            except queue.Empty:
                return
            try:
                change()
            except KafkaException as error:  # unassigning what has lost its topic, say
                log.warning("%s: %s", self._name, error)
