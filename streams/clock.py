"""The clock: what the time is, and how long to wait, for all that a message's handling counts in time.

Deadlines, retries' pauses and handlers' limits ask this one object, so that a test can put a clock in its place that
it moves. What is between the engine and Kafka (sessions, commits, drains) goes by real time always.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager

__all__ = ["Clock"]


class Clock:
    """The real one."""

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Pause for *seconds*."""
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[asyncio.Timeout]:
        """As :func:`asyncio.timeout`: what runs inside is cancelled after *seconds*, and TimeoutError raised."""
        return asyncio.timeout(seconds)
