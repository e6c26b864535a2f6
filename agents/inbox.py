"""The inbox of one agent in one worker: from raw records through lanes and handler to outputs and commit gate.

The path of a record: the transport delivers it (:meth:`Inbox.deliver`), it waits its turn in its conversation's
lane, is decoded, handled, and what it says is sent; then it is finished, which lets the commit gate pass it. One
that can't be decoded becomes a dead letter, whole, and is finished; the conversation goes on. One that fails for good
becomes a dead letter too and is parked in the journal: later ones of its conversation are held there, until a person
has it redriven or dropped (:mod:`llmagentos.streams.journal`).

A message writes nothing to the journal where its handler sends one record at most and it was never held: its output
is delivered, then its offset released. All others are completed by a record that has the outputs, before they go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import confluent_kafka
from faust.types import TP

from llmagentos.agents.agent import Agent
from llmagentos.agents.answers import Answers
from llmagentos.agents.assignment import RECLAIM_S, Assignment
from llmagentos.agents.attempts import Attempts, Failed, expired
from llmagentos.agents.burial import Burial
from llmagentos.agents.cancelling import Cancelling
from llmagentos.agents.context import Context
from llmagentos.agents.dead_letters import DeadLetters
from llmagentos.agents.memory import Memories, Remembering
from llmagentos.agents.outputs import Output, Outputs
from llmagentos.agents.pausing import Pausing, Told
from llmagentos.agents.reentrance import Reentrance, finished_inside
from llmagentos.agents.replay import Replay
from llmagentos.agents.room import Room, Share
from llmagentos.agents.standing import Still
from llmagentos.agents.steps import Suspended
from llmagentos.agents.suspending import Suspending
from llmagentos.agents.work import Work
from llmagentos.streams.dedup import identity_in, identity_of
from llmagentos.streams.errors import NotOwner, RecordError, RecordTooLarge, ResultError, SchemaError
from llmagentos.streams.lanes import Lanes, Turns
from llmagentos.streams.message import Message
from llmagentos.streams.ownership import Journal, kept, places_of
from llmagentos.streams.transport.sink import Start
from llmagentos.streams.unfinished import Entry

__all__ = ["Inbox"]

log = logging.getLogger(__name__)

#: A registry that is out of reach is asked again after this; the record waits in its lane meanwhile.
REGISTRY_RETRY_S = 1.0


class Inbox:
    """An agent's inbox; a `Sink` of the transport.

    Args:
        decode: a raw record to a message; raises RecordError, SchemaError.
        finish: tells the commit gate that (partition, offset) is done.
        committed: the committed offset of a partition.
        begin_again: has a partition delivered again from its committed offset.
        broken: told of defects of ours; ends the worker.
        told: takes events.
        memories: of agents that remember.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        decode: Callable[[confluent_kafka.Message], Message],
        outputs: Outputs,
        answers: Answers,
        dead_letters: DeadLetters,
        journal: Journal,
        room: Room,
        finish: Callable[[TP, int], None],
        committed: Callable[[TP], int],
        begin_again: Callable[[TP], None],
        broken: Callable[[BaseException], None],
        told: Told,
        memories: Memories | None = None,
    ) -> None:
        settings = outputs.settings
        self.agent = agent
        self._decode = decode
        self._outputs = outputs
        self._answers = answers
        self._journal = journal
        self._room = Share(room)
        self._finish = finish
        self._committed = committed
        self._begin_again = begin_again
        self._broken = broken
        self._settings = settings
        self._clock = outputs.clock
        self._answers_topic = settings.topic(f"answers.{agent.name}")
        self._journal_topic = settings.topic(f"journal.{agent.name}")
        self._max_waiting = settings.max_waiting
        self._waiting = 0
        self.owned: dict[TP, Assignment] = {}
        self._latest: dict[TP, Assignment] = {}  # the same, and those that went: they still know their notes
        self._replays: dict[Assignment, Replay] = {}
        self._spawned: set[asyncio.Task[None]] = set()
        # By assignments, which are partitions: one with thousands of conversations holds no other up.
        order: Turns[Work] = Turns(attrgetter("assignment"))
        self.lanes: Lanes[Work] = Lanes(
            self._handle, limit=agent.max_in_flight, broken=broken, order=order, ends=self._ends
        )
        self.still = Still()
        self._reentrance = Reentrance(agent.name, self.lanes)
        self.pausing = Pausing(
            agent.name,
            told=told,
            changed=self._room.step_aside,
            lent=lambda lent: self.lanes.lend() if lent else self.lanes.reclaim(),
        )
        self._burial = Burial(
            agent.name,
            outputs,
            dead_letters,
            decode=decode,
            context=self._context,
            pick=self._pick,
            done=self._done,
            forget=self._forget,
            broken=broken,
        )
        self._suspending = Suspending(
            agent.name,
            outputs,
            answers,
            waits=self._wait,
            asked=self._reentrance.asks,
            done=self._done,
            consider=self._consider,
            spawn=self._spawn,
            broken=broken,
        )
        self._cancelling = Cancelling(
            agent.name,
            outputs,
            self.lanes,
            dead_letters,
            release=self._release,
            steps=self._suspending.steps,
            context=self._context,
            decode=decode,
            pick=self._pick,
            settle=self._settle,
            consider=self._consider,
            spawn=self._spawn,
            broken=broken,
        )
        attempts = partial(Attempts, pausing=self.pausing, told_to_end=self.lanes.told_to_end, clock=self._clock)
        self._memory: Remembering | None = None
        if agent.memory is not None and memories is not None:
            self._memory = Remembering(agent, memories, outputs, attempts=attempts, waits=self._wait)
        self._attempts = self._memory or attempts(agent)

    # -- what the transport calls -------------------------------------------------------------------------------

    def room(self, tp: TP) -> int:
        """How many records more are taken now."""
        return self._room.left(self.owned.get(tp)) if self._waiting < self._max_waiting else 0

    def deliver(self, tp: TP, records: Sequence[confluent_kafka.Message]) -> None:
        """Take *records* of one partition, in order."""
        put = self.lanes.put
        take = self._room.take
        foreign = self.agent.topic is not None
        asking = self._reentrance.asking
        assignment = self.owned[tp]
        assignment.taken += len(records)
        for record in records:
            size = len(record)
            take(size)
            work = Work(record, tp, assignment, size)
            if foreign:
                put(self._foreign_lane(work), work)
            else:
                # Records without a key have no conversation to keep in order: each is its own lane.
                lane = record.key() or b"\x00%d" % record.offset()
                put(self._reentrance.lane(lane, work) if asking and lane in asking else lane, work)

    async def assigned(self, starts: Mapping[TP, Start]) -> None:
        """These partitions are this worker's from now on."""
        for tp, start in starts.items():
            if (earlier := self.owned.get(tp)) is not None:  # lost and regained, before what was lost had drained
                self._close(earlier)
                # What was answered meanwhile went to nobody: it is to be read from where the note says.
                self._answers.unfollow(self._answers_topic, {tp.partition})
            assignment = self.owned[tp] = self._latest[tp] = Assignment(
                tp,
                start,
                journal=self._journal,
                journal_topic=self._journal_topic,
                answers=self._answers,
                answers_topic=self._answers_topic,
                dedup_window=self._settings.dedup_window,
                committed=lambda tp=tp: self._committed(tp),
            )
            decode = self._decode if self.agent.topic is None else None
            await assignment.begin(
                lambda assignment=assignment: self._superseded(assignment),
                decode,
                partial(self._suspending.waiting, tp.partition),
            )
            if not assignment.open:
                continue
            if self._memory is not None:
                assignment.memory = self._memory.open(tp.partition)
            self._room.join(assignment)
            replay = self._replays[assignment] = Replay(
                assignment,
                lambda entry, found, assignment=assignment: self._replay(assignment, entry, found),
                self._room,
                self._broken,
            )
            assignment.ownership.noticed = partial(self._suspending.noticed, assignment)
            assignment.ownership.cancelled = partial(self._cancelling.noticed, assignment)
            self._cancelling.begin(assignment)
            if inside := finished_inside(assignment.view):
                self._spawn(self._send_again(assignment, inside))
            if untold := assignment.ownership.view.untold():
                self._spawn(self._burial.tell(assignment, untold))
            for conversation_id in list(assignment.view):
                replay.consider(conversation_id)

    def note(self, tp: TP, committable: int) -> str:
        """What the next owner of *tp* needs to know."""
        return str(self._latest[tp].note(committable))

    async def revoked(self, tps: set[TP]) -> None:
        """Forget what waits of these partitions, and let what runs end, within the drain timeout."""
        gone = [self.owned[tp] for tp in tps if tp in self.owned]
        await self._drain(set(gone), self._settings.drain_timeout_s)
        # So that the next owner needs not send it again.
        await self._journal.say_sent(each.ownership for each in gone if each.waiting is not None)
        for assignment in gone:
            self._close(assignment)
        self._answers.unfollow(self._answers_topic, {tp.partition for tp in tps - self.owned.keys()})

    async def stop(self) -> None:
        """End all slots."""
        for task in self._spawned:
            task.cancel()
        for assignment in list(self.owned.values()):
            self._close(assignment)
        self.pausing.stop()
        self._cancelling.stop()
        await self.lanes.stop()

    async def _drain(self, gone: set[Assignment], timeout_s: float) -> None:
        for assignment in gone:
            if (replay := self._replays.get(assignment)) is not None:
                replay.stop()
            assignment.close_memory()
        for work in self.lanes.discard(lambda work: work.assignment in gone):
            self._reentrance.ended(work)
            self._room.give(work.size)
            work.assignment.taken -= 1
        self._release(lambda work: work.assignment in gone)
        for assignment in gone:
            for steps in list(assignment.steps.values()):
                if steps.freeze() is not None:  # it only waits, which its next owner can do as well
                    steps.give_up(Suspended())
        await self.lanes.settle(lambda work: work.assignment in gone, timeout_s)

    def _close(self, assignment: Assignment) -> None:
        assignment.close()
        for steps in list(assignment.steps.values()):  # what still runs of it may do nothing more
            steps.give_up(Suspended())
        self._room.leave(assignment)
        if (replay := self._replays.pop(assignment, None)) is not None:
            replay.stop()
        if self.owned.get(assignment.tp) is assignment:  # not assigned anew meanwhile
            del self.owned[assignment.tp]

    def _superseded(self, assignment: Assignment) -> None:
        """A newer claim was met: stop, forget what is in flight, and begin again if the group still says so."""
        assignment.open = False

        async def again() -> None:
            await self._drain({assignment}, 0.0)
            await asyncio.sleep(RECLAIM_S)
            if self.owned.get(assignment.tp) is assignment:
                self._begin_again(assignment.tp)

        self._spawn(again())

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._spawned.add(task)
        task.add_done_callback(self._spawned.discard)

    def _foreign_lane(self, work: Work) -> bytes:
        """The lane of a record whose conversation only its content tells."""
        try:
            work.message = self._decode(work.record)
        except (RecordError, SchemaError):  # met again, and dealt with, when its turn comes
            return work.record.key() or b"\x00%d" % work.offset
        return work.message.conversation_id.encode(errors="surrogatepass")

    def _replay(self, assignment: Assignment, entry: Entry, found: Mapping[int, Mapping[str, Any]]) -> None:
        """One that is in the journal, or whose outputs may not have been sent, is to have its turn."""
        record = found.get(entry.payload_at, {})
        if not record and entry.state == "done":
            log.error(
                "%s[%d]@%d is gone: the outputs of message %s of conversation %s, which were there, may not be sent",
                assignment.ownership.topic,
                assignment.tp.partition,
                entry.payload_at,
                entry.message_id,
                entry.conversation_id,
            )
        work = Work.restored(assignment, entry, record.get("record"))
        work.outputs = record.get("outputs", ())
        work.ran(entry, found)
        self._room.take(work.size)
        assignment.taken += 1
        lane = work.record.key() or b"\x00%d" % entry.offset
        self.lanes.put(lane if self.agent.topic is None else self._foreign_lane(work), work)

    def _wait(self, work: Work, waits: bool) -> None:
        """A handler begins to wait, or goes on: meanwhile it holds no room."""
        if waits:
            self._waiting += 1
            self._room.give(work.size)
            self.lanes.lend()
        else:
            self._waiting -= 1
            self._room.take(work.size)
            self.lanes.reclaim()
            if self._waiting == self._max_waiting - 1:
                self._room.freed()

    def _release(self, unwanted: Callable[[Work], bool]) -> None:
        """End the waits for their turns of works that are *unwanted*."""
        self.pausing.release(unwanted)
        self.still.release(unwanted)

    async def _stand(self, work: Work) -> bool:
        """Wait until new messages may begin; False: it is left to the next owner."""
        self._wait(work, True)
        try:
            return await self.still.turn(work)
        finally:
            self._wait(work, False)

    # -- one message ----------------------------------------------------------------------------------------------

    async def _handle(self, work: Work) -> None:
        try:
            if not work.assignment.open:
                return
            if work.entry is None:
                await self._arrival(work)
            else:
                await self._from_journal(work, work.entry)
            if self._reentrance.busy(work) and not self._left(work):
                await self._outlive(work)
        except NotOwner as error:
            log.warning("%s[%d] offset %d is left to its owner: %s", *work.tp, work.offset, error.what)
        finally:
            self._room.give(work.size)
            work.assignment.taken -= 1
            self._reentrance.ended(work)
            if work.steps is not None:
                work.assignment.steps.pop(work.offset, None)
                entry = work.assignment.entries.get(work.offset)
                if entry is not None and entry.ready:  # what it waits for came meanwhile
                    self._consider(work.assignment, entry.conversation_id)
            if work.ending is not None:
                work.ending.over()
            if work.asked and not self._left(work):  # else its next owner asks again
                work.assignment.asked(work.offset)
            if work.entry is not None and (replay := self._replays.get(work.assignment)) is not None:
                replay.ended(work.entry)
            elif work.cause >= 0 and work.message is not None:  # it stood before what is held
                self._consider(work.assignment, work.message.conversation_id)

    async def _outlive(self, work: Work) -> None:
        """It is finished; what runs inside it comes before the others of its conversation."""
        self._wait(work, True)
        try:
            await self._reentrance.emptied(work)
        finally:
            self._wait(work, False)

    def _ends(self, work: Work) -> None:
        """Its handler is about to be cancelled, as its message is left to the next owner, or is over."""
        work.left = True

    def _left(self, work: Work) -> bool:
        """Whether its message is left to the next owner."""
        return self.lanes.told_to_end() or (work.steps is not None and work.steps.suspended)

    async def _arrival(self, work: Work) -> None:
        """A record from the inbox has its turn."""
        assignment = work.assignment
        offset = work.offset
        if assignment.journaled and offset in assignment.journaled:
            # Everything before it in its conversation is settled now, so what the journal has of it may go on.
            assignment.journaled.discard(offset)
            self._done(work)
            if (entry := assignment.entries.get(offset)) is not None:
                self._consider(assignment, entry.conversation_id)
            else:  # it ended, which the commit had no room to say
                headers: Any = work.record.headers()
                if identity := identity_in(headers):
                    assignment.dedup.finished(identity, offset)
            return
        # What nearly every message needs is done here, and no coroutine made for the rest of it.
        try:
            message = work.message or self._decode(work.record)
        except (RecordError, SchemaError):
            message = await self._read(work)
            if message is None:
                return
        conversation_id = message.conversation_id
        conversation = assignment.view.get(conversation_id) if assignment.view else None
        if conversation is not None:
            entry = assignment.entries.get(offset)
            if entry is not None and entry.state == "unknown":
                return  # and not released: whoever knows what the journal says of it may need it
            if conversation.order[0] < offset and work.cause < 0 and not self._reentrance.admits(work, conversation):
                await self._hold(work, message)
                return
            if entry is not None:
                await self._recall(work, entry)
                if not await self._load(work, message):
                    return
        if work.cause >= 0:
            work.message = message
        identity = identity_of(work.record, message.message_id)
        if assignment.dedup.twin(identity, offset):
            log.debug("%s[%d] offset %d is message %s again, and dropped", *work.tp, offset, identity)
            await self._forget(work)
            self._done(work)
            return
        header = message.record
        # What was begun, and what others ask because of it, goes on.
        begins = header["caused_by"] is None and not work.recorded
        if self.still.on and begins and not await self._stand(work) and work.ending is None:
            return
        if (header["deadline"] is not None or header["reply_to"] is not None) and not await self._fit(work, message):
            return
        outputs = None
        if work.steps is not None or work.ending is not None or assignment.cancels:
            outputs = self._cancelling.ends(work, message)
        if outputs is None:
            outputs = await self._attempts.run(work, message, partial(self._context, work, message))
            if not isinstance(outputs, list) and (outputs := await self._give_up(work, message, outputs)) is None:
                return
        changed = work.state is not None and work.state.changed
        used = work.steps is not None and work.steps.used
        if len(outputs) > 1 or changed or used or work.ending is not None:
            if not await self._complete(work, message, outputs):
                return
        else:
            for output in outputs:
                self._outputs.send(output)
        assignment.dedup.finished(identity, offset)
        self._done(work)

    async def _from_journal(self, work: Work, entry: Entry) -> None:
        """One that was parked, held or completed has its turn."""
        assignment = work.assignment
        conversation = assignment.view.get(entry.conversation_id)
        if conversation is None or conversation.first is not entry or conversation.waits:
            return  # one before it was parked again
        if entry.state == "done":
            self._send(work, [Output.restored(output) for output in work.outputs])
            self._sent(work, entry, entry.message_id)
            return
        fields = {"offset": entry.offset, "message_id": entry.message_id}
        if entry.wish == "discard":
            await assignment.ownership.write("drop", fields, conversation_id=entry.conversation_id)
            assignment.dedup.finished(entry.message_id, entry.offset)
            return
        if work.record.value() is None and not await self._fetch(work):
            return
        message = await self._read(work)
        if message is None:
            return
        # That a message had to wait for others is not for it to blame. One that was not on time when it was suspended
        # need not be so now.
        if entry.state != "waiting" or not any(wait.kind == "deadline" for wait in entry.waits):
            message.record["deadline"] = None
        identity = identity_of(work.record, message.message_id)
        if not entry.wish and assignment.dedup.twin(identity, entry.offset):
            await assignment.ownership.write("drop", fields, conversation_id=entry.conversation_id)
            return
        if (entry.steps or entry.state == "waiting") and not await self._load(work, message):
            return
        outputs = self._cancelling.ends(work, message)
        if outputs is None:
            outputs = await self._attempts.run(work, message, partial(self._context, work, message))
            if not isinstance(outputs, list) and (outputs := await self._give_up(work, message, outputs)) is None:
                return
        if await self._complete(work, message, outputs):
            self._sent(work, entry, identity)

    async def _recall(self, work: Work, entry: Entry) -> None:
        """Read what its handler recorded; again where more comes meanwhile, which would be missing otherwise."""
        while True:
            places = places_of(entry)
            work.ran(entry, await work.assignment.ownership.payloads([entry]))
            if places_of(entry) == places:
                return

    async def _load(self, work: Work, message: Message) -> bool:
        """Its handler ran before: give it what it recorded; False: that is not to be had, and it is parked."""
        try:
            await self._suspending.resume(work, message)
        except ResultError as error:
            await self._burial.bury(work, message, "failed", error, attempts=0)
            return False
        return True

    async def _forget(self, work: Work) -> None:
        """It came to an end without its handler: what the journal has of its steps is over."""
        if work.entry is None and work.assignment.entries and (entry := work.assignment.entries.get(work.offset)):
            fields = {"offset": entry.offset, "message_id": entry.message_id}
            await work.assignment.ownership.write("drop", fields, conversation_id=entry.conversation_id)

    def _send(self, work: Work, outputs: Sequence[Output]) -> None:
        """Say what a completion has, now that it counts."""
        for output in outputs:
            self._outputs.send(output)
        if self._memory is not None:
            self._memory.sent(work, outputs)

    async def _send_again(self, assignment: Assignment, entries: list[Entry]) -> None:
        """What an earlier owner completed inside others may not be sent, and they may wait for it."""
        try:
            found = await assignment.ownership.payloads(entries)
            for entry in entries:
                if assignment.open and assignment.entries.get(entry.offset) is entry:
                    work = Work.restored(assignment, entry, None)
                    outputs = found.get(entry.payload_at, {}).get("outputs", ())
                    self._send(work, [Output.restored(output) for output in outputs])
                    self._sent(work, entry, entry.message_id)
        except Exception as error:  # noqa: BLE001 - a send that failed, say
            self._broken(error)

    def _sent(self, work: Work, entry: Entry, identity: str) -> None:
        """Its completion is in the journal, and its outputs are on their way."""
        work.assignment.ownership.view.sent(entry)
        work.assignment.dedup.finished(identity, entry.offset)

    async def _complete(self, work: Work, message: Message, outputs: Sequence[Output]) -> bool:
        """Record what the handler said, and then say it; False: it is too much for a record, and a dead letter."""
        ownership = work.assignment.ownership
        fields = {
            "offset": work.offset,
            "message_id": message.message_id,
            "outputs": [output.record() for output in outputs],
        }
        try:
            await ownership.write("done", fields, conversation_id=work.conversation(message))
        except RecordTooLarge as error:
            await self._burial.bury(work, message, error.cause, error, attempts=1)
            return False
        self._send(work, outputs)
        if work.entry is None:
            ownership.view.sent(ownership.view.entries[work.offset])
        return True

    async def _hold(self, work: Work, message: Message) -> None:
        """Its conversation waits: keep it in the journal, in order, and release its offset."""
        fields = {
            "offset": work.offset,
            "message_id": message.message_id,
            "record": kept(work.record, self._settings.max_message_bytes),
        }
        await work.assignment.ownership.write("held", fields, conversation_id=message.conversation_id)
        self._done(work)
        self._consider(work.assignment, message.conversation_id)
        self._cancelling.behind(work.assignment, message.conversation_id)

    async def _settle(self, work: Work, message: Message, outputs: list[Output]) -> None:
        """Complete a message whose handler is left behind, or that has no turn."""
        if not await self._complete(work, message, outputs):
            return
        identity = identity_of(work.record, message.message_id)
        if work.entry is not None:
            self._sent(work, work.entry, identity)
            return
        work.assignment.dedup.finished(identity, work.offset)
        self._done(work)
        if work.asked:
            work.assignment.asked(work.offset)

    def _consider(self, assignment: Assignment, conversation_id: str) -> None:
        if (replay := self._replays.get(assignment)) is not None:
            replay.consider(conversation_id)

    async def _fetch(self, work: Work) -> bool:
        """Get a message from the inbox that was too large for the journal; False: retention has taken it."""
        assert work.entry is not None
        tp, offset = work.tp, work.entry.offset
        if await self._pick(work):
            return True
        error = RecordError(
            f"{tp.topic}[{tp.partition}]@{offset}, message {work.entry.message_id} of conversation"
            f" {work.entry.conversation_id}, is gone: retention took it while its conversation waited",
            cause="lost",
            fix="raise the retention of the inbox, or redrive sooner: what is too large for the journal is only there",
        )
        await self._burial.bury(work, None, "lost", error, attempts=0)
        return False

    async def _pick(self, work: Work) -> bool:
        found = await asyncio.to_thread(self._journal.spans.pick, work.tp.topic, work.tp.partition, [work.offset])
        work.record = found.get(work.offset, work.record)
        return work.offset in found

    async def _read(self, work: Work) -> Message | None:
        """Decode the record; None: it became a dead letter."""
        record = work.record
        while True:
            try:
                return work.message or self._decode(record)
            except RecordError as error:
                await self._burial.bury(work, None, error.cause, error, attempts=0)
                return None
            except SchemaError as error:  # not the record's fault: it must not become a dead letter
                log.warning("%s [%d] offset %d waits: %s", record.topic(), work.tp.partition, record.offset(), error)
                await asyncio.sleep(REGISTRY_RETRY_S)

    async def _fit(self, work: Work, message: Message) -> bool:
        """Whether the message can be handled; one that can't became a dead letter."""
        if error := expired(message, self.agent.name, self._clock):
            if work.steps is None:
                await self._burial.bury(work, message, "expired", error, attempts=0)
                return False
            await self._cancelling.expire(work, message)  # it has something to clean up
        place = message.record["reply_to"]
        if place is not None and not 0 <= place["partition"] < await self._outputs.partitions_of(place["topic"]):
            error = RecordError(
                f"message {message.message_id} of conversation {message.conversation_id} wants its answer in"
                f" {place['topic']!r} partition {place['partition']}, which does not exist",
                cause="invalid",
                fix="correct reply_to, or leave it out: the answer then goes to `replies`",
            )
            message.record["reply_to"] = None  # whoever reads `replies` is told
            await self._burial.bury(work, message, "invalid", error, attempts=0)
            return False
        return True

    async def _give_up(self, work: Work, message: Message, failed: Failed | None) -> list[Output] | None:
        """The handler failed for good; None: its message is the next owner's to handle.

        Returns:
            Of one that was cancelled, what it says; None: it is parked, or left.
        """
        if failed is not None and work.ending is not None:
            return self._cancelling.says(work, message, failed.ctx)
        if failed is not None:
            await self._burial.bury(work, message, failed.cause, failed.error, attempts=failed.attempts, ctx=failed.ctx)
            self._cancelling.behind(work.assignment, message.conversation_id)
        return None

    def _context(self, work: Work, message: Message, attempt: int) -> Context:
        entry = work.entry
        again = f"/{entry.park}" if entry is not None and entry.park >= 0 else ""
        if work.steps is not None:
            work.steps.begin()
        # By position: one is made for every message, and names cost half a microsecond.
        return Context(
            self.agent.name,
            message,
            self._outputs,
            self._answers,
            work.tp.partition,
            work.steps,
            self._suspending.steps,
            work,
            again,
            attempt,
        )

    def _done(self, work: Work) -> None:
        if work.assignment.open:
            self._finish(work.tp, work.offset)
