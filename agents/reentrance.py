"""Re-entrance: a question that comes of a message of its own conversation runs inside that one.

An agent that handles a message asks another, which asks it back in the same conversation. That question can't wait for
the message that waits for it; so it doesn't. Which ones those are, their chain says (:mod:`llmagentos.agents.chain`).
All others of the conversation keep their order: they wait for the message, and it ends behind what runs inside it.

What runs inside another is not suspended, and its offset is not released before it ends: after a crash both come from
the inbox or the journal again, and meet again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import dropwhile

from llmagentos.agents.work import Work
from llmagentos.streams.lanes import Lanes
from llmagentos.streams.unfinished import Conversation, Entry

__all__ = ["Reentrance", "finished_inside"]


def finished_inside(view: Mapping[str, Conversation]) -> list[Entry]:
    """What is completed, behind others of its conversation that are not: only what ran inside them can be."""
    return [
        entry
        for conversation in view.values()
        for entry in dropwhile(lambda entry: entry.state == "done", list(conversation))
        if entry.state == "done"
    ]


@dataclass(slots=True, eq=False)
class _Holder:
    """A message whose handler has asked.

    Attributes:
        inside: how many of what runs inside it are in lanes.
        over: its own run has ended.
        done: set when nothing is inside it any more.
    """

    work: Work
    inside: int = 0
    over: bool = False
    done: asyncio.Future[None] | None = None


class Reentrance:
    """The lanes of one agent in one worker, and what may run beside the message that holds one.

    Attributes:
        asking: lanes of conversations in which something has asked.
    """

    def __init__(self, agent: str, lanes: Lanes[Work]) -> None:
        self._agent = agent
        self._lanes = lanes
        self.asking: dict[bytes, list[_Holder]] = {}

    # -- what comes ---------------------------------------------------------------------------------------------

    def lane(self, key: bytes, work: Work) -> bytes:
        """The lane of one that is delivered, of a conversation in which something has asked."""
        holder = self._cause(key, work)
        return key if holder is None else self._inside(key, work, holder)

    def admits(self, work: Work, conversation: Conversation) -> bool:
        """Whether one that has its turn may run though the journal has others before it: it comes of one of them."""
        for hop in reversed(work.chain):
            if hop.agent != self._agent or hop.partition != work.tp.partition or hop.offset not in conversation.order:
                continue
            entry = work.assignment.entries[hop.offset]
            if entry.state in ("open", "waiting", "held") or (entry.state == "parked" and entry.wish):
                work.cause = hop.offset
                return True
        return False

    def asks(self, work: Work) -> None:
        """The handler of *work* asks: what it is asked because of that, and waits behind it already, need not wait."""
        key = work.record.key()
        if not isinstance(key, bytes):
            return
        holder = self._holder(work)
        if holder is None:
            holder = _Holder(work)
            self.asking.setdefault(key, []).append(holder)
        elif holder.work is work:
            return
        else:  # it was suspended, and what runs inside it is still at work
            holder.work, holder.over = work, False
        for behind in self._lanes.take(work.lane or key, lambda other: self._cause(key, other) is holder):
            if behind.lane:
                self._left(key, behind)
            self._lanes.put(self._inside(key, behind, holder), behind)

    # -- what ends ----------------------------------------------------------------------------------------------

    def busy(self, work: Work) -> bool:
        """Whether anything is inside *work*."""
        holder = self._holder(work)
        return holder is not None and holder.inside > 0

    async def emptied(self, work: Work) -> None:
        """Wait until nothing is inside *work*."""
        while (holder := self._holder(work)) is not None and holder.inside:
            if holder.done is None:
                holder.done = asyncio.get_running_loop().create_future()
            await asyncio.shield(holder.done)

    def ended(self, work: Work) -> None:
        """*work* is in no lane any more."""
        key = work.record.key()
        if not self.asking or not isinstance(key, bytes):
            return
        if (holder := self._holder(work)) is not None:
            holder.over = True
            self._forget(key, holder)
        if work.lane:
            self._left(key, work)

    # -- inside -------------------------------------------------------------------------------------------------

    def _cause(self, key: bytes, work: Work) -> _Holder | None:
        """The innermost of those that have asked, of which *work* comes."""
        for hop in reversed(work.chain):
            here = hop.agent == self._agent and hop.partition == work.tp.partition
            if here and (holder := self._find(key, work, hop.offset)) is not None:
                return holder
        return None

    def _inside(self, key: bytes, work: Work, holder: _Holder) -> bytes:
        work.cause = holder.work.offset
        work.lane = b"\x00in%d/%s" % (work.cause, key)
        holder.inside += 1
        return work.lane

    def _left(self, key: bytes, work: Work) -> None:
        holder = self._find(key, work, work.cause)
        assert holder is not None
        holder.inside -= 1
        if not holder.inside and holder.done is not None:
            holder.done.set_result(None)
            holder.done = None
        self._forget(key, holder)

    def _holder(self, work: Work) -> _Holder | None:
        key = work.record.key()
        return self._find(key, work, work.offset) if isinstance(key, bytes) else None

    def _find(self, key: bytes, work: Work, offset: int) -> _Holder | None:
        for holder in self.asking.get(key, ()):
            if holder.work.offset == offset and holder.work.assignment is work.assignment:
                return holder
        return None

    def _forget(self, key: bytes, holder: _Holder) -> None:
        if holder.over and not holder.inside:
            self.asking[key].remove(holder)
            if not self.asking[key]:
                del self.asking[key]
