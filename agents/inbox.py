"""The inbox of one agent in one worker: from raw records through lanes and handler to outputs and commit gate.

The path of a record: the transport delivers it (:meth:`Inbox.deliver`), it waits its turn in its conversation's
lane, is decoded, handled, answered, and finished, which lets the commit gate pass it. One that can't be decoded or
handled becomes a dead letter, whole, and is finished then; the worker goes on.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import confluent_kafka
from faust.types import TP

from llmagentos.agents.agent import Agent
from llmagentos.agents.answers import Answers
from llmagentos.agents.context import Context
from llmagentos.agents.dead_letters import DeadLetters, describe
from llmagentos.agents.outputs import Outputs
from llmagentos.streams.errors import AnswerError, AnswerTimeout, RecordError, SchemaError
from llmagentos.streams.lanes import Lanes
from llmagentos.streams.message import Message

__all__ = ["Inbox", "Room"]

log = logging.getLogger(__name__)

#: A registry that is out of reach is asked again after this; the record waits in its lane meanwhile.
REGISTRY_RETRY_S = 1.0


class Room:
    """How much a worker may take before it must finish something: by count and by bytes, over all its inboxes.

    Args:
        messages, size: the bounds; bytes.
        freed: called when room returns after there was none.
    """

    __slots__ = ("_full", "freed", "messages", "size")

    def __init__(self, messages: int, size: int, freed: Callable[[], None]) -> None:
        self.messages = messages
        self.size = size
        self.freed = freed
        self._full = False

    def left(self) -> int:
        """How many more messages there is room for."""
        if self.messages > 0 and self.size > 0:
            return self.messages
        self._full = True
        return 0

    def take(self, size: int) -> None:
        """One message of *size* bytes was taken. May go below zero by one batch."""
        self.messages -= 1
        self.size -= size

    def give(self, size: int) -> None:
        """One message of *size* bytes is finished or given back."""
        self.messages += 1
        self.size += size
        if self._full and self.messages > 0 and self.size > 0:
            self._full = False
            self.freed()


@dataclass(slots=True, eq=False)
class _Assignment:
    """One time that a partition was this worker's."""

    open: bool = True  # once it is over, what finishes of it changes nothing


@dataclass(slots=True, eq=False)
class _Work:
    record: confluent_kafka.Message
    tp: TP
    assignment: _Assignment
    size: int
    message: Message | None = None  # where it was decoded to find its lane
    questions: int = 0  # that its handler waits for


