"""The work on one message in one worker: what its way from lane to commit gate carries along."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import confluent_kafka
from faust.types import TP

from llmagentos.agents.assignment import Assignment
from llmagentos.agents.chain import Chain, chain_in
from llmagentos.agents.memory import State
from llmagentos.agents.steps import Steps
from llmagentos.streams.message import Message
from llmagentos.streams.ownership import restored
from llmagentos.streams.unfinished import Entry

if TYPE_CHECKING:
    from llmagentos.agents.context import Context

__all__ = ["Ending", "Work"]


@dataclass(slots=True, eq=False)
class Ending:
    """Why a message is to end before its handler has.

    Attributes:
        cause: cancelled, or expired.
        error: the same for people.
        reruns: its handler had begun elsewhere or before, and is run again to clean up.
        delivered: the handler was interrupted: what it does now is its cleanup.
        timer: ends its grace.
    """

    cause: str
    error: str
    reruns: bool = False
    delivered: bool = False
    timer: asyncio.Task[None] | None = None

    def over(self) -> None:
        """Its handler has ended."""
        if self.timer is not None and self.timer is not asyncio.current_task():
            self.timer.cancel()


@dataclass(slots=True, eq=False)
class Work:
    """One message that is in a lane.

    Attributes:
        tp, assignment: where it is from.
        size: of its record, bytes.
        message: where it was decoded to find its lane.
        steps: of its handler, where it has some.
        asked: its handler asked, and the position in the answers waits for it.
        entry: of one that comes from the journal.
        outputs: of one that was completed already, as the journal has them.
        recorded: the journal records of its steps.
        state: what its agent remembers of the conversation, where it does.
        cause: the offset of the message that it runs inside; -1: it runs in its own turn.
        lane: where that is not its conversation's.
        missing: where in the journal others of them were.
        ctx: of the run of its handler that goes on now.
        ending: why it is to end before its handler does.
        limit: of the time that its handler may take.
        left: it is its next owner's, or was ended without its handler.
    """

    record: confluent_kafka.Message
    tp: TP
    assignment: Assignment
    size: int
    message: Message | None = None
    steps: Steps | None = None
    asked: bool = False
    entry: Entry | None = None
    outputs: Sequence[Mapping[str, Any]] = ()
    recorded: Sequence[Mapping[str, Any]] = ()
    state: State | None = None
    cause: int = -1
    lane: bytes = b""
    missing: Sequence[int] = ()
    ctx: Context | None = None
    ending: Ending | None = None
    limit: asyncio.Timeout | None = None
    left: bool = False

    @property
    def offset(self) -> int:
        return self.record.offset() or 0

    @property
    def epoch(self) -> int:
        """Of the hold on its inbox partition: higher than that of every earlier owner."""
        return self.assignment.ownership.epoch

    @property
    def chain(self) -> Chain:
        """Who asked because of whom, so that it came."""
        headers: Any = self.record.headers()
        return chain_in(headers)

    @property
    def over(self) -> bool:
        """Whether this run of its handler is over, so that nothing new begins in it."""
        return self.left or (self.limit is not None and self.limit.expired())

    @property
    def conversation_id(self) -> str:
        """As :meth:`conversation`, as far as it is known before the record is decoded."""
        key = self.record.key() if self.entry is None else self.entry.conversation_id
        if self.ctx is not None:
            return self.ctx.conversation
        return key.decode(errors="replace") if isinstance(key, bytes) else key or ""

    def conversation(self, message: Message) -> str:
        """The conversation as the journal calls it."""
        return message.conversation_id if self.entry is None else self.entry.conversation_id

    def ran(self, entry: Entry, found: Mapping[int, Mapping[str, Any]]) -> None:
        """Its handler ran before: take its steps from the journal records *found*."""
        places = [place for _, place in entry.steps or ()]
        self.recorded = [found[place] for place in places if place in found]
        self.missing = [place for place in places if place not in found]

    @classmethod
    def restored(cls, assignment: Assignment, entry: Entry, record: Mapping[str, Any] | None) -> Work:
        """That of a message in the journal.

        Args:
            record: as the journal keeps it; None: it was too large for that, so that it is still to be had.
        """
        kept = record or {"key": entry.conversation_id.encode(), "value": None, "headers": [], "timestamp": -1}
        message = restored(kept, assignment.tp.topic, assignment.tp.partition, entry.offset)
        return cls(message, assignment.tp, assignment, len(message), entry=entry)
