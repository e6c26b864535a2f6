"""Faust's producer: the project's own (:mod:`llmagentos.streams.producer`) behind Faust's interface."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from faust.transport.producer import Producer as FaustProducer
from faust.transport.producer import ProducerBuffer
from faust.types import TP
from faust.types.tuples import FutureMessage, RecordMetadata
from mode import want_seconds

from llmagentos.streams.errors import LLMAgentOSError
from llmagentos.streams.partition import murmur2_partition
from llmagentos.streams.producer import Delivery
from llmagentos.streams.producer import Producer as Core
from llmagentos.streams.transport.topics import declare

__all__ = ["Producer", "Sent"]

#: Sends between two looks at the producer's bounds: a hundredth of them.
SENDS = 200


class Sent(Delivery):
    """A delivery that is told as Faust does: awaiting it gives a `RecordMetadata`."""

    __slots__ = ()

    def __await__(self) -> Any:
        place = yield from super().__await__()
        return RecordMetadata(
            topic=place.topic,
            partition=place.partition,
            topic_partition=TP(place.topic, place.partition),
            offset=place.offset,
            timestamp=None,
            timestamp_type=None,
        )


class _Buffer(ProducerBuffer):
    """Faust buffers what can't be sent without awaiting; librdkafka takes it at once, so nothing is ever in it."""

    def put(self, fut: FutureMessage) -> None:
        cast(Any, self.app).producer.send_soon(fut)

    async def wait_until_ebb(self) -> None:
        core = cast(Any, self.app).producer.core
        if core is not None:
            await core.ebb()

    @property
    def size(self) -> int:
        return 0


class Producer(FaustProducer):
    """Sends for the app.

    Attributes:
        core: the project's producer, to send past Faust with; None before the start.
        direct: whether topics may post to it at once: it runs, no sensor listens to sends, and sends are not kept
            until their cause is committed (stream_publish_on_commit).
        look_at: the value of `core.sent` from which on :meth:`make_room` is due before the next send.
    """

    core: Core | None = None
    direct = False
    look_at = 0

    def __init__(self, transport: Any, loop: Any = None, **kwargs: Any) -> None:
        super().__init__(transport, loop, **kwargs)
        self.transport: Any = transport
        self.buffer = _Buffer(loop=self.loop, beacon=self.beacon)
        self.buffer.app = self.app
        self._partitions: dict[str, int] = {}
        self._failure: LLMAgentOSError | None = None
        self._futures: set[asyncio.Future[Any]] = set()

    async def on_start(self) -> None:
        """Open the client."""
        await super().on_start()
        self.core = await Core(self.transport.settings, **self.transport.producer_properties()).start()
        self.direct = self.transport.quiet() and not cast(Any, self.app)._attachments.enabled

    async def on_stop(self) -> None:
        """Wait for what was sent, and close."""
        self.direct = False
        if self.core is not None:
            await self.core.stop()
            self.core = None

    async def make_room(self) -> None:
        """Wait while the producer is full; it is not looked at for the next :data:`SENDS` sends."""
        assert self.core is not None, "the producer runs"
        if self.core.full:
            await self.core.ebb()
        self.look_at = self.core.sent + SENDS

    def post(
        self, topic: str, key: Any, value: Any, partition: int | None, timestamp: float | None, headers: Any
    ) -> Sent:
        """Hand one record to librdkafka; await the result for its place.

        Raises:
            RecordTooLarge, TopicError, DeliveryError: it was not sent.
        """
        core = self.core
        assert core is not None, "the producer runs"
        if headers:
            headers = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        return core.post(
            topic,
            value,
            key,
            -1 if partition is None else partition,
            headers or None,
            0 if timestamp is None else int(timestamp * 1000),
            kind=Sent,
        )

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Any,
        *,
        transactional_id: str | None = None,
    ) -> Any:
        """Send; the result is a future of the record's `RecordMetadata`."""
        assert self.core is not None, "the producer runs"
        if self.core.full:
            await self.core.ebb()
        future = asyncio.ensure_future(_outcome(self.post(topic, key, value, partition, timestamp, headers)))
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    async def send_and_wait(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Any,
        *,
        transactional_id: str | None = None,
    ) -> RecordMetadata:
        """Send, and wait for the acknowledgement."""
        assert self.core is not None, "the producer runs"
        if self.core.full:
            await self.core.ebb()
        return await self.post(topic, key, value, partition, timestamp, headers)

    def send_soon(self, fut: FutureMessage) -> None:
        """Send now, from code that can't await, such as a table's `__setitem__`."""
        message = fut.message
        topic = message.channel.get_topic_name()
        sent = self.post(topic, message.key, message.value, message.partition, message.timestamp, message.headers)
        task = asyncio.ensure_future(_resolve(fut, sent))
        self._futures.add(task)
        task.add_done_callback(self._futures.discard)

    async def flush(self) -> None:
        """Wait until everything sent until now is acknowledged.

        Raises:
            DeliveryError: something was not, now or at any time before: whoever asks must know, and the core tells
                each failure once.
        """
        if self._failure is None and self.core is not None:
            try:
                await self.core.delivered()
            except LLMAgentOSError as error:
                self._failure = error
        if self._failure is not None:
            raise self._failure

    def key_partition(self, topic: str, key: bytes) -> TP:
        """The partition that Java's default partitioner, and ours, gives *key*."""
        count = self.app.consumer.topic_partitions(topic)
        if not count:
            raise LLMAgentOSError(f"topic {topic} is not known, so neither is the partition of a key in it")
        return TP(topic, murmur2_partition(key, count))

    async def create_topic(
        self,
        topic: str,
        partitions: int,
        replication: int,
        *,
        config: Mapping[str, Any] | None = None,
        timeout: Any = 1000.0,
        retention: Any = None,
        compacting: bool | None = None,
        deleting: bool | None = None,
        ensure_created: bool = False,
    ) -> None:
        """Create *topic* if it is missing.

        Raises:
            TopicError: it has another number of partitions.
        """
        settings = dict(config or {})
        policies = [name for name, wanted in (("compact", compacting), ("delete", deleting)) if wanted]
        if policies:
            settings["cleanup.policy"] = ",".join(policies)
        if retention:
            settings["retention.ms"] = int(want_seconds(retention) * 1000)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, declare, self.transport.settings, topic, partitions, replication, settings)

    def supports_headers(self) -> bool:
        """Kafka has had headers since 0.11."""
        return True


async def _outcome(sent: Sent) -> RecordMetadata:
    return await sent


async def _resolve(fut: FutureMessage, sent: Sent) -> None:
    try:
        result = await sent
    except LLMAgentOSError as error:
        if not fut.done():
            fut.set_exception(error)
            fut.exception()  # the commit tells of it; nobody need await this future
        return
    if not fut.done():
        fut.set_result(result)
    if fut.message.callback:
        fut.message.callback(fut)
