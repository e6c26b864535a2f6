"""A gateway process in front of agents, talked to by the real clients."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents

from .conftest import Start

WORDS = ["once ", "upon ", "a ", "time"]


@agent("teller")
async def teller(message: Message, ctx: Context) -> str:
    """Tells a story."""
    for word in WORDS:
        await ctx.emit(word)
    await ctx.reply("".join(WORDS), usage={"model": "m", "tokens_in": 3, "tokens_out": 4, "cost": 0.0})
    return ""


@agent("echo")
async def echo(message: Message, ctx: Context) -> dict[str, object]:
    """Says what it was told."""
    if message.text == "fail":
        raise ValueError("as it was told")
    return {"text": message.text, "tenant": ctx.tenant, "attributes": dict(message.attributes)}


async def test_openai(agents: Agents, gateway: Start) -> None:
    async with agents.run(echo):
        front = await gateway("--open")
        async with openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0) as client:
            assert [model.id async for model in client.models.list()] == ["echo"]
            answer = await client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hello"}])
            assert json.loads(answer.choices[0].message.content or "")["text"] == "hello"
