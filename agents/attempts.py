"""Attempts: how the handler of one message is run: within its limit, again where it failed, and after a pause.

What ends here is either what the handler said, or the failure that its message is to be parked for.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from llmagentos.agents.agent import Agent
from llmagentos.agents.context import Context
from llmagentos.agents.dead_letters import describe
from llmagentos.agents.outputs import Output
from llmagentos.agents.pausing import Pausing
from llmagentos.agents.work import Work
from llmagentos.streams.clock import Clock
from llmagentos.streams.errors import (
    AnswerError,
    AnswerTimeout,
    BadAnswer,
    BudgetSpent,
    ChangedCode,
    ChangedState,
    ContextTooLong,
    NotOwner,
    RecordError,
    StateError,
    StepError,
)
from llmagentos.streams.message import Message

__all__ = ["Attempts", "Failed", "expired"]

log = logging.getLogger(__name__)

#: What another run would end by too.
_FINAL: Final = (AnswerError, StepError, StateError, BadAnswer, BudgetSpent, ContextTooLong)

#: A partition may go from a worker with newer code back to an old one, while a roll-out has some of both. Each of those
#: is gone within seconds (docs/benchmarks.md, rollout); so long, and so often, it waits before it is a failure.
NEWER_S: Final = 60.0
NEWER_AGAIN_S: Final = 1.0


@dataclass(slots=True)
class Failed:
    """A message that was tried as often as it may be.

    Attributes:
        ctx: of the last attempt.
    """

    error: BaseException
    attempts: int
    ctx: Context

    @property
    def cause(self) -> str:
        """The short stable word of a dead letter."""
        if isinstance(self.error, RecordError):
            return self.error.cause
        if isinstance(self.error, ChangedCode | ChangedState):
            return "changed-code"
        return "timeout" if isinstance(self.error, TimeoutError | AnswerTimeout) else "failed"


def expired(message: Message, agent: str, clock: Clock) -> RecordError | None:
    """The error of a message whose deadline has passed; None: it has not."""
    deadline = message.record["deadline"]
    if deadline is None or deadline >= clock.time() * 1000:
        return None
    late_s = clock.time() - deadline / 1000
    return RecordError(
        f"message {message.message_id} of conversation {message.conversation_id} expired {late_s:.1f} s before agent"
        f" {agent!r} could handle it",
        cause="expired",
        fix="scale the deployment, or give a later deadline",
    )


class Attempts:
    """Runs the handler of one agent in one worker.

    Args:
        told_to_end: whether the running task was cancelled because its partition goes to another worker.
    """

    def __init__(self, agent: Agent, *, pausing: Pausing, told_to_end: Callable[[], bool], clock: Clock) -> None:
        self._agent = agent
        self._pausing = pausing
        self._told_to_end = told_to_end
        self._clock = clock

    async def run(
        self, work: Work, message: Message, context: Callable[[int], Context]
    ) -> list[Output] | Failed | None:
        """Run the handler until it succeeds or was tried as often as it may be.

        Args:
            work: what *message* is to those who call :meth:`Pausing.release`.
            context: makes the context of an attempt; counted from 0.

        Returns:
            what it said; None: the message is its next owner's to handle. Where it is to end early
            (:class:`~llmagentos.agents.cancelling.Ending`) and its handler had not returned before, Failed.
        """
        agent, pausing, clock = self._agent, self._pausing, self._clock
        attempt = 0
        newer_s = 0.0
        while True:
            ctx = context(attempt)
            turn = pausing.admit()
            if turn is None:
                turn = await pausing.turn(work)
                if turn is None:
                    return None if work.ending is None else Failed(asyncio.CancelledError(), attempt, ctx)
                if error := expired(message, agent.name, clock):
                    pausing.abandoned(turn)
                    return Failed(error, attempt, ctx)
            if work.ending is not None and not work.ending.reruns:
                pausing.abandoned(turn)
                return Failed(asyncio.CancelledError(), attempt, ctx)
            limit: asyncio.Timeout | None = None
            work.ctx, work.limit = ctx, None
            try:
                if agent.timeout_s is None:
                    result = await agent.handler(message, ctx)
                else:
                    async with clock.timeout(agent.timeout_s) as limit:
                        work.limit = limit
                        result = await agent.handler(message, ctx)
                work.ctx = None
                # It swallowed the cancellation, or its suspension: its next owner, or next run, handles the message.
                if self._told_to_end() or ctx.suspended:
                    pausing.abandoned(turn)
                    return None
                if work.ending is not None and work.ending.delivered:
                    _uncancel()
                    pausing.abandoned(turn)
                    return Failed(asyncio.CancelledError(), attempt + 1, ctx)
                ctx.end()
                if result is not None and not ctx.replied:
                    ctx.collect_reply(result)
                pausing.succeeded(turn)
                return ctx.collected
            except BaseException as error:
                work.ctx = None
                if ctx.suspended:
                    pausing.abandoned(turn)
                    return None
                if isinstance(error, NotOwner):
                    pausing.abandoned(turn)
                    raise
                if isinstance(error, TimeoutError) and limit is not None and limit.expired():
                    error = TimeoutError(f"the handler took longer than its timeout of {agent.timeout_s:g} s")
                # Whatever a handler raises becomes a retry or a dead letter, SystemExit and a cancellation too,
                # unless that one is ours.
                if isinstance(error, asyncio.CancelledError):
                    if self._told_to_end():
                        pausing.abandoned(turn)
                        raise
                    _uncancel()
                if work.ending is not None:
                    _uncancel()
                    pausing.abandoned(turn)
                    return Failed(error, attempt + 1, ctx)
                if isinstance(error, RecordError):  # the message is to blame, or what was made of it
                    pausing.abandoned(turn)
                    return Failed(error, attempt + 1, ctx)
                if isinstance(error, ChangedCode) and error.newer and newer_s < NEWER_S:
                    pausing.abandoned(turn)
                    if not newer_s:
                        log.warning(
                            "message %s of conversation %s was begun by newer code, and waits for a worker that has"
                            " it: %s",
                            message.message_id, message.conversation_id, describe(error),
                        )  # fmt: skip
                    newer_s += NEWER_AGAIN_S
                    await clock.sleep(NEWER_AGAIN_S)
                    continue
                # Who answered with an error has tried as often as it may: to ask again would multiply that.
                # A step's outcome is what it is; what it has no record of is not to be had by another run; and what
                # is remembered can't be read or kept by another run either.
                # A model's turns are recorded, and say the same again.
                final = attempt >= agent.retries or isinstance(error, _FINAL)
                if pausing.failed(turn, error, message.conversation_id, final=final):
                    log.warning(
                        "agent %s failed message %s of conversation %s, which is kept until others succeed: %s",
                        agent.name, message.message_id, message.conversation_id, describe(error),
                    )  # fmt: skip
                    attempt = 0
                    continue
                if final:
                    return Failed(error, attempt + 1, ctx)
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
                await clock.sleep(pause_s)


def _uncancel() -> None:
    """The cancellation of the task that runs is dealt with."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()
