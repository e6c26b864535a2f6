"""Handlers that are plain functions: run in threads or in processes of their own, so that the event loop goes on.

Threads suit what waits in a library without async (a database, an HTTP client), processes what computes. Both are
the standard library's executors; what is here is the context that such a handler is given, and what happens when it
takes too long, dies or raises.

A thread can't be ended from outside. One that takes longer than the agent's timeout, or than a drain, is given up: its
context refuses further calls, what it returns is thrown away, and its message is tried again, so that both may run at
once for a while. A process is ended by a signal, and its message has run for nothing.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

from llmagentos.streams.breaker import reason_of
from llmagentos.streams.errors import AgentError
from llmagentos.streams.message import Message

if TYPE_CHECKING:
    from llmagentos.agents.context import Context

__all__ = ["Blocking", "Function", "ProcessContext", "Processes", "ThreadContext", "Threads", "usual_number"]

log = logging.getLogger(__name__)

Blocking = Literal["thread", "process"]

#: A plain handler: (message, ThreadContext or ProcessContext) -> reply.
Function = Callable[[Message, Any], Any]

#: What of a context gives an awaitable though it is no coroutine function: such a call takes its place among the
#: handler's calls at once.
_AWAITED: Final = frozenset({"step", "ask", "gather", "map", "sleep", "approve", "history"})

#: Threads beyond the number that runs at once, for those given up and for those that wait for an answer. When they
#: are all taken, messages wait for a thread.
SPARE_THREADS: Final = 256

#: What ends within this is waited for when the worker stops: a process that has nothing to do needs some 10 ms.
CLOSE_S: Final = 5.0


def usual_number(kind: Blocking) -> int:
    """How many run at once where the agent's `max_in_flight` doesn't say: the executors' own defaults."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(32, cores + 4) if kind == "thread" else cores


def _named(function: Function) -> str:
    code = function.__code__
    return f"{function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"


# -- threads --------------------------------------------------------------------------------------------------------


class ThreadContext:
    """The context of a handler with `blocking="thread"`: as `Context`, but what is awaited there returns when done.

    So `await ctx.ask("poet", "a line")` of an async handler is `ctx.ask("poet", "a line")` here. It may be used from
    other threads of the handler's, until the handler has returned.
    """

    def __init__(self, ctx: Context, loop: asyncio.AbstractEventLoop, handler: str) -> None:
        self._ctx = ctx
        self._loop = loop
        self._handler = handler
        self._over = False
        self._interrupted = False
        self._calls: set[Future[Any]] = set()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._ctx, name)
        return partial(self._call, value) if name in _AWAITED or iscoroutinefunction(value) else value

    @property
    def llm(self) -> ThreadLlm:
        """See `Context.llm`."""
        return ThreadLlm(self._ctx.llm.chat, self._call)

    @property
    def memory(self) -> Any:
        """See `Context.memory`."""
        return self._ctx.memory

    @memory.setter
    def memory(self, value: Any) -> None:
        self._ctx.memory = value

    def _call(self, method: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        with self._lock:
            if self._over:
                raise self._too_late()
            if self._interrupted:
                self._interrupted = False
                raise asyncio.CancelledError
            call = asyncio.run_coroutine_threadsafe(_awaited(method, args, options), self._loop)
            self._calls.add(call)
        try:
            return call.result()
        except CancelledError:
            with self._lock:
                interrupted, self._interrupted = self._interrupted and not self._over, False
            raise asyncio.CancelledError if interrupted else self._too_late() from None
        finally:
            with self._lock:
                self._calls.discard(call)

    def _interrupt(self) -> None:
        """Have the call that is under way, or the next one, raise CancelledError; those behind it do as ever."""
        with self._lock:
            self._interrupted = True
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def _end(self) -> None:
        """The handler has returned, or was given up: whoever still calls is refused."""
        with self._lock:
            self._over = True
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def _too_late(self) -> AgentError:
        return AgentError(
            f"handler {self._handler} used its context after it had ended or was given up: message"
            f" {self._ctx.message.message_id} of conversation {self._ctx.conversation}",
            kept="the message: it is tried again, or was answered",
            fix="raise the agent's timeout, or let the function end sooner",
        )


async def _awaited(method: Callable[..., Awaitable[Any]], args: Any, options: Any) -> Any:
    return await method(*args, **options)


class Threads:
    """Runs a plain function in threads; awaited as an async handler is.

    Args:
        most: how many run at once; the agent's `max_in_flight` bounds it.
    """

    def __init__(self, name: str, function: Function, most: int) -> None:
        self._name = name
        self._function = function
        self._most = most
        self._pool: ThreadPoolExecutor | None = None
        self._running: set[Future[Any]] = set()

    async def __call__(self, message: Message, ctx: Context) -> Any:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._most + SPARE_THREADS, thread_name_prefix=f"agent-{self._name}")
        inside = ThreadContext(ctx, asyncio.get_running_loop(), _named(self._function))
        ctx.interrupt = inside._interrupt  # pyright: ignore[reportPrivateUsage]
        run = self._pool.submit(contextvars.copy_context().run, _call, self._function, message, inside)
        self._running.add(run)
        run.add_done_callback(self._running.discard)
        try:
            return await asyncio.wrap_future(run)
        except asyncio.CancelledError:
            if not run.done():
                began = time.monotonic()
                log.warning("handler %s was given up; its thread goes on", _named(self._function))
                run.add_done_callback(partial(self._ended_late, began))
            raise
        finally:
            inside._end()  # pyright: ignore[reportPrivateUsage]

    def _ended_late(self, given_up_at: float, run: Future[Any]) -> None:
        error = None if run.cancelled() else run.exception()
        log.warning(
            "handler %s ended %.1f s after it was given up%s",
            _named(self._function),
            time.monotonic() - given_up_at,
            f", by {error!r}" if error else "; what it returned is thrown away",
        )

    async def close(self) -> bool:
        """End the threads.

        Returns:
            Whether all have ended: a function that does not return can't be made to.
        """
        pool, self._pool = self._pool, None
        if pool is None:
            return True
        pool.shutdown(wait=False, cancel_futures=True)
        if self._running:
            await asyncio.to_thread(wait, list(self._running), CLOSE_S)
        if self._running:
            log.error("%d threads of handler %s do not end", len(self._running), _named(self._function))
            return False
        await asyncio.to_thread(pool.shutdown)
        return True


