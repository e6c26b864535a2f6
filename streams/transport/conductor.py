"""Delivery to Faust's channels: a batch of records becomes events in the queues of those who subscribe to the topic.

Faust's own conductor takes a lock and awaits several coroutines for every message. Here the flow control and the
producer's back-pressure are looked at once a batch (by the consumer), and decoding is driven without the event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

import confluent_kafka
from faust.channels import Channel
from faust.exceptions import KeyDecodeError, ValueDecodeError
from faust.serializers.schemas import Schema
from faust.topics import Topic as FaustTopic
from faust.transport.conductor import Conductor as FaustConductor
from faust.types import TP
from faust.types.transports import ConsumerCallback
from faust.types.tuples import ConsumerMessage, Message

from llmagentos.streams.gate import CommitGate
from llmagentos.streams.transport.sink import sinks_of

__all__ = ["Conductor", "Received"]

log = logging.getLogger(__name__)


class Received(ConsumerMessage):
    """A record as Faust's message, bound to the gate of the assignment that it came with."""

    __slots__ = ("gate",)

    def __init__(self, record: confluent_kafka.Message, tp: TP, gate: CommitGate, refcount: int) -> None:
        # Faust's own __init__ takes 22 arguments by name; this one is a sixth of its time.
        self.topic, self.partition = tp
        self.tp = tp
        self.gate = gate
        self.offset = cast(int, record.offset())
        kind, timestamp = record.timestamp()
        self.timestamp = timestamp / 1000
        self.timestamp_type = kind - 1  # librdkafka counts from "not available"; Faust as Kafka does
        self.headers = cast(Any, record.headers())
        key, value = record.key(), record.value()
        self.key = key
        self.value = value
        self.checksum = None
        self.serialized_key_size = 0 if key is None else len(key)
        self.serialized_value_size = 0 if value is None else len(value)
        self.acked = False
        self.refcount = refcount
        self.tracked = False
        self.time_in = self.time_out = self.time_total = None
        self.generation_id = 0


def _drive(channel: Any, message: Received) -> Any:
    """Run the channel's own decoder by hand: it has no reason to wait."""
    step = channel.decode(message, propagate=True)
    try:
        step.send(None)
    except StopIteration as done:
        return done.value
    step.close()
    raise TypeError(f"the decoder of {channel} waits for something; it must be done at once")


class Conductor(FaustConductor):
    """Knows which channels take which partition, and fills their queues."""

    #: A topic added while the app runs is subscribed after this many seconds, so that several added together make
    #: one rebalance. (Faust waits for 45 s, which is longer than an `ask` does.)
    _resubscribe_sleep_lock_seconds: float = 0.5

    def __init__(self, app: Any, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self._decoders: WeakKeyDictionary[Any, Callable[[Received], Any]] = WeakKeyDictionary()

    def _compile_message_handler(self) -> ConsumerCallback:
        async def unused(message: Message) -> None:
            raise AssertionError("records are delivered in batches")

        return unused

    def _build_handler(self, tp: TP, channels: Any) -> ConsumerCallback:
        return self.on_message  # not called: `deliver` reads the index itself

    async def _update_indices(self) -> Iterable[str]:
        return {*(await super()._update_indices()), *sinks_of(cast(Any, self.app))}

    def room(self, tp: TP) -> int:
        """How many events of *tp* its channels' queues take now."""
        room = None
        for channel in self._tp_index.get(tp, ()):
            queue = cast(Any, channel).queue
            free = queue.maxsize - len(queue._queue) if queue.maxsize > 0 else 1_000
            if room is None or free < room:
                room = free
        return 1_000 if room is None else room

    def deliver(self, tp: TP, records: Sequence[confluent_kafka.Message], gate: CommitGate) -> None:
        """Put *records* of *tp* into the queues of its channels; one that can't be decoded is told and finished."""
        channels = list(self._tp_index.get(tp, ()))
        if not channels:
            for record in records:  # its agent is gone; Faust keeps such messages for ever in flight
                gate.finish(cast(int, record.offset()))
            return
        count = len(channels)
        messages = [Received(record, tp, gate, count) for record in records]
        for channel in channels:
            self._fill(channel, messages)

    def _fill(self, channel: Any, messages: list[Received]) -> None:
        queue = channel.queue
        put = queue._queue.append
        decode = self._decoders.get(channel)
        if decode is None:
            decode = self._decoders[channel] = self._decoder(channel)
        added = 0
        for message in messages:
            try:
                put(decode(message))
                added += 1
            except (KeyDecodeError, ValueDecodeError) as error:
                self._undecodable(channel, message, error)
        if not added:
            return
        queue._unfinished_tasks += added
        queue._finished.clear()
        for _ in range(min(added, len(queue._getters))):
            queue._wakeup_next(queue._getters)

    def _decoder(self, channel: Any) -> Callable[[Received], Any]:
        """A plain function that makes *channel*'s events, or raises as its own decoder does."""
        app: Any = self.app
        schema = channel.schema
        event = app.conf.Event
        own = type(channel)._compile_decode is not FaustTopic._compile_decode  # pyright: ignore[reportPrivateUsage]
        if own or type(schema) is not Schema:
            return partial(_drive, channel)
        key_type, value_type, allow_empty = schema.key_type, schema.value_type, schema.allow_empty
        key_codec = schema.key_serializer or app.serializers.key_serializer
        value_codec = schema.value_serializer or app.serializers.value_serializer
        loads_key: Any = None
        loads_value: Any = None
        if not (key_type is bytes and key_codec in (None, "raw")):
            loads_key = partial(app.serializers.loads_key, key_type, serializer=schema.key_serializer)
        if not (value_type is bytes and value_codec == "raw"):
            loads_value = partial(app.serializers.loads_value, value_type, serializer=schema.value_serializer)

        def decode(message: Received) -> Any:
            key = message.key if loads_key is None else loads_key(message.key)
            value = message.value
            if loads_value is not None and not (value is None and allow_empty):
                value = loads_value(value)
            return event(app, key, value, message.headers, message)

        return decode

    def _undecodable(self, channel: Any, message: Received, error: KeyDecodeError | ValueDecodeError) -> None:
        """Say so and go on with the next one.

        Faust throws into the stream, which restarts the agent; a hundred in a second end the worker.
        """
        kind = "key" if isinstance(error, KeyDecodeError) else "value"
        log.error(
            "undecodable %s at %s[%s] offset %s, skipped by %s: %s\nkept: the record, in the topic, until its"
            " retention ends\nfix: see that its producer and the topic's %s_type and serializers agree",
            kind, message.topic, message.partition, message.offset, channel, error, kind,
        )  # fmt: skip
        message.ack(self.app.consumer)
        own = type(channel)
        if (
            own.on_decode_error is not Channel.on_decode_error
            or own.on_key_decode_error is not Channel.on_key_decode_error
            or own.on_value_decode_error is not Channel.on_value_decode_error
        ):  # the program handles it itself
            handler = channel.on_key_decode_error if kind == "key" else channel.on_value_decode_error
            self.add_future(handler(error, message))