class Inbox:
    """An agent's inbox; a `Sink` of the transport.

    Args:
        decode: a raw record to a message; raises RecordError, SchemaError.
        finish: tells the commit gate that (partition, offset) is done.
        broken: told of defects of ours; ends the worker.
        max_waiting: handlers that may wait for answers at once. They hold no room, as what they wait for needs it.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        decode: Callable[[confluent_kafka.Message], Message],
        outputs: Outputs,
        answers: Answers,
        dead_letters: DeadLetters,
        room: Room,
        finish: Callable[[TP, int], None],
        broken: Callable[[BaseException], None],
        answers_topic: str,
        drain_timeout_s: float,
        max_waiting: int,
    ) -> None:
        self.agent = agent
        self._decode = decode
        self._outputs = outputs
        self._answers = answers
        self._dead_letters = dead_letters
        self._room = room
        self._finish = finish
        self._answers_topic = answers_topic
        self._drain_timeout_s = drain_timeout_s
        self.owned: dict[TP, _Assignment] = {}
        self._max_waiting = max_waiting
        self._waiting = 0
        self.lanes: Lanes[_Work] = Lanes(self._handle, limit=agent.max_in_flight, broken=broken)

    # -- what the transport calls

    def room(self, tp: TP) -> int:
        """How many records more are taken now."""
        return self._room.left() if self._waiting < self._max_waiting else 0

    def deliver(self, tp: TP, records: Sequence[confluent_kafka.Message]) -> None:
        """Take *records* of one partition, in order."""
        put = self.lanes.put
        take = self._room.take
        foreign = self.agent.topic is not None
        assignment = self.owned[tp]
        for record in records:
            size = len(record)
            take(size)
            work = _Work(record, tp, assignment, size)
            if foreign:
                put(self._foreign_lane(work), work)
            else:
                # Records without a key have no conversation to keep in order: each is its own lane.
                put(record.key() or b"\x00%d" % record.offset(), work)

    def assigned(self, tps: set[TP]) -> None:
        """These partitions are this worker's from now on."""
        for tp in tps:
            if (earlier := self.owned.get(tp)) is not None:  # lost and regained, before what was lost had drained
                earlier.open = False
            self.owned[tp] = _Assignment()

    async def revoked(self, tps: set[TP]) -> None:
        """Forget what waits of these partitions, and let what runs end, within the drain timeout."""
        gone = {tp: self.owned[tp] for tp in tps if tp in self.owned}
        over = {id(assignment) for assignment in gone.values()}
        for work in self.lanes.discard(lambda work: id(work.assignment) in over):
            self._room.give(work.size)
        await self.lanes.settle(lambda work: id(work.assignment) in over, self._drain_timeout_s)
        for tp, assignment in gone.items():
            assignment.open = False
            if self.owned.get(tp) is assignment:  # not assigned anew meanwhile
                del self.owned[tp]
        self._answers.unfollow(self._answers_topic, {tp.partition for tp in tps - self.owned.keys()})

    async def stop(self) -> None:
        """End all slots."""
        await self.lanes.stop()

    def _foreign_lane(self, work: _Work) -> bytes:
        """The lane of a record whose conversation only its content tells."""
        try:
            work.message = self._decode(work.record)
        except (RecordError, SchemaError):  # met again, and dealt with, when its turn comes
            return work.record.key() or b"\x00%d" % (work.record.offset() or 0)
        return work.message.conversation_id.encode(errors="surrogatepass")

    def _wait(self, work: _Work, waits: bool) -> None:
        """A handler begins to wait for an answer, or has it: meanwhile it holds no room."""
        if waits:
            work.questions += 1
            if work.questions == 1:
                self._waiting += 1
                self._room.give(work.size)
                self.lanes.lend()
        else:
            work.questions -= 1
            if work.questions == 0:
                self._waiting -= 1
                self._room.take(work.size)
                self.lanes.reclaim()
                if self._waiting == self._max_waiting - 1:
                    self._room.freed()

    # -- one record

    async def _handle(self, work: _Work) -> None:
        try:
            record = work.record
            while True:
                try:
                    message = work.message or self._decode(record)
                    break
                except RecordError as error:
                    self._bury(work, None, error.cause, error, attempts=0)
                    return
                except SchemaError as error:  # not the record's fault: it must not become a dead letter
                    log.warning(
                        "%s [%d] offset %d waits: %s", record.topic(), work.tp.partition, record.offset(), error
                    )
                    await asyncio.sleep(REGISTRY_RETRY_S)
            deadline = message.record["deadline"]
            if deadline is not None and deadline < time.time() * 1000:
                late_s = time.time() - deadline / 1000
                error = RecordError(
                    f"message {message.message_id} of conversation {message.conversation_id} expired {late_s:.1f} s"
                    f" before agent {self.agent.name!r} could handle it",
                    cause="expired",
                    fix="scale the deployment, or give a later deadline",
                )
                self._bury(work, message, "expired", error, attempts=0)
                return
            place = message.record["reply_to"]
            if place is not None and not 0 <= place["partition"] < await self._outputs.partitions_of(place["topic"]):
                error = RecordError(
                    f"message {message.message_id} of conversation {message.conversation_id} wants its answer in"
                    f" {place['topic']!r} partition {place['partition']}, which does not exist",
                    cause="invalid",
                    fix="correct reply_to, or leave it out: the answer then goes to `replies`",
                )
                message.record["reply_to"] = None  # whoever reads `replies` is told
                self._bury(work, message, "invalid", error, attempts=0)
                return
            agent = self.agent
            attempt = 0
            while True:
                ctx = self._context(work, message, attempt)
                limit: asyncio.Timeout | None = None
                try:
                    if agent.timeout_s is None:
                        result = await agent.handler(message, ctx)
                    else:
                        async with asyncio.timeout(agent.timeout_s) as limit:
                            result = await agent.handler(message, ctx)
                    if self.lanes.told_to_end():  # it swallowed the cancellation: its next owner handles the message
                        return
                    if result is not None and not ctx.replied:
                        ctx.send_reply(result)
                    break
                except BaseException as error:
                    if isinstance(error, TimeoutError) and limit is not None and limit.expired():
                        error = TimeoutError(f"the handler took longer than its timeout of {agent.timeout_s:g} s")
                    # Whatever a handler raises becomes a retry or a dead letter, SystemExit and a cancellation too,
                    # unless that one is ours.
                    if isinstance(error, asyncio.CancelledError):
                        if self.lanes.told_to_end():
                            raise
                        task = asyncio.current_task()
                        if task is not None and task.cancelling():
                            task.uncancel()
                    # Who answered with an error has tried as often as it may: to ask again would multiply that.
                    if attempt >= agent.retries or isinstance(error, RecordError | AnswerError):
                        self._bury(work, message, _cause_of(error), error, attempts=attempt + 1, ctx=ctx)
                        return
                    pause_s = min(agent.backoff_s * 2**attempt, agent.backoff_max_s) * random.uniform(0.8, 1.2)
                    log.warning(
                        "agent %s failed message %s of conversation %s (attempt %d of %d, again in %.1f s): %s",
                        agent.name,
                        message.message_id,
                        message.conversation_id,
                        attempt + 1,
                        agent.retries + 1,
                        pause_s,
                        describe(error),
                    )
                    attempt += 1
                    await asyncio.sleep(pause_s)
            self._done(work)  # (a full producer is waited for by the transport, before it hands out more)
        finally:
            self._room.give(work.size)

    def _context(self, work: _Work, message: Message, attempt: int) -> Context:
        return Context(
            self.agent.name,
            message,
            self._outputs,
            self._answers,
            partition=work.tp.partition,
            attempt=attempt,
            wait=self._wait,
            work=work,
        )

    def _done(self, work: _Work) -> None:
        if work.assignment.open:
            self._finish(work.tp, work.record.offset() or 0)

    def _bury(
        self,
        work: _Work,
        message: Message | None,
        cause: str,
        error: BaseException,
        *,
        attempts: int,
        ctx: Context | None = None,
    ) -> None:
        self._dead_letters.add(self.agent.name, work.record, message, cause=cause, error=error, attempts=attempts)
        if message is not None and message.type != "event":
            ctx = ctx or self._context(work, message, attempt=0)
            if not ctx.replied:
                ctx.send_error(describe(error), cause)
        self._done(work)


def _cause_of(error: BaseException) -> str:
    """The short stable word of a dead letter."""
    if isinstance(error, RecordError):
        return error.cause
    if isinstance(error, TimeoutError | AnswerTimeout):
        return "timeout"
    return "failed"