class ThreadLlm(NamedTuple):
    """As `Context.llm`, for a thread."""

    asked: Callable[..., Awaitable[Any]]
    call: Callable[..., Any]

    def chat(self, *args: Any, **options: Any) -> Any:
        """See `Llm.chat`; returns when the model has answered."""
        return self.call(self.asked, *args, **options)


def _call(function: Function, message: Message, ctx: Any) -> Any:
    try:
        return function(message, ctx)
    except (StopIteration, GeneratorExit) as error:  # a future can't carry the one, and the other closes who awaits it
        raise RuntimeError(f"handler {_named(function)} raised {error!r}") from error


# -- processes ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ProcessContext:
    """The context of a handler with `blocking="process"`: data, and what is to be sent when the handler has returned.

    Attributes:
        agent, message, attempt, partition: as of `Context`.
        state: a copy of the agent's memory of the conversation; None: it has none.
        forgotten: whether the handler began anew with it.
    """

    agent: str
    message: Message
    attempt: int
    partition: int
    state: Any = field(default=None, repr=False)
    forgotten: bool = field(default=False, repr=False)
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list, repr=False)

    @property
    def conversation(self) -> str:
        """The id of the conversation."""
        return self.message.conversation_id

    @property
    def tenant(self) -> str:
        """Who pays for this message."""
        return self.message.tenant

    @property
    def deadline(self) -> float | None:
        """Seconds left until the message's deadline, below zero when it has passed; None where it has none."""
        deadline = self.message.deadline
        return None if deadline is None else deadline / 1000 - time.time()

    @property
    def log(self) -> logging.Logger:
        """Logs to the worker's log."""
        return logging.getLogger(f"llmagentos.agent.{self.agent}")

    @property
    def memory(self) -> Any:
        """What the agent remembers of the conversation; see `Context.memory`."""
        if self.state is None:
            from llmagentos.agents.memory import no_memory

            raise no_memory(self.agent)
        return self.state

    @memory.setter
    def memory(self, value: Any) -> None:
        self.state = value

    def forget(self) -> None:
        """Begin anew with the memory; see `Context.forget`."""
        self.state = type(self.memory)()
        self.forgotten = True

    def reply(
        self, content: object, *, attributes: Mapping[str, str] | None = None, usage: Mapping[str, Any] | None = None
    ) -> None:
        """Answer the message; see `Context.reply`."""
        self.calls.append(("reply", (content,), {"attributes": attributes, "usage": usage}))

    def tell(
        self,
        agent: str,
        content: object,
        *,
        conversation: str | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """Send *content* to another agent; see `Context.tell`."""
        self.calls.append(("tell", (agent, content), {"conversation": conversation, "attributes": attributes}))

    def publish(
        self, topic: str, content: object, *, key: str | bytes | None = None, headers: Mapping[str, bytes] | None = None
    ) -> None:
        """Append a plain record to any topic; see `Context.publish`."""
        self.calls.append(("publish", (topic, content), {"key": key, "headers": headers}))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a handler with blocking='process' has no ctx.{name}: it runs apart from the worker, which sends what it"
            " said once it has returned; blocking='thread' has all"
        )


class ProcessTraceback(Exception):
    """The traceback of an exception that was raised in another process, as its text."""


