"""Cancelling: a message ends before its handler does, wherever that is, and its cleanup runs."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from textwrap import dedent
from typing import Any, cast

import orjson
import pytest

from llmagentos.agents import Client, Context, Message, agent
from llmagentos.agents.steps import Steps
from llmagentos.agents.testing import Agents
from llmagentos.agents.work import Work
from llmagentos.streams.errors import AnswerError
from llmagentos.streams.journal_record import step_record

from .journals import Books

WAIT_S = 30.0
TOLD = {"error": "conversation c was cancelled by Ada: a mistake", "cause": "cancelled"}


async def cancel(agents: Agents, name: str, sent: Any, *, by: str = "Ada") -> None:
    """As `llmagentos cancel` does for one message."""
    said = orjson.dumps({"by": by, "why": "a mistake"})
    step = step_record("ctx.cancel", 0, "cancel", content_type="application/json", body=said)
    await Books(agents.settings, name).append(
        sent.partition, kind="cancel", offset=sent.offset, conversation_id="c", message_id=sent.message_id, step=step
    )


async def error_of(run: Any, *, count: int = 1) -> list[Any]:
    """What clients are told, once nothing is open."""
    await run.settled()
    found = [message.content for message in await run.outputs() if message.type == "error"]
    assert len(found) == count
    return found


async def until(what: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not what():
            await asyncio.sleep(0.01)


async def test_a_handler_that_runs_is_interrupted_and_cleans_up(agents: Agents) -> None:
    calls: list[str] = []
    began = asyncio.Event()

    @agent("till")
    async def till(message: Message, ctx: Context) -> str:
        if message.text == "next":
            return "next"
        await ctx.step("charge", lambda: calls.append("charge"))
        await ctx.tell("ledger", "paid")
        try:
            began.set()
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            assert ctx.cleans_up
            await ctx.step("charge", lambda: calls.append("refund"))
            await ctx.tell("ledger", "refunded")
        return "nobody is told that it is done"

    @agent("ledger")
    async def ledger(message: Message, ctx: Context) -> None:
        calls.append(message.text)

    async with agents.run(till, ledger) as run:
        sent = await run.send("till", "x", conversation="c")
        await run.send("till", "next", conversation="c")
        await began.wait()
        await cancel(agents, "till", sent)
        await cancel(agents, "till", sent, by="Bob")  # the first one counts
        assert await error_of(run) == [TOLD]
        await cancel(agents, "till", sent)  # it is over
        assert [message.text for message in await run.outputs() if message.type == "result"] == ["next"]
        assert await run.dead_letters() == []
    assert calls == ["charge", "refund", "refunded"]


async def test_one_that_is_suspended_goes_on_to_its_cleanup(agents: Agents) -> None:
    calls: list[str] = []

    @agent("till")
    async def till(message: Message, ctx: Context) -> None:
        await ctx.step("charge", lambda: calls.append("charge"))
        try:
            await ctx.approve("ship it?")
        finally:
            await ctx.step("refund", lambda: calls.append("refund"))

    async with agents.run(till, suspend_after_s=0.1) as run:
        sent = await run.send("till", "x", conversation="c")
        await Books(agents.settings, "till").until_waiting("approval")
        held = await run.send("till", "y", conversation="c")
        await Books(agents.settings, "till").until("held")
        await cancel(agents, "till", held)
        await cancel(agents, "till", sent)
        assert await error_of(run, count=2) == [TOLD, TOLD]
    assert calls == ["charge", "refund"]  # the held one had not begun


async def test_what_is_held_behind_a_parked_one_ends_at_once(agents: Agents) -> None:
    @agent("till", retries=0)
    async def till(message: Message, ctx: Context) -> str:
        if message.text == "poison" and not mended:
            raise ValueError("not yet")
        return message.text

    mended: list[bool] = []
    async with agents.run(till) as run:
        parked = await run.send("till", "poison", conversation="c")
        await Books(agents.settings, "till").until("park")
        first = await run.send("till", "first", conversation="c")
        await run.send("till", "second", conversation="c")
        await Books(agents.settings, "till").until("held", count=2)
        await cancel(agents, "till", parked)  # is left to `dead drop`
        await cancel(agents, "till", first)
        await Books(agents.settings, "till").until("done")
        mended.append(True)
        await run.redrive()
        texts = [message.text for message in await run.outputs() if message.type == "result"]
        assert texts == ["poison", "second"]


async def test_a_thread_is_interrupted_at_its_call(agents: Agents) -> None:
    calls: list[str] = []
    waits = threading.Event()

    @agent("till", blocking="thread")
    def till(message: Message, ctx: Any) -> None:
        try:
            ctx.step("charge", lambda: calls.append("charge"))
            waits.set()
            ctx.sleep(3600)
        except asyncio.CancelledError:
            ctx.step("refund", lambda: calls.append("refund"))
            raise

    async with agents.run(till) as run:
        sent = await run.send("till", "x", conversation="c")
        await asyncio.to_thread(waits.wait, 30)
        await cancel(agents, "till", sent)
        assert await error_of(run) == [TOLD]
    assert calls == ["charge", "refund"]


async def test_a_process_is_ended_and_what_had_not_begun_is_not_run(agents: Agents, tmp_path: Path) -> None:
    """The second is cancelled while it waits behind the first, the third while no worker runs."""
    source = tmp_path / f"till_{agents.settings.prefix.rstrip('.')}.py"
    source.write_text(
        dedent(
            f"""
            import time
            from llmagentos.agents import agent

            @agent("till", blocking="process", max_in_flight=1)
            def till(message, ctx):
                with open({str(tmp_path / "calls")!r}, "a") as file:
                    file.write(message.text + "\\n")
                time.sleep(3600 if message.text == "first" else 0)
            """
        )
    )
    calls = tmp_path / "calls"
    calls.touch()
    async with agents.run(source) as run:
        first = await run.send("till", "first", conversation="c")
        second = await run.send("till", "second", conversation="c")
        await until(calls.read_text)
        await cancel(agents, "till", second)
        await cancel(agents, "till", first)
        assert await error_of(run, count=2) == [TOLD, TOLD]
    async with Client(agents.settings) as client:
        third = await client.tell("till", "third", conversation="c")
    await cancel(agents, "till", third)
    async with agents.run(source) as run:
        assert await error_of(run, count=3) == [TOLD] * 3
    assert calls.read_text().split() == ["first"]


async def test_through_two_agents_the_question_raises_in_the_asker(agents: Agents) -> None:
    calls: list[str] = []
    questions: list[Message] = []
    began = asyncio.Event()

    @agent("front", retries=0)
    async def front(message: Message, ctx: Context) -> str:
        try:
            return str(await ctx.ask("back", "x"))
        except AnswerError as error:
            return str(error)

    @agent("back")
    async def back(message: Message, ctx: Context) -> None:
        try:
            questions.append(message)
            began.set()
            await asyncio.sleep(3600)
        finally:
            calls.append(await ctx.step("undo", lambda: "undone"))

    async with agents.run(front, back) as run:
        asked = asyncio.create_task(run.ask("front", "x", conversation="c"))
        await began.wait()
        await cancel(agents, "back", questions[0])
        assert "was cancelled by Ada: a mistake" in (await asked).text
    assert calls == ["undone"]


@pytest.mark.parametrize("blocking", [None, "thread"])
async def test_one_that_swallows_it_is_given_up_after_its_grace(agents: Agents, blocking: Any) -> None:
    tries: list[str] = []
    over = threading.Event()

    async def swallows(message: Message, ctx: Context) -> None:
        while message.text == "x" and not over.is_set():
            try:
                tries.append("try")
                await asyncio.sleep(0.2 if len(tries) > 3 else 3600)
            except asyncio.CancelledError:
                pass

    def blocks(message: Message, ctx: Any) -> None:
        tries.append("try")
        while message.text == "x" and not over.is_set():
            over.wait(0.05)

    till = agent("till", blocking=blocking)(blocks if blocking else swallows)
    async with agents.run(till, cancel_grace_s=0.2) as run:
        sent = await run.send("till", "x", conversation="c")
        await run.send("till", "next", conversation="c")
        await until(lambda: bool(tries))
        await cancel(agents, "till", sent)
        assert await error_of(run) == [TOLD]  # and the next one has been handled
        over.set()


async def test_a_next_owner_goes_on_with_a_cleanup_that_was_cut_short(agents: Agents) -> None:
    calls: list[str] = []
    going = asyncio.Event()

    @agent("till")
    async def till(message: Message, ctx: Context) -> None:
        await ctx.step("charge", lambda: calls.append("charge"))
        try:
            await ctx.ask("nobody", "x", timeout=3600)
        finally:
            await ctx.step("refund", lambda: calls.append("refund"))
            calls.append("between")
            if not going.is_set():
                await asyncio.sleep(3600)
            await ctx.step("apologise", lambda: calls.append("apologise"))

    @agent("nobody")
    async def nobody(message: Message, ctx: Context) -> None:
        return None

    async with agents.run(till, nobody, drain_timeout_s=0.1) as run:
        sent = await run.send("till", "x", conversation="c")
        await Books(agents.settings, "till").until("step")
        await cancel(agents, "till", sent)
        await until(lambda: calls[-1] == "between")
    going.set()
    async with agents.run(till, nobody) as run:
        assert await error_of(run) == [TOLD]
    assert calls == ["charge", "refund", "between", "between", "apologise"]


async def test_the_end_of_a_worker_or_of_a_handlers_time_is_no_cancellation(agents: Agents) -> None:
    calls: list[str] = []
    tries: list[str] = []

    @agent("till", timeout=60, retries=1, backoff=0.01)
    async def till(message: Message, ctx: Context) -> str:
        try:
            await ctx.step("charge", lambda: calls.append("charge"))
            tries.append("try")
            if len(tries) < 3:
                await asyncio.sleep(3600)
            return "done"
        except asyncio.CancelledError:
            await ctx.step("refund", lambda: calls.append("refund"))
            raise

    async with agents.run(till, drain_timeout_s=0.1) as run:
        await run.send("till", "x", conversation="c")
        await until(lambda: tries)
    async with agents.run(till) as run:
        await until(lambda: len(tries) == 2)
        await run.clock.move(61)
        await until(lambda: len(tries) == 3)
        await run.settled()
        assert [message.text for message in await run.outputs() if message.type == "result"] == ["done"]
    assert calls == ["charge"]


async def test_a_cleanup_in_a_worker_that_ends_is_seen(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded bug: whoever interrupts a handler, what it does then is recorded."""
    monkeypatch.setattr(Work, "over", False)
    monkeypatch.setattr(sys.modules[__name__], "WAIT_S", 3.0)  # it comes to nothing
    with pytest.raises((AssertionError, TimeoutError)):
        await test_the_end_of_a_worker_or_of_a_handlers_time_is_no_cancellation(agents)


