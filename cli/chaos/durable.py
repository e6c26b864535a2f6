"""The agents of a durable chaos run: `first` asks `second`, which asks `third`, and what they do are steps.

Each step enters itself in the ledger, with its idempotency key; the ledger loses some answers, and then the step tries
again. Where its work says so, `first` waits for a person, or `third` for a timer, so that handlers are suspended and
resumed at any time. A run that deploys changed code writes another number into CODE.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import google_crc32c

from llmagentos.agents import Context, Message, agent
from llmagentos.cli.chaos.chain import LEDGER
from llmagentos.cli.chaos.ledger import Ledger

__all__ = ["CODE", "first", "second", "third"]

#: Each deployment of changed code has a higher one, and as many steps more, marked by ctx.version.
CODE = 1

#: A step takes up to so long, less 1: so that some are under way whenever a worker is killed.
TAKES_MS = 20

#: One answer of the ledger in twenty is lost: that all of these are, one after the other, happens to nobody.
RETRIES = 9

#: Longer than any fault lasts, with what waits for a person in between.
ASK_S = 600.0

_ledger: Ledger | None = None


@agent("first", retries=1, backoff=0.05)
async def first(message: Message, ctx: Context) -> None:
    """Counts the words, has a person look, asks for the checksum, and puts it all down."""
    work = {**message.json(), "root": message.message_id}
    words = await _step(ctx, work, "count", len(work["text"].split()))
    if work.get("waits") == "person":
        assert await ctx.approve(f"turn {work['turn']}")
    checksum = await ctx.ask("second", work, timeout=ASK_S)
    for change in range(2, CODE + 1):
        if await ctx.version(f"change {change}"):
            await _step(ctx, work, f"change {change}", change)
    await _step(ctx, work, "close", words + checksum)


@agent("second", retries=1, backoff=0.05)
async def second(message: Message, ctx: Context) -> int:
    """Thinks, asks, and hands on."""
    work = message.json()
    await _step(ctx, work, "think", len(work["text"]))
    checksum = await ctx.ask("third", work, timeout=ASK_S)
    return await _step(ctx, work, "hand on", checksum)


@agent("third", retries=1, backoff=0.05)
async def third(message: Message, ctx: Context) -> int:
    """Makes the checksum, some of them after a while."""
    work = message.json()
    if work.get("waits") == "timer":
        await ctx.sleep(work["sleep_s"])
    return await _step(ctx, work, "sum", google_crc32c.value(work["text"].encode()))


async def _step(ctx: Context, work: dict[str, Any], name: str, value: int) -> int:
    message = ctx.message
    entry = {
        "agent": ctx.agent,
        "partition": message.partition,
        "offset": message.offset,
        "step": name,
        "conversation": ctx.conversation,
        "sequence": work["turn"],
        "root": work["root"],
        "value": value,
        "worker": os.getpid(),
    }
    return await ctx.step(name, _effect, entry, key_as="key", retries=RETRIES, backoff=0.01)


async def _effect(entry: dict[str, Any], *, key: str) -> int:
    """What the step does: known by its key, and counted for ever."""
    global _ledger
    began = time.time()
    if _ledger is None:
        _ledger = Ledger(os.environ[LEDGER])
    await asyncio.sleep(google_crc32c.value(key.encode()) % TAKES_MS / 1_000)
    await _ledger.enter({**entry, "key": key, "began": began})
    return entry["value"]
