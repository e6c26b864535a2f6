"""The services: agents that answer as it was recorded. CONCIERGE_SERVICES names the group that a deployment runs.

See catalogue.py for the groups; deploy this file once for each of them.
"""

from __future__ import annotations

import os
from collections import defaultdict

import dialogues
from catalogue import DEPLOYMENTS, Service

from llmagentos.agents import Agent, Context, Message, agent
from llmagentos.streams.errors import InputError

GROUP = "CONCIERGE_SERVICES"

Book = dict[str, dict[str, list[list[dict[str, object]]]]]


def books() -> dict[str, Book]:
    """What was recorded: by service, request and conversation, the results of one call after the other."""
    found: dict[str, Book] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for conversation, exchanges in dialogues.read().items():
        for exchange in exchanges:
            for call in exchange.calls:
                found[call.service][call.request][conversation].append(call.results)
    return found


def serve(service: Service, book: Book) -> Agent:
    """The agent that is *service*."""

    @agent(service.name, memory=dict)
    async def look_up(message: Message, ctx: Context) -> object:
        asked = message.content
        request = dialogues.Call(service.name, asked["method"], asked["parameters"], []).request
        recorded = book[request][ctx.message.record["root_conversation"]]
        if len(recorded) == 1:
            return recorded[0]
        # The same question again, and another answer: what an account holds, or what is still free, has changed.
        number = ctx.memory.get(request, 0)
        ctx.memory[request] = number + 1
        return recorded[number]

    return look_up


group = os.environ.get(GROUP, "")
if group not in DEPLOYMENTS:
    raise InputError(f"{GROUP} is {group!r}", fix=f"set it to one of {', '.join(DEPLOYMENTS)}")
_books = books()
globals().update({service.name: serve(service, _books[service.name]) for service in DEPLOYMENTS[group]})
