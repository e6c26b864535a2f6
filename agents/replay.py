"""Replay: what is open in an assignment's journal comes back to its lane, in order, when its turn has come.

A conversation that doesn't wait for a person any more is run from the journal: the parked message, or what a person
put in its place, and then those that are held. Their payloads are read in passes over the journal, some of each such
conversation at a time, so that a hundred thousand held messages need a few readings and little memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heapreplace
from typing import Any

from llmagentos.agents.assignment import Assignment
from llmagentos.agents.room import Share
from llmagentos.streams.ownership import places_of
from llmagentos.streams.unfinished import Entry

__all__ = ["Replay"]

#: Messages of one conversation that are brought at once, and of all: 2,000 of 1 kB are 2 MB.
CHUNK = 64
PASS = 2_000
#: While the worker has no room, it is looked for again after this.
NO_ROOM_S = 0.02


class Replay:
    """Brings the open messages of one assignment to their lanes.

    Args:
        put: gives one to its lane: (entry, the journal records of its payload and steps by place; what retention has
            taken is not there).
        broken: told of what ends the worker.
    """

    def __init__(
        self,
        assignment: Assignment,
        put: Callable[[Entry, Mapping[int, Mapping[str, Any]]], None],
        room: Share,
        broken: Callable[[BaseException], None],
    ) -> None:
        self._assignment = assignment
        self._put = put
        self._room = room
        self._broken = broken
        self._ready: deque[str] = deque()  # conversations to bring more of
        self._known: set[str] = set()  # the same, and those that are in their lanes
        self._in_lanes: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def consider(self, conversation_id: str) -> None:
        """Something changed in this conversation: bring it on, if it is not on its way and waits for nobody."""
        if conversation_id in self._known or self._stopped:
            return
        conversation = self._assignment.view.get(conversation_id)
        if conversation is None or conversation.waits or conversation.first.offset in self._assignment.journaled:
            return
        self._known.add(conversation_id)
        self._ready.append(conversation_id)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._bring())

    def ended(self, entry: Entry) -> None:
        """One that was put has had its turn."""
        left = self._in_lanes[entry.conversation_id] - 1
        if left:
            self._in_lanes[entry.conversation_id] = left
        else:
            del self._in_lanes[entry.conversation_id]
            self._known.discard(entry.conversation_id)
            self.consider(entry.conversation_id)

    def stop(self) -> None:
        """Bring nothing more, though what is in the lanes ends, and leaves others behind that could go on."""
        self._stopped = True
        self._ready.clear()
        if self._task is not None:
            self._task.cancel()

    async def _bring(self) -> None:
        try:
            while self._ready and self._assignment.open:
                if not (left := self._room.left()):
                    await asyncio.sleep(NO_ROOM_S)
                    continue
                entries = self._next(min(left, PASS))
                places = [places_of(entry) for entry in entries]
                found = await self._assignment.ownership.payloads(entries)
                if not self._assignment.open:
                    return
                for entry, before in zip(entries, places, strict=True):
                    if places_of(entry) == before:
                        self._put(entry, found)
                    else:  # it was copied to another place meanwhile, or one more answer came
                        self.ended(entry)
        except Exception as error:  # noqa: BLE001 - whatever it was, they must not wait for ever
            self._broken(error)

    def _next(self, most: int) -> list[Entry]:
        """The next entries to bring, at most *most*: of all that may come next those that lie first in the journal.

        They lie near each other then, whether the conversations were held in turns or one after the other, so that
        little is read in vain; and many conversations come on at a time.
        """
        looked_at: list[str] = []
        heap: list[tuple[int, str, int]] = []  # where the next entry of a conversation lies, and which that is
        for _ in range(min(len(self._ready), PASS)):
            conversation_id = self._ready.popleft()
            entry = self._entry(conversation_id, 0)
            if entry is not None:
                looked_at.append(conversation_id)
                heap.append((entry.payload_at, conversation_id, 0))
            else:
                self._known.discard(conversation_id)
        heapify(heap)
        entries: list[Entry] = []
        while heap and len(entries) < most:
            _, conversation_id, index = heap[0]
            entry = self._entry(conversation_id, index)
            assert entry is not None  # nothing else ran since it was looked at
            entries.append(entry)
            index += 1
            self._in_lanes[conversation_id] = index
            entry = self._entry(conversation_id, index)
            if entry is not None:
                heapreplace(heap, (entry.payload_at, conversation_id, index))
            else:
                heappop(heap)
        self._ready.extendleft(reversed([each for each in looked_at if each not in self._in_lanes]))
        return entries

    def _entry(self, conversation_id: str, index: int) -> Entry | None:
        """The entry of a conversation that may come behind *index* others of it, if any."""
        conversation = self._assignment.view.get(conversation_id)
        if conversation is None or index >= min(len(conversation), CHUNK) or conversation.waits:
            return None
        entry = conversation[index]
        if entry.offset in self._assignment.journaled or entry.state == "open":
            return None
        if index and entry.state in ("parked", "waiting", "unknown"):
            return None
        return entry
