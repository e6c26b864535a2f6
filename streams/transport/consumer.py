"""The consumer that Faust's app holds: partitions, delivery in turns, commits, and rebalances on the loop's side.

The order of a commit, which is what "at least once" rests on:

1. the gates say how far each partition may be committed (:mod:`llmagentos.streams.gate`);
2. everything sent until that moment is acknowledged by Kafka (:meth:`Producer.delivered`);
3. the poll thread commits the offsets, with what finished above them in the metadata; unless a revocation came
   between, which makes them void.

A revocation forgets the gates of its partitions, and the poll thread does their last commit before it lets them go.
So no commit of a partition can follow the one that gave it away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from threading import get_ident
from time import monotonic
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException, Message
from faust.transport.utils import DefaultSchedulingStrategy
from faust.types import TP
from faust.types.transports import ConsumerT
from mode import Service

from llmagentos.streams.errors import LLMAgentOSError
from llmagentos.streams.transport.inbox import Inbox, turns
from llmagentos.streams.transport.poller import Offsets, Poller, Start
from llmagentos.streams.transport.sink import Sink, sinks_of
from llmagentos.streams.transport.topics import check_topics, known_topics

__all__ = ["Consumer", "Fetcher"]

log = logging.getLogger(__name__)

#: Records handed out of one partition in its turn, and in one go before the loop does something else: 2 ms and 10 ms
#: of work at 20 us a record.
TURN = 100
GO = 500


#: What a commit is refused with while the group gives out its partitions anew.
_REBALANCING = {KafkaError.ILLEGAL_GENERATION, KafkaError.REBALANCE_IN_PROGRESS}


class Fetcher(Service):
    """Faust asks its transport for one; the poll thread does its work."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        self.app = app
        super().__init__(**kwargs)


