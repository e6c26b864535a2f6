"""Questions to several agents at once: `ctx.gather` and `ctx.map`, over reruns, suspensions and bad input."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents
from llmagentos.streams.errors import AnswerError, AnswerTimeout

from .journals import Books
from .reading import read_topic


@agent("double")
async def double(message: Message, ctx: Context) -> Any:
    if message.text == "bad":
        raise ValueError("no number")
    return int(message.text) * 2


@agent("poet")
async def poet(message: Message, ctx: Context) -> str:
    return f"a line on {message.text} in {ctx.conversation}"


async def test_answers_come_in_order_from_conversations_of_their_own(agents: Agents) -> None:
    @agent("chief")
    async def chief(message: Message, ctx: Context) -> Any:
        first, second, nothing = await asyncio.gather(
            ctx.gather(("poet", "cake"), ("double", "4")),
            ctx.map("poet", ["tea", "milk"], limit=1),
            ctx.map("poet", []),
        )
        return [*first, *second, *nothing, *await ctx.map("double", map(str, range(300)), limit=7)]

    async with agents.run(chief, poet, double) as run:
        said = (await run.ask("chief", "x", conversation="c")).content
        assert said[:4] == ["a line on cake in c/1", 8, "a line on tea in c/3", "a line on milk in c/4"]
        assert said[4:] == [2 * n for n in range(300)]
        questions = [each for each in await run.outputs("c") if each.recipient == "double"]
        assert [each.conversation_id for each in sorted(questions, key=lambda each: each.sequence)] == [
            "c/2", *(f"c/{n}" for n in range(5, 305)),
        ]  # fmt: skip
        assert {each.root_conversation for each in questions} == {"c"}


async def test_a_plain_function_gathers_and_maps(agents: Agents) -> None:
    @agent("chief", blocking="thread")
    def chief(message: Message, ctx: Any) -> Any:
        return [*ctx.gather(("poet", "cake"), ("double", "4")), *ctx.map("double", ["1", "2"])]

    async with agents.run(chief, poet, double) as run:
        said = (await run.ask("chief", "x", conversation="c")).content
        assert said == ["a line on cake in c/1", 8, 2, 4]


async def test_the_first_failure_in_order_is_raised_on_every_run_or_all_are_given(agents: Agents) -> None:
    failures: list[str] = []
    handled: list[str] = []

    @agent("slow", retries=0)
    async def slow(message: Message, ctx: Context) -> str:
        handled.append(message.text)
        if message.text == "1":
            await asyncio.wait_for(later.wait(), 30)
        if message.text == "3":
            later.set()
        if message.text in ("1", "3"):
            raise ValueError(f"no {message.text}")
        return message.text

    later = asyncio.Event()

    @agent("chief", retries=2, backoff=0.01)
    async def chief(message: Message, ctx: Context) -> Any:
        try:
            await ctx.map("slow", ["0", "1", "2", "3"])
        except AnswerError as error:
            failures.append(str(error))
        if len(failures) < 3:
            raise ValueError("again")
        given = await ctx.gather(("slow", "3"), ("slow", "5"), return_exceptions=True)
        return [str(each) for each in given]

    async with agents.run(chief, slow) as run:
        first, second = (await run.ask("chief", "x")).content
    assert failures[0].startswith("item 2 of 4: agent 'slow' failed question")
    assert failures == [failures[0]] * 3
    assert first.startswith("question 1 of 2: agent 'slow' failed question")
    assert second == "5"
    assert sorted(handled) == ["0", "1", "2", "3", "3", "5"]


async def test_a_map_is_suspended_over_a_restart_and_asks_nobody_twice(agents: Agents) -> None:
    """Of thirty items ten are asked at a time; half of them are answered while no asker runs."""
    runs: list[str] = []
    going = asyncio.Event()

    @agent("chief")
    async def chief(message: Message, ctx: Context) -> Any:
        runs.append("run")
        return await ctx.map("oracle", [str(n) for n in range(30)], limit=10, timeout=90_000)

    @agent("oracle")
    async def oracle(message: Message, ctx: Context) -> str:
        if int(message.text) >= 5:
            await going.wait()
        return f"so {message.text}"

    books = Books(agents.settings, "chief")
    async with agents.run(oracle) as answering:
        async with agents.run(chief, suspend_after_s=0.1) as first:
            await first.send("chief", "x", conversation="c")
            (suspended, *_) = await books.until("suspend", conversation="c")
            assert len(suspended.record["waits"]) <= 10
        going.set()
        await answering.settled()
        async with agents.run(chief, suspend_after_s=0.1):
            (done,) = await books.until("done", conversation="c")
        asked = [each.text for each in await answering.outputs("c") if each.recipient == "oracle"]
    assert len(runs) >= 2
    assert sorted(asked, key=int) == [str(n) for n in range(30)], "something was asked twice"
    assert done.record["outputs"]


#: What can't be asked, and what is said of it.
REFUSED = {
    'ctx.gather(("poet", "x"), ("nobody", "y"))': "question 2 of 2: no agent is named 'nobody'",
    'ctx.gather(("poet", "x"), "poet")': "question 2 of 2 of ctx.gather is str 'poet', not (agent, content)",
    'ctx.map("nobody", ["x"])': "item 1 of 1: no agent is named 'nobody'",
    'ctx.map("poet", None)': "ctx.map('poet', ...) was given NoneType, not items",
    'ctx.map("poet", "x")': "ctx.map('poet', ...) was given str, not items",
    'ctx.map("poet", ["x", {1}])': "item 2 of 2: content of type set can't be sent",
    'ctx.map("poet", ["x", "y" * 2_000_000], limit=1)': "item 2 of 2: task of agent 'chief' to",
    'ctx.map("poet", ["x"], limit=0)': "ctx.map(limit=0)",
    "asyncio.gather(asyncio.create_task(one(ctx)), asyncio.create_task(one(ctx)))": "two tasks of agent 'chief'",
}


async def test_what_can_not_be_asked_is_refused_with_its_number(agents: Agents) -> None:
    async def one(ctx: Context) -> Any:
        return await ctx.map("poet", ["x"])

    @agent("chief", retries=0)
    async def chief(message: Message, ctx: Context) -> Any:
        return await eval(message.text, {"asyncio": asyncio, "one": one, "ctx": ctx})

    async with agents.run(chief, poet) as run:
        for call, says in REFUSED.items():
            with pytest.raises(AnswerError) as caught:
                await run.ask("chief", call)
            assert says in str(caught.value)
        letters = [letter.error + letter.traceback for letter in await run.dead_letters("chief")]
    assert "call both in one task, and await them together" in letters[-1]


async def test_deadlines_and_strange_answers_name_the_item(agents: Agents, caplog: pytest.LogCaptureFixture) -> None:
    @agent("chief", retries=0)
    async def chief(message: Message, ctx: Context) -> Any:
        given = await ctx.map("silent", ["a", "b"], timeout=600, return_exceptions=True)
        return [str(each) if isinstance(each, AnswerTimeout) else each for each in given]

    @agent("silent")
    async def silent(message: Message, ctx: Context) -> str:
        await asyncio.Event().wait()
        return "never"

    books = Books(agents.settings, "chief")
    async with agents.run(chief, silent, drain_timeout_s=0.2) as run:
        asked = asyncio.create_task(run.ask("chief", "x", conversation="c"))
        questions = await read_topic(agents.settings, "agent.silent", 2)
        second = next(each for each in questions if each.text == "b")
        assert second.reply_to is not None
        for sender, content in (("stranger", "foreign"), ("silent", "first"), ("silent", "second")):
            await books.answer(second.reply_to[1], second.message_id, sender, content)
        async with asyncio.timeout(30):
            while "agent 'stranger' answered" not in caplog.text:
                await asyncio.sleep(0.02)
        await run.clock.move(601)
        first, kept = cast(list[str], (await asked).content)
    assert (
        f"agent 'stranger' answered question {second.message_id} (item 2 of 2), which was for 'silent'" in caplog.text
    )
    assert first.startswith("item 1 of 2: agent 'chief' had no answer from 'silent' within 600.0 s")
    assert kept == "first"


async def test_the_example_of_the_how_to_works(agents: Agents, tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs/howto/questions.md").read_text()
    path = tmp_path / f"desk_{agents.settings.prefix.rstrip('.')}.py"
    path.write_text(text.split("```python\n")[1].split("```")[0])
    async with agents.run(path) as run:
        said = (await run.ask("desk", "tea cake tea")).text
    assert said == "10 euro, the first 3. Nothing like tea."
