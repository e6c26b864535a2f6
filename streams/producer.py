"""The producer: the one way into Kafka, for the API, the transport and the workers.

One librdkafka producer, idempotent with acks=all, that is polled from the event loop. Everything here belongs to
the thread of that loop; nothing is called from another one. (A thread of its own for the polls was tried: each
delivery report takes the interpreter's lock, which a busy loop holds for 5 ms at a time.)

Delivery is tracked in epochs: a callback counts the reports of one epoch, and :meth:`Producer.delivered` closes the
current epoch and waits for those before it. So waiting for "all until now" ends although sending goes on, which
librdkafka's own `flush` does not, and no send pays for a future. The callback is 0.3 us of a send; what it reads of
the report is its size.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from llmagentos.streams.admin import translate
from llmagentos.streams.delivery import Delivery, Epoch, Place
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.errors import (
    AccessError,
    DeliveryError,
    LLMAgentOSError,
    RecordError,
    RecordTooLarge,
    TopicError,
)
from llmagentos.streams.message import Message
from llmagentos.streams.settings import Settings

__all__ = ["MESSAGE_ID", "Delivery", "Encoder", "Place", "Producer"]

log = logging.getLogger(__name__)

#: Librdkafka's own log repeats with every reconnect what its error callback says: off, unless someone asks for it.
librdkafka_log = logging.getLogger(f"{__name__}.librdkafka")
librdkafka_log.setLevel(logging.CRITICAL + 1)

#: The Kafka header that carries a message's id, so that duplicates are seen without decoding.
MESSAGE_ID = "message-id"

#: Sends not yet acknowledged at which `full` becomes true: 50 ms at 400k/s (librdkafka's measured best here), fifty
#: times the linger, so that it never limits the rate; with their Python objects about 20 MB.
MAX_QUEUED = 20_000
#: The same in bytes: what two brokers take in some 100 ms over 10 GbE.
MAX_QUEUED_BYTES = 64 * 1024 * 1024
#: `ebb` waits until no more than this part of the bounds is used.
EBB = 0.75
#: Beyond this many times the bounds `produce` itself waits, as its caller does not ask `full`.
HARD = 4

#: Seconds between polls: while someone waits, while something is in flight (a few times the linger), and
#: else, for errors and token refreshes.
POLL_WAITING_S = 0.001
POLL_BUSY_S = 0.005
POLL_IDLE_S = 1.0

#: `send` lets other tasks run after this many sends that never had to wait.
FAIR_SENDS = 500

#: While a broker is away librdkafka complains twice a second; the same complaint is logged again after this.
SAY_AGAIN_S = 30.0

#: Errors that the client does not get over by trying again, while it has never sent anything.
_REFUSED = {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._SSL}


class Encoder(Protocol):
    """What :meth:`Producer.send` needs of the codec."""

    def encode(self, message: Message) -> bytes:
        """The record's value."""
        ...


D = TypeVar("D", bound=Delivery)


