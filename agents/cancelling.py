"""Cancelling: how a message comes to its end before its handler does, and what the handler may still do then.

A person cancels (`llmagentos cancel`, a record in the journal), or the message's deadline passes (which the owner
writes to the journal as a step, so that every run learns of it). A handler that runs is interrupted: CancelledError
is raised where it waits, once, and what it does from there on is its cleanup, whose steps are recorded as all others
are. One that ran before, and was suspended or lost its worker, is run again with what it recorded, and interrupted
where that ends; so a cleanup that was cut short is gone on with. One that had not begun is not run. Then the message
is completed: with what the cleanup said, and an error for who asked.

A cleanup that takes longer than its grace is given up, its handler with it: an async one that swallows every
cancellation is left behind, and its lane goes on without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import confluent_kafka

from llmagentos.agents.assignment import Assignment
from llmagentos.agents.chain import drawn
from llmagentos.agents.context import Context
from llmagentos.agents.dead_letters import DeadLetters, Death
from llmagentos.agents.outputs import Output, Outputs
from llmagentos.agents.steps import DEADLINE, Steps
from llmagentos.agents.work import Ending, Work
from llmagentos.streams.errors import NotOwner, RecordError, SchemaError
from llmagentos.streams.lanes import Lanes
from llmagentos.streams.message import Message
from llmagentos.streams.pending import decided_by
from llmagentos.streams.unfinished import Entry

__all__ = ["Cancelling"]

log = logging.getLogger(__name__)

#: How often handlers that run are looked at for deadlines that have passed: a question's own has no finer use.
WATCH_S: Final = 0.25
#: What waits for a handler's last record to be read back looks so often.
LOOK_S: Final = 0.01
#: A handler that was given up has so long to end, as in :meth:`Lanes.settle`.
LAST_S: Final = 1.0


class Cancelling:
    """Ends messages of one agent in one worker.

    Args:
        release: ends the waits of works for their turns.
        steps: those of a work's handler; made where there are none.
        context: of an attempt at a message.
        decode: a raw record to a message; raises RecordError, SchemaError.
        pick: gets the record of a work from the inbox; whether it is still there.
        settle: completes a message with outputs, and releases it.
        consider: has a conversation brought on from the journal, if it can go on.
        spawn: runs a coroutine until the inbox stops.
        broken: told of what ends the worker.
    """

    def __init__(
        self,
        agent: str,
        outputs: Outputs,
        lanes: Lanes[Work],
        dead_letters: DeadLetters,
        *,
        release: Callable[[Callable[[Any], bool]], None],
        steps: Callable[[Work, Message], Steps],
        context: Callable[[Work, Message, int], Context],
        decode: Callable[[confluent_kafka.Message], Message],
        pick: Callable[[Work], Awaitable[bool]],
        settle: Callable[[Work, Message, list[Output]], Awaitable[None]],
        consider: Callable[[Assignment, str], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        broken: Callable[[BaseException], None],
    ) -> None:
        self._agent = agent
        self._clock = outputs.clock
        self._grace_s = outputs.settings.cancel_grace_s
        self._lanes = lanes
        self._dead_letters = dead_letters
        self._release = release
        self._steps = steps
        self._context = context
        self._decode = decode
        self._pick = pick
        self._settle = settle
        self._consider = consider
        self._spawn = spawn
        self._broken = broken
        self._watching = False

    # -- whoever has something to end -----------------------------------------------------------------------------

    def begin(self, assignment: Assignment) -> None:
        """*assignment* is this worker's now: see to what was cancelled before."""
        for offset in list(assignment.cancels):
            self.noticed(assignment, offset)
        if not self._watching:
            self._watching = True
            self._spawn(self._watch())

    def stop(self) -> None:
        """Give nobody up any more: the worker ends."""
        for _, work in self._lanes.items():
            if work.ending is not None:
                work.ending.over()

    def noticed(self, assignment: Assignment, offset: int) -> None:
        """The journal says that the message at *offset* is to be cancelled."""
        found = self._lanes.find(lambda work: work.assignment is assignment and work.offset == offset)
        if found is not None:
            task, work = found
            self._interrupt(task, work, _cancelled(assignment, offset, work.conversation_id))
            return
        entry = assignment.entries.get(offset)
        if entry is None:
            return  # it is finished, or is looked at when it has its turn
        self._consider(assignment, entry.conversation_id)
        self.behind(assignment, entry.conversation_id)

    def behind(self, assignment: Assignment, conversation_id: str) -> None:
        """End what is cancelled and held behind one that waits: its turn may be far."""
        conversation = assignment.view.get(conversation_id) if assignment.cancels else None
        if conversation is not None and conversation.waits:
            for entry in conversation:
                if entry.state == "held" and entry.offset in assignment.cancels:
                    self._spawn(self._end_held(assignment, entry))

    async def _watch(self) -> None:
        """Interrupt handlers whose messages' deadlines pass."""
        while True:
            await asyncio.sleep(WATCH_S)
            now_ms = self._clock.time() * 1_000
            for task, work in self._lanes.items():
                if work.ctx is not None and work.ending is None:
                    deadline = work.ctx.message.record["deadline"]
                    if deadline is not None and deadline < now_ms:
                        self._interrupt(task, work, _late(work, work.ctx.message, self._agent))

    def _interrupt(self, task: asyncio.Task[None], work: Work, ending: Ending) -> None:
        if work.ending is not None:
            return
        work.ending = ending
        self._release(lambda other: other is work)
        if work.ctx is not None:
            self._spawn(self._tell(task, work, ending))
        elif work.steps is not None:
            self._rerun(task, work, work.steps, ending)

    def _rerun(self, task: asyncio.Task[None], work: Work, steps: Steps, ending: Ending) -> None:
        ending.reruns = True
        steps.interrupt = partial(self._deliver, task, work)

    # -- before a handler runs ------------------------------------------------------------------------------------

    def ends(self, work: Work, message: Message) -> list[Output] | None:
        """What is said in place of running the handler; None: it is to be run, be it to clean up."""
        steps = work.steps
        if work.ending is None:
            if work.offset in work.assignment.cancels:
                work.ending = _cancelled(work.assignment, work.offset, message.conversation_id)
            elif steps is not None and DEADLINE in steps.found:
                work.ending = _late(work, message, self._agent)
            else:
                return None
        if steps is None:
            return self.says(work, message, self._context(work, message, 0))
        task = asyncio.current_task()
        assert task is not None
        self._rerun(task, work, steps, work.ending)
        return None

    async def expire(self, work: Work, message: Message) -> None:
        """The deadline of one whose handler had begun, and doesn't run now, has passed."""
        await self._steps(work, message).record(DEADLINE, "expired")

    # -- a handler that runs --------------------------------------------------------------------------------------

    async def _tell(self, task: asyncio.Task[None], work: Work, ending: Ending) -> None:
        """Interrupt it, once all that it has done is recorded: what was on its way then is no part of the cleanup."""
        ctx = work.ctx
        try:
            if ending.cause == "expired" and ctx is not None:
                await self._steps(work, ctx.message).record(DEADLINE, "expired")
            while (steps := work.steps) is not None and not steps.hold() and work.ctx is ctx:  # noqa: ASYNC110 - plain values
                await asyncio.sleep(LOOK_S)
        except NotOwner:
            return
        except Exception as error:  # noqa: BLE001 - a send that failed
            self._broken(error)
            return
        if ctx is not None and work.ctx is ctx and not ctx.suspended:
            self._deliver(task, work)

    def _deliver(self, task: asyncio.Task[None], work: Work) -> None:
        ctx, ending = work.ctx, work.ending
        assert ctx is not None
        assert ending is not None
        ending.delivered = True
        ctx.clean_up()
        if work.steps is not None:
            work.steps.clean_up()
        ending.timer = asyncio.create_task(self._grace(task, work, ctx))
        if ctx.interrupt is not None:
            ctx.interrupt()
        else:
            task.cancel()

    async def _grace(self, task: asyncio.Task[None], work: Work, ctx: Context) -> None:
        """Give up a handler that doesn't end: it is cancelled once more, and then left behind."""
        await self._clock.sleep(self._grace_s)
        message = ctx.message
        log.warning(
            "agent %s has not ended within %g s of its cancellation, and is given up: message %s of conversation %s",
            self._agent, self._grace_s, message.message_id, message.conversation_id,
        )  # fmt: skip
        if work.steps is not None:
            work.steps.give_up(asyncio.CancelledError())
        task.cancel()
        until = asyncio.get_running_loop().time() + LAST_S
        while work.ctx is ctx and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110 - plain values
            await asyncio.sleep(LOOK_S)
        if work.ctx is not ctx or not work.assignment.open:
            return
        log.error(
            "the handler of agent %s swallows its cancellation and goes on: it is left behind, and what it does counts"
            " for nothing\nfix: let CancelledError pass in it (`except Exception` does), or restart the worker to end"
            " it", self._agent,
        )  # fmt: skip
        outputs = self.says(work, message, ctx)
        try:
            await self._settle(work, message, outputs)
        except NotOwner:
            return
        except Exception as error:  # noqa: BLE001
            self._broken(error)
            return
        self._lanes.abandon(task)

    # -- the end --------------------------------------------------------------------------------------------------

    def says(self, work: Work, message: Message, ctx: Context) -> list[Output]:
        """What its completion sends: what its cleanup said, and the error for who asked."""
        ending = work.ending
        assert ending is not None
        outputs = list(ctx.collected) if ending.delivered else []
        if ending.cause == "expired":
            self._dead_letters.add(self._agent, work.record, message, Death(ending.cause, ending.error, "", 1))
        if message.type != "event" and not ctx.reply_sent:
            outputs.append(ctx.error(ending.error, ending.cause))
        return outputs

    async def _end_held(self, assignment: Assignment, entry: Entry) -> None:
        """One that is held behind what waits for a person ends at once."""
        try:
            found = await assignment.ownership.payloads([entry])
            work = Work.restored(assignment, entry, found.get(entry.payload_at, {}).get("record"))
            if work.record.value() is None and not await self._pick(work):
                return  # its turn will say that it is lost
            message = self._decode(work.record)
            if not assignment.open or entry.state != "held" or entry.offset not in assignment.cancels:
                return
            work.ending = _cancelled(assignment, entry.offset, message.conversation_id)
            await self._settle(work, message, self.says(work, message, self._context(work, message, 0)))
        except (NotOwner, RecordError, SchemaError) as error:
            log.warning("message %s is not cancelled before its turn: %s", entry.message_id, error)
        except Exception as error:  # noqa: BLE001
            self._broken(error)


def _cancelled(assignment: Assignment, offset: int, conversation: str) -> Ending:
    said: Mapping[str, Any] = assignment.cancels[offset][1]
    by, why = decided_by(said) if said else ("", "")
    return Ending("cancelled", f"conversation {conversation} was cancelled by {by or 'somebody'}{why and ': '}{why}")


def _late(work: Work, message: Message, agent: str) -> Ending:
    deadline = message.record["deadline"]
    when = "" if deadline is None else f", {datetime.fromtimestamp(deadline / 1_000, UTC):%Y-%m-%d %H:%M:%S} UTC,"
    return Ending(
        "expired",
        f"the deadline of message {message.message_id} of conversation {message.conversation_id}{when} passed while"
        f" agent {agent!r} handled it" + (f"; the chain is {drawn(chain, agent)}" if (chain := work.chain) else ""),
    )
