"""The agents of a chaos run, deployed as users deploy theirs: `first` tells `second`, which tells `third`.

Each adds something to the work, so that the ledger shows whether all three had it; `second` waits a little, as for a
model's answer, so that some messages are always in the middle of it; `third` enters the result in the ledger, with its
message's id as the idempotency key. A message that is poison for one of them fails there until the
file that `LLMAGENTOS_CHAOS_MENDED` names exists: what it depends on was mended.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import google_crc32c

from llmagentos.agents import Context, Message, agent
from llmagentos.cli.chaos.ledger import Ledger

__all__ = ["LEDGER", "MENDED", "first", "second", "third"]

#: Names the ledger's socket; set by the chaos run for its workers.
LEDGER = "LLMAGENTOS_CHAOS_LEDGER"
#: Names the file whose existence ends the poison.
MENDED = "LLMAGENTOS_CHAOS_MENDED"

#: The longest that `second` waits, less 1; a small model's answer takes longer, but the run shall end.
THINKS_MS = 50

_ledger: Ledger | None = None


class Poisoned(Exception):
    """What the handling of this message depends on is out of order."""


#: Each poisonous message is bad in its own way. Were all alike, they would look like an outage, and the circuit breaker
#: would have them wait in place of becoming dead letters.
KINDS = tuple(type(f"Poisoned{number}", (Poisoned,), {}) for number in range(100))


def _check(work: dict[str, Any], name: str) -> None:
    if work["poison"] == name and not Path(os.environ[MENDED]).exists():
        kind = KINDS[google_crc32c.value(work["text"].encode()) % len(KINDS)]
        raise kind(f"turn {work['turn']} can't be handled by {name}")


@agent("first", retries=1, backoff=0.05)
async def first(message: Message, ctx: Context) -> None:
    """Counts the words."""
    work = message.json()
    _check(work, "first")
    await ctx.tell("second", {**work, "root": message.message_id, "words": len(work["text"].split())})


@agent("second", retries=1, backoff=0.05)
async def second(message: Message, ctx: Context) -> None:
    """Adds the checksum, after some thought."""
    work = message.json()
    _check(work, "second")
    checksum = google_crc32c.value(work["text"].encode())
    await asyncio.sleep(checksum % THINKS_MS / 1_000)
    await ctx.tell("third", {**work, "checksum": checksum})


@agent("third", retries=1, backoff=0.05)
async def third(message: Message, ctx: Context) -> None:
    """Enters the result in the ledger."""
    global _ledger
    work = message.json()
    _check(work, "third")
    if _ledger is None:
        _ledger = Ledger(os.environ[LEDGER])
    await _ledger.enter(
        {
            "key": message.message_id,
            "agent": "third",
            "conversation": ctx.conversation,
            "sequence": work["turn"],
            "root": work["root"],
            "words": work["words"],
            "checksum": work["checksum"],
            "worker": os.getpid(),
            "partition": message.partition,
            "offset": message.offset,
        }
    )
