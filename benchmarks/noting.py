"""The agent of the benchmarks `failover` and `rollout`: it works for a while, and notes that in a ledger.

The ledger is a file outside of Kafka. Workers append whole lines to it (O_APPEND), so that nothing is lost with a
worker that is killed, and what was done twice stands there twice. Times are of the monotonic clock, which all
processes of a machine share.
"""

from __future__ import annotations

import asyncio
import os
import time

from llmagentos.agents import Context, Message, agent

__all__ = ["LEDGER", "WORK_MS"]

LEDGER = "LLMAGENTOS_BENCH_LEDGER"
WORK_MS = "LLMAGENTOS_BENCH_WORK_MS"

_file = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT) if LEDGER in os.environ else -1
_work_s = float(os.environ.get(WORK_MS, "0")) / 1_000
_pid = os.getpid()


@agent("noting")
async def noting(message: Message, ctx: Context) -> None:
    """Works, then notes: partition, conversation, number, when it was sent, begun and done, and by whom."""
    begun = time.monotonic()
    await asyncio.sleep(_work_s)
    line = f"{message.partition} {message.conversation_id} {message.text} {begun:.6f} {time.monotonic():.6f} {_pid}\n"
    os.write(_file, line.encode())
