"""Mirrors: the newest value of each key of a compacted topic's partition, in Redis, where it is read at once.

Kafka is the truth: a mirror is a fold over the partition up to the offset that stands beside its values, in the same
hash, so that they change together and are lost together. Who finds it missing, behind what it knows, beyond the log's
end, or so old that deletions may have been compacted away, has it follow again, from there or from the beginning. Any
number of workers may apply the same log: each step names the offset that it goes on from, and counts only there.

Of two records of one key the one of the higher *order* counts, wherever it stands: a worker that lost its partition may
still have had one on its way, and that must not undo what the next owner wrote. Kafka's compaction doesn't know of
orders, so whoever meets a record that came late writes the one that counts again, behind it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final, NamedTuple, cast

import confluent_kafka
import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from llmagentos.streams.admin import Admin
from llmagentos.streams.endpoints import redis_url
from llmagentos.streams.errors import BrokerError, NotOwner
from llmagentos.streams.follower import Follower
from llmagentos.streams.masking import masked_text
from llmagentos.streams.newest import APPLY, LEAST, ORDER, ORDER_WIDTH, Known, arguments_of, newest_of, now_ms
from llmagentos.streams.producer import Producer
from llmagentos.streams.settings import Settings
from llmagentos.streams.spans import Spans
from llmagentos.streams.topology import FORGOTTEN_MS

__all__ = ["Look", "Mirror", "Mirrors", "look"]

log = logging.getLogger(__name__)

#: Fields of the hash; those of keys begin with another letter.
_AT: Final = "@offset"
_WHEN: Final = "@when"
_KEY: Final = b"k"

#: What is read or applied at once: a step of Redis stays within some milliseconds.
STEP_RECORDS: Final = 500
STEP_BYTES: Final = 2 * 1024 * 1024
#: Keys that are asked for at once: of the largest values (`max_memory_bytes`), some 30 MB.
ASK_KEYS: Final = 128
#: Of a partition that is read from far behind, at a time.
READ_RECORDS: Final = 20_000
READ_BYTES: Final = 16 * 1024 * 1024

#: A local Redis answers within a millisecond; one that doesn't for so long is taken for gone, and asked anew.
ANSWER_S: Final = 2.0
#: While Redis is away it is looked for again after this, and it is said again after that.
RETRY_S: Final = 0.5
SAY_AGAIN_S: Final = 30.0

#: A mirror that was changed last so long ago is built anew: deletions that it missed may be gone from the log.
STALE_MS: Final = FORGOTTEN_MS // 2


class _Lost(Exception):
    """The mirror is not where it was: it is to be looked at anew."""

    def __init__(self, what: str = "", level: int = logging.WARNING) -> None:
        super().__init__(what)
        self.level = level


def _keys(settings: Settings, topic_id: str, partition: int) -> tuple[str, str]:
    """The hash, and the sorted set of keys that were deleted lately. In braces: a cluster keeps them together."""
    name = f"{settings.prefix}{{{topic_id}:{partition}}}"
    return name, f"{name}:deleted"


def _client(settings: Settings) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(
        redis_url(settings),
        socket_timeout=ANSWER_S,
        socket_connect_timeout=ANSWER_S,
        retry=Retry(NoBackoff(), 0),  # the mirror's own loop tries again, as it may have to begin elsewhere then
    )


class Mirrors:
    """The mirrors of one worker: one reader of their partitions, one connection to Redis.

    Args:
        name: of the worker.
        broken: told of what ends the worker.
    """

    def __init__(
        self, settings: Settings, producer: Producer, *, name: str, broken: Callable[[BaseException], None]
    ) -> None:
        self.settings = settings
        self.producer = producer
        self.broken = broken
        self.redis = _client(settings)
        self.apply = self.redis.register_script(APPLY)
        self.follower = Follower(settings, self._deliver, name=f"{name}-mirrors")
        self.spans = Spans(settings, name=f"{name}-mirrors-spans")
        self._open: dict[tuple[str, int], Mirror] = {}
        self._ids: dict[str, asyncio.Task[str]] = {}
        self._away_since: float | None = None
        self._said_at = float("-inf")

    def open(self, topic: str, partition: int) -> Mirror:
        """The mirror of a partition from now on: all that is in the partition by now is in what it says."""
        place = (topic, partition)
        if (earlier := self._open.get(place)) is not None:
            earlier.close()
        mirror = self._open[place] = Mirror(self, topic, partition)
        return mirror

    def closed(self, mirror: Mirror) -> None:
        """Told by *mirror*."""
        if self._open.get(mirror.place) is mirror:
            del self._open[mirror.place]
            self.follower.unfollow([mirror.place])

    async def stop(self) -> None:
        """Close all, and the connections."""
        tasks = [mirror.close() for mirror in list(self._open.values())]
        await asyncio.gather(*tasks, *self._ids.values(), return_exceptions=True)
        await self.follower.stop()
        await asyncio.to_thread(self.spans.close)
        await self.redis.aclose()

    async def id_of(self, topic: str) -> str:
        """What Kafka calls the topic: one of the same name that is made later, or elsewhere, is another."""
        task = self._ids.get(topic)
        if task is None or (task.done() and task.exception() is not None):
            task = self._ids[topic] = asyncio.create_task(
                asyncio.to_thread(lambda: Admin(self.settings).topic_id(topic))
            )
        return await asyncio.shield(task)

    def _deliver(self, records: Sequence[confluent_kafka.Message]) -> None:
        for record in records:
            mirror = self._open.get((record.topic() or "", record.partition() or 0))
            if mirror is not None:
                mirror.arrived(record)

    def away(self, mirror: Mirror, error: Exception) -> None:
        """Say that Redis, or Kafka, is out of reach: once for all mirrors."""
        now = time.monotonic()
        if isinstance(error, _Lost):
            log.log(error.level, "the mirror of %s[%d] in Redis %s: it follows anew from Kafka", *mirror.place, error)
            return
        if self._away_since is None:
            self._away_since = now
        if now - self._said_at >= SAY_AGAIN_S:
            self._said_at = now
            what = "Kafka" if isinstance(error, BrokerError) else f"Redis ({masked_text(redis_url(self.settings))})"
            log.warning(
                "%s is out of reach, for %.0f s: messages of agents with memory wait, and nothing is lost; all else"
                " goes on: %s",
                what, now - self._away_since, masked_text(str(error)),
            )  # fmt: skip

    def back(self) -> None:
        """It answers."""
        if self._away_since is not None:
            log.warning("Redis is back after %.1f s", time.monotonic() - self._away_since)
            self._away_since, self._said_at = None, float("-inf")


class Mirror:
    """One partition, as its owner sees it: what Redis has, and what the owner itself wrote and Redis hasn't yet.

    Made by :meth:`Mirrors.open`.
    """

    def __init__(self, mirrors: Mirrors, topic: str, partition: int) -> None:
        self.place = (topic, partition)
        self._mirrors = mirrors
        self._hash = self._deleted = ""
        self._reflects = -1  # the offset up to which Redis was seen to be
        self._ready = asyncio.Event()
        self._over = False
        self._lost: Exception | None = None
        self._news = asyncio.Event()
        self._arrived: deque[confluent_kafka.Message] = deque()
        self._own: dict[bytes, Known] = {}  # what is written, and not in Redis yet
        self._asked: dict[bytes, asyncio.Future[bytes]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(self._run())

    @property
    def reflects(self) -> int:
        """The offset up to which Redis is known to have the partition."""
        return self._reflects

    @property
    def behind(self) -> int:
        """Of how many keys the owner wrote a value that Redis hasn't yet."""
        return len(self._own)

    async def get(self, key: bytes) -> Known | None:
        """The newest record of *key*; None: Redis doesn't say it now, see :meth:`wait`.

        Raises:
            NotOwner: the mirror was closed.
        """
        if self._over:
            topic, partition = self.place
            raise NotOwner(f"{topic}[{partition}] went to another worker", kept="the message: its owner handles it")
        if (own := self._own.get(key)) is not None:
            return own
        if not self._ready.is_set():
            return None
        future = self._asked.get(key)
        if future is None:
            future = self._asked[key] = asyncio.get_running_loop().create_future()
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        try:
            found = await asyncio.shield(future)
        except _Lost:
            return None
        return Known(found[:ORDER_WIDTH].decode() or LEAST, found[ORDER_WIDTH:])

    async def wait(self) -> None:
        """Until :meth:`get` is worth another call."""
        await self._ready.wait()

    def put(self, key: bytes, order: str, value: bytes | None) -> None:
        """The owner has sent this record: from now on it is what :meth:`get` gives."""
        self._own[key] = Known(order, value or b"")

    def arrived(self, record: confluent_kafka.Message) -> None:
        """The follower brought the next record."""
        if not self._over:
            self._arrived.append(record)
            self._news.set()

    def close(self) -> asyncio.Task[None]:
        """The partition is another worker's: whoever waits is told so. The task that ends with it."""
        if not self._over:
            self._over = True
            self._mirrors.closed(self)
            self._task.cancel()
            self._ready.set()
            self._arrived.clear()
        return self._task

    # -- reading ------------------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        """Answer all that is asked, many keys at a time."""
        while self._asked:
            asked = {key: self._asked.pop(key) for key in list(islice(self._asked, ASK_KEYS))}
            at = self._reflects
            try:
                found = await self._fields([_AT, *(_KEY + key for key in asked)])
                position = int(found[0] or -1)
                if position < at:
                    raise _Lost("was emptied" if position < 0 else f"fell back to offset {position} from {at}")
            except Exception as error:  # noqa: BLE001 - told to the mirror's task, which knows what it means
                self._lose(error)
                for future in asked.values():
                    future.set_exception(_Lost())
                    future.exception()  # who asked may be gone
                continue
            for future, value in zip(asked.values(), found[1:], strict=True):
                future.set_result(value or b"")

    def _lose(self, error: Exception) -> None:
        if self._lost is None and not self._over:
            self._lost = error
            self._ready.clear()
            self._news.set()

    async def _fields(self, names: list[Any]) -> list[bytes | None]:
        return await cast("Awaitable[list[bytes | None]]", self._mirrors.redis.hmget(self._hash, names))

    # -- following ----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            try:
                await self._catch_up()
                self._mirrors.back()
                self._lost = None
                self._ready.set()
                await self._follow()
            except (RedisError, OSError, BrokerError, _Lost) as error:
                self._ready.clear()
                self._mirrors.follower.unfollow([self.place])
                self._arrived.clear()
                self._mirrors.away(self, error)
                if not isinstance(error, _Lost):
                    await asyncio.sleep(RETRY_S)
            except Exception as error:  # noqa: BLE001 - a defect of ours: nobody may wait for it for ever
                self._mirrors.broken(error)
                return

    async def _catch_up(self) -> None:
        """Bring Redis to the end of the partition as it is now."""
        mirrors, (topic, partition) = self._mirrors, self.place
        if not self._hash:
            self._hash, self._deleted = _keys(mirrors.settings, await mirrors.id_of(topic), partition)
        at, when = await self._fields([_AT, _WHEN])  # first: while Redis is away, Kafka is left in peace
        low, end = await asyncio.to_thread(mirrors.spans.ends, topic, partition)
        position = int(at or -1)
        if not low <= position <= end or (position < end and now_ms() - int(when or 0) > STALE_MS):
            position = low
            async with mirrors.redis.pipeline(transaction=True) as pipe:
                pipe.delete(self._hash, self._deleted)
                pipe.hset(self._hash, mapping={_AT: low, _WHEN: now_ms()})
                await pipe.execute()
            if end - low > READ_RECORDS:
                log.info("%s[%d]: its mirror in Redis is made of %d records", topic, partition, end - low)
        while position < end:
            records, reached = await asyncio.to_thread(_read, mirrors.spans, self.place, position, end)
            for step in _steps(records):
                after = (step[-1].offset() or 0) + 1
                await self._apply(step, position, after)
                position = after
            if reached > position:  # nothing is there any more between the last record and the end
                await self._apply([], position, reached)
                position = reached
        self._reflects = position
        await self._forget_own()

    async def _forget_own(self) -> None:
        """What Redis has by now needs not be kept here: it may have been applied by one whose answer was lost."""
        if not self._own:
            return
        keys = list(self._own)
        found = await self._fields([_KEY + key for key in keys])
        self._reflected({key: value[:ORDER_WIDTH].decode() for key, value in zip(keys, found, strict=True) if value})

    async def _follow(self) -> None:
        follower = self._mirrors.follower
        began = await follower.follow(*self.place, self._reflects)
        if began != self._reflects:
            raise _Lost(f"is at offset {self._reflects}, and the log goes on at {began}")
        while True:
            await self._news.wait()
            self._news.clear()
            if self._lost is not None:
                raise self._lost
            while self._arrived:
                new: list[confluent_kafka.Message] = []
                size = 0
                while self._arrived and len(new) < STEP_RECORDS and size < STEP_BYTES:
                    record = self._arrived.popleft()
                    if (record.offset() or 0) >= self._reflects:  # else of an earlier following
                        new.append(record)
                        size += len(record)
                if new:
                    after = (new[-1].offset() or 0) + 1
                    await self._apply(new, self._reflects, after)
                    self._reflects = after

    async def _apply(self, records: Sequence[confluent_kafka.Message], position: int, after: int) -> None:
        newest, late = newest_of(records)
        arguments = arguments_of(position, after, newest)
        answer: list[Any] = await self._mirrors.apply(keys=[self._hash, self._deleted], args=arguments)
        if not answer[0]:
            # Another worker follows it too: one that doesn't know yet that it lost the partition, or has just come.
            raise _Lost(f"is not at offset {position} any more", logging.INFO)
        known = dict(zip(answer[1::2], answer[2::2], strict=True))
        late |= {key: Known(value[:ORDER_WIDTH].decode(), value[ORDER_WIDTH:]) for key, value in known.items()}
        for key, record in late.items():
            log.warning("%s[%d]: a record of %r came late, and is superseded", *self.place, key)
            self._mirrors.producer.produce(
                *(self.place[0], record.value or None, key, self.place[1]), headers=[(ORDER, record.order.encode())]
            )
        self._reflected({key: record.order for key, record in newest.items()})

    def _reflected(self, orders: Mapping[bytes, str]) -> None:
        for key, order in orders.items():
            own = self._own.get(key)
            if own is not None and own.order <= order:
                del self._own[key]


