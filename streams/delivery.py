"""What became of sends: counted by the epoch, and told for one send to those who ask."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final, NamedTuple, cast

import confluent_kafka
from confluent_kafka import KafkaError

from llmagentos.streams.errors import LLMAgentOSError

__all__ = ["Delivery", "Epoch", "Place"]

#: Failures of one epoch that are kept whole; the others are counted.
KEPT_FAILURES: Final = 20

#: Waits until a future that it puts into the list is resolved.
Wait = Callable[[list[asyncio.Future[None]]], Awaitable[None]]


class Place(NamedTuple):
    """Where Kafka keeps a record.

    The offset is -1 where Kafka has it and does not say where: the record was sent again, as the first answer was lost
    with its broker, and the broker only says that it has it already (KIP-98, DUPLICATE_SEQUENCE_NUMBER).
    """

    topic: str
    partition: int
    offset: int


class Epoch:
    """The sends between two calls of `delivered`. `report` is librdkafka's callback for each of them."""

    __slots__ = ("acked", "acked_bytes", "explain", "failed", "failures", "first", "last", "reported")

    def __init__(self, first: int, explain: Callable[[KafkaError, str, bytes | None, int], LLMAgentOSError]) -> None:
        self.first = first  # sends before it
        self.last = -1  # sends until its end; -1 while it is open
        self.explain = explain
        self.acked = 0
        self.acked_bytes = 0
        self.failed = 0
        self.failures: list[LLMAgentOSError] = []
        self.reported = False

    def report(self, error: KafkaError | None, record: confluent_kafka.Message) -> None:
        self.acked += 1
        self.acked_bytes += len(record)
        if error is not None:
            self.fail(error, record)

    def fail(self, error: KafkaError, record: confluent_kafka.Message) -> LLMAgentOSError:
        self.failed += 1
        failure = self.explain(error, record.topic() or "", record.key(), len(record))  # pyright: ignore[reportArgumentType]
        if len(self.failures) < KEPT_FAILURES:
            self.failures.append(failure)
        return failure


class Delivery:
    """One send's outcome; await it to have it. No future exists until someone does.

    Awaiting gives its :class:`Place`, or raises :class:`DeliveryError`, :class:`RecordTooLarge`,
    :class:`TopicError` or :class:`AccessError`. A failure that nobody awaits is told by :meth:`Producer.delivered`.
    """

    __slots__ = ("_epoch", "_error", "_futures", "_wait", "acknowledged", "offset", "partition", "topic")

    def __init__(self, epoch: Epoch, topic: str, wait: Wait) -> None:
        self._wait = wait
        self._epoch = epoch
        self._error: LLMAgentOSError | None = None
        self._futures: list[asyncio.Future[None]] | None = None
        self.acknowledged = False  # whether Kafka has it
        self.topic = topic
        self.partition: int = -1
        self.offset: int = -1

    def __call__(self, error: KafkaError | None, record: confluent_kafka.Message) -> None:
        """Librdkafka's delivery report."""
        epoch = self._epoch
        epoch.acked += 1
        epoch.acked_bytes += len(record)
        if error is None:
            self.acknowledged = True
            self.partition = cast(int, record.partition())  # None only before the delivery
            offset = record.offset()
            self.offset = -1 if offset is None else offset  # see Place
        else:
            self._error = epoch.fail(error, record)
        if self._futures is not None:
            for future in self._futures:
                if not future.done():
                    future.set_result(None)

    @property
    def done(self) -> bool:
        """Whether the outcome is known."""
        return self.acknowledged or self._error is not None

    def __await__(self) -> Generator[Any, None, Place]:
        if not self.done:
            if self._futures is None:
                self._futures = []
            yield from self._wait(self._futures).__await__()
        if self._error is not None:
            raise self._error
        return Place(self.topic, self.partition, self.offset)
