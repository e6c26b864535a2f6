"""Tools in an agent: checked, allowed, and called once."""

from __future__ import annotations

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
