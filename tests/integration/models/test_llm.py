"""`ctx.llm`: a turn is asked once, told as it comes, and counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
import redis
from pydantic import BaseModel

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents
from llmagentos.agents.testing.endpoint import Answer, ModelEndpoint
from llmagentos.streams.endpoints import redis_url
from llmagentos.streams.errors import AnswerError

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


class Place(BaseModel):
    city: str
    people: int


async def test_an_answer_is_of_the_form_that_was_asked_for_or_an_error(agents: Agents) -> None:
    @agent("clerk")
    async def clerk(message: Message, ctx: Context) -> dict[str, Any]:
        reply = await ctx.llm.chat(message.text, response=Place, max_tokens=50)
        assert await ctx.llm.chat("and?") is not None
        return reply.parsed.model_dump() | {"turns": reply.turns}

    @agent("typist", blocking="thread")
    def typist(message: Message, ctx: Any) -> str:
        return ctx.llm.chat(message.text).text

    def answer(asked: dict[str, Any]) -> Answer:
        said = [each["content"] for each in asked["messages"] if each["role"] == "user"]
        if said[0] == "never" or said == ["late"]:
            return "Oslo, I think"
        return '{"city": "Oslo", "people": 700000}'

    async with (
        ModelEndpoint(answer) as endpoint,
        agents.run(clerk, typist, models={"small": {"base_url": endpoint.url}}) as run,
    ):
        assert (await run.ask("clerk", "now")).content == {"city": "Oslo", "people": 700000, "turns": 1}
        assert (await run.ask("clerk", "late")).content["turns"] == 2
        mended = endpoint.asked[3]["messages"]
        assert [each["role"] for each in mended] == ["system", "user", "assistant", "user"]
        assert "Invalid JSON" in mended[-1]["content"]
        assert endpoint.asked[0]["response_format"]["json_schema"]["schema"]["required"] == ["city", "people"]
        count = len(endpoint.asked)
        with pytest.raises(AnswerError, match=r"no Place: .*Oslo, I think"):
            await run.ask("clerk", "never")
        assert len(endpoint.asked) == count + 2  # once, and mended once; not again for each retry
        assert (await run.ask("clerk", "now")).content["turns"] == 1
        assert (await run.ask("typist", "a line")).text.startswith("{")
        tokens = [each for each in await run.outputs() if each.type == "token"]
        assert "Oslo, I think" not in [each.text for each in tokens]


async def test_what_broke_off_is_told_anew_by_a_later_run(agents: Agents) -> None:
    @agent("poet", backoff=0.01)
    async def poet(message: Message, ctx: Context) -> str:
        return (await ctx.llm.chat(message.text)).text

    answers = [{"chunks": ["Rain ", "falls", "x"], "cut": 2}, {"chunks": ["Rain ", "stops"]}, {"status": 500}]
    async with (
        ModelEndpoint(answers) as endpoint,
        agents.run(poet, models={"small": {"base_url": endpoint.url, "retries": 0}}) as run,
    ):
        assert (await run.ask("poet", "rain")).text == "Rain stops"
        tokens = [each for each in await run.outputs() if each.type == "token"]
        assert [each.text for each in tokens] == ["Rain ", "falls", "Rain ", "stops"]
        runs = [each.record["attributes"]["run"] for each in tokens]
        assert runs[0] == runs[1] < runs[2] == runs[3]
        with pytest.raises(AnswerError, match="answered 500"):
            await run.ask("poet", "again", conversation="down")
        assert [each.cause for each in await run.dead_letters("poet")] == ["failed"]
        endpoint.say(["Rain, at last"])
        await run.redrive("poet")
        assert (await run.outputs("down"))[-1].text == "Rain, at last"


async def test_the_model_sees_what_was_said_and_what_is_remembered(agents: Agents) -> None:
    @agent("friend", memory=dict)
    async def friend(message: Message, ctx: Context) -> str:
        ctx.memory["last"] = message.text
        reply = await ctx.llm.chat(message.text, system="Be kind.", history=10, memory=True)
        return reply.text

    async with (
        ModelEndpoint(["Hello, Ada", "You are Ada"]) as endpoint,
        agents.run(friend, models={"small": {"base_url": endpoint.url}}) as run,
    ):
        await run.ask("friend", "I am Ada", conversation="c")
        await run.ask("friend", "Who am I?", conversation="c")
    asked = endpoint.asked[1]["messages"]
    assert [each["role"] for each in asked] == ["system", "system", "user", "assistant", "user"]
    assert asked[1]["content"].endswith('{"last":"Who am I?"}')
    assert [each["content"] for each in asked[2:]] == ["I am Ada", "Hello, Ada", "Who am I?"]


async def test_budgets_are_kept_by_all_workers_and_outlive_redis(agents: Agents) -> None:
    @agent("spender", retries=0)
    async def spender(message: Message, ctx: Context) -> str:
        return (await ctx.llm.chat(message.text)).text

    def answer(asked: dict[str, Any]) -> Answer:
        return {"text": "well", "tokens_in": 1_000_000, "tokens_out": 0}

    async with ModelEndpoint(answer) as endpoint:
        dear = {"base_url": endpoint.url, "price_in": 1.0}
        bounds: dict[str, Any] = {"tenant_budget": 3.0, "tenant_budgets": {"rich": 0.0}, "conversation_budget": 2.0}
        async with agents.run(spender, workers=2, models={"dear": dear}, **bounds) as run:
            for conversation in ("a", "a", "b"):
                await run.ask("spender", "x", conversation=conversation, tenant="poor")
            with pytest.raises(AnswerError, match=r"tenant 'poor' has spent \$3\.0000 on models today, of \$3 a day"):
                await run.ask("spender", "x", conversation="c", tenant="poor")
            for conversation in ("d", "d", "e", "f", "g"):
                await run.ask("spender", "x", conversation=conversation, tenant="rich")
            with pytest.raises(AnswerError, match=r"conversation d has spent \$2\.0000 on models, of \$2"):
                await run.ask("spender", "x", conversation="d", tenant="rich")
            with redis.Redis.from_url(redis_url(agents.settings)) as client:
                keys = list(client.scan_iter(match=f"{agents.settings.prefix}*:spent*"))
                assert keys
                client.delete(*keys)
            with pytest.raises(AnswerError, match=r"tenant 'poor' has spent \$3\.0000"):
                await run.ask("spender", "x", conversation="h", tenant="poor")
            assert len(endpoint.asked) == 8
            events = await run.events("model")
    assert {each["detail"]["tenant"] for each in events} == {"poor", "rich"}
    assert len(events) == 8


async def test_the_same_question_of_the_same_tenant_is_answered_from_what_is_kept(agents: Agents) -> None:
    @agent("sage")
    async def sage(message: Message, ctx: Context) -> str:
        return (await ctx.llm.chat(message.text)).text

    async with ModelEndpoint(["one", "two", "three"]) as endpoint:
        kept = {"base_url": endpoint.url, "cache_s": 3600, "price_in": 1.0}
        async with agents.run(sage, models={"kept": kept}) as run:
            first, again = await run.ask("sage", "why?"), await run.ask("sage", "why?")
            assert (first.text, again.text) == ("one", "one")
            assert (first.usage or {})["tokens_in"] > 0
            assert again.usage == {"model": "kept", "tokens_in": 0, "tokens_out": 0, "cost": 0.0}
            assert (await run.ask("sage", "why?", tenant="other")).text == "two"
            assert (await run.ask("sage", "how?")).text == "three"
