"""Steps over runs of a handler, against a journal that is a list: what is recorded is given, in whatever order it ends.

tests/integration/agents/test_steps.py has the same with workers and Kafka.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from llmagentos.agents import steps as steps_module
from llmagentos.agents.blobs import Blobs
from llmagentos.agents.context import Context
from llmagentos.agents.steps import Steps, Suspended
from llmagentos.agents.testing.clock import MovableClock
from llmagentos.streams.errors import ChangedCode, ResultError, StepError, StepFailed, StepUnknown
from llmagentos.streams.journal_record import CLEANUP, Wait
from llmagentos.streams.message import Message
from llmagentos.streams.settings import Settings

Handler = Callable[[Context], Awaitable[Any]]


class Died(BaseException):
    """The worker ends here."""


class Journaled:
    """One message, and the journal of its steps; each :meth:`run` is a worker that begins with what is recorded."""

    def __init__(self, tmp_path: Path) -> None:
        self.message = Message.create("x", to="till", conversation="c")
        self.records: list[dict[str, Any]] = []
        self.clock = MovableClock()
        self.waits: list[bool] = []
        self.lost = False  # nothing is read back any more: the worker is dead, and doesn't know
        self.blobs = Blobs(Settings.load(home=tmp_path, max_message_bytes=2_000, max_result_bytes=20_000))
        self.steps = self.load()

    async def record(self, step: Mapping[str, Any], at: int) -> None:
        await asyncio.sleep(0)
        if self.lost:
            raise Died
        self.records.append({"step": dict(step), "at": at})

    def load(self) -> Steps:
        self.steps = Steps(
            "till",
            self.message,
            self.clock,
            record=self.record,
            decode=lambda value: Message.create(value, to="till"),
            blobs=self.blobs,
            asks=lambda: None,
            waits=self.waits.append,
            suspend=lambda: None,
            suspend_after_s=None,
        )
        self.steps.load(self.records)
        return self.steps

    async def run(self, handler: Handler, *, anew: bool = True) -> Any:
        """One run of *handler*; *anew*: in another worker."""
        steps = self.load() if anew else self.steps
        steps.begin()
        nobody = cast(Any, None)
        result = await handler(Context("till", self.message, nobody, nobody, 0, steps, nobody, None))
        steps.end()
        return result

    def outcomes(self) -> list[tuple[str, int, str]]:
        return [(r["step"]["name"], r["step"]["number"], r["step"]["outcome"]) for r in self.records]


@pytest.fixture
def journal(tmp_path: Path) -> Journaled:
    return Journaled(tmp_path)


async def twice(journal: Journaled, handler: Handler) -> list[Any]:
    """What two runs give; the second does nothing."""
    first = await journal.run(handler)
    count = len(journal.records)
    second = await journal.run(handler)
    assert len(journal.records) == count, "the second run recorded something"
    return [first, second]


async def test_sync_async_and_callable_objects_are_run_once(journal: Journaled) -> None:
    calls: list[Any] = []

    class Shop:
        async def __call__(self, what: str, *, amount: int = 1) -> list[Any]:
            calls.append(what)
            return [what, amount]

    def plain(what: str) -> bool:
        calls.append(what)
        return threading.current_thread() is not threading.main_thread()

    async def handler(ctx: Context) -> Any:
        return [
            await ctx.step("shop", Shop(), "cake", amount=2),
            await ctx.step("plain", plain, "tea"),
            await ctx.step("lambda", lambda: asyncio.sleep(0, "awaited")),
        ]

    assert await twice(journal, handler) == [[["cake", 2], True, "awaited"]] * 2
    assert calls == ["cake", "tea"]


async def test_retries_pause_ever_longer_and_are_counted(journal: Journaled) -> None:
    tried: list[float] = []

    async def flaky() -> int:
        tried.append(journal.clock.time())
        if len(tried) < 4:
            raise OSError("down")
        return len(tried)

    running = asyncio.create_task(twice(journal, lambda ctx: ctx.step("flaky", flaky, retries=3, backoff=10)))
    for tries in range(1, 4):
        while len(tried) < tries:
            await asyncio.sleep(0)
        await journal.clock.skip()
    assert await running == [4, 4]
    pauses = [after - before for before, after in pairwise(tried)]
    for pause, about in zip(pauses, (10, 20, 40), strict=True):
        assert 0.8 * about <= pause <= 1.2 * about + 1
    assert journal.records[0]["step"]["attempts"] == 4


async def test_what_fails_for_good_is_not_recorded_and_runs_again(journal: Journaled) -> None:
    tried: list[int] = []

    async def down() -> None:
        tried.append(1)
        raise OSError("down")

    for _ in range(2):
        with pytest.raises(OSError, match="down"):
            await journal.run(lambda ctx: ctx.step("down", down, retries=1, backoff=0))
    assert len(tried) == 4
    assert not journal.records


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_step_that_never_ends_ends_at_its_timeout(journal: Journaled, kind: str) -> None:
    release = threading.Event()
    function: Any = asyncio.Event().wait if kind == "async" else release.wait
    running = asyncio.create_task(journal.run(lambda ctx: ctx.step("slow", function, timeout=60, retries=1, backoff=5)))
    while not running.done():
        await asyncio.sleep(0.01)
        await journal.clock.move(61)
    with pytest.raises(TimeoutError, match="step 'slow' took longer than its timeout of 60 s"):
        await running
    release.set()  # the threads end, and nobody listens any more
    assert not journal.records
    until = time.monotonic() + 5
    while any(thread.name == "step" for thread in threading.enumerate()):
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


async def test_its_own_timeout_error_is_told_from_the_limit(journal: Journaled) -> None:
    async def own() -> None:
        raise TimeoutError("the database took too long")

    with pytest.raises(TimeoutError, match="the database"):
        await journal.run(lambda ctx: ctx.step("own", own, timeout=60))


async def test_an_error_that_is_a_result_is_the_same_on_every_run(journal: Journaled) -> None:
    calls: list[int] = []

    class Odd(LookupError):
        def __str__(self) -> str:
            return "no such thing \ud800" + "!" * 20_000

    def find() -> None:
        calls.append(1)
        raise Odd

    async def handler(ctx: Context) -> tuple[str, str]:
        with pytest.raises(StepFailed) as failed:
            await ctx.step("find", find, errors=(LookupError,), retries=5)
        return str(failed.value), failed.value.kind

    first, second = await twice(journal, handler)
    assert first == second
    assert first[0].startswith("step 'find' failed by Odd: no such thing ?!!!")
    assert first[1] == "Odd"
    assert len(first[0]) < 11_000
    assert calls == [1]
    assert journal.outcomes() == [("find", 0, "error")]


async def test_the_key_is_the_same_on_every_run_and_of_each_step_another(journal: Journaled) -> None:
    keys: list[str] = []

    def pay(amount: int, *, key: str) -> None:
        keys.append(key)
        if len(keys) == 2:
            raise Died

    async def handler(ctx: Context) -> None:
        await ctx.step("pay", pay, 1, key_as="key")
        await ctx.step("pay", pay, 2, key_as="key")

    with pytest.raises(Died):
        await journal.run(handler)
    await journal.run(handler)
    assert len(keys) == 3
    assert keys[1] == keys[2] != keys[0]


async def test_one_that_may_run_once_at_most_is_unknown_after_a_death(journal: Journaled) -> None:
    keys: list[str] = []

    def pay(*, key: str) -> str:
        keys.append(key)
        journal.lost = True  # it pays, and dies before that is recorded
        return "paid"

    async def handler(ctx: Context) -> Any:
        return await ctx.step("pay", pay, key_as="key", at_most_once=True)

    with pytest.raises(Died):
        await journal.run(handler)
    journal.lost = False
    assert journal.outcomes() == [("pay", 0, "begun")]
    for _ in range(2):
        with pytest.raises(StepUnknown, match="step 'pay' of agent 'till' was begun") as unknown:
            await journal.run(handler)
        assert unknown.value.key == keys[0]
        assert keys[0] in unknown.value.fix
    assert len(keys) == 1


async def test_one_that_may_run_once_at_most_is_given_when_it_is_recorded(journal: Journaled) -> None:
    assert await twice(journal, lambda ctx: ctx.step("pay", lambda: "paid", at_most_once=True)) == ["paid"] * 2
    assert journal.outcomes() == [("pay", 0, "begun"), ("pay", 0, "result")]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("recorded", [0, 1, 2])
async def test_steps_of_one_name_side_by_side_keep_their_places(
    journal: Journaled, order: tuple[int, ...], recorded: int
) -> None:
    """Ended in any order, and cut after any number of records."""
    calls: list[int] = []
    gates = [asyncio.Event() for _ in order]

    async def fetch(n: int) -> str:
        await gates[n].wait()
        calls.append(n)
        return f"page {n}"

    async def handler(ctx: Context) -> list[Any]:
        return list(await asyncio.gather(*(ctx.step("fetch", fetch, n) for n in range(3))))

    running = asyncio.create_task(journal.run(handler))
    for n in order:
        await asyncio.sleep(0.001)
        gates[n].set()
    assert await running == ["page 0", "page 1", "page 2"]
    assert calls == list(order)
    del journal.records[recorded:]
    calls.clear()
    assert await journal.run(handler) == ["page 0", "page 1", "page 2"]
    assert sorted(calls) == sorted(order[recorded:])


async def test_a_task_group_and_tasks_with_names_of_their_own(journal: Journaled) -> None:
    calls: list[str] = []

    async def handler(ctx: Context) -> list[str]:
        async def fetch(what: str) -> str:
            first: str = await ctx.step(f"fetch {what}", lambda: calls.append(what) or what)
            return await ctx.step(f"print {what}", lambda: first * 2)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(fetch(what)) for what in "ab"]
            same = [group.create_task(cast(Any, ctx.step("same", lambda n=n: n))) for n in range(2)]
        return [task.result() for task in (*tasks, *same)]

    assert await twice(journal, handler) == [["aa", "bb", 0, 1]] * 2
    assert sorted(calls) == ["a", "b"]


async def test_two_tasks_with_steps_of_one_name_are_refused(journal: Journaled) -> None:
    async def handler(ctx: Context) -> None:
        async def fetch() -> None:
            await ctx.step("fetch", asyncio.sleep, 0.01)

        await asyncio.gather(fetch(), fetch())

    with pytest.raises(StepError, match="two tasks of agent 'till' run steps named 'fetch' side by side") as refused:
        await journal.run(handler)
    assert "names of their own" in refused.value.fix
    assert journal.message.message_id in refused.value.what


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda ctx: ctx.step("", len), "named ''"),
        (lambda ctx: ctx.step("ctx.sleep", len), "named 'ctx.sleep'"),
        (lambda ctx: ctx.step("n" * 201, len), "is named 'nnn"),
        (lambda ctx: ctx.step("call", len("x")), "was given int, which can't be called"),
        (lambda ctx: ctx.step("call", asyncio.sleep(0)), "was given coroutine, which can't be called"),
    ],
)
async def test_a_step_that_is_none_is_refused(journal: Journaled, call: Handler, says: str) -> None:
    with pytest.raises(StepError, match=says):
        await journal.run(call)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"rows": {1}}, r"step 'load' of agent 'till', message \S+ of conversation c: the result\['rows'\] is \{1\}"),
        ("x" * 20_001, r"step 'load' of agent 'till', message \S+ of conversation c: it is 20,001 bytes; the limit is"),
    ],
)
async def test_a_result_that_can_not_be_recorded_says_which(journal: Journaled, value: Any, says: str) -> None:
    with pytest.raises(ResultError, match=says) as refused:
        await journal.run(lambda ctx: ctx.step("load", lambda: value, retries=3))
    assert refused.value.fix
    assert not journal.records


async def test_a_large_result_is_in_the_store_and_never_computed_again(journal: Journaled, tmp_path: Path) -> None:
    calls: list[int] = []

    def load() -> dict[str, str]:
        calls.append(1)
        return {"text": "x" * 3_000}

    assert await twice(journal, lambda ctx: ctx.step("load", load)) == [{"text": "x" * 3_000}] * 2
    step = journal.records[0]["step"]
    assert not step["body"]
    (file,) = (file for file in (tmp_path / "blobs").rglob("*") if file.is_file())
    assert file.name == step["blob"]
    file.unlink()
    with pytest.raises(ResultError, match=f"step 'load' of agent 'till'.*blob {step['blob']}, can't be read") as gone:
        await journal.run(lambda ctx: ctx.step("load", load))
    assert gone.value.kept
    assert calls == [1]


async def test_a_rerun_that_takes_another_way_is_stopped_with_both_names(
    journal: Journaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_module, "PATIENCE_S", 0.02)

    async def handler(ctx: Context) -> None:
        await ctx.step("price", lambda: 3)
        await ctx.step("pay", lambda: 4)

    async def other(ctx: Context) -> None:
        await ctx.step("price of it", lambda: pytest.fail("it ran"))

    await journal.run(handler)
    with pytest.raises(ChangedCode, match=r"came to step 'price of it' where step 'price' is recorded \(1 more are\)"):
        await journal.run(other)
    with pytest.raises(ChangedCode, match="ended where step 'pay' is recorded") as changed:
        await journal.run(lambda ctx: ctx.step("price", lambda: pytest.fail("it ran")))
    assert changed.value.kept == "all recorded results"
    assert await journal.run(handler) is None


async def test_a_step_behind_slower_code_is_waited_for(journal: Journaled) -> None:
    """One task comes to something new while the other is not yet where a result is recorded: that is no change."""
    new = asyncio.Event()

    async def handler(ctx: Context) -> None:
        async def slow() -> None:
            await asyncio.sleep(0.05)
            await ctx.step("recorded", lambda: None)

        async def quick() -> None:
            if new.is_set():
                await ctx.step("new", lambda: None)

        await asyncio.gather(quick(), slow())

    await journal.run(handler)
    new.set()
    await journal.run(handler)
    assert [name for name, _, _ in journal.outcomes()] == ["recorded", "new"]


async def test_a_version_is_taken_by_those_that_are_not_past_it(journal: Journaled) -> None:
    async def old(ctx: Context) -> str:
        await ctx.step("a", lambda: None)
        await ctx.step("b", lambda: None)
        return "old"

    async def new(ctx: Context) -> str:
        await ctx.step("a", lambda: None)
        if await ctx.version("twice"):
            await ctx.step("b2", lambda: None)
            return "new"
        await ctx.step("b", lambda: None)
        return "old"

    await journal.run(old)
    assert await twice(journal, new) == ["old", "old"]  # past it: it has step b
    del journal.records[1:]
    assert await twice(journal, new) == ["new", "new"]
    fresh = Journaled(Path("/nowhere"))
    assert await twice(fresh, new) == ["new", "new"]


async def test_time_uuids_and_random_numbers_repeat_and_time_never_goes_back(journal: Journaled) -> None:
    async def handler(ctx: Context) -> list[Any]:
        said: list[Any] = [ctx.now(), ctx.uuid(), ctx.random.random()]
        await ctx.step("a", lambda: None)
        said.append(ctx.now())
        await ctx.step("b", lambda: None)
        return [*said, ctx.now(), ctx.uuid()]

    first = await journal.run(handler)
    journal.records[1]["at"] = journal.records[0]["at"] - 3_600_000  # by a worker whose clock was set back
    second = await journal.run(handler)
    assert second[:4] == first[:4]
    assert second[3] <= second[4]
    assert second[5] == first[5] != first[1]
    assert journal.message.message_id not in str(first[1])


# -- waiting ------------------------------------------------------------------------------------------------------


async def suspended(journal: Journaled) -> Any:
    """Have the run that waits be given up."""
    until = time.monotonic() + 5
    while journal.steps.freeze() is None:
        assert time.monotonic() < until
        await asyncio.sleep(0.001)
    journal.steps.give_up(Suspended())
    return journal.steps.suspended


async def waits(ctx: Context, number: int = 0) -> Any:
    """Wait for something that never comes."""
    steps: Steps = cast(Any, ctx)._steps
    wait = Wait("approval", "ctx.approve", number, "", 0)
    return await steps.wait(wait, asyncio.get_running_loop().create_future())


async def test_suspension_ends_all_that_waits_also_in_a_task_group(journal: Journaled) -> None:
    async def handler(ctx: Context) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(waits(ctx, 0))
            group.create_task(waits(ctx, 1))

    running = asyncio.create_task(journal.run(handler))
    assert await suspended(journal)
    with pytest.raises(BaseExceptionGroup) as ended:
        await running
    assert ended.value.split(Suspended)[1] is None
    assert journal.waits == [True, False]


async def test_a_handler_that_swallows_its_suspension_gets_no_further_and_stops_nobody(journal: Journaled) -> None:
    turns: list[int] = []

    async def handler(ctx: Context) -> str:
        while len(turns) < 20:
            turns.append(1)
            try:
                await (waits(ctx) if len(turns) == 1 else ctx.step("more", lambda: pytest.fail("it ran")))
            except BaseException:
                continue
        return "swallowed"

    running = asyncio.create_task(journal.run(handler))
    assert await suspended(journal)
    looked = 0
    while not running.done():  # the loop turns meanwhile
        looked += 1
        await asyncio.sleep(0.005)
    assert await running == "swallowed"
    assert looked > 10
    assert journal.steps.suspended
    assert not journal.records


async def test_what_runs_is_not_suspended(journal: Journaled) -> None:
    gate = asyncio.Event()

    async def handler(ctx: Context) -> None:
        await asyncio.gather(waits(ctx), ctx.step("works", gate.wait))

    running = asyncio.create_task(journal.run(handler))
    while not journal.steps.open:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert journal.steps.freeze() is None
    gate.set()
    assert await suspended(journal)
    with pytest.raises(Suspended):
        await running
    assert journal.outcomes() == [("works", 0, "result")]


@pytest.mark.parametrize("goes_on", [False, True])
async def test_an_answer_that_comes_during_a_suspension_is_not_forgotten(journal: Journaled, goes_on: bool) -> None:
    """Its future is done before the suspension counts: it must be found, or reach the handler where that goes on."""
    answer = Message.create("42", to="till")
    future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    async def handler(ctx: Context) -> Message:
        steps: Steps = cast(Any, ctx)._steps
        return await steps.wait(Wait("answer", "ctx.ask clock", 0, "q", 0), future)

    running = asyncio.create_task(journal.run(handler))
    while not journal.steps.open:
        await asyncio.sleep(0)
    assert journal.steps.freeze() is not None
    future.set_result(answer)
    await asyncio.sleep(0.01)  # the handler's task has woken
    assert journal.steps.come() == [answer]
    assert not running.done()
    if goes_on:
        journal.steps.thaw()
        assert await running is answer
    else:
        journal.steps.give_up(Suspended())
        with pytest.raises(Suspended):
            await running


# -- the seeded bugs ----------------------------------------------------------------------------------------------


async def test_the_above_is_red_where_places_follow_the_end(
    journal: Journaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seed: a step has its number when it is recorded, not when it is called."""
    record = Steps.record
    ended: dict[str, int] = {}

    async def late(self: Steps, identity: Any, *rest: Any, **more: Any) -> Any:
        ended[identity[0]] = ended.get(identity[0], -1) + 1
        return await record(self, (identity[0], ended[identity[0]]), *rest, **more)

    monkeypatch.setattr(Steps, "record", late)
    with pytest.raises(AssertionError):
        await test_steps_of_one_name_side_by_side_keep_their_places(journal, (2, 1, 0), 1)