async def test_a_cleanup_that_forgets_what_it_did_is_seen(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded bug: a cleanup's steps are counted with the handler's, which a rerun comes to first."""

    def clean_up(self: Any) -> None:
        real(self)
        self._cleaning = False

    real = Steps.clean_up
    monkeypatch.setattr(Steps, "clean_up", clean_up)
    with pytest.raises(AssertionError):
        await test_a_handler_that_runs_is_interrupted_and_cleans_up(agents)


async def test_a_handler_that_runs_into_its_deadline_cleans_up(agents: Agents) -> None:
    calls: list[str] = []

    @agent("till")
    async def till(message: Message, ctx: Context) -> None:
        try:
            await ctx.step(f"charge {message.text}", lambda: calls.append(message.text))
            if message.text == "runs":
                await asyncio.sleep(36000)
            await ctx.approve("ship it?")
        finally:
            assert ctx.deadline is None  # a cleanup has all the time
            await ctx.step("refund", lambda: calls.append(f"refund {message.text}"))

    @agent("clerk")
    async def clerk(message: Message, ctx: Context) -> int | None:
        if message.text == "deadline":
            return message.deadline
        await ctx.tell("clerk", "deadline", conversation="f")
        return cast(int, await ctx.ask("clerk", "deadline", timeout=7200, conversation="g"))

    async with agents.run(till, clerk, suspend_after_s=0.1) as run:
        sent = await run.send("clerk", "x", conversation="h", deadline=3600)
        await run.settled()
        told = [message.content for message in await run.outputs() if message.type == "result"]
        assert told == [sent.deadline] * 3  # what is asked or told in turn has no later one
        await run.send("till", "waits", conversation="c", deadline=3600)
        await Books(agents.settings, "till").until_waiting("approval")
        await run.send("till", "runs", conversation="d", deadline=3600)
        await until(lambda: len(calls) == 2)
        await run.clock.move(3601)
        await run.send("till", "late", conversation="e", deadline=-1)
        errors = await error_of(run, count=3)
        assert {error["cause"] for error in errors} == {"expired"}
        assert len(await run.dead_letters()) == 3
    assert sorted(calls) == ["refund runs", "refund waits", "runs", "waits"]
