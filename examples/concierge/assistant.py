"""The assistant: remembers what was said, asks the model what to do, and has services do it."""

from __future__ import annotations

import os
from typing import Any

import httpx
import orjson
from catalogue import schema, services
from pydantic import BaseModel

from llmagentos.agents import Context, Message, agent

URL = os.environ.get("CONCIERGE_MODEL", "")
TOOLS = [
    {"type": "function", "function": {"name": s.name, "description": s.description, "parameters": schema(s)}}
    for s in services()
]
http = httpx.AsyncClient(timeout=60)


async def infer(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The model's next message."""
    answer = await http.post(
        f"{URL}/chat/completions", content=orjson.dumps({"model": "recorded", "messages": messages, "tools": TOOLS})
    )
    if answer.status_code != 200:
        raise RuntimeError(answer.text)
    return answer.json()["choices"][0]["message"]


class Talk(BaseModel):
    """What was said so far."""

    said: list[dict[str, str]] = []


@agent("assistant", memory=Talk, retries=0)
async def assistant(message: Message, ctx: Context) -> str:
    """A concierge."""
    said = [*ctx.memory.said, {"role": "user", "content": message.text}]
    messages = [{"role": "system", "content": f"You are a concierge, in conversation {ctx.conversation}."}, *said]
    while True:
        reply = await ctx.step("model", infer, messages)
        if not reply.get("tool_calls"):
            break
        messages = [*messages, reply]
        for call in reply["tool_calls"]:
            result = await ctx.ask(call["function"]["name"], orjson.loads(call["function"]["arguments"]))
            messages = [
                *messages,
                {"role": "tool", "tool_call_id": call["id"], "content": orjson.dumps(result).decode()},
            ]
    ctx.memory.said = [*said, {"role": "assistant", "content": reply["content"]}]
    return reply["content"]
