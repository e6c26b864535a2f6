"""Bad input to steps: each ends in an error that says what, where and what to do, nothing is lost, and others go on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, cast

import pytest

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents

from .journals import Books

#: What a person is to do stands in the traceback of a dead letter; these words of each.
FIXES = {
    "set": ("step 'load'", "a set", "or register its class with @result_type"),
    "huge": ("step 'load'", "50,000,000 bytes; the limit is 33,554,432 (setting max_result_bytes)", "return where"),
    "twins": ("run steps named 'load' side by side", "", "give them names of their own"),
    "nobody": ("no agent is named 'nobody'", "", "deploy the module that defines it first"),
    "much": ("the done record of message", "the limit is 1,000,000", ""),
    "name": ("a step of agent 'odd' is named 'None'", "", "give it 1 to 200 characters"),
    "time": ("ctx.sleep was given nan as its seconds", "", "give a number, at most"),
    "silent": ("ctx.approve(' ')", "", "say what is to be decided"),
    "slow": ("step 'load' took longer than its timeout of 0.05 s", "", ""),
}


async def test_results_names_questions_and_ends_that_can_not_be(agents: Agents, tmp_path: Path) -> None:
    @agent("odd", retries=0)
    async def odd(message: Message, ctx: Context) -> Any:
        text = message.text
        if text == "set":
            return await ctx.step("load", lambda: {"a set": {1}})
        if text == "huge":
            return await ctx.step("load", lambda: "x" * 50_000_000)
        if text == "large":
            return len(await ctx.step("load", lambda: "x" * 2_000_000))
        if text == "name":
            return await ctx.step(cast(str, None), str)
        if text == "time":
            await ctx.sleep(float("nan"))
        if text == "silent":
            return await ctx.approve(" ")
        if text == "slow":
            return await ctx.step("load", asyncio.Event().wait, timeout=0.05)
        if text == "nobody":
            return await ctx.ask("nobody", "x")
        if text == "much":
            await ctx.step("load", lambda: "x")
            await ctx.publish(ctx._outputs.settings.topic("events"), b"x" * 700_000)
            await ctx.publish(ctx._outputs.settings.topic("events"), b"x" * 700_000)
        if text == "twins":

            async def load() -> None:
                await ctx.step("load", asyncio.sleep, 0.05)

            await asyncio.gather(load(), load())
        return text

    async with agents.run(odd) as run:
        for text in (*FIXES, "large", "fine"):
            await run.send("odd", text, conversation=text)
        letters = {cast(Message, letter.message).text: letter for letter in await run.dead_letters()}
        assert letters.keys() == FIXES.keys()
        for text, (what, value, fix) in FIXES.items():
            assert what in letters[text].error
            assert value in letters[text].error
            assert fix in letters[text].traceback
        answers = [message.text for message in await run.outputs() if message.type == "result"]
        assert sorted(answers) == ["2000000", "fine"]
    steps = await Books(agents.settings, "odd").lines("step")
    (blob,) = [name for line in steps if (name := line.record["step"]["blob"])]
    assert (agents.node.home / "blobs" / blob[:2] / blob).stat().st_size == 2_000_000


async def test_what_never_ends_holds_no_worker_and_swallowing_gains_nothing(agents: Agents) -> None:
    runs: list[str] = []

    @agent("stuck", retries=0)
    async def stuck(message: Message, ctx: Context) -> str:
        runs.append(message.text)
        if message.text == "thread":
            await ctx.step("never", time.sleep, 3)  # a thread can't be ended: it is left behind
        if message.text == "async":
            await ctx.step("never", asyncio.Event().wait)
        try:
            await ctx.sleep(3600)
        except BaseException:
            return "swallowed"
        return f"slept, in run {runs.count('sleeper')}"

    async with agents.run(stuck, suspend_after_s=0.1, drain_timeout_s=0.2) as run:
        asked = asyncio.create_task(run.ask("stuck", "sleeper", conversation="c"))
        books = Books(agents.settings, "stuck")
        await books.until("suspend")
        await run.clock.move(3601)
        assert (await asked).text == "slept, in run 2"
        for text in ("thread", "async"):
            await run.send("stuck", text, conversation=text)
        async with asyncio.timeout(30):
            while not {"thread", "async"} <= set(runs):
                await asyncio.sleep(0.01)
        ended = time.monotonic()
    assert time.monotonic() - ended < 10
    assert not await books.lines("park")


async def test_an_answer_too_large_for_the_journal_goes_by_the_store(agents: Agents) -> None:
    @agent("asker", retries=0)
    async def asker(message: Message, ctx: Context) -> int:
        return len(await ctx.ask("oracle", message.text))

    @agent("oracle")
    async def oracle(message: Message, ctx: Context) -> str:
        await going.wait()
        return "x" * 990_000

    going = asyncio.Event()
    async with agents.run(asker, oracle, suspend_after_s=0.1) as run:
        asked = asyncio.create_task(run.ask("asker", "x", conversation="c"))
        await Books(agents.settings, "asker").until("suspend")
        going.set()
        assert (await asked).content == 990_000
    (step,) = await Books(agents.settings, "asker").lines("step")
    assert step.record["step"]["blob"]


async def waiter_and_books(agents: Agents, calls: list[str]) -> tuple[Any, Books]:
    """An agent that does a step, waits for a person, and does another."""

    @agent("waiter", retries=0)
    async def waiter(message: Message, ctx: Context) -> str:
        await ctx.step("before", lambda: calls.append(f"before {message.text}"))
        if message.text == "waits":
            await ctx.approve("go on?")
        await ctx.step("after", lambda: calls.append(f"after {message.text}"))
        return message.text

    return waiter, Books(agents.settings, "waiter")


async def test_a_record_of_a_newer_release_holds_its_conversation_and_no_other(
    agents: Agents, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []
    waiter, books = await waiter_and_books(agents, calls)
    settings: dict[str, Any] = {"partitions": 1, "suspend_after_s": 0.1}
    async with agents.run(waiter, **settings) as run:
        sent = await run.send("waiter", "waits", conversation="c")
        await books.until("suspend")
    (claim,) = await books.lines("claim")
    about = {"claim": claim.at, "offset": sent.offset, "conversation_id": "c", "message_id": sent.message_id}
    unknown = await books.append(0, kind="folded", **about)
    async with agents.run(waiter, **settings) as run:
        step = {"name": "ctx.approve", "number": 0, "outcome": "approve", "body": b""}
        await books.append(0, kind="approve", **about | {"claim": -1}, step=step)
        await run.send("waiter", "behind", conversation="c")
        await run.send("waiter", "other", conversation="d")
        await books.until("held")
        await books.until("done", conversation="d")
        assert calls == ["before waits", "before other", "after other"]
        # The newer release brings it to its end: what waits behind it goes on.
        claim = (await books.lines("claim"))[-1]
        await books.append(0, kind="drop", **about | {"claim": claim.at})
    async with agents.run(waiter, **settings):
        await books.until("done", conversation="c")
    assert calls[3:] == ["before behind", "after behind"]
    said = [record.getMessage() for record in caplog.records if "does not know" in record.getMessage()]
    assert f"@{unknown}, by test, is a journal record of kind 'folded'" in said[0]
    assert "conversation c waits" in said[0]


async def test_foreign_and_missing_records_of_a_journal_are_named_and_the_rest_goes_on(
    agents: Agents, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []
    waiter, books = await waiter_and_books(agents, calls)
    settings: dict[str, Any] = {"partitions": 1, "suspend_after_s": 0.1}
    async with agents.run(waiter, **settings) as run:
        await run.send("waiter", "waits", conversation="c")
        (suspended,) = await books.until("suspend", conversation="c")
        steps = await books.lines("step", conversation="c")
        foreign = await books.append_raw(0, b"torn")
        await books.cut(0, steps[0].at + 1)  # the first step is gone, while its message is suspended
        await run.approve("c")
        await books.until("park")
        (letter,) = await run.dead_letters()
        assert f"1 of 3 recorded steps of message {letter.message and letter.message.message_id}" in letter.error
        assert f"are missing from {books.topic}[0]: offsets {steps[0].at} to {steps[0].at}" in letter.error
        assert "redrive it edited" in letter.traceback
        await run.send("waiter", "waits", conversation="d")
        (line,) = await books.until("suspend", conversation="d")
        steps = await books.lines("step", conversation="d")
    assert calls == ["before waits", "before waits"]
    # The same, when nobody reads: the next owner can't know that there was a step, but its handler comes to it.
    await books.cut(0, steps[0].at + 1)
    async with agents.run(waiter, **settings) as run:
        await run.approve("d")
        await books.until("park", conversation="d")
        letters = await run.dead_letters()
        assert letters[-1].cause == "changed-code"
        assert "came to step 'before' where step 'ctx.approve' is recorded" in letters[-1].error
        await run.send("waiter", "fine", conversation="e")
        await books.until("done", conversation="e")
    assert calls == ["before waits", "before waits", "before fine", "after fine"]
    assert f"{books.topic}[0]@{foreign} is no journal record" in caplog.text
    assert f"to {steps[0].at} are gone, by retention most likely" in caplog.text
    assert suspended.at < line.at