class Consumer(Service, ConsumerT):  # type: ignore[misc]
    """One member of the app's consumer group.

    Attributes:
        joined: whether the group has given this member its part, be it empty.
    """

    logger = log

    def __init__(
        self,
        transport: Any,
        callback: Any = None,
        on_partitions_revoked: Any = None,
        on_partitions_assigned: Any = None,
        *,
        commit_interval: float | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        **kwargs: Any,
    ) -> None:
        self.transport: Any = transport
        self.app: Any = transport.app
        self.settings = transport.settings
        self.commit_interval = commit_interval or self.settings.commit_interval_ms / 1000
        self.in_transaction = False
        self.transactions = cast(Any, None)
        self.scheduler = DefaultSchedulingStrategy()
        self.randomly_assigned_topics: set[str] = set()
        self._inboxes: dict[TP, Inbox] = {}
        self._order: list[Inbox] = []  # the same, for taking turns
        self._turn = 0
        self._unacked: set[Any] = set()  # Faust messages that a stream has taken
        self._poller: Poller | None = None
        self._partitions: dict[str, int] = {}
        self._commit_lock = asyncio.Lock()
        self._draining = False  # a hand-out is scheduled
        self._acked = asyncio.Event()  # something finished, for those who drain
        self._drainers = 0
        self._thread = get_ident()  # the event loop's, from the start on
        self.joined = False
        self._finished = False  # the worker stops: nothing is handed out or committed any more
        self._spawned: set[asyncio.Task[Any]] = set()
        self._openings: dict[TP, asyncio.Task[Any]] = {}  # partitions that their sink is not ready for
        super().__init__(loop=loop, **kwargs)

    async def on_start(self) -> None:
        """Remember which thread the loop runs in."""
        self._thread = get_ident()

    # -- subscription -------------------------------------------------------------------------------------------

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group for *topics*.

        Raises:
            BrokerError: no broker answers. TopicError: a topic is missing, or has too few partitions.
        """
        names = set(topics)
        poller = self._poller
        if poller is None:
            poller = self._poller = cast(Poller, self.transport.new_poller(self, names))
        self._partitions |= await asyncio.to_thread(check_topics, names, self.settings)
        if self.app.client_only:
            poller.assign({TP(topic, 0) for topic in names})
        elif names:
            poller.subscribe(names)

    def assignment(self) -> set[TP]:
        """The partitions that this worker owns."""
        return set(self._inboxes)

    def topic_partitions(self, topic: str) -> int | None:
        """The number of partitions of *topic*; None where there is no such topic."""
        if topic not in self._partitions:
            self._partitions |= known_topics(self.settings)
        return self._partitions.get(topic)

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        """The partition that a record with *key* goes to."""
        return partition if key is None or partition is not None else self.app.producer.key_partition(topic, key)[1]

    async def create_topic(self, topic: str, partitions: int, replication: int, **kwargs: Any) -> None:
        """As the producer's."""
        await self.app.producer.create_topic(topic, partitions, replication, **kwargs)

    # -- the owner of the poll thread's partitions --------------------------------------------------------------

    def received(self, groups: Mapping[tuple[str, int], list[Message]], positions: Mapping[TP, int]) -> None:
        """A batch from the poll thread."""
        if self._finished:
            return
        full: list[TP] = []
        for key, records in groups.items():
            inbox = self._inboxes.get(cast(TP, key))
            if inbox is None:
                continue  # revoked since
            inbox.put(records)
            if not inbox.paused and inbox.over(self._share()):
                inbox.paused = True
                full.append(inbox.tp)
        if full and self._poller is not None:
            self._poller.pause(full)
        for tp, position in positions.items():
            if tp in self._inboxes:
                self._inboxes[tp].gate.advance(position)
        if groups:
            self.wake()

    def _share(self) -> int:
        return self.settings.max_in_flight_bytes // max(1, len(self._inboxes))

    def wake(self) -> None:
        """There is room again: hand out records, soon."""
        if not self._draining and not self._finished:
            self._draining = True
            self.loop.call_soon(self._hand_out)

    def _hand_out(self) -> None:
        self._draining = False
        producer = self.app.producer
        if self._finished or not self._order:
            return
        if not self.app.flow_control.is_active():
            return  # resume_flow wakes
        if producer.core is not None and producer.core.full:
            self._later(producer.core.ebb())
            return
        left, busy = GO, False
        resume: list[TP] = []
        conductor, sinks = self.app.topics, sinks_of(self.app)
        self._turn += 1
        for inbox in turns(self._order, self._turn % len(self._order)):
            if not inbox.ready:
                continue
            if inbox.records:
                sink = sinks.get(inbox.tp.topic)
                room = sink.room(inbox.tp) if sink is not None else conductor.room(inbox.tp)
                count = min(room, TURN, left, len(inbox.records))
                if count > 0:
                    records = inbox.take(count)
                    if sink is not None:
                        sink.deliver(inbox.tp, records)
                    else:
                        conductor.deliver(inbox.tp, records, inbox.gate)
                    left -= count
                    busy = busy or bool(inbox.records)
            if inbox.paused and inbox.under(self._share()):
                inbox.paused = False
                resume.append(inbox.tp)
            if left <= 0:
                busy = True
                break
        if resume and self._poller is not None:
            self._poller.resume(resume)
        if busy:
            self.wake()

    def _later(self, waits: Any) -> None:
        async def then() -> None:
            await waits
            self.wake()

        self._spawn(then())

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = self.loop.create_task(coroutine)
        self._spawned.add(task)
        task.add_done_callback(self._spawned.discard)
        return task

    def assigned(self, starts: Mapping[TP, Start]) -> None:
        """New partitions: their gates from now, their records once the app is ready for them."""
        if self._finished:
            return
        for tp, start in starts.items():
            self._inboxes[tp] = Inbox(tp, start)
        self.joined = True
        self._order = list(self._inboxes.values())
        self._spawn(self._rebalanced(set(starts)))

    async def _rebalanced(self, new: set[TP]) -> None:
        try:
            await self.transport.rebalance.assigned(set(self._inboxes), new)
        except Exception as error:  # noqa: BLE001 - whatever it was, the worker can't go on
            await self._end(error)

    def release(self, tps: Iterable[TP]) -> None:
        """The app is ready for *tps*: fetch and hand out."""
        inboxes = [self._inboxes[tp] for tp in tps if tp in self._inboxes and not self._inboxes[tp].ready]
        sinks = sinks_of(self.app)
        for topic, sink in sinks.items():
            if mine := [inbox for inbox in inboxes if inbox.tp.topic == topic]:
                self._hand_to(sink, mine)
        self._open([inbox for inbox in inboxes if inbox.tp.topic not in sinks])

    def _hand_to(self, sink: Sink, inboxes: list[Inbox]) -> None:
        """Tell *sink* of its partitions, one by one, as one that takes long must not hold the others up."""

        async def hand(inbox: Inbox) -> None:
            try:
                await sink.assigned({inbox.tp: inbox.start})
            except Exception as error:  # noqa: BLE001 - whatever it was, the worker can't go on
                await self._end(error)
                return
            inbox.note = partial(sink.note, inbox.tp)
            self._open([inbox])

        for inbox in inboxes:
            task = self._openings[inbox.tp] = self._spawn(hand(inbox))
            task.add_done_callback(lambda done, tp=inbox.tp: self._opened(tp, done))

    def _opened(self, tp: TP, task: asyncio.Task[Any]) -> None:
        if self._openings.get(tp) is task:
            del self._openings[tp]

    def _open(self, inboxes: list[Inbox]) -> None:
        """Fetch and hand out, of those that are still this worker's."""
        resume: list[TP] = []
        for inbox in inboxes:
            if self._inboxes.get(inbox.tp) is inbox:
                inbox.ready, inbox.paused = True, False
                resume.append(inbox.tp)
        if resume and self._poller is not None:
            self._poller.resume(resume)
        self.wake()

    def begin_again(self, tp: TP) -> None:
        """Forget what is in flight of *tp*, and begin again where it is committed, if it is still this worker's."""
        if not self._finished and self._inboxes.pop(tp, None) is not None and self._poller is not None:
            self._order = list(self._inboxes.values())
            self._poller.restart([tp])

    async def revoked(self, tps: set[TP]) -> Offsets:
        """Drain *tps*, at most for the settings' drain timeout, and give them up.

        Returns:
            what may be committed for them; nothing here commits them after this.
        """
        if self._finished:  # the last commit is made, and agents are cancelled: what finishes now did not finish
            return {}
        for tp in tps:
            if tp in self._inboxes:
                self._inboxes[tp].ready = False  # nothing more is handed out
            if tp in self._openings:
                self._openings.pop(tp).cancel()
        self.transport.rebalance.purge(tps)
        await self._drain(tps)
        offsets = await self._give_up(tps)
        await self.transport.rebalance.revoked(set(self._inboxes), tps)
        return offsets

    def lost(self, tps: set[TP]) -> None:
        """*tps* are another worker's already: what is in flight of them counts for nothing."""
        for tp in tps:
            self._inboxes.pop(tp, None)
            if tp in self._openings:
                self._openings.pop(tp).cancel()
        self._order = list(self._inboxes.values())
        self._unacked = {message for message in self._unacked if message.tp not in tps}
        self.transport.rebalance.purge(tps)
        for sink, mine in self._sinks_for(tps):
            self._spawn(sink.revoked(mine))
        self._spawn(self.transport.rebalance.revoked(set(self._inboxes), tps))

    def failed(self, error: LLMAgentOSError) -> None:
        """Reading can't go on."""
        self._spawn(self._end(error))

    async def _end(self, error: BaseException) -> None:
        """End the worker by *error*. Faust logs its repr, which leaves out what was kept and what to do."""
        log.critical("this worker can't go on: %s", error)
        await self.crash(error)

    def _sinks_for(self, tps: set[TP]) -> list[tuple[Sink, set[TP]]]:
        found = [(sink, {tp for tp in tps if tp.topic == topic}) for topic, sink in sinks_of(self.app).items()]
        return [(sink, mine) for sink, mine in found if mine]

    # -- draining -----------------------------------------------------------------------------------------------

    async def _drain(self, tps: set[TP]) -> None:
        """Wait for what is in flight of *tps*, within the drain timeout."""
        timeout_s = self.settings.drain_timeout_s
        sinks = [asyncio.ensure_future(sink.revoked(mine)) for sink, mine in self._sinks_for(tps)]
        deadline = monotonic() + timeout_s
        self._drainers += 1
        while any(message.tp in tps for message in self._unacked):
            self._acked.clear()
            try:
                await asyncio.wait_for(self._acked.wait(), max(0.0, deadline - monotonic()))
            except TimeoutError:
                break
        self._drainers -= 1
        if sinks:
            _, late = await asyncio.wait(sinks, timeout=max(0.0, deadline - monotonic()) + 0.5)
            for task in late:
                task.cancel()
            for task in sinks:
                if task.done() and not task.cancelled() and (error := task.exception()):
                    log.error("a sink failed while its partitions went: %r", error)
        left = sum(message.tp in tps for message in self._unacked)
        if left:
            log.warning(
                "%s messages were still being handled after %s s (drain_timeout_s) when their partitions went;"
                " their next owner handles them again", left, timeout_s,
            )  # fmt: skip
        self._unacked = {message for message in self._unacked if message.tp not in tps}

    async def _give_up(self, tps: set[TP]) -> Offsets:
        """Forget *tps*, and say what is left to commit for them."""
        offsets: dict[TP, tuple[int, str]] = {}
        for tp in tps:
            inbox = self._inboxes.pop(tp, None)  # from here on nothing that finishes reaches its gate
            if inbox is not None and self._acks(tp) and (offset := inbox.to_commit()) is not None:
                offsets[tp] = offset
        self._order = list(self._inboxes.values())
        try:
            await self._sent_until_now()
        except LLMAgentOSError as error:
            self._spawn(self._end(error))
            return {}
        return offsets

    async def _sent_until_now(self) -> None:
        try:
            await self.app.producer.flush()
        except LLMAgentOSError:
            self._finished = True  # something that was sent is missing: nothing may be committed any more
            raise

    # -- finishing and committing -------------------------------------------------------------------------------

    @property
    def unacked(self) -> set[Any]:
        """Faust's messages in flight."""
        return self._unacked

    def finish(self, tp: TP, offset: int) -> None:
        """One record of a sink is handled, and all it caused was sent."""
        inbox = self._inboxes.get(tp)
        if inbox is not None:
            inbox.gate.finish(offset)

    def committed(self, tp: TP) -> int:
        """The offset that is committed for *tp*; 0 where none is, or it is not this worker's."""
        inbox = self._inboxes.get(tp)
        return inbox.committed[0] if inbox is not None and inbox.committed is not None else 0

    def ack(self, message: Any) -> bool:
        """The last of its streams has finished with *message*."""
        message.acked = True
        if get_ident() == self._thread:  # Event.ack may be called from any thread; the gate may not
            self.finish_message(message)
        else:
            self.loop.call_soon_threadsafe(self.finish_message, message)
        return True

    def finish_message(self, message: Any) -> None:
        """As :meth:`ack`, for the loop's own thread; *message* is marked already."""
        message.gate.finish(message.offset)
        self._unacked.discard(message)
        if self._drainers:
            self._acked.set()

    def track_message(self, message: Any) -> None:
        """Count *message* as in flight."""
        self._unacked.add(message)

    def _acks(self, tp: TP) -> bool:
        return tp.topic in sinks_of(self.app) or self.app.topics.acks_enabled_for(tp.topic)

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit what is finished, of *topics* (names or partitions; None: all). False: there was nothing new.

        Raises:
            DeliveryError: a send was not acknowledged, so nothing is committed.
        """
        if self.app.client_only or self._poller is None or self._finished:
            return False
        async with self._commit_lock:
            state = self.app.sensors.on_commit_initiated(self)
            generation = self._poller.generation
            offsets = await self._committable(topics)
            if offsets and not await self._poller.commit(offsets, generation):
                offsets = {}  # a rebalance came first; what stays here is committed next time
            if offsets:
                for tp, offset in offsets.items():
                    if tp in self._inboxes:
                        self._inboxes[tp].committed = offset
                plain = {tp: offset for tp, (offset, _) in offsets.items()}
                self.app.tables.on_commit(plain)
                self.app.monitor.on_tp_commit(plain)
            self.app.sensors.on_commit_completed(self, state)
            return bool(offsets)

    async def _committable(self, topics: Any) -> dict[TP, tuple[int, str]]:
        offsets: dict[TP, tuple[int, str]] = {}
        for tp, inbox in self._inboxes.items():
            if (topics is None or tp in topics or tp.topic in topics) and self._acks(tp):
                offset = inbox.to_commit()
                if offset is not None:
                    offsets[tp] = offset
        if not offsets:
            return {}
        attachments = self.app._attachments
        if attachments.enabled:
            for tp, (offset, _) in offsets.items():
                await attachments.publish_for_tp_offset(tp, offset - 1)
        await self._sent_until_now()
        return offsets

    @Service.task
    async def _commit_handler(self) -> None:
        trouble = False
        while not self.should_stop:
            await self.sleep(self.commit_interval)
            try:
                await self.commit()
                trouble = False
            except KafkaException as error:
                # A rebalance is under way, or the coordinator is away: the gates keep what is to commit.
                if not trouble:
                    log.warning("a commit was refused, and will be tried again: %s", error)
                trouble = True
            except LLMAgentOSError as error:
                await self._end(error)

    # -- Faust's flow -------------------------------------------------------------------------------------------

    def stop_flow(self) -> None:
        """Faust stops its flow when the app stops; what is handed out by then is drained."""
        if self.app.should_stop and not self.app.conf.stream_wait_empty:
            self._finished = True  # agents are cancelled without being waited for: see wait_empty

    def resume_flow(self) -> None:
        """Faust's flow control is open."""
        self.wake()

    def pause_partitions(self, tps: Iterable[TP]) -> None:
        """Faust pauses what it clears; here partitions go on, and those in recovery are not handed out yet."""

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """See :meth:`pause_partitions`."""

    async def perform_seek(self) -> None:
        """Faust goes back to the committed offsets after each rebalance; retained partitions go on here."""

    async def wait_empty(self) -> None:
        """The worker stops: drain everything, commit, and do nothing for these partitions after that."""
        if self._finished or self._poller is None:
            return
        tps = set(self._inboxes)
        for inbox in self._order:
            inbox.ready = False
        for opening in self._openings.values():
            opening.cancel()
        self.transport.rebalance.purge(tps)
        await self._drain(tps)
        try:
            await asyncio.wait_for(self._commit_at_last(), self.settings.drain_timeout_s)
        except (KafkaException, LLMAgentOSError, TimeoutError) as error:
            log.error("the last commit failed, so messages may run again: %r", error)
        self._finished = True  # agents are cancelled next, and Faust acknowledges what they were at

    async def _commit_at_last(self) -> None:
        """Commit, after a rebalance that is under way: until it is over the group takes no commit, and the poll thread
        brings it to its end meanwhile."""
        while True:
            try:
                await self.commit()
                return
            except KafkaException as error:
                if error.args[0].code() not in _REBALANCING:
                    raise
                await asyncio.sleep(0.05)

    async def on_task_error(self, exc: BaseException) -> None:
        """An agent's handler raised."""

    async def on_stop(self) -> None:
        """Leave the group."""
        await self.wait_empty()
        self._finished = True
        if self._poller is not None:
            self._poller.request_stop()
            await asyncio.get_running_loop().run_in_executor(None, self._poller.join)
        for task in set(self._spawned):
            task.cancel()

    def close(self) -> None:
        """Faust calls it when a rebalance meets a stopped app; :meth:`on_stop` does it."""

    # -- what little else Faust asks for ------------------------------------------------------------------------

    def on_buffer_full(self, tp: TP) -> None:
        """Room is looked at when records are handed out."""

    def on_buffer_drop(self, tp: TP) -> None:
        """See :meth:`on_buffer_full`."""
        self.wake()

    def highwater(self, tp: TP) -> int:
        """The end of *tp* as far as it was fetched."""
        inbox = self._inboxes.get(tp)
        return 0 if inbox is None else inbox.gate.position or 0

    async def position(self, tp: TP) -> int | None:
        """The next offset of *tp* that is taken from the broker's answers."""
        inbox = self._inboxes.get(tp)
        return None if inbox is None else inbox.gate.position

    async def getmany(self, timeout: float) -> Any:
        raise NotImplementedError("records are delivered in batches")

    async def seek(self, partition: TP, offset: int) -> None:
        raise NotImplementedError("where a partition is read is the commit gate's business; commit another offset")

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        raise NotImplementedError("see seek")

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        raise NotImplementedError("tables read their changelogs through their own consumer")

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """The ends of *partitions* as far as they were fetched."""
        return {tp: self.highwater(tp) for tp in partitions}

    def verify_recovery_event_path(self, now: float, tp: TP) -> None:
        """Faust's check of its own recovery."""