async def test_the_above_is_red_where_records_are_not_loaded(
    journal: Journaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Steps, "load", lambda self, records: None)
    with pytest.raises(AssertionError):
        await test_sync_async_and_callable_objects_are_run_once(journal)


async def test_a_cleanup_is_gone_on_with_where_it_was_cut_short(journal: Journaled) -> None:
    calls: list[str] = []
    dies = True

    async def handler(ctx: Context) -> None:
        try:
            await ctx.step("a", lambda: calls.append("a"))
            await asyncio.gather(*(ctx.step(name, asyncio.Event().wait) for name in "bc"))
        finally:
            await ctx.step("b", lambda: calls.append("undo b"))  # of a name that the handler has, too
            if dies:
                raise Died
            await ctx.step("a", lambda: calls.append("undo a"))

    async def run() -> BaseException | None:
        steps = journal.load()
        task = asyncio.create_task(journal.run(handler, anew=False))

        def interrupt() -> None:
            steps.clean_up()
            task.cancel()

        steps.interrupt = interrupt
        return (await asyncio.gather(task, return_exceptions=True))[0]

    task = asyncio.create_task(journal.run(handler))
    while calls != ["a"] or not journal.records:
        await asyncio.sleep(0.01)
    assert journal.steps.hold()
    journal.steps.clean_up()
    task.cancel()
    assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], Died)
    assert calls == ["a", "undo b"]
    dies = False
    assert isinstance(await run(), asyncio.CancelledError)
    assert calls == ["a", "undo b", "undo a"]
    assert isinstance(await run(), asyncio.CancelledError)
    assert calls == ["a", "undo b", "undo a"]
    assert [number < CLEANUP for name, number, _ in journal.outcomes() if name == "b"] == [False]


async def test_a_run_that_is_over_tries_no_step_again(journal: Journaled) -> None:
    """Its partition went while a step waited for its next try: that is the next owner's to make."""
    tries: list[int] = []

    async def pay() -> None:
        tries.append(len(tries))
        raise OSError("the line is down")

    run = asyncio.create_task(journal.run(lambda ctx: ctx.step("pay", pay, retries=3, backoff=60)))
    async with asyncio.timeout(5):
        while not tries:
            await asyncio.sleep(0)
    journal.steps.give_up(Suspended())
    await journal.clock.move(120)
    with pytest.raises(Suspended):
        await asyncio.wait_for(run, 5)
    assert tries == [0]
