"""The services: an agent that answers for a group of them as it was recorded. CONCIERGE_DESK names the group.

See catalogue.py for the groups; deploy this file once for each of them.
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any

import dialogues
from catalogue import AGENTS

from llmagentos.agents import Context, Message, agent
from llmagentos.streams.errors import InputError

DESK = os.environ.get("CONCIERGE_DESK", "")
if DESK not in AGENTS:
    raise InputError(f"CONCIERGE_DESK is {DESK!r}", fix=f"set it to one of {', '.join(AGENTS)}")


def recorded() -> dict[str, dict[str, list[Any]]]:
    """By request and conversation, the results of one call after the other."""
    found: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    mine = {service.name for service in AGENTS[DESK]}
    for conversation, exchanges in dialogues.read().items():
        for call in (call for exchange in exchanges for call in exchange.calls if call.service in mine):
            found[call.request][conversation].append(call.results)
    return found


BOOK = recorded()


@agent(DESK, memory=dict)
async def look_up(message: Message, ctx: Context) -> Any:
    """Answers as it was recorded."""
    asked = message.content
    request = dialogues.Call(asked["service"], asked["method"], asked["parameters"], []).request
    results = BOOK[request][message.record["root_conversation"]]
    if len(results) == 1:
        return results[0]
    # The same question again, and another answer: what an account holds, or what is still free, has changed.
    number = ctx.memory.get(request, 0)
    ctx.memory[request] = number + 1
    return results[number]
