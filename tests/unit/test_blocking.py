"""Plain handlers in threads and processes: results, context, exceptions, those that hang or die, and none left."""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, cast

import plain_handlers
import psutil
import pytest

from llmagentos.agents import Agent, Message, agent
from llmagentos.agents.context import Context
from llmagentos.streams.breaker import reason_of
from llmagentos.streams.errors import AgentError

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


class Said:
    """Stands where the engine's context does, and remembers what was said and in which thread."""

    agent, attempt, partition, tenant, deadline, remembers = "plain", 1, 3, "me", None, False

    def __init__(self, message: Message) -> None:
        self.message = message
        self.conversation = message.conversation_id
        self.said: list[tuple[Any, ...]] = []
        self.threads: set[int] = set()

    async def reply(self, content: object, **options: object) -> None:
        await self._say("reply", content)

    async def tell(self, name: str, content: object, *, conversation: str | None = None, **options: object) -> str:
        await self._say("tell", name, content, conversation)
        return "its id"

    async def publish(self, topic: str, content: object, *, key: str | None = None, **options: object) -> None:
        await self._say("publish", topic, content, key)

    async def ask(self, name: str, content: object) -> str:
        await self._say("ask", name)
        if name == "nobody":
            await asyncio.Event().wait()
        return f"{name} says {content}"

    async def _say(self, *what: object) -> None:
        await asyncio.sleep(0)
        self.threads.add(threading.get_ident())
        self.said.append(what)


async def run(defined: Agent, content: str) -> tuple[Any, Said]:
    """As the engine calls it."""
    message = Message.create(content, to=defined.name, conversation="c")
    ctx = Said(message)
    return await defined.handler(message, cast(Context, ctx)), ctx


async def until(condition: Any, deadline_s: float = 10.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.01)


def threads_of(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"agent-{name}")]


# -- threads


async def test_a_plain_function_runs_in_a_thread_with_a_context_that_blocks() -> None:
    @agent("threaded", blocking="thread")
    def threaded(message: Message, ctx: Any) -> str:
        assert ctx.conversation == "c"
        ctx.message.body  # noqa: B018 - data is there as in Context
        assert ctx.tell("other", "hello") == "its id"
        ctx.reply("done")
        return f"{ctx.ask('poet', tenant.get())}, in {threading.get_ident()}"

    tenant.set("mine")
    result, ctx = await run(threaded, "x")
    said, where = result.split(", in ")
    assert said == "poet says mine", "context variables are seen in the thread"
    assert int(where) != threading.get_ident()
    assert ctx.threads == {threading.get_ident()}, "the context's methods run on the event loop"
    assert ctx.said == [("tell", "other", "hello", None), ("reply", "done"), ("ask", "poet")]
    assert threaded(Message.create("x", to="t", conversation="c"), Blunt()) == f"echo, in {threading.get_ident()}"
    assert await threaded.close()
    assert not threads_of("threaded")


class Blunt:
    """What a user's own test would give a plain function."""

    conversation = "c"
    message = Message.create("x", to="t")

    def tell(self, *args: object) -> str:
        return "its id"

    def reply(self, *args: object) -> None: ...

    def ask(self, *args: object) -> str:
        return "echo"


async def test_threads_run_side_by_side() -> None:
    both = threading.Barrier(3)

    @agent("together", blocking="thread", max_in_flight=3)
    def together(message: Message, ctx: Any) -> int:
        return both.wait(10)

    results = await asyncio.gather(*(run(together, "x") for _ in range(3)))
    assert sorted(result for result, _ in results) == [0, 1, 2]
    await together.close()


@pytest.mark.parametrize("error", [ValueError("no"), StopIteration("no"), GeneratorExit("no"), SystemExit("no")])
async def test_an_exception_comes_out_of_a_thread_with_its_traceback(error: BaseException) -> None:
    @agent("raiser", blocking="thread")
    def raiser(message: Message, ctx: Any) -> None:
        raise error

    replaced = isinstance(error, StopIteration | GeneratorExit)
    with pytest.raises(RuntimeError if replaced else type(error)) as caught:
        await run(raiser, "x")
    text = "".join(traceback.format_exception(caught.value))
    assert "raise error" in text
    if not replaced:
        assert reason_of(caught.value).where.startswith("test_blocking.py:")
    await raiser.close()


async def test_a_thread_that_takes_too_long_is_given_up_and_can_say_no_more(caplog: pytest.LogCaptureFixture) -> None:
    go_on = threading.Event()
    refused: list[Exception] = []

    @agent("slow", blocking="thread")
    def slow(message: Message, ctx: Any) -> None:
        go_on.wait(10)
        try:
            ctx.tell("other", "too late")
        except AgentError as error:
            refused.append(error)
            raise

    message = Message.create("x", to="slow")
    ctx = Said(message)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await slow.handler(message, cast(Context, ctx))
    assert "slow" in caplog.text
    assert "was given up; its thread goes on" in caplog.text
    go_on.set()
    await until(lambda: refused and "after it was given up" in caplog.text)
    assert ctx.said == []
    assert "test_blocking.py" in str(refused[0])
    assert await slow.close()


