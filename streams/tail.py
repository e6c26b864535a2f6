"""Reading topics for people: any stretch of any partitions, merged in time order, without a consumer group.

A :class:`Log` is one hand-assigned consumer. It plans :class:`Span` by span what to read, and :meth:`Log.read`
streams what is wanted of them: records whose key or bytes don't qualify are dropped before anything is decoded,
which is what makes finding one conversation among millions of messages cheap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka import Message as KafkaMessage

from llmagentos.streams.endpoints import client_config
from llmagentos.streams.errors import AccessError, BrokerError, LLMAgentOSError
from llmagentos.streams.merge import Merge
from llmagentos.streams.position import Position
from llmagentos.streams.settings import Settings

__all__ = ["Keep", "Log", "Span"]

#: Whether a record is wanted; called for every record that is read, so it must be quick.
Keep = Callable[[KafkaMessage], bool]

#: Records taken from librdkafka at once. Measured: 250k records of one partition in 0.14 s; 10,000 doubles it, as
#: Python's allocator then works on colder memory.
BATCH = 1_000

#: What the merge holds of one partition while others lag behind in time; beyond it the partition is paused.
HELD_RECORDS = 20_000
HELD_BYTES = 16 * 1024 * 1024

#: A reading that gets nothing for so long, with more to come, is an error: a new leader is elected within 10 s.
STALLED_S = 30.0

#: While following, a record waits this long for earlier ones of other partitions. A producer's linger (1 ms by
#: default) and the network are well below it; people don't notice it.
LATENESS_S = 0.3

#: While following, how often to look for topics that are new.
LOOK_S = 3.0

#: A healthy cluster answers metadata and offset requests within milliseconds; one that elects leaders, in seconds.
ANSWER_S = 8.0


@dataclass(frozen=True, slots=True)
class Span:
    """What to read of one partition: offsets from *start* to below *stop*; *low* is the first that is kept."""

    topic: str
    partition: int
    start: int
    stop: int
    low: int

    @property
    def place(self) -> tuple[str, int]:
        """(topic, partition)."""
        return self.topic, self.partition

    def __len__(self) -> int:
        return max(0, self.stop - self.start)


class Log:
    """The cluster's topics, as one reader sees them. Use it as a context manager; one thread at a time.

    Args:
        follow: tuned for waiting at the end rather than for reading through; a cluster that goes away is waited for.
        note: told then, and when it is back.

    Raises:
        BrokerError, AccessError: the cluster can't be reached, or refuses; also by every method.
    """

    def __init__(
        self, settings: Settings, *, follow: bool = False, note: Callable[[str], None] = lambda text: None
    ) -> None:
        self.settings = settings
        self._note = note
        self._away = False
        self._follow = follow
        self._heard: list[KafkaError] = []
        self._looked_s = float("-inf")
        self._consumer = Consumer(
            client_config(
                settings,
                group_id=f"{settings.prefix}tail",  # librdkafka wants one; nothing joins or commits
                enable_auto_commit=False,
                enable_auto_offset_store=False,
                auto_offset_reset="earliest",
                allow_auto_create_topics=False,
                # A fetch at a partition's end is held by the broker for this long; it also delays what else is asked
                # on that connection. With the default of 500 ms a short read takes half a second for nothing.
                fetch_wait_max_ms=100 if follow else 10,
                fetch_queue_backoff_ms=5,
                reconnect_backoff_ms=50,
                reconnect_backoff_max_ms=500,
            )
            | {"error_cb": self._heard.append, "log_level": 0}  # what goes wrong is told once
        )

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    # -- what there is

    def topics(self, timeout_s: float = ANSWER_S) -> dict[str, int]:
        """Every topic's full name with its number of partitions; Kafka's own left out."""
        with _Translated(self, "list the topics"):
            found = self._consumer.list_topics(timeout=timeout_s).topics
        return {
            name: len(found[name].partitions)
            for name in sorted(found)
            if not name.startswith("__") and found[name].error is None and found[name].partitions
        }

    def look(self) -> dict[str, int] | None:
        """As :meth:`topics`, but None where the last look was less than :data:`LOOK_S` ago."""
        if time.monotonic() - self._looked_s < LOOK_S:
            return None
        try:
            topics = self.topics(LOOK_S)
        except AccessError:
            raise
        except BrokerError:
            topics = None  # it is waited for; what it says of that is in `_heard`
        self._looked_s = time.monotonic()
        return topics

    def spans(self, places: Iterable[tuple[str, int]], start: Position, stop: Position) -> list[Span]:
        """What lies between two positions in each of the (topic, partition) *places*, in their order."""
        asked = list(places)
        if not asked:
            return []
        low = self._offsets(asked, OFFSET_BEGINNING)
        high = self._offsets(asked, OFFSET_END)
        first, last = (self._resolve(asked, position, low, high) for position in (start, stop))
        return [
            Span(*place, max(first[place], low[place]), min(last[place], high[place]), low[place]) for place in asked
        ]

    def _resolve(
        self,
        places: Sequence[tuple[str, int]],
        position: Position,
        low: dict[tuple[str, int], int],
        high: dict[tuple[str, int], int],
    ) -> dict[tuple[str, int], int]:
        if position.kind == "beginning":
            return low
        if position.kind == "end":
            return high
        if position.kind == "offset":
            return {p: position.value if position.value >= 0 else high[p] + position.value for p in places}
        found = self._offsets(places, position.value)
        return {p: found[p] if found[p] >= 0 else high[p] for p in places}  # -1: nothing is that late

    def _offsets(self, places: Sequence[tuple[str, int]], at: int) -> dict[tuple[str, int], int]:
        """The first offset at or after a time in ms; librdkafka passes its OFFSET_ constants on as Kafka's own."""
        with _Translated(self, "look up offsets"):
            found = self._consumer.offsets_for_times([TopicPartition(*p, at) for p in places], timeout=ANSWER_S)
            for tp in found:
                if tp.error is not None:
                    raise KafkaException(tp.error)
        return {(tp.topic, tp.partition): tp.offset for tp in found}

    # -- reading

    def read(
        self,
        spans: Sequence[Span],
        keep: Keep | None = None,
        *,
        follow: bool = False,
        grow: Callable[[], Sequence[Span]] | None = None,
    ) -> Iterator[KafkaMessage | None]:
        """The records of *spans* that *keep* wants, in time order; the order inside a partition never changes.

        Memory is bounded: a partition that runs ahead of the others in time is paused.

        Args:
            follow: go on past the end for ever; records then wait up to :data:`LATENESS_S` for earlier ones of
                other partitions. Yields None now and then while nothing comes.
            grow: while following, asked again and again for spans that are to be read too; see :meth:`look`.
        """
        reading = _Reading(self._consumer, follow)
        with _Translated(self, "read"):
            try:
                reading.add(spans)
                moved_s = time.monotonic()
                while reading.open or reading.merge.held:
                    batch = self._consumer.consume(BATCH, 0.05 if follow else 0.01) if reading.open else []
                    now_s = time.monotonic()
                    if batch or follow:
                        moved_s = now_s
                    elif now_s - moved_s > STALLED_S:
                        raise reading.stalled()
                    if (self._heard and not batch) or (self._away and batch):
                        self._complain(bool(batch))
                    reading.take(batch, keep, now_s)
                    yield from reading.merge.ready(now_s)
                    reading.balance()
                    if follow:
                        yield None
                        if grow is not None:
                            reading.add(grow())
            finally:
                reading.close()

    def _complain(self, records: bool) -> None:
        """Raise what error_cb was told where it ends the reading; a follower waits for a cluster that is away."""
        heard, self._heard[:] = list(self._heard), []
        if records and self._away:
            self._away = False
            self._note("Kafka is back")
        for error in heard:
            away = error.code() == KafkaError._ALL_BROKERS_DOWN
            if error.fatal() or error.code() == KafkaError._AUTHENTICATION or (away and not self._follow):
                raise KafkaException(error)
            if away and not self._away and not records:
                self._away = True
                self._note(f"Kafka is out of reach, waiting for it: {error.str()}")

    def failure(self, error: KafkaException, doing: str) -> LLMAgentOSError:
        """Kafka's *error* as one of ours; where a call just ran out of time, what was heard meanwhile."""
        from llmagentos.streams.admin import translate

        self._consumer.poll(0)
        cause: KafkaError = self._heard[-1] if self._heard else error.args[0]
        return translate(cause, self.settings, doing)


