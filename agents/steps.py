"""Steps: what a handler does and waits for beside computing, each with a result that is recorded once.

A handler that runs again, here or on another worker, is given the recorded results in place of doing it all again. It
finds them by name: the step's own, and which of that name it is in the handler. So it must come by the same steps in
the same order, which is what `llmagentos check` looks after; a run that doesn't is stopped.

A result counts when its journal record was read back. An answer counts as soon as it was read, as its topic keeps it;
it goes into the journal when its handler is suspended. docs/spec/Steps.tla has the protocol as a model; the idea of a
journal of steps that a rerun is fed from is that of Durable Functions (Burckhardt et al., 2021) and Temporal.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import orjson

from llmagentos.agents.blobs import Blobs
from llmagentos.agents.results import decode_result, encode_result
from llmagentos.streams.clock import Clock
from llmagentos.streams.errors import ChangedCode, ResultError, StepError, StepFailed, StepUnknown
from llmagentos.streams.journal_record import CLEANUP, Wait, step_record
from llmagentos.streams.message import Message, child_id

__all__ = ["DEADLINE", "RESERVED", "Identity", "Recorded", "Steps", "Suspended"]

#: The name of a step, and which of that name it is.
Identity = tuple[str, int]

#: A run that meets something new waits so long for its other tasks to come by what is recorded, before it is taken for
#: changed code: what they do in between is no step, so it should be quick.
PATIENCE_S: Final = 2.0
LOOK_S: Final = 0.01

#: Of an error's text that is a step's result: some pages, as errors of HTTP clients like to hold whole answers.
ERROR_MAX: Final = 10_000

#: Names of steps that are the engine's begin so.
RESERVED: Final = "ctx."

#: The step by which the journal says that the deadline of the message has passed.
DEADLINE: Final[Identity] = (f"{RESERVED}deadline", 0)

#: Outcomes that end a step; others say that it was begun.
_ENDS: Final = frozenset({"result", "error", "answer", "approve", "reject", "expired", "version"})


class Suspended(BaseException):
    """The handler waits for long, so this run of it ends here; another goes on when what it waits for has come.

    No `Exception`, so that a handler's own `except Exception` lets it pass.
    """


class Recorded(NamedTuple):
    """What the journal has of a step: as `Step` in journal.avsc, and when that was written (milliseconds)."""

    outcome: str
    about: str
    due: int
    body: bytes
    content_type: str
    at: int
    blob: str = ""


class Steps:
    """The steps of one message, over all runs of its handler in one worker. Used from one event loop.

    Args:
        record: writes a step to the journal, and returns when it counts.
        decode: an answer from its bytes.
        blobs: where results are that a journal record has no room for.
        asks: told that the handler is about to ask.
        waits: told when the handler begins (True) and ends (False) to wait for something.
        suspend: told that it has waited for long, and may be suspended.
        suspend_after_s: what is long; None: it never is.
        keep: writes the answers in hand to the journal.
        over: whether the run is over, though its handler may not know that yet.

    Attributes:
        found: what is recorded, by identity.
        answers: to questions, by their ids; from the journal, or read while this worker ran the handler.
        in_hand: those of them that are not in the journal.
        dues: when waits of an earlier run end, by what they are about: to run again does not put them off.
        open: what the handler waits for now.
        time: of what was recorded or met last, milliseconds since the epoch.
        interrupt: of a run that is to clean up: called where it comes to what is not recorded.
    """

    def __init__(
        self,
        agent: str,
        message: Message,
        clock: Clock,
        *,
        record: Callable[[Mapping[str, Any], int], Awaitable[None]],
        decode: Callable[[bytes], Message],
        blobs: Blobs,
        asks: Callable[[], None],
        waits: Callable[[bool], None],
        suspend: Callable[[], None],
        suspend_after_s: float | None,
        keep: Callable[[], Awaitable[None]] | None = None,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._agent = agent
        self._message = message
        self._clock = clock
        self._record = record
        self._decode = decode
        self._blobs = blobs
        self.asks = asks
        self._waits = waits
        self._suspend = suspend
        self._suspend_after_s = suspend_after_s
        self._keep = keep
        self._over = over
        self._keeping = False
        self.found: dict[Identity, Recorded] = {}
        self.answers: dict[str, Message] = {}
        self.in_hand: dict[str, Message] = {}
        self.dues: dict[str, int] = {}
        self.open: dict[Identity, tuple[Wait, asyncio.Future[Any]]] = {}
        self._known: set[Identity] = set()  # of what is recorded, that this run has to come by
        self._marked: set[Identity] = set()  # marks of changed code that this run came by
        self._counts: dict[str, int] = {}
        self._callers: dict[str, asyncio.Task[Any] | None] = {}
        self._running = 0
        self._timer: asyncio.TimerHandle | None = None
        self._frozen: asyncio.Future[None] | None = None
        self._ended: BaseException | None = None
        self._writing = 0
        self._held = False
        self._cleaning = False
        self.interrupt: Callable[[], None] | None = None
        self.time = message.timestamp

    # -- runs ---------------------------------------------------------------------------------------------------

    def load(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take in what the journal has; records in its order. Of several ends of one step, the first counts."""
        for record in records:
            step = record["step"]
            if step["outcome"] == "answer":
                self.answers.setdefault(step["about"], self._decode(step["body"]))
                continue
            recorded = Recorded(
                step["outcome"],
                step["about"],
                step["due"],
                step["body"],
                step["content_type"],
                record["at"],
                step["blob"],
            )
            self._take((step["name"], step["number"]), recorded)

    def _take(self, identity: Identity, recorded: Recorded) -> None:
        known = self.found.get(identity)
        if known is None or known.outcome not in _ENDS:
            self.found[identity] = recorded

    def decide(self, record: Mapping[str, Any]) -> None:
        """A person's decision was read from the journal while the handler runs."""
        self.load([record])
        step = record["step"]
        if (waiting := self.open.get((step["name"], step["number"]))) is not None and not waiting[1].done():
            waiting[1].set_result(None)

    def begin(self) -> None:
        """A run of the handler begins."""
        self._known = {
            each
            for each, recorded in self.found.items()
            if recorded.outcome != "version" and each != DEADLINE and each[1] < CLEANUP
        }
        self._marked.clear()
        self._counts.clear()
        self._callers.clear()
        self.time = self._message.timestamp

    def end(self) -> None:
        """The handler has returned.

        Raises:
            ChangedCode: it did not come by something that is recorded.
        """
        if self._known:
            raise self._changed("ended")

    @property
    def used(self) -> bool:
        """Whether anything of it is in the journal."""
        return bool(self.found) or len(self.in_hand) < len(self.answers)

    @property
    def suspended(self) -> bool:
        """Whether this run is over, and another will go on."""
        return isinstance(self._ended, Suspended)

    # -- an early end -------------------------------------------------------------------------------------------

    def hold(self) -> bool:
        """Nothing new begins from now on; whether all that was is recorded."""
        self._held = True
        return not self._writing and self._frozen is None

    def clean_up(self) -> None:
        """The handler is interrupted: what it comes by from here on is its cleanup, and is not suspended."""
        self._held, self._cleaning, self.interrupt = False, True, None
        self._known.clear()
        self._counts.clear()
        self._callers.clear()
        self._arm()

    async def fresh(self, identity: Identity) -> None:
        """The run comes by what is not recorded; raises CancelledError where that is not to begin any more.

        So a handler that is ended by its time limit, or as its worker ends, does not clean up: it runs again.
        """
        while self._held:  # noqa: ASYNC110 - a plain value, and not for long
            await asyncio.sleep(LOOK_S)
        if self.interrupt is not None:
            self.interrupt()
        if self._over() or (self._cleaning and identity[1] < CLEANUP):
            await asyncio.sleep(LOOK_S)  # in the handler's own task the cancellation comes here
            raise asyncio.CancelledError

    # -- identities ---------------------------------------------------------------------------------------------

    def identity(self, name: str) -> Identity:
        """That of the next step of this name. Call it before anything is awaited, so that it keeps its place.

        Raises:
            StepError: another task of the handler is at a step of this name: which comes first is chance.
        """
        task = asyncio.current_task()
        other = self._callers.get(name)
        if other is not None and other is not task and not other.done():
            raise StepError(
                f"two tasks of agent {self._agent!r} run steps named {name!r} side by side, in message"
                f" {self._message.message_id}: a rerun could take one's result for the other's",
                fix=f"give them names of their own, for example f'{name} {{what}}', or call both in one task and await"
                " them with asyncio.gather",
            )
        self._callers[name] = task
        number = self._counts.get(name, 0)
        self._counts[name] = number + 1
        return name, number + CLEANUP if self._cleaning else number

    def key(self, identity: Identity) -> str:
        """The idempotency key of a step: the same on every run."""
        return child_id(self._message.message_id, self._agent, f"step/{identity[0]}#{identity[1]}")

    async def alive(self) -> None:
        """Raise what ended this run, if it is over.

        Not at once: a handler that swallows it and tries again in a loop must not keep the worker from all else.
        """
        if self._ended is not None:
            await asyncio.sleep(LOOK_S)
            raise self._ended

    async def meet(self, identity: Identity) -> Recorded | None:
        """What is recorded of a step that the run comes by; raises what :meth:`alive` does."""
        await self.alive()
        self._known.discard(identity)
        recorded = self.found.get(identity)
        if recorded is not None:
            self.time = max(self.time, recorded.at)
        return recorded

    async def new(self, identity: Identity) -> None:
        """The run comes by a step that nothing is recorded of.

        Raises:
            ChangedCode: there are recorded ones that it should have come by before.
        """
        await self.fresh(identity)
        until = time.monotonic() + PATIENCE_S
        while self._known:
            if self.open:  # a task waits, and may go on to what is recorded
                until = time.monotonic() + PATIENCE_S
            elif time.monotonic() > until:
                raise self._changed(f"came to {_named(identity)}")
            await asyncio.sleep(LOOK_S)
        await self._thawed()

    def _changed(self, instead: str) -> ChangedCode:
        unmet = [identity for identity in self.found if identity in self._known]  # the first that was recorded, first
        error = ChangedCode(
            f"a rerun of agent {self._agent!r} {instead} where {_named(unmet[0])} is recorded"
            + (f" ({len(unmet) - 1} more are)" if len(unmet) > 1 else "")
            + f": message {self._message.message_id} of conversation {self._message.conversation_id}",
            fix="deploy the code that the message was begun with, or mark the change with ctx.version(name); then"
            f" `llmagentos dead redrive --agent {self._agent}`",
            kept="all recorded results",
        )
        marks = (identity for identity, recorded in self.found.items() if recorded.outcome == "version")
        error.newer = not self._marked.issuperset(marks)
        return error

    # -- recording ----------------------------------------------------------------------------------------------

    async def record(
        self,
        identity: Identity,
        outcome: str,
        body: bytes = b"",
        content_type: str = "",
        *,
        about: str = "",
        due: int = 0,
        attempts: int = 1,
        took_s: float = 0.0,
        blob: str = "",
    ) -> Recorded:
        """Write to the journal how a step stands; returns when that counts.

        Raises:
            NotOwner: another worker owns the partition now.
            ResultError: it is too large.
        """
        at = time.time_ns() // 1_000_000
        step = step_record(
            *identity,
            outcome,
            about=about,
            due=due,
            attempts=attempts,
            took_ms=round(took_s * 1_000),
            content_type=content_type,
            body=body,
            blob=blob,
        )
        self._writing += 1
        try:
            await self._record(step, at)
        finally:
            self._writing -= 1
        recorded = Recorded(outcome, about, due, body, content_type, at, blob)
        self._take(identity, recorded)
        self.time = max(self.time, at)
        return self.found[identity]

    async def mark(self, name: str) -> bool:
        """Whether the run takes the way of the code that is marked so: not where it is past that already."""
        await self.alive()
        identity = (f"{RESERVED}version {name}", 0)
        self._marked.add(identity)
        if identity in self.found:
            return True
        if self._known:
            return False
        await self.record(identity, "version")
        return True

    async def run(
        self,
        identity: Identity,
        call: Callable[[], Any],
        *,
        timeout_s: float | None,
        retries: int,
        backoff_s: float,
        at_most_once: bool,
        errors: tuple[type[Exception], ...],
    ) -> Any:
        """Do *call* unless its result is recorded; the result.

        Raises:
            StepFailed: it ended by one of *errors*. StepUnknown: it was begun, and may not be run again.
            ResultError: the result can't be recorded. TimeoutError: it took too long, with all retries.
        """
        recorded = await self.meet(identity)
        if recorded is not None and recorded.outcome in _ENDS:
            return self._given(identity, recorded, await self._body(identity, recorded))
        if recorded is not None:
            await self.fresh(identity)
            raise self._unknown(identity)
        await self.new(identity)
        if at_most_once:
            await self.record(identity, "begun")
        self._set_running(1)
        try:
            outcome, body, content_type, attempts, took_s = await self._do(
                identity, call, timeout_s, retries, backoff_s, errors
            )
            blob = await self._kept(identity, body)
            recorded = await self.record(
                identity, outcome, b"" if blob else body, content_type, attempts=attempts, took_s=took_s, blob=blob
            )
        finally:
            self._set_running(-1)
        return self._given(identity, recorded, body)

    async def _kept(self, identity: Identity, body: bytes) -> str:
        try:
            return await self._blobs.keep(body)
        except ResultError as error:
            raise self._no_result(identity, error) from error

    async def _body(self, identity: Identity, recorded: Recorded) -> bytes:
        if not recorded.blob:
            return recorded.body
        try:
            return await self._blobs.read(recorded.blob)
        except ResultError as error:
            raise self._no_result(identity, error) from error

    def _no_result(self, identity: Identity, error: ResultError) -> ResultError:
        """*error* with where it was."""
        message = self._message
        return ResultError(
            f"{_named(identity)} of agent {self._agent!r}, message {message.message_id} of conversation"
            f" {message.conversation_id}: {error.what}",
            kept=error.kept,
            fix=error.fix,
        )

    async def _do(
        self,
        identity: Identity,
        call: Callable[[], Any],
        timeout_s: float | None,
        retries: int,
        backoff_s: float,
        errors: tuple[type[Exception], ...],
    ) -> tuple[str, bytes, str, int, float]:
        attempt = 0
        while True:
            started = time.monotonic()
            try:
                value = await self._limited(identity, call, timeout_s)
            except errors as error:
                said = orjson.dumps({"kind": type(error).__name__, "text": _said(error)})
                return "error", said, "application/json", attempt + 1, time.monotonic() - started
            except Exception:
                if attempt >= retries:
                    raise
                await self._clock.sleep(backoff_s * 2**attempt * random.uniform(0.8, 1.2))
                await self.alive()  # the partition may have gone meanwhile: its next owner tries
                attempt += 1
                continue
            try:
                body, content_type = encode_result(value)
            except ResultError as error:
                raise self._no_result(identity, error) from None
            return "result", body, content_type, attempt + 1, time.monotonic() - started

    async def _limited(self, identity: Identity, call: Callable[[], Any], timeout_s: float | None) -> Any:
        if timeout_s is None:
            return await called(call)
        limit: asyncio.Timeout | None = None
        try:
            async with self._clock.timeout(timeout_s) as limit:
                return await called(call)
        except TimeoutError:
            if limit is None or not limit.expired():  # its own
                raise
            raise TimeoutError(f"{_named(identity)} took longer than its timeout of {timeout_s:g} s") from None

    def _given(self, identity: Identity, recorded: Recorded, body: bytes) -> Any:
        if recorded.outcome == "error":
            said = orjson.loads(body)
            raise StepFailed(f"{_named(identity)} failed by {said['kind']}: {said['text']}", kind=said["kind"])
        try:
            return decode_result(body, recorded.content_type)
        except ResultError as error:
            raise self._no_result(identity, error) from error

    def _unknown(self, identity: Identity) -> StepUnknown:
        key = self.key(identity)
        return StepUnknown(
            f"{_named(identity)} of agent {self._agent!r} was begun, and its worker ended before its result was"
            f" recorded: message {self._message.message_id}",
            key=key,
            fix=f"it is not run again: ask whom it calls what became of key {key}",
        )

    def _set_running(self, by: int) -> None:
        self._running += by
        self._arm()

    # -- waiting ------------------------------------------------------------------------------------------------

    async def wait(self, wait: Wait, future: asyncio.Future[Any]) -> Any:
        """Wait for *future*. Meanwhile the handler holds no slot, and may be suspended."""
        identity = (wait.name, wait.number)
        await self.fresh(identity)
        await self._thawed()
        self.open[identity] = (wait, future)
        if len(self.open) == 1:
            self._waits(True)
        self._arm()
        try:
            result = await future
            self._disarm()  # something came: it has not waited for long
            await self._thawed()  # while it is among the open ones, where a suspension that is under way looks for it
        finally:
            if self.open.pop(identity, None) is not None and not self.open:
                self._waits(False)
            self._arm()
        return result

    async def keep(self) -> None:
        """Write the answers in hand to the journal, unless somebody does already.

        Raises:
            NotOwner: another worker owns the partition now.
        """
        if self._keep is None or self._keeping:
            return
        self._keeping = True
        try:
            await self._keep()
        finally:
            self._keeping = False

    def _arm(self) -> None:
        """Suspend it when it has waited for long, and does nothing else."""
        ends = self._ended is not None or self._frozen is not None
        idle = bool(self.open) and not self._running and not ends and not self._cleaning
        if idle and self._timer is None and self._suspend_after_s is not None:
            self._timer = asyncio.get_running_loop().call_later(self._suspend_after_s, self._waited)
        elif not idle:
            self._disarm()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _waited(self) -> None:
        self._timer = None
        self._suspend()

    def freeze(self) -> list[Wait] | None:
        """From now on nothing reaches the handler; what it waits for. None: it does not just wait, or leaves already.

        Whoever froze it must end it, or thaw it: what came since is for them to look at (:meth:`come`).
        """
        if (
            self._frozen is not None
            or self._held
            or self._running
            or not self.open
            or self._ended
            or any(future.done() for _, future in self.open.values())
        ):
            self._arm()
            return None
        self._frozen = asyncio.get_running_loop().create_future()
        return [wait for wait, _ in self.open.values()]

    def come(self) -> list[Message]:
        """Answers that came since :meth:`freeze`, and have not reached the handler."""
        futures = [future for wait, future in self.open.values() if wait.kind == "answer" and future.done()]
        return [each.result() for each in futures if not each.cancelled() and each.exception() is None]

    def thaw(self) -> None:
        """It can't be suspended: let it go on, and be, however long it waits."""
        self._suspend_after_s = None
        if self._frozen is not None:
            self._frozen.set_result(None)
            self._frozen = None

    def give_up(self, error: BaseException) -> None:
        """End this run: whatever it waits for, and all it calls from now on, raises *error*."""
        self._ended = error
        self._arm()
        futures = [future for _, future in self.open.values()]
        if self._frozen is not None:
            futures.append(self._frozen)
        for future in futures:
            if not future.done():
                future.set_exception(error)
                future.exception()  # where nobody waits for it, that is no news

    async def _thawed(self) -> None:
        if self._ended is not None:
            raise self._ended
        if self._frozen is not None:
            await asyncio.shield(self._frozen)


