"""The commit gate: which offset of one partition may be committed, while work on it finishes in any order.

Kafka keeps one number per partition and group, so "committed" must mean that everything below it is done. The
gate holds the offsets that were delivered and are not passed yet, in order, and a set of those among them that
have finished; the watermark stands at the first unfinished one. Offsets that were never delivered (transaction
markers, what compaction took) are simply not there, so they hold nothing back.

What finished above the watermark is written into the commit's metadata, run-length coded, so that the next owner
of the partition doesn't run it again: see :meth:`CommitGate.metadata` and :func:`decode_finished`.

Deliver, finish and commit cost O(1) amortised a message; the contiguous case is a pop from a deque.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

__all__ = ["METADATA_LIMIT", "CommitGate", "decode_finished", "decode_note"]

#: Kafka's default of offset.metadata.max.bytes; a longer text fails the whole commit.
METADATA_LIMIT = 4096

#: In front of the coded runs, so that other programs' metadata is told apart, and a later coding from this one.
_PREFIX = "f1:"
#: Between the runs and the note of who handles the partition.
_NOTE = "|"


class CommitGate:
    """The gate of one partition, for one assignment to this worker.

    Args:
        start: the first offset that may be delivered; None where only the broker knows (a new group).
        finished: inclusive (first, last) ranges at or above *start* that an earlier owner finished, from
            :func:`decode_finished`. They are not to be run again: see :meth:`skip`.
    """

    __slots__ = ("_done", "_next", "_pending", "_skips")

    def __init__(self, start: int | None = None, finished: Iterable[tuple[int, int]] = ()) -> None:
        self._pending: deque[int] = deque()  # delivered and not passed, ascending
        self._done: set[int] = set()  # finished, and not passed since something before it is unfinished
        self._next = start  # everything below was delivered, or will never be
        self._skips = deque((first, last) for first, last in finished if start is None or last >= start)

    def delivered(self, offsets: Sequence[int]) -> None:
        """Offsets that work begins on, ascending, above all that were delivered before; gaps are fine.

        Raises:
            ValueError: the first one was delivered before, or lies below the start. The gate is unchanged.
        """
        if self._next is not None and offsets[0] < self._next:
            raise ValueError(f"offset {offsets[0]} is delivered again: {self._next} comes next")
        self._pending.extend(offsets)
        self._next = offsets[-1] + 1

    def finish(self, offset: int) -> None:
        """The work on *offset* is done. Finishing twice, or what was passed or never delivered, changes nothing."""
        pending = self._pending
        if pending and offset == pending[0]:
            pending.popleft()
            done = self._done
            while done and pending and pending[0] in done:
                done.remove(pending.popleft())
        elif pending and pending[0] < offset <= pending[-1]:
            self._done.add(offset)

    def advance(self, position: int) -> None:
        """Nothing below *position* will be delivered any more: it covers markers after the last message."""
        if self._next is None or position > self._next:
            self._next = position

    def skip(self, offset: int) -> bool:
        """Whether an earlier owner finished *offset*. Ask once for each offset, ascending, before delivering."""
        skips = self._skips
        while skips and skips[0][1] < offset:
            skips.popleft()
        return bool(skips) and skips[0][0] <= offset

    @property
    def skipping(self) -> bool:
        """Whether :meth:`skip` can still be true."""
        return bool(self._skips)

    def committable(self) -> int | None:
        """The offset to commit: that of the first unfinished message, or of what comes next. None: unknown yet."""
        return self._pending[0] if self._pending else self._next

    @property
    def position(self) -> int | None:
        """The lowest offset that :meth:`delivered` takes; None: any."""
        return self._next

    @property
    def unfinished(self) -> int:
        """Messages that were delivered and have not finished."""
        return len(self._pending) - len(self._done)

    def metadata(self, limit: int = METADATA_LIMIT, note: str = "") -> str:
        """What finished above :meth:`committable`, for the commit's metadata; empty where nothing did.

        Runs that don't fit in *limit* characters are left out, the farthest first: they would run again.

        Args:
            note: a short text that goes with it; :func:`decode_note` has it back.
        """
        room = limit - len(_NOTE) - len(note) if note else limit
        runs = self._coded(room) if self._done or self._skips else ""
        return f"{runs or _PREFIX}{_NOTE}{note}" if note else runs

    def _coded(self, limit: int) -> str:
        parts: list[str] = []
        size = len(_PREFIX) - 1  # the first part has no comma in front
        at = self._pending[0] if self._pending else self._next or 0
        for first, last in self._runs():
            part = f"{first - at:x}+{last - first:x}"
            size += len(part) + 1
            if size > limit:
                break
            parts.append(part)
            at = last
        return _PREFIX + ",".join(parts) if parts else ""

    def _runs(self) -> Iterable[tuple[int, int]]:
        """Inclusive ranges of finished offsets; a range may span offsets that were never delivered."""
        done, first, last = self._done, -1, -1
        left = len(done)
        if left:
            for offset in self._pending:
                if offset in done:
                    first = offset if first < 0 else first
                    last = offset
                    left -= 1
                    if not left:
                        break
                elif first >= 0:
                    yield first, last
                    first = -1
        if first >= 0:
            yield first, last
        # What an earlier owner finished and this one hasn't come to yet stays finished.
        for first, last in self._skips:
            if self._next is None or last >= self._next:
                yield max(first, self._next or 0), last


def decode_note(metadata: str | None) -> str:
    """The note that :meth:`CommitGate.metadata` was given; empty where there is none."""
    return metadata.partition(_NOTE)[2] if metadata and metadata.startswith(_PREFIX) else ""


def decode_finished(committed: int, metadata: str | None) -> list[tuple[int, int]]:
    """The inclusive ranges that :meth:`CommitGate.metadata` wrote beside the offset *committed*.

    Metadata of others, or damaged, is as good as none: the messages run again.
    """
    if not metadata or not metadata.startswith(_PREFIX):
        return []
    ranges: list[tuple[int, int]] = []
    at = committed
    try:
        runs = metadata[len(_PREFIX) :].partition(_NOTE)[0]
        for part in runs.split(",") if runs else ():
            gap, _, run = part.partition("+")
            first = at + int(gap, 16)
            last = first + int(run, 16)
            if first < at or last < first:
                return []
            ranges.append((first, last))
            at = last
    except ValueError:
        return []
    return ranges
