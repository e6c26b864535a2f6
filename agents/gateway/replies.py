"""Replies: what agents say to clients, read once per gateway process and handed to the streams that want it.

One hand-assigned consumer reads the partitions of `replies` where somebody has a stream open. A stream that begins in
the past, or whose reader is too slow for its queue, is given what lies between from the topic itself: nothing is kept
here for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import confluent_kafka

from llmagentos.streams.errors import RecordError, SchemaError
from llmagentos.streams.follower import Follower
from llmagentos.streams.message import Message
from llmagentos.streams.partition import murmur2_partition
from llmagentos.streams.position import END, Position
from llmagentos.streams.settings import Settings
from llmagentos.streams.spans import Spans
from llmagentos.streams.tail import Log
from llmagentos.streams.wire import Codec

__all__ = ["Replies", "Subscription"]

log = logging.getLogger(__name__)

#: Messages that wait in one stream's queue; a reader that is further behind reads them from the topic: some 20 s of a
#: fast model's tokens, under a megabyte.
QUEUE_MOST: Final = 1_000
#: Readers of the past at once: each is a Kafka client.
READERS: Final = 4
#: Records of the past that are looked through at once: a fraction of a second, after which another reader has its turn.
PAGE_MOST: Final = 50_000


class Subscription:
    """One stream's view of a conversation, live. Its messages are in the order of the topic.

    Attributes:
        partition: of `replies`.
        lost_at: the offset of the first message that the queue had no room for; -1: none.
    """

    __slots__ = ("_queue", "_woken", "conversation", "lost_at", "partition")

    def __init__(self, conversation: str, partition: int) -> None:
        self.conversation = conversation
        self.partition = partition
        self.lost_at = -1
        self._queue: list[Message] = []
        self._woken = asyncio.Event()

    def put(self, message: Message) -> None:
        """Take in the next one."""
        if self.lost_at >= 0:
            return
        if len(self._queue) >= QUEUE_MOST:
            self.lost_at = message.offset
        else:
            self._queue.append(message)
        self._woken.set()

    async def take(self) -> Sequence[Message]:
        """All that have come, once there are any; none: look at :attr:`lost_at`."""
        while not self._queue and self.lost_at < 0:
            self._woken.clear()
            await self._woken.wait()
        taken, self._queue = self._queue, []
        return taken


class Replies:
    """Reads `replies`.

    Args:
        partitions: that it has.
    """

    def __init__(self, settings: Settings, codec: Codec, partitions: int, *, name: str) -> None:
        self.topic = settings.topic("replies")
        self._settings = settings
        self._codec = codec
        self._partitions = partitions
        self._name = name
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._follower = Follower(settings, self._deliver, name=f"{name}-replies")
        self._spans: list[Spans] = []
        self._readers = asyncio.Semaphore(READERS)

    def partition_of(self, conversation: str) -> int:
        """Where all of *conversation* is."""
        return murmur2_partition(conversation.encode(), self._partitions)

    async def open(self, conversation: str) -> Subscription:
        """Begin to follow *conversation*: everything said from now on is in the subscription. :meth:`close` it.

        Raises:
            TopicError, BrokerError: `replies` can't be read.
        """
        subscription = Subscription(conversation, self.partition_of(conversation))
        self._subscriptions.setdefault(conversation, set()).add(subscription)
        try:
            await self._follower.follow(self.topic, subscription.partition)
        except BaseException:
            self.close(subscription)
            raise
        return subscription

    def close(self, subscription: Subscription) -> None:
        """Nobody reads it any more."""
        others = self._subscriptions.get(subscription.conversation)
        if others is not None:
            others.discard(subscription)
            if not others:
                del self._subscriptions[subscription.conversation]

    async def messages(self, subscription: Subscription, start: int | None = None) -> AsyncGenerator[Sequence[Message]]:
        """What is said in the conversation from the offset *start* on, without end; None: since it was opened.

        Given as it comes, several messages at once where several have come.

        Raises:
            BrokerError: Kafka does not answer.
        """
        upto = 0 if start is None else start  # offsets below were given
        behind = start is not None
        while True:
            if behind:  # the topic has what the queue has not
                async for messages in self.past(subscription, upto):
                    yield messages
                    upto = messages[-1].offset + 1
            new = [message for message in await subscription.take() if message.offset >= upto]
            if new:
                yield new
                upto = new[-1].offset + 1
            behind = subscription.lost_at >= 0
            subscription.lost_at = -1

    async def past(self, subscription: Subscription, start: int) -> AsyncGenerator[Sequence[Message]]:
        """What was said in the conversation from *start* to the end as it is now.

        Raises:
            BrokerError: Kafka does not answer.
        """
        key = subscription.conversation.encode()
        end = -1
        while end < 0 or start < end:
            async with self._readers:  # not while the messages are given on: who takes them may be slow
                spans = self._spans.pop() if self._spans else await asyncio.to_thread(self._reader)
                try:
                    found, start, end = await asyncio.to_thread(
                        self._page, spans, subscription.partition, key, start, end
                    )
                finally:
                    self._spans.append(spans)
            if found:
                yield found

    def _reader(self) -> Spans:
        return Spans(self._settings, name=f"{self._name}-past")

    def _page(self, spans: Spans, partition: int, key: bytes, start: int, end: int) -> tuple[list[Message], int, int]:
        """Some of the messages of *key* from *start* to below *end* (-1: the end as it is); where to go on; the end."""
        if end < 0:
            low, end = spans.ends(self.topic, partition)
            start = max(low, start)
        found: list[Message] = []
        seen = 0
        for batch in spans.read({(self.topic, partition): (start, end)}):
            seen += len(batch)
            for record in batch:
                start = (record.offset() or 0) + 1
                if record.key() == key and (message := self._read(record)) is not None:
                    found.append(message)
            if len(found) >= QUEUE_MOST or seen >= PAGE_MOST:
                return found, start, end
        return found, end, end

    async def end(self, partition: int) -> int:
        """The offset that comes next there.

        Raises:
            BrokerError: Kafka does not answer.
        """
        async with self._readers:
            spans = self._spans.pop() if self._spans else await asyncio.to_thread(self._reader)
            try:
                return (await asyncio.to_thread(spans.ends, self.topic, partition))[1]
            finally:
                self._spans.append(spans)

    async def place_at(self, partition: int, seconds_ago: float) -> int:
        """The first offset of that age or younger.

        Raises:
            BrokerError: Kafka does not answer.
        """
        return await asyncio.to_thread(self._place_at, partition, seconds_ago)

    def _place_at(self, partition: int, seconds_ago: float) -> int:
        with Log(self._settings) as log_:
            since = Position("time", int((time.time() - seconds_ago) * 1_000))
            (span,) = log_.spans([(self.topic, partition)], since, END)
            return span.start

    async def stop(self) -> None:
        """Let the clients go."""
        await self._follower.stop()
        for spans in self._spans:
            await asyncio.to_thread(spans.close)

    def _deliver(self, records: Sequence[confluent_kafka.Message]) -> None:
        wanted = self._subscriptions
        for record in records:
            key = record.key()
            found = wanted.get(key.decode(errors="replace")) if key else None
            if found and (message := self._read(record)) is not None:
                for subscription in found:
                    subscription.put(message)

    def _read(self, record: confluent_kafka.Message) -> Message | None:
        try:
            return self._codec.read(record)
        except (RecordError, SchemaError) as error:
            log.warning("a reply was left unread: %s", error)
            return None
