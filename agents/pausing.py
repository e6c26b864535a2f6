"""Pausing an agent whose handlers fail for one reason: the circuit breaker with its clock, its waiters and its voice.

A message waits here before its handler runs, in its lane, so that those behind it in its conversation wait too and
no order is lost. See :mod:`llmagentos.streams.breaker` for when that is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakSet

from llmagentos.streams.breaker import Breaker, reason_of

__all__ = ["Pausing", "Told"]

log = logging.getLogger(__name__)


_Waiter = tuple[Any, asyncio.Future[int | None]]


class Told(Protocol):
    """Takes an event: its kind, and what is to be said of it."""

    def __call__(self, kind: str, /, **detail: str) -> None: ...


class Pausing:
    """The pauses of one agent in one worker. Used from one event loop.

    Args:
        agent: its name.
        told: takes the events `breaker-open` and `breaker-closed`.
        changed: called when it begins to pause (True), and when all may run again (False).
        lent: called when a message that failed begins (True) and ends (False) to wait: meanwhile its place among
            those that may run at once is another's.
    """

    def __init__(
        self, agent: str, *, told: Told, changed: Callable[[bool], None], lent: Callable[[bool], None]
    ) -> None:
        self._agent = agent
        self._told = told
        self._paused = changed
        self._lent = lent
        self._breaker = Breaker(time.monotonic, self._changed)
        self._said = "closed"
        self._since = 0.0
        self._kept: set[str] = set()  # conversations whose message would have been parked
        # Those that failed for the reason of the pause come behind the others: what never was tried tells more.
        self._waiters: deque[_Waiter] = deque()
        self._failed: deque[_Waiter] = deque()
        self._kept_in: WeakSet[asyncio.Task[Any]] = WeakSet()  # tasks whose message was kept a moment ago
        self._timer: asyncio.TimerHandle | None = None

    @property
    def reason(self) -> str:
        """Why the agent is paused; empty where it isn't."""
        breaker = self._breaker
        return "" if breaker.state == "closed" else ", ".join(map(str, breaker.reasons))

    @property
    def waiting(self) -> int:
        """How many messages wait for their turn."""
        return len(self._waiters) + len(self._failed)

    def admit(self) -> int | None:
        """A turn for a handler that may run at once; None: it must wait for :meth:`turn`."""
        return self._breaker.admit() if not self._waiters and not self._failed else None

    async def turn(self, work: object) -> int | None:
        """Wait until the handler of *work* may run; None: it may not, see :meth:`release`."""
        granted: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        entry = (work, granted)
        task = asyncio.current_task()
        assert task is not None
        failed = task in self._kept_in
        waiters = self._failed if failed else self._waiters
        self._kept_in.discard(task)
        waiters.append(entry)
        if failed:
            # Where few may run at once, those that failed would fill all places, and nothing could show that the pause
            # may end. When it has, so many more run for a while as there were tries.
            self._lent(True)
        self._wake()
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and (turn := granted.result()) is not None:
                self.abandoned(turn)
            elif entry in waiters:
                waiters.remove(entry)
            raise
        finally:
            if failed:
                self._lent(False)

    def release(self, unwanted: Callable[[Any], bool]) -> None:
        """Send all waiting work that is *unwanted* away without a turn."""
        for waiters in (self._waiters, self._failed):
            entries = list(waiters)
            waiters.clear()
            for work, granted in entries:
                if not unwanted(work):
                    waiters.append((work, granted))
                elif not granted.done():
                    granted.set_result(None)

    def succeeded(self, turn: int) -> None:
        """The handler of *turn* ended well."""
        self._breaker.succeeded(turn)
        if self.waiting:
            self._wake()

    def failed(self, turn: int, error: BaseException, conversation: str, *, final: bool) -> bool:
        """The handler of *turn* failed; *final*: after all its retries.

        Returns:
            Whether its message is to wait for another turn, in place of what would be done with it otherwise; then
            the same task calls :meth:`turn` next.
        """
        kept = self._breaker.failed(turn, reason_of(error), conversation, final=final)
        if kept and (task := asyncio.current_task()) is not None:
            self._kept_in.add(task)
        if kept and final:
            self._kept.add(conversation)
        if self.waiting:
            self._wake()
        return kept

    def abandoned(self, turn: int) -> None:
        """The handler of *turn* was stopped, or failed by no fault of what it depends on."""
        self._breaker.abandoned(turn)
        if self.waiting:
            self._wake()

    def stop(self) -> None:
        """Wait for nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        """Give turns to those who wait, as far as there are any; look again when the pause is over."""
        self.stop()
        while self.waiting and (turn := self._breaker.admit()) is not None:
            _, granted = (self._waiters or self._failed).popleft()
            if granted.done():  # cancelled
                self._breaker.abandoned(turn)
            else:
                granted.set_result(turn)
        if self.waiting:
            self._timer = asyncio.get_running_loop().call_later(self._breaker.wait_s() + 0.001, self._wake)

    def _changed(self) -> None:
        breaker = self._breaker
        if breaker.state == "open":
            if self._said == "closed":
                self._said, self._since = "open", time.monotonic()
                self._paused(True)
                self._told("breaker-open", reason=self.reason)
                log.error(
                    "agent %s is paused: most of its handlers fail by %s\n"
                    "kept: its messages, which wait in order; one is tried again in %.0f s, and all when it succeeds\n"
                    "fix: see that what the agent depends on works again; nothing has to be redriven but the few"
                    " conversations that were parked before (`llmagentos dead list`)",
                    self._agent, self.reason, breaker.pause_s,
                )  # fmt: skip
            else:
                log.warning(
                    "agent %s still fails by %s; tried again in %.0f s", self._agent, self.reason, breaker.pause_s
                )
        elif breaker.state == "closed":
            paused_s = time.monotonic() - self._since
            self._said = "closed"
            log.warning(
                "agent %s goes on after %.1f s: it failed by %s; %d conversations failed meanwhile and were not parked",
                self._agent, paused_s, ", ".join(map(str, breaker.reasons)), len(self._kept),
            )  # fmt: skip
            self._told(
                "breaker-closed",
                reason=", ".join(map(str, breaker.reasons)),
                paused_s=f"{paused_s:.1f}",
                kept=str(len(self._kept)),
            )
            self._kept.clear()
            self._paused(False)
