"""Rehearsal: the handler of one message, run with what an earlier run recorded, to see where it would go.

It is given every recorded result, and does nothing else: the run ends at the first thing that isn't recorded, and what
it says is thrown away. That it comes to something else before it came by all that is recorded means that its code was
changed under way: at run time the message would be parked. What a handler does beside steps is done, as by every rerun.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, cast

from llmagentos.agents.agent import Agent
from llmagentos.agents.blobs import Blobs
from llmagentos.agents.blocking import Processes
from llmagentos.agents.context import Context
from llmagentos.agents.history import History
from llmagentos.agents.outputs import Outputs
from llmagentos.agents.steps import DEADLINE, Identity, Recorded, Steps, Suspended
from llmagentos.streams.clock import Clock
from llmagentos.streams.errors import ResultError
from llmagentos.streams.journal_record import Wait
from llmagentos.streams.masking import masked_text, shortened
from llmagentos.streams.message import Message
from llmagentos.streams.settings import Settings

__all__ = ["LIMIT_S", "WHY_WIDTH", "Past", "Verdict", "rehearse"]

#: A handler that does not come to anything new within this computes for long, or never ends. At what is recorded it
#: stops for no time, so only its own code between steps counts.
LIMIT_S: Final = 5.0

#: One task of a handler that meets something new waits so long for the others to come by what is recorded. Half of
#: what a run is given (`steps.PATIENCE_S`), as nothing else runs here.
PATIENCE_S: Final = 1.0
LOOK_S: Final = 0.01

#: A handler that was ended is waited for so long: it may have a `finally`.
END_S: Final = 0.2

#: Of an error's text: a line or two of a terminal.
WHY_WIDTH: Final = 200

#: Where code is that a person need not be shown.
_ROOTS: Final = {Path(__file__).parents[1], Path(__file__).resolve().parents[1]}
_OURS: Final = tuple(str(root / folder) for root in _ROOTS for folder in ("agents", "streams"))

Kind = Literal["goes-on", "breaks", "fails", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a handler would go.

    Attributes:
        kind: goes-on; breaks: it takes another way than the record, or can't read it, and would be parked as
            `changed-code`; fails: it raises; unknown: it could not be seen.
        recorded: of one that breaks, the first recorded step that it does not come by; empty: it can't read one.
        instead: what it comes to in that place; empty: its end.
        where: the line of its code, `file:line`; empty where that is not known.
        why: of the others.
    """

    kind: Kind
    recorded: str = ""
    instead: str = ""
    where: str = ""
    why: str = ""


@dataclass(slots=True)
class Past:
    """What earlier runs of a message's handler left.

    Attributes:
        steps: their journal records, in their order.
        answers: to its questions, by their ids, beside those among the steps.
        dues: when its questions end, by their ids.
        again: what tells a redrive's questions from those before; see :class:`Context`.
        memory: what its agent remembers of the conversation; None: it has no memory.
    """

    steps: Iterable[Mapping[str, Any]] = ()
    answers: Mapping[str, Message] = field(default_factory=dict[str, Message])
    dues: Mapping[str, int] = field(default_factory=dict[str, int])
    again: str = ""
    memory: Any = None


async def rehearse(
    agent: Agent,
    message: Message,
    past: Past,
    *,
    settings: Settings,
    decode: Callable[[bytes], Message],
    history: History | None = None,
    limit_s: float = LIMIT_S,
) -> Verdict:
    """Run the handler of *message* with what is recorded, and nothing else.

    Args:
        decode: an answer from its bytes.
        history: reads what was said before.
    """
    blobs = Blobs(settings)
    steps = _Steps(agent.name, message, blobs, decode)
    try:
        steps.load([await _whole(record, blobs) for record in past.steps])
    except ResultError as error:
        return Verdict("unknown", why=_told(error))
    steps.answers.update(
        {question: answer for question, answer in past.answers.items() if question not in steps.answers}
    )
    steps.dues = dict(past.dues)
    steps.begin()
    if (first := steps.first) is None or DEADLINE in steps.found:  # a late one is only to clean up
        return Verdict("goes-on")  # nothing is recorded that it could leave out
    if isinstance(agent.executor, Processes):
        why = "it runs in a process of its own, and has no steps there"
        return Verdict("breaks", _named(first), where=agent.source, why=why)
    outputs = _Outputs(settings, cast(Any, _Silence()), lambda _: b"", None, history)
    ctx = Context(
        agent.name,
        message,
        outputs,
        cast(Any, _Answers()),
        max(0, message.partition),
        steps,
        lambda *_: steps,
        _Work(None if past.memory is None else _State(past.memory)),
        past.again,
    )
    return await _watched(agent, message, ctx, steps, limit_s)


