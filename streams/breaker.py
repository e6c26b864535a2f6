"""A circuit breaker: where most handlers fail for the same reason, they wait, in place of failing one after the other.

A dependency that is down makes every conversation fail, and each would be parked and have to be redriven by hand. So
the failures of the last handlers are looked at together:

- *closed*: all run. Failures of several conversations for one reason, and most of what ended lately, open it.
- *open*: none runs for a pause, and what fails for its reasons is kept to be tried again.
- *half-open*: after the pause one message tries. Does it fail for such a reason, the pause is doubled; does it
  succeed, a few try, and when those succeed too it is closed.

A failure for another reason counts as ever, also while it is open: a poisonous message is parked. A reason that
several conversations meet meanwhile joins the breaker's, as an outage has more than one face.

Nothing here waits or reads a clock by itself: `agents.pausing` does.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["FEW", "FIRST_PAUSE_S", "MAX_PAUSE_S", "OPENS_AT", "WINDOW", "Breaker", "Reason", "reason_of"]

#: Outcomes that are looked at. So few that at most five of them are parked before it opens; and so many that failures
#: for one reason in a tenth of all messages open it in one of 7,000 windows only (binomial, 6 or more of 10).
WINDOW: Final = 10

#: Different conversations that must have failed for the reason: one can't open it, nor can two that are alike.
#: Envoy's outlier detection ejects a host at as many failures in a row (consecutive_5xx).
OPENS_AT: Final = 5

#: The share of the window that must have failed for the reason, to be exceeded. Resilience4j's and Hystrix' default.
SHARE: Final = 0.5

#: A process that crashed and is started anew is back after about this.
FIRST_PAUSE_S: Final = 1.0

#: Resilience4j's wait in the open state. Longer would cost more time after the dependency is back than trials cost it.
MAX_PAUSE_S: Final = 60.0

#: Messages that try at once when the first one has succeeded, and that must succeed: as many as would open it.
FEW: Final = OPENS_AT

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True, slots=True)
class Reason:
    """What failures have in common.

    Attributes:
        kind: name of the exception's class.
        where: `file.py:line` where it was raised; empty where that is not known, as of a handler that took too long.
    """

    kind: str
    where: str

    def __str__(self) -> str:
        return f"{self.kind} at {self.where}" if self.where else self.kind


def reason_of(error: BaseException) -> Reason:
    """The reason of *error*. One that was raised in another process names its place as `raised_at`."""
    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    where: str = getattr(error, "raised_at", "")
    if not where and (trace := error.__traceback__) is not None:
        while trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"  # noqa: PTH119 - 8x faster
    return Reason(name, where)


class Breaker:
    """The breaker of one agent in one worker.

    Every run of a handler begins with a *turn* from :meth:`admit` and ends with :meth:`succeeded`, :meth:`failed` or
    :meth:`abandoned`, one of them, with that turn.

    Args:
        clock: seconds, monotonic.
        changed: called after each change of `state`, or of `reasons`.

    Attributes:
        state: closed, open or half-open.
        reasons: what it is open for, the one that opened it first.
        pause_s: how long it pauses, or paused last.
    """

    def __init__(self, clock: Callable[[], float], changed: Callable[[], None] = lambda: None) -> None:
        self._clock = clock
        self._changed = changed
        self.state: State = "closed"
        self.reasons: list[Reason] = []
        self.pause_s = 0.0
        # Outcomes; None: a success. While it is not closed: failures for other reasons than those it is open for.
        self._window: deque[tuple[Reason, str] | None] = deque(maxlen=WINDOW)
        self._opening = 0  # counts openings; the turn of a trial is the number of its opening, others are 0
        self._opens_until = 0.0
        self._closed_at = float("-inf")
        self._trials = 0  # under way
        self._passed = 0
        self._last_trial_at = 0.0

    def admit(self) -> int | None:
        """A turn, if a handler may run now; None: ask again after :meth:`wait_s`, or when another one has ended."""
        if self.state == "closed":
            return 0
        if self.wait_s() != 0.0:
            return None
        if self.state == "open":
            self.state = "half-open"
            self._trials = self._passed = 0
            self._changed()
        self._trials += 1
        self._last_trial_at = self._clock()
        return self._opening

    def wait_s(self) -> float:
        """Seconds until :meth:`admit` may say yes, if nothing ends before."""
        if self.state == "closed":
            return 0.0
        if self.state == "open":
            return max(0.0, self._opens_until - self._clock())
        if self._trials < (FEW if self._passed else 1):
            return 0.0
        # Trials that hang must not keep it half-open for ever.
        return max(0.0, self._last_trial_at + MAX_PAUSE_S - self._clock())

    def succeeded(self, turn: int) -> None:
        """The handler of *turn* ended well."""
        if self.state == "closed":
            self._window.append(None)
        elif self._is_trial(turn):
            self._trials -= 1
            self._passed += 1
            if self._passed > FEW:
                self._close()

    def failed(self, turn: int, reason: Reason, conversation: str, *, final: bool) -> bool:
        """The handler of *turn* failed; *final*: after all its retries.

        Returns:
            Whether the message is to be kept and tried again from the start, in its next turn.
        """
        if self.state == "closed":
            if final:
                self._window.append((reason, conversation))
                met_by = self._met_by(reason)
                if len(set(met_by)) >= OPENS_AT and len(met_by) > SHARE * len(self._window):
                    self._open(reason)
                    return True
            return False
        if self._is_trial(turn):
            self._trials -= 1
            if reason in self.reasons:
                self._reopen()
                return True
        if not final:
            return False  # its next attempt waits for a turn as all do
        if reason not in self.reasons:
            self._window.append((reason, conversation))
            if len(set(self._met_by(reason))) < OPENS_AT:
                return False
            self.reasons.append(reason)
            if self.state == "half-open":
                self._reopen()
            else:
                self._changed()
        return True

    def abandoned(self, turn: int) -> None:
        """The handler of *turn* was stopped: it says nothing about the dependency."""
        if self._is_trial(turn):
            self._trials -= 1

    def _is_trial(self, turn: int) -> bool:
        return self.state == "half-open" and turn == self._opening

    def _met_by(self, reason: Reason) -> list[str]:
        """The conversations of the window's failures for *reason*."""
        return [outcome[1] for outcome in self._window if outcome is not None and outcome[0] == reason]

    def _open(self, reason: Reason) -> None:
        # One that opens again before it was closed for as long as it had paused was closed too early.
        again = self._clock() - self._closed_at < self.pause_s
        self.pause_s = min(2 * self.pause_s, MAX_PAUSE_S) if again else FIRST_PAUSE_S
        self.reasons = [reason]
        self._window.clear()
        self._begin_pause()

    def _reopen(self) -> None:
        self.pause_s = min(2 * self.pause_s, MAX_PAUSE_S)
        self._begin_pause()

    def _begin_pause(self) -> None:
        self.state = "open"
        self._opening += 1
        self._opens_until = self._clock() + self.pause_s
        self._changed()

    def _close(self) -> None:
        self.state = "closed"
        self._closed_at = self._clock()
        self._window.clear()
        self._changed()