class Processes:
    """Runs a plain function in processes; awaited as an async handler is.

    Each process is an executor of its own with one worker, so that one that dies takes no other's work with it, and
    one that takes too long can be ended.

    The agent's `max_in_flight` bounds how many there are.

    Raises:
        AgentError: the function is not at the top level of a module, where a new process finds it.
    """

    def __init__(self, name: str, function: Function) -> None:
        if "<" in function.__qualname__:  # <locals>, <lambda>
            raise AgentError(
                f"the handler of agent {name!r}, {_named(function)}, runs in a process of its own, which can't find it"
                " inside another function",
                fix="define it at the top level of its module, or use blocking='thread'",
            )
        self._function = function
        self._idle: list[_Child] = []

    async def __call__(self, message: Message, ctx: Context) -> Any:
        child = self._idle.pop() if self._idle else _Child()
        task = ProcessContext(ctx.agent, message, ctx.attempt, ctx.partition)
        if ctx.remembers:
            task.state = ctx.memory
        try:
            outcome = await child.run(self._function, task)
        except BrokenProcessPool as error:
            child.kill()
            raise AgentError(
                f"the process of handler {_named(self._function)} died while it handled message {message.message_id} of"
                f" conversation {message.conversation_id}",
                kept="the message: it is tried again in a new process",
                fix="look for a crash in native code, sys.exit in a thread, or the kernel's out-of-memory killer"
                " (`dmesg`)",
            ) from error
        except BaseException:  # given up: a timeout, or its partition goes to another worker
            child.kill()
            raise
        self._idle.append(child)
        if outcome.error is not None:
            outcome.error.raised_at = outcome.raised_at  # type: ignore[attr-defined]
            raise outcome.error from ProcessTraceback(f"\n{outcome.traceback}")
        if outcome.forgotten:
            ctx.forget()
        if ctx.remembers:
            ctx.memory = outcome.state
        for method, args, options in outcome.calls:
            await getattr(ctx, method)(*args, **options)
        return outcome.result

    async def close(self) -> bool:
        """End the processes.

        Returns:
            True: those that don't end by themselves are killed.
        """
        children, self._idle = self._idle, []
        await asyncio.gather(*(child.close() for child in children))
        return True


@dataclass(slots=True)
class _Outcome:
    """What comes back from a process."""

    result: Any = None
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    state: Any = None
    forgotten: bool = False
    error: Any = None
    traceback: str = ""
    raised_at: str = ""


class _Child:
    """One process."""

    def __init__(self) -> None:
        # Not forked: the worker has threads, whose locks a fork would copy as they are.
        self._pool = ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(logging.getLogger().getEffectiveLevel(),),
        )
        self._pid: int | None = None

    async def run(self, function: Function, task: ProcessContext) -> _Outcome:
        if self._pid is None:
            self._pid = await asyncio.wrap_future(self._pool.submit(os.getpid))
        place = (function.__module__, function.__qualname__)
        return pickle.loads(await asyncio.wrap_future(self._pool.submit(_run, place, pickle.dumps(task))))

    def kill(self) -> None:
        """End it, whatever it does."""
        for process in multiprocessing.active_children():
            if process.pid == self._pid:
                process.kill()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def close(self) -> None:
        """Let it end, and see that it does."""
        ended = asyncio.create_task(asyncio.to_thread(self._pool.shutdown))
        await asyncio.wait((ended,), timeout=CLOSE_S)
        if not ended.done():
            self.kill()
            await ended


def _begin(level: int) -> None:
    """In a new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the worker says when it ends
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(place: tuple[str, str], task: bytes) -> bytes:
    """In the process: call the function; everything that happens becomes an outcome that can be sent."""
    outcome = _Outcome()
    ctx: ProcessContext = pickle.loads(task)
    try:
        function = _find(*place)
        outcome.result = function(ctx.message, ctx)
        outcome.calls, outcome.state, outcome.forgotten = ctx.calls, ctx.state, ctx.forgotten
        try:
            return pickle.dumps(outcome)
        except Exception as error:
            raise TypeError(
                f"what handler {_named(function)} returned or sent can't be pickled, and so can't leave its process:"
                f" {error}"
            ) from error
    except BaseException as error:  # noqa: BLE001 - whatever it is, the worker is told
        text = "".join(traceback.format_exception(error))
        return pickle.dumps(_Outcome(error=_sendable(error), traceback=text, raised_at=reason_of(error).where))


def _find(module: str, name: str) -> Function:
    """The function that *name* is in *module*; where `@agent` made an agent of it, the agent's."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return cast(Function, getattr(found, "function", found))


def _sendable(error: BaseException) -> BaseException:
    """*error*, or where it can't be pickled and made anew, one that says the same."""
    try:
        if isinstance(pickle.loads(pickle.dumps(error)), type(error)):
            return error
    except Exception as reason:  # noqa: BLE001 - of any class's own making
        log.debug("%r can't be pickled: %r", error, reason)
    return RuntimeError(f"{type(error).__qualname__}: {error}")
