"""The assistant: remembers what was said, asks the model what to do, and has services do it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from catalogue import AGENTS, describe, schema
from pydantic import BaseModel

from llmagentos.agents import Context, Message, agent


class Desk:
    """An agent as a tool of the model: to call it is to ask it."""

    def __init__(self, name: str) -> None:
        self.name, self.description, self.parameters = name, describe(name), schema(name)

    async def invoke(self, ctx: Context, arguments: str | Mapping[str, Any]) -> str:
        """What the agent answers, as JSON."""
        asked = orjson.loads(arguments) if isinstance(arguments, str) else arguments
        return orjson.dumps(await ctx.ask(self.name, asked)).decode()


DESKS = [Desk(name) for name in AGENTS]


class Talk(BaseModel):
    """What was said so far."""

    said: list[dict[str, str]] = []


@agent("assistant", memory=Talk)
async def assistant(message: Message, ctx: Context) -> str:
    """A concierge, who books tables, rooms and journeys, and looks things up."""
    said = [*ctx.memory.said, {"role": "user", "content": message.text}]
    system = f"You are a concierge, in conversation {ctx.conversation}."
    # Its users take whole answers, so nothing is streamed to them.
    reply = await ctx.llm.chat(said, system=system, tools=DESKS, stream=False)
    ctx.memory.said = [*said, {"role": "assistant", "content": reply.text}]
    return reply.text