async def _watched(agent: Agent, message: Message, ctx: Context, steps: _Steps, limit_s: float) -> Verdict:
    async def run() -> None:
        try:
            await agent.handler(message, cast(Any, ctx))
        except BaseException as error:  # noqa: BLE001 - whatever it raises, SystemExit too, is what is asked for
            if not isinstance(error, Suspended) and not steps.met.done():
                steps.met.set_result(_failed(error))
        else:
            if not steps.met.done():
                left = steps.first
                steps.met.set_result(Verdict("goes-on") if left is None else Verdict("breaks", _named(left)))

    task = asyncio.create_task(run())
    await asyncio.wait((steps.met,), timeout=limit_s)
    if steps.met.done():
        verdict = steps.met.result()
        if verdict.kind == "breaks" and verdict.instead:
            place = _line(steps.at) or _line(task)
            verdict = Verdict(verdict.kind, verdict.recorded, verdict.instead, place)
        elif verdict.kind == "breaks":
            verdict = Verdict(verdict.kind, verdict.recorded, where=verdict.where or agent.source, why=verdict.why)
    else:
        verdict = Verdict("unknown", where=_line(task), why=f"its handler does not come to an end within {limit_s:g} s")
        steps.met.set_result(verdict)
    steps.give_up(Suspended())
    await asyncio.wait((task,), timeout=END_S)
    if not task.done():
        task.cancel()
    return verdict


class _Steps(Steps):
    """Steps that do nothing: at the first that isn't recorded the run is over.

    Attributes:
        met: what the run came to in the end.
        at: the task that did.
    """

    def __init__(self, agent: str, message: Message, blobs: Blobs, decode: Callable[[bytes], Message]) -> None:
        async def record(step: Mapping[str, Any], at: int) -> NoReturn:
            raise AssertionError(f"a rehearsal records {step['name']}")

        super().__init__(
            agent,
            message,
            Clock(),
            record=record,
            decode=decode,
            blobs=blobs,
            asks=lambda: None,
            waits=lambda _: None,
            suspend=lambda: None,
            suspend_after_s=None,
        )
        self.met: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self.at: asyncio.Task[Any] | None = None

    @property
    def first(self) -> Identity | None:
        """The first that is recorded and that the run has not come by yet."""
        return next((identity for identity in self.found if identity in self._known), None)

    async def new(self, identity: Identity) -> None:
        await self._come(identity)

    async def wait(self, wait: Wait, future: asyncio.Future[Any]) -> Any:
        return future.result() if future.done() else await self._come((wait.name, wait.number))

    async def mark(self, name: str) -> bool:
        identity: Identity = (f"ctx.version {name}", 0)
        if identity in self.found or self._known:
            return await super().mark(name)
        return await self._come(identity)

    async def record(self, identity: Identity, *args: Any, **options: Any) -> Recorded:
        return await self._come(identity)

    async def _come(self, identity: Identity) -> NoReturn:
        """The run has come to *identity*, of which nothing is recorded, or not how it ended."""
        left, until = len(self._known), time.monotonic() + PATIENCE_S
        while self._known and time.monotonic() < until and not self.met.done():
            await asyncio.sleep(LOOK_S)  # another task of the handler may be on its way to what is recorded
            if len(self._known) < left:
                left, until = len(self._known), time.monotonic() + PATIENCE_S
        if not self.met.done():
            self.at = asyncio.current_task()
            first = self.first
            verdict = Verdict("goes-on") if first is None else Verdict("breaks", _named(first), _named(identity))
            self.met.set_result(verdict)
        if self._ended is None:
            # Its end comes when it was looked at where it is.
            self._frozen = self._frozen or asyncio.get_running_loop().create_future()
        await self._thawed()
        raise Suspended


class _Outputs(Outputs):
    """What is said goes nowhere, and every agent and topic is taken to be there."""

    async def partitions_of(self, topic: str) -> int:
        return 1

    def send(self, output: object) -> None:
        pass


class _Silence:
    """In the place of a producer."""

    async def ebb(self) -> None:
        pass

    async def delivered(self) -> None:
        pass


class _Answers:
    """In the place of the answers: those that came are with the steps, and others don't come."""

    async def expect(self, *_: object) -> asyncio.Future[Message]:
        return asyncio.get_running_loop().create_future()

    def forget(self, question: str) -> None:
        pass


@dataclass(slots=True)
class _State:
    """A memory that is not kept."""

    value: Any

    def forget(self) -> None:
        self.value = type(self.value)()


@dataclass(slots=True)
class _Work:
    """What a context asks of the work on its message."""

    state: _State | None
    chain: tuple[()] = ()
    epoch: int = 0
    chain: tuple[()] = ()


async def _whole(record: Mapping[str, Any], blobs: Blobs) -> Mapping[str, Any]:
    step = record["step"]
    if not step["blob"] or step["outcome"] != "answer":  # results are read when their turn comes
        return record
    return {**record, "step": {**step, "body": await blobs.read(step["blob"])}}


def _failed(error: BaseException) -> Verdict:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OURS)]
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    if isinstance(error, ResultError):  # what is recorded can't be read by the code as it is
        return Verdict("breaks", where=where, why=_told(error))
    return Verdict("fails", where=where, why=f"{type(error).__name__}: {_told(error)}")


def _told(error: BaseException) -> str:
    try:
        text = getattr(error, "what", "") or str(error)
    except Exception as failed:  # noqa: BLE001 - the error is another's
        text = f"<{type(failed).__name__} in its text>"
    return shortened(masked_text(text), WHY_WIDTH)


def _named(identity: Identity) -> str:
    name, number = identity
    return name if not number else f"{name} #{number + 1}"


def _line(task: asyncio.Task[Any] | None) -> str:
    """Where in code that is not ours *task* stands."""
    found = ""
    coroutine: Any = None if task is None else task.get_coro()
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None and not frame.f_code.co_filename.startswith(_OURS):
            found = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        coroutine = getattr(coroutine, "cr_await", None)
    return found
