"""`llmagentos cancel`: all that a conversation has caused and that is not finished, whichever agent has it."""

from __future__ import annotations

import asyncio
from typing import Any

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.provision import retire
from llmagentos.agents.testing import Agents
from llmagentos.streams.errors import AnswerError

from .agents.journals import Books
from .test_waiting import llmagentos


async def test_a_whole_tree_is_cancelled_and_everybody_is_told(agents: Agents) -> None:
    calls: list[str] = []
    began = asyncio.Event()

    @agent("desk", retries=0)
    async def desk(message: Message, ctx: Context) -> str:
        if message.text == "poison":
            raise ValueError("no")
        try:
            await ctx.gather(("clerk", "a"), ("clerk", "b"))
        except AnswerError:
            calls.append("not cancelled but told")
            raise
        finally:
            await ctx.step("note", lambda: calls.append("desk"))
        return "done"

    @agent("clerk")
    async def clerk(message: Message, ctx: Context) -> None:
        try:
            if message.text == "a":
                await ctx.approve("may I?")
            began.set()
            await asyncio.sleep(3600)
        finally:
            await ctx.step("note", lambda: calls.append(message.text))

    async with agents.run(desk, clerk, suspend_after_s=0.1) as run:
        first = await run.send("desk", "x", conversation="c")
        await began.wait()
        await Books(agents.settings, "clerk").until_waiting("approval")
        await Books(agents.settings, "desk").until("suspend")
        await run.send("desk", "y", conversation="c")
        await Books(agents.settings, "desk").until("held")
        await run.send("desk", "poison", conversation="other")
        await Books(agents.settings, "desk").until("park")

        refused = await llmagentos("cancel", "c", status=1)
        assert "it wants a yes" in refused.said
        said = (await llmagentos("cancel", "c/1", "--why", "twice", "--by", "Ada", "--yes", "-o", "json")).json
        assert said["root"] == "c"
        states = {(each["agent"], each["conversation"], each["state"]): each["outcome"] for each in said["messages"]}
        assert states == {
            ("desk", "c", "waiting"): "cancelled",
            ("desk", "c", "held"): "cancelled",
            ("clerk", "c/1", "waiting"): "cancelled",
            ("clerk", "c/2", "new"): "cancelled",
        }
        assert said["parked"] == []
        told = [message for message in await run.outputs("c") if message.type == "error"]
        texts = sorted(each.content["error"] for each in told if each.sender == "desk")
        assert texts == ["conversation c was cancelled by Ada: twice"] * 2
        assert {each.caused_by for each in told} >= {first.message_id}
        shown: list[Any] = (await llmagentos("steps", "c", "-o", "json")).json
        assert [each["state"] for each in shown] == ["cancelled", "cancelled"]
        assert "cancelled by Ada: twice" in (await llmagentos("steps", "c")).out

        assert "nothing of conversation c is unfinished" in (await llmagentos("cancel", "c", "--yes")).out
        parked = await llmagentos("cancel", "other", "--yes")
        assert "dead drop" in parked.said
        missing = await llmagentos("cancel", "nowhere", "--yes", status=1)
        assert "no message of conversation 'nowhere'" in missing.said
    assert sorted(calls) in (["a", "b", "desk"], ["a", "b", "desk", "not cancelled but told"])


async def test_what_an_agent_left_that_is_not_deployed_any_more_is_cancelled(agents: Agents) -> None:
    """Whoever deploys it again goes on with all of it, so that it is unfinished."""
    calls: list[str] = []

    @agent("desk", retries=0)
    async def desk(message: Message, ctx: Context) -> str:
        calls.append(message.text)
        if message.text == "stuck":
            await ctx.step("begin", lambda: None)
            await ctx.sleep(3600)
        return "done"

    async with agents.run(desk, drain_timeout_s=0.1, suspend_after_s=600) as first:
        assert (await first.ask("desk", "before", conversation="a")).text == "done"
        await first.send("desk", "stuck", conversation="c")
        await Books(agents.settings, "desk").until("step")
        await first.send("desk", "new", conversation="c")
    await asyncio.to_thread(retire, agents.settings, first.deployment)
    said = (await llmagentos("cancel", "c", "--yes", "--timeout", "1", "-o", "json", status=1)).json
    assert [each["state"] for each in said["messages"]] == ["open", "new"]
    assert "nothing of conversation a is unfinished" in (await llmagentos("cancel", "a", "--yes")).out
    async with agents.run(desk) as again:
        await again.settled()
        told = [message for message in await again.outputs("c") if message.type == "error"]
    assert [each.content["cause"] for each in told] == ["cancelled"] * 2
    assert calls in (["before", "stuck"], ["before", "stuck", "stuck"])
