"""What one assigned partition has in this worker: its gate, and the records not yet handed to those who handle them.

librdkafka hands over clumps of one partition, so each has an inbox of its own: they are emptied in turns, and a
partition is paused when its own inbox is full, while the others go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from confluent_kafka import Message
from faust.types import TP

from llmagentos.streams.gate import CommitGate
from llmagentos.streams.transport.poller import Start

__all__ = ["HIGH", "LOW", "Inbox"]

#: Records at which a partition is paused, and at which it is fetched again. librdkafka throws away what it has
#: fetched of a paused partition, so the pause must be long against a fetch: 3,000 records are over 50 ms of work.
HIGH = 4_000
LOW = 1_000


class Inbox:
    """One partition of one assignment.

    Attributes:
        gate: decides what may be committed; the messages hold it too, so that what finishes after a revocation
            reaches this gate only, which nobody reads any more.
        committed: what was committed last.
        ready: whether records may be handed out: not before tables have recovered.
        start: where reading began.
        note: what its sink wants to travel with a commit of the given offset.
    """

    __slots__ = ("committed", "gate", "note", "paused", "ready", "records", "size", "start", "tp")

    def __init__(self, tp: TP, start: Start) -> None:
        self.tp = tp
        self.start = start
        self.gate = CommitGate(start.offset, start.finished)
        self.committed: tuple[int, str] | None = None if start.offset is None else (start.offset, "")
        self.note: Callable[[int], str] | None = None
        self.records: deque[Message] = deque()
        self.size = 0  # bytes of their values
        self.paused = True  # the poll thread pauses what it assigns
        self.ready = False

    def put(self, records: list[Message]) -> None:
        """Add *records*, ascending; those that an earlier owner finished are finished at once."""
        gate = self.gate
        offsets: list[Any] = [record.offset() for record in records]  # fetched records have one
        expected = gate.position
        if expected is not None and offsets[0] < expected:  # librdkafka went back, as after a leader's truncation
            records = [record for record, offset in zip(records, offsets, strict=True) if offset >= expected]
            offsets = offsets[len(offsets) - len(records) :]
            if not records:
                return
        gate.delivered(offsets)
        kept = [record for record in records if not self._skipped(record)] if gate.skipping else records
        self.records.extend(kept)
        self.size += sum(map(len, kept))

    def _skipped(self, record: Message) -> bool:
        offset = record.offset()
        assert offset is not None
        if self.gate.skip(offset):
            self.gate.finish(offset)
            return True
        return False

    def take(self, count: int) -> list[Message]:
        """The next *count* records, or as many as there are."""
        records = self.records
        if count >= len(records):
            taken = list(records)
            records.clear()
            self.size = 0
        else:
            popleft = records.popleft
            taken = [popleft() for _ in range(count)]
            self.size -= sum(map(len, taken))
        return taken

    def over(self, max_bytes: int) -> bool:
        """Whether to pause, with *max_bytes* as this partition's part of the worker's memory."""
        return len(self.records) >= HIGH or self.size >= max_bytes

    def under(self, max_bytes: int) -> bool:
        """Whether to fetch again."""
        return len(self.records) <= LOW and self.size <= max_bytes // 2

    def to_commit(self) -> tuple[int, str] | None:
        """Offset and metadata, where they differ from what is committed."""
        offset = self.gate.committable()
        if offset is None:
            return None
        now = (offset, self.gate.metadata(note=self.note(offset) if self.note is not None else self.start.note))
        return None if now == self.committed else now


def turns(inboxes: list[Inbox], start: int) -> Iterator[Inbox]:
    """Each inbox once, beginning with number *start*."""
    yield from inboxes[start:]
    yield from inboxes[:start]
