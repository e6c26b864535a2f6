"""Tools in an agent: checked, allowed, and called once."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents
from llmagentos.agents.tools import Call, tool


async def test_a_call_is_checked_allowed_and_done_once(agents: Agents) -> None:
    calls: list[Any] = []

    @tool()
    def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C") -> dict[str, Any]:
        """The weather forecast.

        Args:
            city: where,
                by its name.
            days: how many.
        """
        calls.append((city, days))
        if city == "nowhere":
            raise LookupError("no such city")
        return {"city": city, "days": days}

    def allow(call: Call) -> bool | str:
        return call.arguments["path"] != "/" or f"{call.agent} may not"

    @tool("wipe", allow=allow)
    async def wipe(path: str) -> str:
        calls.append(path)
        return "wiped"

    assert weather("Oslo") == {"city": "Oslo", "days": 1}
    calls.clear()
    assert weather.description == "The weather forecast."
    assert weather.parameters["properties"]["city"] == {"type": "string", "description": "where, by its name."}
    assert weather.parameters["required"] == ["city"]

    @agent("guide", tools=[weather, wipe], retries=1, backoff=0.01)
    async def guide(message: Message, ctx: Context) -> list[str]:
        said = [
            await ctx.tools["weather"].invoke(ctx, arguments)
            for arguments in ('{"city": "Oslo", "days": "2"}', "not JSON", "[]", {"days": "x", "town": 1})
        ]
        said += [await ctx.tools["weather"].invoke(ctx, {"city": "nowhere"})]
        said += [await ctx.tools["wipe"].invoke(ctx, {"path": path}) for path in ("/", "/tmp/x")]
        if ctx.attempt == 0:
            raise ValueError("once")
        return said

    async with agents.run(guide) as run:
        said = (await run.ask("guide", "x")).content
    assert said[0] == '{"city":"Oslo","days":2}'
    assert said[1].startswith("error: the arguments are not JSON")
    assert said[2] == "error: the arguments are list in JSON, not an object"
    assert said[3].startswith("error: wrong arguments: city: Field required; days: Input should be a valid integer")
    assert "town: Extra inputs are not permitted (given: '1')" in said[3]
    assert said[4:] == ["error: LookupError: no such city", "error: wipe is not allowed: guide may not", "wiped"]
    assert calls == [("Oslo", 2), ("nowhere", 1), "/tmp/x"]


async def test_calls_wait_for_a_person_above_a_threshold_and_go_by_the_operators_policy(agents: Agents) -> None:
    calls: list[Any] = []

    @tool(approve={"amount": 100}, key_as="key")
    async def refund(amount: float, key: str) -> str:
        calls.append((amount, key))
        return f"refunded {amount:g}"

    @tool(approve=lambda arguments: arguments["path"].startswith("/"))
    def remove(path: str) -> str:
        calls.append(path)
        return "removed"

    @tool()
    def shell(command: str) -> str:
        calls.append(command)
        return "done"

    assert "key" not in refund.parameters["properties"]

    @agent("clerk", tools=[refund, remove, shell], retries=1, backoff=0.01)
    async def clerk(message: Message, ctx: Context) -> list[str]:
        refund, remove = ctx.tools["refund"], ctx.tools["remove"]
        said = [await ctx.tools["shell"].invoke(ctx, {"command": "rm"}), await refund.invoke(ctx, {"amount": 100})]
        said += [await refund.invoke(ctx, {"amount": 101}), await remove.invoke(ctx, {"path": "/"})]
        said += [await remove.invoke(ctx, {"path": "here"})]
        if ctx.attempt == 0:
            raise ValueError("once")
        return said

    policy = {"clerk/shell": "deny", "*": "allow"}
    async with agents.run(clerk, suspend_after_s=0.1, tool_policy=policy) as run:
        asked = asyncio.create_task(run.ask("clerk", "x", conversation="c"))
        await run.approve("c", by="Ada")
        await run.reject("c", by="Ada", why="too much")
        said = (await asked).content
    assert said[:2] == ["error: shell is not allowed here", "refunded 100"]
    assert said[2] == "refunded 101"
    assert said[3] == "error: a person did not approve this call of remove: too much"
    assert said[4] == "removed"
    assert [each if isinstance(each, str) else each[0] for each in calls] == [100, 101, "here"]
    assert len({each[1] for each in calls if not isinstance(each, str)}) == 2