def _place(record: KafkaMessage) -> tuple[str, int]:
    return cast(str, record.topic()), cast(int, record.partition())


class _Translated:
    """Kafka's errors inside the block become ours."""

    def __init__(self, log: Log, doing: str) -> None:
        self._log = log
        self._doing = doing

    def __enter__(self) -> None:
        self._log._heard.clear()  # pyright: ignore[reportPrivateUsage]

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, KafkaException):
            raise self._log.failure(error, self._doing) from error


class _Reading:
    """One pass: which partitions are open, how far each is, and the merge of what they bring."""

    def __init__(self, consumer: Consumer, follow: bool) -> None:
        self._consumer = consumer
        self._follow = follow
        self._spans: dict[tuple[str, int], Span] = {}
        self._index: dict[tuple[str, int], int] = {}
        self._paused: set[tuple[str, int]] = set()
        self.open: dict[tuple[str, int], TopicPartition] = {}
        self.merge: Merge[KafkaMessage] = Merge(LATENESS_S)

    def add(self, spans: Sequence[Span]) -> None:
        """Read *spans* too, from their starts."""
        new = [s for s in spans if s.place not in self._spans and (self._follow or len(s))]
        for span in new:
            self._index[span.place] = len(self._spans)
            self._spans[span.place] = span
            self.merge.add(self._index[span.place])
            self.open[span.place] = TopicPartition(*span.place, span.start)
        if new:
            self._consumer.incremental_assign([self.open[span.place] for span in new])

    def close(self) -> None:
        """Leave all partitions; a pause would outlive the assignment, and a later reading would wait for ever."""
        self._consumer.resume([self.open[place] for place in self._paused])
        self._consumer.unassign()

    def stalled(self) -> BrokerError:
        """The error of a reading that gets nothing, though there is more."""
        place, tp = next(iter(self.open.items()))
        more = f" and {len(self.open) - 1} other partitions" if len(self.open) > 1 else ""
        return BrokerError(
            f"{place[0]}[{place[1]}]{more} gave no record for {STALLED_S:.0f} s, though offsets from {tp.offset} to"
            f" {self._spans[place].stop - 1} are there",
            fix="see whether all brokers run, and every partition has a leader: `llmagentos doctor`",
        )

    def take(self, batch: Sequence[KafkaMessage], keep: Keep | None, now_s: float) -> None:
        """Put what is wanted of *batch* into the merge, and see how far each partition is."""
        merge, spans, index = self.merge, self._spans, self._index
        for record in batch:
            if (error := record.error()) is not None:
                if not error.retriable():
                    raise KafkaException(error)
                continue
            if keep is not None and not keep(record):
                continue
            place = _place(record)
            if self._follow or cast(int, record.offset()) < spans[place].stop:
                merge.push(index[place], record.timestamp()[1], record, len(record), now_s)
        if batch and batch[-1].error() is None:
            # A batch comes in runs of one partition each: knowing the time of the last run is enough to go on.
            merge.advance(index[_place(batch[-1])], batch[-1].timestamp()[1])
        for tp in self._consumer.position(list(self.open.values())):
            place = (tp.topic, tp.partition)
            span = spans[place]
            at = tp.offset if tp.offset >= 0 else span.start
            if not self._follow:
                if at >= span.stop:
                    merge.finish(index[place])
                    self._paused.discard(place)
                    self._consumer.incremental_unassign([self.open.pop(place)])
            else:
                high = self._consumer.get_watermark_offsets(tp, cached=True)[1]
                merge.reached(index[place], at >= max(high, span.stop))

    def balance(self) -> None:
        """Pause partitions of which much is held, as others lag behind in time; resume them when it has left."""
        for place, tp in self.open.items():
            index = self._index[place]
            count, size = self.merge.count(index), self.merge.size(index)
            if place not in self._paused:
                if count > HELD_RECORDS or size > HELD_BYTES:
                    self._paused.add(place)
                    self._consumer.pause([tp])
            elif count < HELD_RECORDS // 2 and size < HELD_BYTES // 2:
                self._paused.discard(place)
                self._consumer.resume([tp])