class Producer:
    """An idempotent producer with bounded memory. Use it with `async with`, or :meth:`start` and :meth:`stop`.

    All of it is called from the thread of the event loop it was started in.

    Args:
        settings: brokers, security, linger, delivery timeout and size limit.
        codec: encodes what :meth:`send` is given; the other methods need none.
        max_queued, max_queued_bytes: sends not yet acknowledged at which `full` is true and `send` waits.
        properties: further librdkafka properties, with `_` for `.`.

    Attributes:
        sent: how many sends there were; the value that :meth:`delivered` takes.
    """

    def __init__(
        self,
        settings: Settings,
        codec: Encoder | None = None,
        *,
        max_queued: int = MAX_QUEUED,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
        **properties: Any,
    ) -> None:
        self.settings = settings
        self.codec = codec
        self.sent = 0
        self.sent_bytes = 0
        self._max_queued = max_queued
        self._max_queued_bytes = max_queued_bytes
        self._properties = properties
        self._inbox = settings.topic("agent.")
        self._core: confluent_kafka.Producer | None = None
        self._produce: Callable[..., None] = _not_started
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._period_s = POLL_IDLE_S  # of the timer
        self._idle = False  # whether the next send must hurry the timer
        self._waiting = 0  # tasks that wait for a report
        self._waiters: list[asyncio.Future[None]] = []  # those that any report wakes
        self._epoch = Epoch(0, self._explain)
        self._open: deque[Epoch] = deque([self._epoch])  # oldest first, the current one last
        self._failed: list[Epoch] = []  # ended with failures that nobody was told
        self._settled = 0  # sends of epochs that left _open
        self._settled_bytes = 0
        self._look_at = 0  # `send` looks at the bounds again when `sent` is here
        self._look_at_bytes = 0
        self._said: dict[int, float] = {}  # error codes, and when they were logged
        self._trouble = ""  # the client's last complaint, for the text of a timeout
        self._refusal: KafkaError | None = None  # why the cluster lets this client send nothing

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Open the client. It connects in the background; a broker out of reach shows at the first delivery.

        Raises:
            BrokerError: no broker is configured and no local node runs.
            SettingsError: librdkafka refuses a property.
        """
        if self._core is None:
            self._loop = asyncio.get_running_loop()
            self._core = confluent_kafka.Producer(self._config())
            self._produce = self._core.produce
            self._schedule(POLL_IDLE_S)
        return self

    def _config(self) -> dict[str, Any]:
        settings = self.settings
        config = client_config(
            settings,
            acks="all",
            enable_idempotence=True,
            partitioner="murmur2_random",  # the Java client's: the same key goes to the same partition everywhere
            compression_type="lz4",
            linger_ms=settings.linger_ms,
            message_timeout_ms=int(settings.delivery_timeout_s * 1000),
            message_max_bytes=settings.max_message_bytes,
            queue_buffering_max_messages=self._max_queued * HARD,
            queue_buffering_max_kbytes=max(self._max_queued_bytes * HARD, settings.max_message_bytes * 2) // 1024,
            reconnect_backoff_max_ms=1_000,  # librdkafka's 10 s is long for a broker that restarts in 4 s
            topic_metadata_propagation_max_ms=10_000,  # until a topic that no broker knows is an error; default 30 s
        )
        config |= {"error_cb": self._complaint, "logger": librdkafka_log}
        return config | {name.replace("_", "."): value for name, value in self._properties.items()}

    async def stop(self) -> None:
        """Wait until everything sent is acknowledged or has failed (the delivery timeout at most), then close.

        Raises:
            DeliveryError: a send failed that :meth:`delivered` has not told of.
        """
        if self._core is None:
            return
        try:
            await self.delivered()
        finally:
            self._close()

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        core, self._core = self._core, None
        if core is not None:
            try:
                core.purge()  # empty after `delivered`; else its caller was cancelled and leaves them
                core.flush(1.0)
            except KafkaException as error:  # one that has failed for good says so again; its sends were told
                log.debug("closing: %s", error)
        self._produce, self._idle = _not_started, False

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.stop()
            return
        try:
            await self.stop()
        except LLMAgentOSError as failure:  # the error under way goes first; this one is not lost
            error.add_note(str(failure))

    # -- sending ------------------------------------------------------------------------------------------------

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int = -1,
        headers: Sequence[tuple[str, bytes | str | None]] | None = None,
        timestamp_ms: int = 0,
        report: Delivery | Callable[[Any, Any], None] | None = None,
    ) -> None:
        """Hand one record to librdkafka. Whether it was delivered, :meth:`delivered` tells.

        Does not wait while `full` is respected by the caller; a caller that goes on at four times the bounds is
        held here until there is room, and the event loop with it.

        Args:
            topic: the full name.
            partition: -1: by the key.
            timestamp_ms: 0: now.
            report: told of its delivery, and has to tell the epoch of it; None: the epoch itself.

        Raises:
            RecordTooLarge: it is over `max_message_bytes`. It was not sent.
            TopicError: the topic or partition is known not to exist. It was not sent.
            DeliveryError: the client has failed for good. It was not sent.
        """
        if report is None:
            report = self._epoch.report
        while True:
            try:
                if not headers:
                    self._produce(topic, value, key, partition, report, None, timestamp_ms)
                else:
                    # By position, as names cost time: `callback`, then its second name `on_delivery`.
                    self._produce(topic, value, key, partition, report, None, timestamp_ms, headers)
                break
            except BufferError:
                assert self._core is not None
                self._core.poll(POLL_BUSY_S)
            except KafkaException as error:
                size = len(value or b"") + len(key or b"")
                raise self._explain(error.args[0], topic, key, size) from error
        self.sent += 1
        if value is not None:
            self.sent_bytes += len(value)
        if self._idle:
            self._schedule(POLL_BUSY_S)

    def post(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int = -1,
        headers: Sequence[tuple[str, bytes | str | None]] | None = None,
        timestamp_ms: int = 0,
        *,
        kind: type[D],
    ) -> D:
        """As :meth:`produce`, with the outcome to await: 0.4 us more.

        Args:
            kind: the class of the outcome.
        """
        delivery = kind(self._epoch, topic, self._report_in)
        self.produce(topic, value, key, partition, headers, timestamp_ms, delivery)
        return delivery

    async def send(self, message: Message) -> Delivery:
        """Send *message* to its recipient's inbox, keyed by its conversation; waits while the producer is full.

        Returns:
            its outcome, to await or to leave.

        Raises:
            RecordError: it has no recipient, or does not fit its schema. RecordTooLarge, TopicError, DeliveryError
                as in :meth:`produce`.
        """
        if self.sent >= self._look_at or self.sent_bytes >= self._look_at_bytes:
            await self._make_room()
        if self.codec is None:
            raise DeliveryError("this producer has no codec", fix="give it one: Producer(settings, Codec(registry))")
        record = message.record
        if not record["recipient"]:
            raise RecordError(f"message {message.message_id} names no recipient", cause="invalid", fix="set `to`")
        topic = self._inbox + record["recipient"]
        delivery = Delivery(self._epoch, topic, self._report_in)
        self.produce(
            topic,
            self.codec.encode(message),
            record["conversation_id"].encode(),
            headers=[(MESSAGE_ID, record["message_id"])],
            report=delivery,
        )
        return delivery

    async def _make_room(self) -> None:
        self._poll()
        if self.full:
            await self.ebb()
        else:
            await asyncio.sleep(0)
        self._look_at = self.sent + min(FAIR_SENDS, max(1, self._max_queued - self.queued))
        self._look_at_bytes = self.sent_bytes + max(1, self._max_queued_bytes - self.queued_bytes)

    # -- in flight ----------------------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Sends whose outcome is not known."""
        return self.sent - self._settled - sum(epoch.acked for epoch in self._open)

    @property
    def queued_bytes(self) -> int:
        """Bytes of their values."""
        return self.sent_bytes - self._settled_bytes - sum(epoch.acked_bytes for epoch in self._open)

    @property
    def full(self) -> bool:
        """Whether one of the bounds is reached: then await :meth:`ebb` before sending more."""
        return self.queued >= self._max_queued or self.queued_bytes >= self._max_queued_bytes

    async def ebb(self) -> None:
        """Where the producer is full, wait until a quarter of it is free.

        At most for the delivery timeout, as sends then fail.
        """
        if self.full:
            while self.queued > self._max_queued * EBB or self.queued_bytes > self._max_queued_bytes * EBB:
                await self._report_in(self._waiters)

    async def delivered(self, upto: int | None = None) -> None:
        """Wait until every send up to *upto* (a value of `sent`; None: all until now) is acknowledged.

        Sends made meanwhile don't prolong it. Each failed send is told once, to all who wait for it at that time.

        Raises:
            DeliveryError: some failed: how many, and the topic, key and reason of the first, which is also the
                error's cause.
        """
        upto = self.sent if upto is None else upto
        if self._epoch.first < upto:
            self._epoch.last = self.sent
            self._epoch = Epoch(self.sent, self._explain)
            self._open.append(self._epoch)
        covered = [epoch for epoch in (*self._failed, *self._open) if epoch.first < upto]
        self._settle()
        while self._open[0].first < upto:
            await self._report_in(self._waiters)
            self._settle()
        failed = sum(epoch.failed for epoch in covered)
        if not failed:
            return
        for epoch in covered:
            epoch.reported = True
        self._failed = [epoch for epoch in self._failed if not epoch.reported]
        first = next(epoch.failures[0] for epoch in covered if epoch.failures)
        count = "" if failed == 1 else f" ({failed} sends failed; the first is told)"
        raise DeliveryError(f"{first.what}{count}", fix=first.fix, kept=first.kept) from first

    def _settle(self) -> None:
        """Let go of the epochs that are complete, oldest first."""
        while self._open[0].last == self._open[0].first + self._open[0].acked:
            epoch = self._open.popleft()
            self._settled += epoch.acked
            self._settled_bytes += epoch.acked_bytes
            if epoch.failed and not epoch.reported:
                self._failed.append(epoch)

    # -- polling ------------------------------------------------------------------------------------------------

    def _poll(self) -> int:
        return self._core.poll(0) if self._core is not None else 0

    def _tick(self) -> None:
        if self._poll():
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
        self._schedule(POLL_WAITING_S if self._waiting else POLL_BUSY_S if self.queued else POLL_IDLE_S)

    def _schedule(self, period_s: float) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._period_s = period_s
        self._idle = period_s == POLL_IDLE_S
        self._timer = self._loop.call_later(period_s, self._tick)

    async def _report_in(self, waiters: list[asyncio.Future[None]]) -> None:
        """Wait until a future put into *waiters* is resolved, polling often meanwhile."""
        if self._core is None or self._loop is None:
            raise DeliveryError("the producer is stopped, so this outcome will not become known")
        future = self._loop.create_future()
        waiters.append(future)
        self._waiting += 1
        if self._period_s != POLL_WAITING_S:
            self._schedule(POLL_WAITING_S)
        try:
            await future
        finally:
            self._waiting -= 1

    # -- errors -------------------------------------------------------------------------------------------------

    def _complaint(self, error: KafkaError) -> None:
        """Librdkafka's error callback. It goes on trying whatever the error, so most only explain a timeout."""
        now = time.monotonic()
        if now - self._said.get(error.code(), -SAY_AGAIN_S) >= SAY_AGAIN_S:
            self._said[error.code()] = now
            log.warning("Kafka: %s", error.str())
        self._trouble = error.str()
        if error.code() in _REFUSED and not (self._settled or self._epoch.acked) and self._core is not None:
            # Never accepted, so it won't be by waiting: what is queued fails now, not in two minutes.
            self._refusal = error
            self._core.purge(in_flight=False, blocking=False)

    def _explain(self, error: KafkaError, topic: str, key: bytes | None, size: int) -> LLMAgentOSError:
        """Why a send failed, for people."""
        place = f"send a record of {size:,} bytes to topic {topic}"
        if key:
            place += f", key {key.decode(errors='backslashreplace')}"
        code = error.code()
        kept = "Kafka has not acknowledged it; what was acknowledged before it is kept"
        if code == KafkaError.MSG_SIZE_TOO_LARGE:
            return RecordTooLarge(
                f"can't {place}: the limit is {self.settings.max_message_bytes:,} bytes (setting max_message_bytes),"
                " or less where the topic's max.message.bytes is lower (Kafka then refuses the whole batch it was in)",
                cause="too-large",
                fix="send a smaller body, or raise LLMAGENTOS_MAX_MESSAGE_BYTES and the topic's max.message.bytes",
            )
        if code in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT) and self._refusal is not None:
            error = self._refusal
        found = translate(error, self.settings, place, topic=topic, kept=kept)
        if isinstance(found, AccessError | TopicError):
            return found
        trouble = f"; the client's last complaint: {self._trouble}" if self._trouble else ""
        if code == KafkaError._MSG_TIMED_OUT:
            return DeliveryError(
                f"can't {place}: not acknowledged within {self.settings.delivery_timeout_s:g} s"
                f" (setting delivery_timeout_s){trouble}",
                fix="see that the brokers run (`llmagentos status`), then send it again",
                kept=kept,
            )
        return DeliveryError(f"{found.what}{trouble}", fix="send it again", kept=kept)


def _not_started(*_: Any) -> None:
    raise DeliveryError("this producer is not started", fix="use it with `async with`, or await its start()")