def _said(error: BaseException) -> str:
    """What *error* says, as far as it can be kept."""
    try:
        text = str(error)
    except Exception as failed:  # noqa: BLE001 - the error is another's
        text = f"<{type(failed).__name__} in its text>"
    return text[:ERROR_MAX].encode(errors="replace").decode()


def _named(identity: Identity) -> str:
    name, number = identity
    return f"step {name!r}" if not number else f"step {name!r} (number {number + 1} of that name)"


async def called(call: Callable[[], Any]) -> Any:
    """What *call* gives: awaited, or, of a plain function, from a thread, so that the others go on."""
    function = call
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        return await call()
    value = await _in_thread(call)
    return await value if inspect.isawaitable(value) else value


async def _in_thread(call: Callable[[], Any]) -> Any:
    """As `asyncio.to_thread`, in a thread of its own that nothing waits for: one that never ends holds no worker up.

    To make a thread costs some 50 microseconds, which is little beside a call that is worth recording.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if future.done():  # its time was over
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def work() -> None:
        value, error = None, None
        try:
            value = call()
        except StopIteration as stop:  # no future can have it
            error = RuntimeError(f"a step raised StopIteration: {stop}")
        except BaseException as failed:  # noqa: BLE001 - it is the step's outcome
            error = failed
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=work, name="step", daemon=True).start()
    return await future
