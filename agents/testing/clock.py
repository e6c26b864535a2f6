"""A clock that a test moves."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from llmagentos.streams.clock import Clock

__all__ = ["MovableClock"]


class MovableClock(Clock):
    """Goes as the real one does, and ahead when the test says so. Used from one event loop.

    What waits for it (a retry's pause, a handler's limit, a question's) is over at once where the clock is moved past
    its time.
    """

    def __init__(self) -> None:
        self._ahead_s = 0.0
        self._limits: dict[asyncio.Timeout, float] = {}  # to the time at which each is over
        self._pauses: set[asyncio.Timeout] = set()
        self._begun: asyncio.Future[None] | None = None  # done when one more waits

    def time(self) -> float:
        """Seconds since the epoch, as the agents see them."""
        return time.time() + self._ahead_s

    async def move(self, seconds: float) -> None:
        """Go *seconds* ahead; all that waits for less is over."""
        if not 0 <= seconds < math.inf:
            raise ValueError(f"a clock goes ahead only, and not by {seconds:g} s")
        self._ahead_s += seconds
        loop = asyncio.get_running_loop()
        for limit, due in self._limits.items():
            if not limit.expired():
                limit.reschedule(loop.time() + max(0.0, due - self.time()))
        await asyncio.sleep(0)

    async def skip(self, *, timeout: float = 30.0) -> float:
        """Move to the end of the pause (before a retry, mostly) that ends first; where there is none, wait for one.

        Args:
            timeout: real seconds within which there must be a pause; else the test fails.

        Returns:
            How many seconds the clock was moved.
        """
        await self._until(lambda: bool(self._pauses), "no pause", timeout)
        seconds = max(0.0, min(self._limits[pause] for pause in self._pauses) - self.time())
        await self.move(seconds)
        return seconds

    async def waited_for(self, count: int = 1, *, timeout: float = 30.0) -> None:
        """Return when *count* limits and pauses wait for the clock, for example that of a handler which runs.

        Args:
            timeout: real seconds within which it must come to that; else the test fails.
        """
        await self._until(lambda: len(self._limits) >= count, f"fewer than {count} waits", timeout)

    async def _until(self, come: Callable[[], bool], missing: str, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                while not come():
                    self._begun = self._begun or asyncio.get_running_loop().create_future()
                    await asyncio.shield(self._begun)
        except TimeoutError:
            pytest.fail(f"{missing} for the clock within {timeout:g} s; {len(self._limits)} limits and pauses wait")

    def _tell(self) -> None:
        if self._begun is not None:
            self._begun.set_result(None)
            self._begun = None

    async def sleep(self, seconds: float) -> None:
        """Pause for *seconds* of this clock."""
        with suppress(TimeoutError):
            async with self.timeout(seconds) as limit:
                self._pauses.add(limit)
                self._tell()
                try:
                    await asyncio.Event().wait()  # which nobody sets
                finally:
                    self._pauses.discard(limit)

    @asynccontextmanager
    async def timeout(self, seconds: float) -> AsyncGenerator[asyncio.Timeout]:
        """As :func:`asyncio.timeout`, by this clock."""
        async with asyncio.timeout(seconds) as limit:
            self._limits[limit] = self.time() + seconds
            self._tell()
            try:
                yield limit
            finally:
                del self._limits[limit]