async def test_a_question_under_way_ends_when_its_handler_is_given_up() -> None:
    ended = threading.Event()

    @agent("asker", blocking="thread")
    def asker(message: Message, ctx: Any) -> None:
        try:
            ctx.ask("nobody", "?")
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await run(asker, "x")
    await until(ended.is_set)
    assert await asker.close()


async def test_a_thread_that_never_ends_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmagentos.agents.blocking.CLOSE_S", 0.05)
    go_on = threading.Event()

    @agent("stuck", blocking="thread")
    def stuck(message: Message, ctx: Any) -> None:
        go_on.wait(10)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await run(stuck, "x")
    assert not await stuck.close()
    assert "do not end" in caplog.text
    go_on.set()
    await until(lambda: not threads_of("stuck"))


# -- processes


@pytest.fixture
async def work() -> Any:
    yield plain_handlers.work
    await plain_handlers.work.close()
    assert not multiprocessing.active_children()


async def test_a_plain_function_runs_in_a_process_that_serves_again(work: Agent) -> None:
    first, _ = await run(work, "pid")
    second, _ = await run(work, "pid")
    assert first == second != psutil.Process().pid
    result, ctx = await run(work, "double ab")
    assert result is None
    assert ctx.said == [("tell", "other", "ab", "side"), ("publish", "topic", {"n": 1}, "k"), ("reply", "abab")]
    assert (await run(work, "told"))[0] == "plain c 1 default None"


async def test_an_exception_comes_out_of_a_process_with_its_traceback(work: Agent) -> None:
    for content, kind, says in (
        ("raise no", ValueError, "no"),
        ("odd", RuntimeError, "Odd: 1 and 2"),
        ("exit", SystemExit, "3"),
        ("lambda", TypeError, r"work \(.*plain_handlers\.py:\d+\) returned or sent can't be pickled"),
        ("ask what", AttributeError, "blocking='process' has no ctx.ask"),
    ):
        with pytest.raises(kind, match=says) as caught:
            await run(work, content)
        text = "".join(traceback.format_exception(caught.value))
        assert "in work\n" in text or "can't be pickled" in text
        if content == "raise no":
            assert reason_of(caught.value).where.startswith("plain_handlers.py:")
    assert len(multiprocessing.active_children()) == 1, "the process goes on"


async def test_a_process_that_dies_fails_its_own_message_only(work: Agent, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    other = asyncio.create_task(run(work, f"hang {pid_file}"))
    await until(pid_file.exists)
    with pytest.raises(AgentError, match=r"the process of handler work \(.*plain_handlers\.py:\d+\) died"):
        await run(work, "die")
    assert not other.done()
    assert (await run(work, "double x"))[1].said[-1] == ("reply", "xx")
    other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await other
    pid = int(pid_file.read_text())
    await until(lambda: not psutil.pid_exists(pid))


def test_processes_end_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, sys\n"
        "import plain_handlers\n"
        "from llmagentos.agents import Message\n"
        "class Ctx: agent, attempt, partition, remembers = 'a', 0, 0, False\n"
        "if __name__ == '__main__':\n"
        f"    message = Message.create('hang {pid_file}', to='worker')\n"
        "    asyncio.run(plain_handlers.work.handler(message, Ctx()))\n"
    )
    parent = subprocess.Popen([sys.executable, program], env={"PYTHONPATH": str(Path(plain_handlers.__file__).parent)})
    try:
        asyncio.run(until(lambda: pid_file.exists() and pid_file.read_text(), 30))
    finally:
        parent.kill()
        parent.wait()
    child = int(pid_file.read_text())
    asyncio.run(until(lambda: not psutil.pid_exists(child)))


# -- definitions


def test_what_can_not_run_there_is_refused_with_its_place() -> None:
    with pytest.raises(AgentError, match=r"test_what_can_not_run_there.*test_blocking\.py:\d+.*can't find it"):

        @agent("nested", blocking="process")
        def nested(message: Message, ctx: Any) -> None: ...

    with pytest.raises(AgentError, match="is async, and blocking='thread' is for others"):

        @agent("waits", blocking="thread")
        async def waits(message: Message, ctx: Any) -> None: ...

    with pytest.raises(AgentError, match="blocking = 'fiber'"):

        @agent("odd", blocking="fiber")  # type: ignore[arg-type]
        def odd(message: Message, ctx: Any) -> None: ...


def test_max_in_flight_says_how_many_run() -> None:
    assert plain_handlers.work.max_in_flight
    assert plain_handlers.work.max_in_flight <= multiprocessing.cpu_count()

    @agent("some", blocking="thread", max_in_flight=7)
    def some(message: Message, ctx: Any) -> None: ...

    assert some.max_in_flight == 7
