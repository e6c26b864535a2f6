"""The agents of a durable chaos run with a known bug in the engine beneath them, as `bugs.py` has the chain."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from llmagentos.agents.steps import Identity, Recorded, Steps
from llmagentos.cli.chaos import durable
from llmagentos.cli.chaos.durable import first, second, third

#: Longer than a step and all that follows it: whoever goes on before its record counts is far ahead.
LATE_S = 3.0


def replayed() -> None:
    """Recorded results are not given to a rerun: what it does is done anew. (What it waited for is not.)"""
    meet = Steps.meet

    async def nothing(self: Steps, identity: Identity) -> Recorded | None:
        recorded = await meet(self, identity)
        return recorded if identity[0].startswith("ctx.") else None

    Steps.meet = nothing


def awaited() -> None:
    """A step's record is on its way when the handler goes on."""
    init = Steps.__init__

    def made(self: Steps, *args: Any, record: Callable[[Mapping[str, Any], int], Awaitable[None]], **more: Any) -> None:
        late: set[asyncio.Task[None]] = set()

        async def later(step: Mapping[str, Any], at: int) -> None:
            async def write() -> None:
                await asyncio.sleep(LATE_S)
                await record(step, at)

            if step["outcome"] == "result" and not step["name"].startswith("ctx."):
                late.add(asyncio.create_task(write()))
            else:
                await record(step, at)

        init(self, *args, record=later, **more)

    Steps.__init__ = made


def keyed() -> None:
    """The idempotency key is another one at each attempt."""
    effect = durable._effect

    async def with_another(entry: dict[str, Any], *, key: str) -> int:
        return await effect(entry, key=str(uuid.uuid4()))

    durable._effect = with_another


BUGS = {bug.__name__: bug for bug in (replayed, awaited, keyed)}

if (name := os.environ.get("LLMAGENTOS_TEST_BUG", "")) in BUGS:
    BUGS[name]()

__all__ = ["BUGS", "first", "second", "third"]
