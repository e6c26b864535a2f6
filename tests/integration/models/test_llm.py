"""`ctx.llm`: a turn is asked once, told as it comes, and counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents
from llmagentos.agents.testing.endpoint import ModelEndpoint

PRICES = {"price_in": 2.0, "price_out": 10.0}


@dataclass
class Weather:
    """A tool by its four members."""

    name: str = "weather"
    description: str = "The weather of a city."
    parameters: dict[str, Any] = field(
        default_factory=lambda: {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    )
    calls: list[str] = field(default_factory=list)

    async def invoke(self, ctx: Context, arguments: str | dict[str, Any]) -> str:
        return await ctx.step("weather", self._look, arguments)

    def _look(self, arguments: str) -> str:
        self.calls.append(orjson.loads(arguments)["city"])
        return "rain"


async def test_a_chat_with_tools_is_told_as_it_comes_and_paid_once(agents: Agents) -> None:
    weather = Weather()
    answers = [
        {"calls": [{"name": "weather", "arguments": {"city": "Oslo"}}, {"name": "news", "arguments": "{}"}],
         "tokens_in": 100, "tokens_out": 10},
        {"chunks": ["Take ", "an ", "umbrella."], "tokens_in": 200, "tokens_out": 20},
    ]  # fmt: skip

    @agent("guide", retries=1, backoff=0.01)
    async def guide(message: Message, ctx: Context) -> str:
        reply = await ctx.llm.chat(message.text, system="Be brief.", tools=[weather])
        if ctx.attempt == 0:
            raise ValueError("once")
        assert reply.turns == 2
        return reply.text

    async with ModelEndpoint(answers) as endpoint:
        models = {"small": {"base_url": endpoint.url} | PRICES}
        async with agents.run(guide, models=models) as run:
            said = await run.ask("guide", "What shall I wear in Oslo?")
            assert said.text == "Take an umbrella."
            assert said.usage == {"model": "small", "tokens_in": 300, "tokens_out": 30, "cost": 0.0009}
            tokens = [m for m in await run.outputs() if m.type == "token"]
    assert weather.calls == ["Oslo"]
    first, second = endpoint.asked
    assert [m["role"] for m in first["messages"]] == ["system", "user"]
    assert first["tools"][0]["function"]["name"] == "weather"
    tools = [m for m in second["messages"] if m["role"] == "tool"]
    assert [m["content"] for m in tools] == ["rain", "error: there is no tool 'news'; there are: weather"]
    assert [m.text for m in tokens] == ["Take ", "an ", "umbrella.", "Take an umbrella."]
