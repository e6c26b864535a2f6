"""The poll thread: the only one that reads from librdkafka, and where a rebalance happens.

It takes what is there in batches and hands each to the event loop; the loop answers when it has taken a batch, and
with two of them unanswered the thread waits, so it never runs ahead of the loop, and batches grow under load.
librdkafka calls the rebalance callbacks in this thread, from within `poll`: an assignment looks up where to start
and is told to the loop; a revocation waits until the loop has drained its partitions, commits, and only then lets
them go. Heartbeats are sent from librdkafka's own threads, so neither a slow handler nor a drain ends the session.

The binding lets one thread at a time into a consumer, and makes the others wait for a gap that a busy poll hardly
leaves, with the interpreter's lock held in some calls. So everything is done here, commits too; they can't overtake
each other, nor a revocation. A commit waits for the coordinator, and reading with it: one request every commit
interval.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from faust.types import TP

from llmagentos.streams.errors import AccessError, BrokerError, LLMAgentOSError, OffsetLost
from llmagentos.streams.gate import decode_finished, decode_note
from llmagentos.streams.spans import wake
from llmagentos.streams.transport.session import longer_session

__all__ = ["Offsets", "Owner", "Poller", "Start", "insist"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Records of one batch: librdkafka gives 1.6M/s at this size, and 163-byte records keep the loop busy for 20 ms.
BATCH = 1_000
#: Batches handed to the loop and not taken: one that it works on and one that waits for it.
AHEAD = 2
#: Seconds that a poll waits for a first record; bounds how long a commit of an idle worker, or its stop, takes.
POLL_S = 0.05
#: The same while a partition is paused, as its resumption waits for the poll.
POLL_PAUSED_S = 0.01
#: Seconds to wait when librdkafka is woken for a resumed partition: only until the request is sent. Its answer comes
#: behind that of a fetch under way, and waiting for it took two fifths of this thread's time under load.
WOKEN_S = 0.001
#: Seconds for one request to the broker in a callback, and for all tries of one.
REQUEST_S = 10.0
#: The same error of a consumer is logged again after this.
SAY_AGAIN_S = 30.0
REQUESTS_S = 60.0
#: Offset and metadata to commit, by partition.
Offsets = Mapping[TP, tuple[int, str]]

_ACCESS = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
}


@dataclass(frozen=True, slots=True)
class Start:
    """Where reading a partition begins.

    Attributes:
        offset: the committed offset; None: none is committed, so the earliest there is.
        finished: inclusive ranges above it that an earlier owner finished.
        note: what the sink of an earlier owner had to say: see :meth:`Sink.note`.
    """

    offset: int | None
    finished: Sequence[tuple[int, int]] = ()
    note: str = ""


class Owner(Protocol):
    """Who the partitions are handed to. All methods are called on the event loop's thread."""

    def received(self, groups: Mapping[tuple[str, int], list[Message]], positions: Mapping[TP, int]) -> None:
        """Records by partition, ascending. *positions*: nothing below will come any more."""
        ...

    def assigned(self, starts: Mapping[TP, Start]) -> None:
        """Partitions are new here; their records follow."""
        ...

    async def revoked(self, tps: set[TP]) -> Offsets:
        """Drain *tps*, forget them, and say what to commit for them."""
        ...

    def lost(self, tps: set[TP]) -> None:
        """*tps* belong to another worker already."""
        ...

    def failed(self, error: LLMAgentOSError) -> None:
        """Reading can't go on."""
        ...


