"""Merging the records of many partitions in time order, as a stream and in bounded memory.

A k-way merge by watermarks: of each source it is known from which time on its next record can be. A record
leaves when no source can still bring an earlier one. Time inside a source is taken as the running maximum of its
timestamps, so that the order inside a partition never changes, whatever clocks its producers had; equal times
leave in the order of the sources. The result depends on the records only, never on how they arrived in batches.
(Watermarks as in Akidau et al., "The Dataflow Model", VLDB 2015.)
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["Merge"]

T = TypeVar("T")

#: Before any timestamp that Kafka can hold (-1 is its "none").
_BEFORE_ALL = -2


class _Source(Generic[T]):
    __slots__ = ("at_end", "done", "index", "items", "size", "watermark")

    def __init__(self, index: int) -> None:
        self.index = index
        self.items: deque[tuple[int, float, int, T]] = deque()  # time, arrival, size, item
        self.size = 0
        self.watermark = _BEFORE_ALL
        self.at_end = False
        self.done = False


class Merge(Generic[T]):
    """The merge; feed it with :meth:`push`, :meth:`advance` and :meth:`finish`, take from :meth:`ready`.

    Args:
        lateness_s: how long a record waits for sources that have reached their end and live on (:meth:`reached`).
            A record that comes from them later than that leaves at once, out of time order.
    """

    def __init__(self, lateness_s: float = 0.0) -> None:
        self._lateness_s = lateness_s
        self._sources: dict[int, _Source[T]] = {}
        self._heads: list[tuple[int, int]] = []  # (time, source) of each source's first item
        self.held = 0

    def add(self, index: int) -> None:
        """A source begins; its *index* (unique) settles the order of equal times."""
        self._sources[index] = _Source(index)

    def push(self, index: int, timestamp: int, item: T, size: int = 0, arrival_s: float = 0.0) -> None:
        """The next record of a source; *size* in bytes counts for :meth:`size`."""
        source = self._sources[index]
        source.watermark = max(source.watermark, timestamp)
        source.items.append((source.watermark, arrival_s, size, item))
        source.size += size
        self.held += 1
        if len(source.items) == 1:
            heapq.heappush(self._heads, (source.watermark, index))

    def advance(self, index: int, timestamp: int) -> None:
        """A source was read up to *timestamp*, and nothing of it is to be shown."""
        source = self._sources[index]
        source.watermark = max(source.watermark, timestamp)

    def finish(self, index: int) -> None:
        """A source brings nothing more."""
        self._sources[index].done = True

    def reached(self, index: int, at_end: bool) -> None:
        """A source that lives on has been read to its end, or has more to read again."""
        self._sources[index].at_end = at_end

    def count(self, index: int) -> int:
        """Records held of a source."""
        return len(self._sources[index].items)

    def size(self, index: int) -> int:
        """Bytes held of a source."""
        return self._sources[index].size

    def ready(self, now_s: float = 0.0) -> Iterator[T]:
        """Everything that no source can precede any more, in order.

        Args:
            now_s: on the clock of `arrival_s`; what has waited longer than the lateness goes past silent sources.
        """
        silent = [source for source in self._sources.values() if not source.items and not source.done]
        behind = min(((s.watermark, s.index) for s in silent if not s.at_end), default=None)
        live = min(((s.watermark, s.index) for s in silent if s.at_end), default=None)
        while self._heads:
            head = self._heads[0]
            source = self._sources[head[1]]
            _, arrival_s, size, item = source.items[0]
            if behind is not None and head > behind:
                return
            if live is not None and head > live and arrival_s + self._lateness_s > now_s:
                return
            source.items.popleft()
            source.size -= size
            self.held -= 1
            if source.items:
                heapq.heapreplace(self._heads, (source.items[0][0], source.index))
            else:
                heapq.heappop(self._heads)
                if not source.done:
                    bound = (source.watermark, source.index)
                    if source.at_end:
                        live = bound if live is None else min(live, bound)
                    else:
                        behind = bound if behind is None else min(behind, bound)
            yield item
