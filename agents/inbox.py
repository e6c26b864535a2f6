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
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import confluent_kafka
from faust.types import TP

from llmagentos.agents.agent import Agent
from llmagentos.agents.answers import Answers
from llmagentos.agents.context import Context
from llmagentos.agents.dead_letters import DeadLetters
from llmagentos.agents.outputs import Outputs
from llmagentos.streams.errors import AnswerTimeout, LLMAgentOSError, RecordError, SchemaError
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

    __slots__ = ("_freed", "_full", "messages", "size")

    def __init__(self, messages: int, size: int, freed: Callable[[], None]) -> None:
        self.messages = messages
        self.size = size
        self._freed = freed
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
            self._freed()


@dataclass(slots=True, eq=False)
class _Work:
    record: confluent_kafka.Message
    tp: TP
    assignment: object  # what is left of an earlier one changes nothing
    size: int
    message: Message | None = None  # where it was decoded to find its lane


class Inbox:
    """An agent's inbox; a `Sink` of the transport.

    Args:
        decode: a raw record to a message; raises RecordError, SchemaError.
        finish: tells the commit gate that (partition, offset) is done.
        broken: told of defects of ours; ends the worker.
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
        self.owned: dict[TP, object] = {}  # each with the token of its present assignment
        self.lanes: Lanes[_Work] = Lanes(self._handle, limit=agent.max_in_flight, broken=broken)

    # -- what the transport calls

    def room(self, tp: TP) -> int:
        """How many records more are taken now."""
        return self._room.left()

    def deliver(self, tp: TP, records: Sequence[confluent_kafka.Message]) -> None:
        """Take *records* of one partition, in order."""
        put = self.lanes.put
        take = self._room.take
        foreign = self.agent.topic is not None
        assignment = self.owned.get(tp)
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
        self.owned |= {tp: object() for tp in tps}

    async def revoked(self, tps: set[TP]) -> None:
        """Forget what waits of these partitions, and let what runs end, within the drain timeout."""
        waiting = self.lanes.discard(lambda work: work.tp in tps)
        await self.lanes.settle(lambda work: work.tp in tps, self._drain_timeout_s)
        for tp in tps:
            self.owned.pop(tp, None)
        for work in waiting:
            self._room.give(work.size)
        self._answers.unfollow(self._answers_topic, {tp.partition for tp in tps})

    async def stop(self) -> None:
        """End all slots."""
        await self.lanes.stop()

    def _foreign_lane(self, work: _Work) -> bytes:
        """The lane of a record whose conversation only its content tells."""
        try:
            work.message = self._decode(work.record)
        except (RecordError, SchemaError):  # met again, and dealt with, when its turn comes
            return work.record.key() or b"\x00%d" % (work.record.offset() or 0)
        return work.message.conversation_id.encode()

    # -- one record

    async def _handle(self, work: _Work) -> None:
        try:
            await self._run(work)
        finally:
            self._room.give(work.size)

    async def _run(self, work: _Work) -> None:
        record = work.record
        while True:
            try:
                message = work.message or self._decode(record)
                break
            except RecordError as error:
                self._bury(work, None, error.cause, error, attempts=0)
                return
            except SchemaError as error:  # not the record's fault: it must not become a dead letter
                log.warning("%s [%d] offset %d waits: %s", record.topic(), work.tp.partition, record.offset(), error)
                await asyncio.sleep(REGISTRY_RETRY_S)
        deadline = message.record["deadline"]
        if deadline is not None and deadline < time.time() * 1000:
            late_s = time.time() - deadline / 1000
            error = RecordError(
                f"message {message.message_id} of conversation {message.conversation_id} expired {late_s:.1f} s before"
                f" agent {self.agent.name!r} could handle it",
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
        task = asyncio.current_task()
        attempt = 0
        while True:
            ctx = Context(
                agent.name,
                message,
                self._outputs,
                self._answers,
                partition=work.tp.partition,
                attempt=attempt,
            )
            try:
                if agent.timeout_s is None:
                    result = await agent.handler(message, ctx)
                else:
                    async with asyncio.timeout(agent.timeout_s):
                        result = await agent.handler(message, ctx)
                if result is not None and not ctx.replied:
                    ctx.send_reply(result)
                break
            except BaseException as error:
                # Whatever a handler raises becomes a retry or a dead letter, SystemExit and a cancellation too,
                # unless that one is ours.
                if isinstance(error, asyncio.CancelledError):
                    if self.lanes.told_to_end():
                        raise
                    if task is not None and task.cancelling():
                        task.uncancel()
                if attempt >= agent.retries or isinstance(error, RecordError):
                    self._bury(work, message, _cause_of(error), error, attempts=attempt + 1, ctx=ctx)
                    return
                pause_s = min(agent.backoff_s * 2**attempt, agent.backoff_max_s) * random.uniform(0.8, 1.2)
                log.warning(
                    "agent %s failed message %s of conversation %s (attempt %d of %d, again in %.1f s): %s: %s",
                    agent.name,
                    message.message_id,
                    message.conversation_id,
                    attempt + 1,
                    agent.retries + 1,
                    pause_s,
                    type(error).__name__,
                    error,
                )
                attempt += 1
                await asyncio.sleep(pause_s)
        self._done(work)  # (a full producer is waited for by the transport, before it hands out more)

    def _done(self, work: _Work) -> None:
        if self.owned.get(work.tp) is work.assignment:
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
        record = work.record
        self._dead_letters.add(
            self.agent.name,
            record,
            message,
            cause=cause,
            error=error.what if isinstance(error, LLMAgentOSError) else f"{type(error).__name__}: {error}",
            trace="" if isinstance(error, RecordError) else "".join(traceback.format_exception(error)),
            attempts=attempts,
        )
        if message is not None and message.type != "event":
            ctx = ctx or Context(self.agent.name, message, self._outputs, self._answers, partition=work.tp.partition)
            if not ctx.replied:
                ctx.send_error(f"{type(error).__name__}: {error}", cause)
        self._done(work)


def _cause_of(error: BaseException) -> str:
    """The short stable word of a dead letter."""
    if isinstance(error, RecordError):
        return error.cause
    if isinstance(error, TimeoutError | AnswerTimeout):
        return "timeout"
    return "failed"