class Poller:
    """One librdkafka consumer and its thread.

    Args:
        config: librdkafka's properties, with or without `group.id`.
        owner: told of everything, on *loop*.
        cooperative: whether rebalances are incremental with this configuration.
    """

    def __init__(
        self, config: dict[str, Any], owner: Owner, loop: asyncio.AbstractEventLoop, *, cooperative: bool = True
    ) -> None:
        self._config = config
        self._owner = owner
        self._loop = loop
        self._cooperative = cooperative
        self._consumer = confluent_kafka.Consumer(config)
        self._ahead = threading.Semaphore(AHEAD)
        self._stopping = threading.Event()
        self._ending = threading.Lock()  # no job is left behind by a thread that ends
        self._ended = False
        self._thread: threading.Thread | None = None
        self._topics: list[str] = []
        self._jobs: deque[Callable[[], None]] = deque()  # from the loop to the thread
        self.generation = 0  # of revocations: see commit
        self._assigned: set[TP] = set()  # the poll thread's own view
        self._paused: set[TP] = set()
        self._said: dict[int, float] = {}  # error codes, and when they were logged
        self._told: dict[TP, int] = {}  # positions the owner knows

    # -- called from the loop's thread --------------------------------------------------------------------------

    def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group for *topics*, in place of those before."""
        self._topics = sorted(topics)
        self._jobs.append(self._subscribe)
        self._start()

    def assign(self, tps: Iterable[TP]) -> None:
        """Read *tps* from their beginning, without a group."""
        starts = {tp: Start(None) for tp in tps}
        self._owner.assigned(starts)
        self._consumer.assign([TopicPartition(*tp, confluent_kafka.OFFSET_BEGINNING) for tp in starts])
        self._assigned |= set(starts)
        self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="llmagentos-poll", daemon=True)
            self._thread.start()

    def pause(self, tps: Iterable[TP]) -> None:
        """Stop fetching *tps*, soon; what isn't assigned is left alone."""
        self._jobs.append(partial(self._set_paused, list(tps), True))

    def resume(self, tps: Iterable[TP]) -> None:
        """Fetch *tps* again, soon."""
        self._jobs.append(partial(self._set_paused, list(tps), False))

    def restart(self, tps: Iterable[TP]) -> None:
        """Begin again with *tps* where they are committed: the owner has forgotten them, and is told of them anew."""
        self._jobs.append(partial(self._restart, list(tps)))

    async def commit(self, offsets: Offsets, generation: int) -> bool:
        """Commit, and wait for the answer.

        Args:
            generation: :attr:`generation` when *offsets* were taken from the gates. A revocation since then makes
                them void, as one of them may be another worker's by now: nothing is committed, and False returned.

        Raises:
            KafkaException: the group's coordinator refused, or did not answer.
        """
        done: asyncio.Future[bool] = self._loop.create_future()
        with self._ending:
            if self._ended:
                return False
            self._jobs.append(partial(self._commit_for, offsets, generation, done))
        return await done

    def request_stop(self) -> None:
        """End the thread, which leaves the group; :meth:`join` waits for it."""
        self._stopping.set()
        self._ahead.release()

    def join(self) -> None:
        """Wait until the thread has ended; for a thread that isn't the loop's."""
        if self._thread is not None:
            self._thread.join()
        else:
            self._consumer.close()

    # -- the poll thread ----------------------------------------------------------------------------------------

    def _subscribe(self) -> None:
        self._consumer.subscribe(
            self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _run(self) -> None:
        told_at = 0.0
        try:
            while not self._stopping.is_set():
                self._ahead.acquire()
                handed = False
                try:
                    while self._jobs:
                        self._jobs.popleft()()
                    records = self._consumer.consume(BATCH, 0)
                    if not records:  # consume() would wait for all of them; poll() waits for one
                        first = self._consumer.poll(POLL_PAUSED_S if self._paused else POLL_S)
                        records = [] if first is None else [first, *self._consumer.consume(BATCH - 1, 0)]
                    if records:
                        handed = self._hand_over(records)
                    elif time.monotonic() - told_at > POLL_S:
                        told_at = time.monotonic()
                        handed = self._tell_positions()
                except LLMAgentOSError as error:
                    self._tell(self._owner.failed, error)
                    break
                except Exception as error:
                    log.exception("the poll thread failed")
                    self._tell(self._owner.failed, BrokerError(f"reading from Kafka failed: {error!r}"))
                    break
                finally:
                    if not handed:
                        self._ahead.release()
        finally:
            with self._ending:
                self._ended = True
            # Nobody is left to tell, and a group that went on without us refuses much of this: say so, and end.
            while self._jobs:  # commits that wait for an answer
                self._at_the_end(self._jobs.popleft())
            self._at_the_end(self._consumer.close)  # revokes, by the callbacks below, and leaves the group

    def _at_the_end(self, function: Callable[[], Any]) -> None:
        try:
            function()
        except KafkaException as error:
            log.warning("leaving the group: %s", error)
        except Exception:
            log.exception("leaving the group failed")

    def _set_paused(self, wished: list[TP], paused: bool) -> None:
        tps = [tp for tp in wished if tp in self._assigned]
        if not tps:
            return
        parts = [TopicPartition(*tp) for tp in tps]
        if paused:
            self._consumer.pause(parts)
            self._paused.update(tps)
        else:
            self._consumer.resume(parts)
            self._paused.difference_update(tps)
            wake(self._consumer, tps, WOKEN_S)

    def _restart(self, wished: list[TP]) -> None:
        tps = [tp for tp in wished if tp in self._assigned]
        if not tps:
            return
        self.generation += 1  # what was to be committed of them is void
        parts = [TopicPartition(*tp) for tp in tps]
        self._consumer.pause(parts)
        self._paused.update(tps)
        starts = self._starts(self._consumer, parts)
        for tp, start in starts.items():
            self._told.pop(tp, None)
            offset = confluent_kafka.OFFSET_BEGINNING if start.offset is None else start.offset
            self._consumer.seek(TopicPartition(*tp, offset))
        self._tell(self._owner.assigned, starts)

    def _commit_for(self, offsets: Offsets, generation: int, done: asyncio.Future[bool]) -> None:
        try:
            current = generation == self.generation
            if current:
                self._commit(offsets)
        except KafkaException as error:
            self._tell(_fail, done, error)
        else:
            self._tell(_succeed, done, current)

    def _commit(self, offsets: Offsets) -> None:
        if not offsets:
            return
        parts = [TopicPartition(*tp, offset, text) for tp, (offset, text) in offsets.items()]
        for part in self._consumer.commit(offsets=parts, asynchronous=False) or []:
            if part.error is not None:
                raise KafkaException(part.error)

    def _tell(self, function: Any, *args: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    def _hand_over(self, records: list[Message]) -> bool:
        groups: dict[tuple[str, int], list[Message]] = {}
        for record in records:
            error = record.error()
            if error is not None:
                self._on_error(error, record)
                continue
            key = (record.topic(), record.partition())
            group = groups.get(key)  # pyright: ignore[reportArgumentType] - a fetched record has both
            if group is None:
                groups[key] = [record]  # pyright: ignore[reportArgumentType]
            else:
                group.append(record)
        if groups:
            self._tell(self._received, groups, {})
        return bool(groups)

    def _received(self, groups: dict[tuple[str, int], list[Message]], positions: dict[TP, int]) -> None:
        try:
            self._owner.received(groups, positions)
        finally:
            self._ahead.release()

    def _tell_positions(self) -> bool:
        """What was passed without a message: markers and holes at the end of a partition."""
        if not self._assigned:
            return False
        parts = self._consumer.position([TopicPartition(tp.topic, tp.partition) for tp in self._assigned])
        new = {TP(part.topic, part.partition): part.offset for part in parts if part.offset >= 0}
        changed = {tp: offset for tp, offset in new.items() if self._told.get(tp) != offset}
        self._told |= changed
        if changed:
            self._tell(self._received, {}, changed)
        return bool(changed)

    def _on_error(self, error: KafkaError, record: Message) -> None:
        code = error.code()
        place = f"{record.topic()}[{record.partition()}]" if record.topic() else ""
        if code == KafkaError._AUTO_OFFSET_RESET:
            raise OffsetLost(
                f"{place}: the next offset to read is out of the log's range: {error.str()}",
                fix=_RESET_FIX.format(group=self._config.get("group.id"), where="where you accept to go on"),
                kept="nothing was skipped: the committed offset stands where it was",
            )
        if code in _ACCESS:
            raise AccessError(
                f"Kafka denies reading {place or 'as this group'}: {error.str()}",
                fix="check the user, and that ACLs let it read the topics and the group "
                f"{self._config.get('group.id')!r}",
            )
        if code == KafkaError.INVALID_SESSION_TIMEOUT:
            self._ask_for_more()
            return
        if error.fatal():
            raise BrokerError(f"the Kafka consumer failed for good: {error.str()}", fix="start the worker again")
        # While a broker is away, the same is said with every attempt to reach it.
        now = time.monotonic()
        if now - self._said.get(code, -SAY_AGAIN_S) >= SAY_AGAIN_S:
            self._said[code] = now
            log.warning("Kafka: %s %s", place, error.str())

    def _ask_for_more(self) -> None:
        """The broker takes no session timeout as low as ours: join again with the lowest that it permits."""
        self._config = longer_session(self._config)
        old, self._consumer = self._consumer, confluent_kafka.Consumer(self._config)
        old.close()
        self._subscribe()

    # -- rebalances, in the poll thread -------------------------------------------------------------------------

    def _on_assign(self, consumer: confluent_kafka.Consumer, partitions: list[TopicPartition]) -> None:
        starts = self._starts(consumer, partitions) if partitions else {}
        at = [
            TopicPartition(
                tp.topic, tp.partition, confluent_kafka.OFFSET_BEGINNING if start.offset is None else start.offset
            )
            for tp, start in starts.items()
        ]
        if self._cooperative:
            consumer.incremental_assign(at)
        else:
            consumer.assign(at)
        if at:
            consumer.pause(at)  # until the owner is ready for them
            self._paused |= set(starts)
        self._assigned |= set(starts)
        self._tell(self._owner.assigned, starts)

    def _on_revoke(self, consumer: confluent_kafka.Consumer, partitions: list[TopicPartition]) -> None:
        tps = {TP(part.topic, part.partition) for part in partitions}
        if tps and not self._loop.is_closed():
            try:
                consumer.pause(partitions)
                offsets = asyncio.run_coroutine_threadsafe(self._owner.revoked(tps), self._loop).result()
                self._commit(offsets)
            except KafkaException as error:
                log.warning(
                    "the last commit of %s was refused, so their messages may run again: %s", _names(tps), error
                )
            except (asyncio.CancelledError, RuntimeError) as error:  # the loop is closing
                log.warning("revoked while stopping, without a last commit of %s: %r", _names(tps), error)
        self._let_go(consumer, partitions, tps)

    def _on_lost(self, consumer: confluent_kafka.Consumer, partitions: list[TopicPartition]) -> None:
        tps = {TP(part.topic, part.partition) for part in partitions}
        log.warning(
            "lost %s: the group went on without this worker, which was silent for %s ms; where that is usual, as on an"
            " overloaded machine, set LLMAGENTOS_SESSION_TIMEOUT_MS higher",
            _names(tps),
            self._config.get("session.timeout.ms"),
        )
        self._tell(self._owner.lost, tps)
        self._let_go(consumer, partitions, tps)

    def _let_go(self, consumer: confluent_kafka.Consumer, partitions: list[TopicPartition], tps: set[TP]) -> None:
        if self._cooperative:
            consumer.incremental_unassign(partitions)
        else:
            consumer.unassign()
        # After the drain, which takes seconds: a commit that was asked for meanwhile would put back an older offset.
        self.generation += 1
        self._assigned -= tps
        self._paused -= tps
        for tp in tps:
            self._told.pop(tp, None)

    def _starts(self, consumer: confluent_kafka.Consumer, partitions: list[TopicPartition]) -> dict[TP, Start]:
        """Where to start each partition.

        Raises:
            OffsetLost: records between a committed offset and the log's start are gone, or the log ends before it.
            BrokerError: the coordinator did not answer.
        """
        starts: dict[TP, Start] = {}
        stopping = self._stopping.is_set
        for part in insist(lambda: consumer.committed(partitions, REQUEST_S), stopping):
            tp = TP(part.topic, part.partition)
            if part.offset < 0:
                starts[tp] = Start(None)
                continue
            here = TopicPartition(tp.topic, tp.partition)
            low, high = insist(partial(consumer.get_watermark_offsets, here, timeout=REQUEST_S), stopping)
            group = self._config.get("group.id")
            if part.offset < low:
                raise OffsetLost(
                    f"{tp.topic}[{tp.partition}]: offsets {part.offset} to {low - 1} were deleted by retention before"
                    f" the group {group!r} handled them",
                    fix=_RESET_FIX.format(group=group, where=f"{low} to go on without them"),
                    kept=f"everything from offset {low} on; the committed offset stands at {part.offset}",
                )
            if part.offset > high:
                raise OffsetLost(
                    f"{tp.topic}[{tp.partition}]: the group {group!r} committed offset {part.offset}, and the log"
                    f" ends at {high}: the topic was made anew, or lost its end",
                    fix=_RESET_FIX.format(group=group, where=f"an offset from {low} to {high}"),
                    kept="nothing was skipped",
                )
            finished = decode_finished(part.offset, part.metadata)
            starts[tp] = Start(part.offset, finished, decode_note(part.metadata))
        return starts


def insist(function: Callable[[], T], give_up: Callable[[], bool] = lambda: False) -> T:
    """Call *function* until the broker answers: new topics have no leader yet, and coordinators move.

    Args:
        give_up: asked before each further try.

    Raises:
        AccessError: Kafka denies it. BrokerError: no answer within REQUESTS_S.
    """
    deadline = time.monotonic() + REQUESTS_S
    while True:
        try:
            return function()
        except KafkaException as error:
            if error.args[0].code() in _ACCESS:
                raise AccessError(f"Kafka denies it: {error}", fix="check the user and its ACLs") from error
            if time.monotonic() > deadline or give_up():
                raise BrokerError(
                    f"Kafka did not answer for {REQUESTS_S:g} s: {error}",
                    fix="see that the brokers run (`llmagentos status`)",
                ) from error
            log.warning("asking Kafka again: %s", error)
            time.sleep(POLL_S)


#: How an operator accepts a loss; there is no setting that would do it in silence.
_RESET_FIX = (
    "raise the topic's retention.ms; to go on, commit for the group {group!r} {where}"
    " (`llmagentos reset`, or kafka-consumer-groups.sh --reset-offsets with the workers stopped)"
)


def _succeed(done: asyncio.Future[bool], result: bool) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[bool], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)


def _names(tps: Iterable[TP]) -> str:
    return ", ".join(f"{tp.topic}[{tp.partition}]" for tp in sorted(tps))
