"""What each part of a run costs: processor time of its processes, those that were killed included."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import psutil

__all__ = ["Meter"]


class Meter:
    """Adds up processor time by part; what a process used before it was first seen isn't counted."""

    def __init__(self) -> None:
        self._used: dict[tuple[str, int], tuple[float, float]] = {}  # at first sight, and at the last

    def look(self, part: str, pids: Iterable[int]) -> None:
        """Read the clocks of *pids*; of one that ends, what the last look saw counts."""
        for pid in pids:
            try:
                times = psutil.Process(pid).cpu_times()
            except psutil.NoSuchProcess:
                continue
            now = times.user + times.system
            first, _ = self._used.get((part, pid), (now, now))
            self._used[part, pid] = (first, now)

    def seconds(self) -> dict[str, float]:
        """Of processor time, by part."""
        found: dict[str, float] = defaultdict(float)
        for (part, _), (first, last) in self._used.items():
            found[part] += last - first
        return dict(found)
