"""The assistant: remembers what was said, asks the model what to do, and has services do it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from catalogue import Service, schema, services
from pydantic import BaseModel

from llmagentos.agents import Context, Message, agent


class Desk:
    """A service as a tool of the model: to call it is to ask the agent of its name."""

    def __init__(self, service: Service) -> None:
        self.name, self.description, self.parameters = service.name, service.description, schema(service)

    async def invoke(self, ctx: Context, arguments: str | Mapping[str, Any]) -> str:
        """What the service's agent answers, as JSON."""
        asked = orjson.loads(arguments) if isinstance(arguments, str) else arguments
        return orjson.dumps(await ctx.ask(self.name, asked)).decode()


DESKS = [Desk(service) for service in services()]


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