class Look(NamedTuple):
    """What is known of one key, to whoever only looks.

    Attributes:
        value: None: there is none.
        reflects: the offset up to which the partition is taken into account.
        mirrored: how far of that Redis had it; -1: Redis is out of reach, or has no mirror of the partition.
    """

    value: bytes | None
    reflects: int
    mirrored: int


def look(settings: Settings, spans: Spans, topic: str, partition: int, key: bytes) -> Look:
    """The newest value of *key*, by Redis as far as that is, and by Kafka for the rest. Blocking.

    Raises:
        TopicError, BrokerError: there is no such topic, or the cluster does not answer.
    """
    low, end = spans.ends(topic, partition)
    name, _ = _keys(settings, Admin(settings).topic_id(topic), partition)
    known, mirrored = Known(LEAST, b""), -1
    with (
        suppress(RedisError, OSError, BrokerError),
        redis.Redis.from_url(redis_url(settings), socket_timeout=ANSWER_S, socket_connect_timeout=ANSWER_S) as client,
    ):
        found = cast("list[bytes | None]", client.hmget(name, [_AT, cast(Any, _KEY + key)]))
        if found[0] is not None and low <= int(found[0]) <= end:
            mirrored = int(found[0])
            if found[1] is not None:
                known = Known(found[1][:ORDER_WIDTH].decode(), found[1][ORDER_WIDTH:])
    for batch in spans.read({(topic, partition): (max(low, mirrored), end)}):
        newest, _ = newest_of(record for record in batch if record.key() == key)
        if key in newest and newest[key].order >= known.order:
            known = newest[key]
    return Look(known.value or None, end, mirrored)


def _read(spans: Spans, place: tuple[str, int], start: int, end: int) -> tuple[list[confluent_kafka.Message], int]:
    """Some records from *start* on, and up to which offset that is all."""
    records: list[confluent_kafka.Message] = []
    size = 0
    for batch in spans.read({place: (start, end)}):
        records += batch
        size += sum(map(len, batch))
        if len(records) >= READ_RECORDS or size >= READ_BYTES:
            return records, (records[-1].offset() or 0) + 1
    return records, end


def _steps(records: Sequence[confluent_kafka.Message]) -> Iterable[list[confluent_kafka.Message]]:
    step: list[confluent_kafka.Message] = []
    size = 0
    for record in records:
        step.append(record)
        size += len(record)
        if len(step) >= STEP_RECORDS or size >= STEP_BYTES:
            yield step
            step, size = [], 0
    if step:
        yield step
