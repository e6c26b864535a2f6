"""Room: how much a worker may have in flight, by count and by bytes, over all its inboxes, and fair to each partition.

A conversation with thousands of messages behind one another holds as much of it, for as long as they take. So that it
holds up no other partition, each partition has a little that no other one can take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["Holder", "Room", "Share"]

#: The part of a room that is kept for partitions that have taken less than their part of it, together: an eighth.
#: One partition alone can take the other seven.
RESERVED: Final = 8


class Holder(Protocol):
    """A partition that takes messages.

    Attributes:
        taken: how many it holds.
    """

    taken: int


class Room:
    """How much a worker may take before it must finish something.

    Args:
        messages, size: the bounds; bytes.
        freed: called when room returns after there was none.

    Attributes:
        holders: the partitions that share it.
    """

    __slots__ = ("_bound", "_counted_at", "_full", "_kept", "_size_bound", "freed", "holders", "messages", "size")

    def __init__(self, messages: int, size: int, freed: Callable[[], None]) -> None:
        self._bound = messages
        self._size_bound = size
        self._counted_at = -1  # for how much room left was counted what is kept
        self._kept = 0
        self.holders: set[Holder] = set()
        self.messages = messages
        self.size = size
        self.freed = freed
        self._full = False

    def left(self, holder: Holder | None = None) -> int:
        """How many more messages there is room for; of *holder*, less what is kept for other partitions."""
        if self.messages > 0 and self.size > 0:
            left = self.messages
            if holder is not None:
                left -= self._kept_from(holder)
            if left > 0:
                return left
        self._full = True
        return 0

    def _kept_from(self, holder: Holder) -> int:
        """What is kept for those that have taken less than their part."""
        kept = self._bound // RESERVED
        if self.messages >= 2 * kept:  # there is enough: who holds what need not be counted
            return kept
        part = kept // max(1, len(self.holders))
        if self._counted_at != self.messages:  # all partitions ask one after the other
            self._counted_at = self.messages
            self._kept = sum(part - other.taken for other in self.holders if other.taken < part)
        return self._kept - max(0, part - holder.taken)

    def take(self, size: int) -> None:
        """One message of *size* bytes was taken. May go below zero by one batch."""
        self.messages -= 1
        self.size -= size

    def give(self, size: int) -> None:
        """One message of *size* bytes is finished or given back."""
        self.messages += 1
        self.size += size
        if self._full and self.messages > 0 and self.size > 0:
            self._full = False
            self.freed()

    def move(self, messages: int, size: int) -> None:
        """So much goes elsewhere, or, below zero, comes from there."""
        self.messages += messages
        self.size += size

    def like(self, holders: set[Holder]) -> Room:
        """One with the same bounds, empty, for *holders* alone."""
        room = Room(self._bound, self._size_bound, self.freed)
        room.holders = holders
        return room


class Share:
    """One inbox's part of a room. An inbox that is paused steps aside, into as large a room of its own.

    What it holds is no other's loss then. It goes on taking: where all that it holds fails, only what comes later can
    show that the pause may end. So a worker holds at most as much as its room for each of its paused agents, and as
    much again for all others.
    """

    __slots__ = ("_common", "_holders", "_room", "messages", "size")

    def __init__(self, room: Room) -> None:
        self._common = room
        self._room = room
        self._holders: set[Holder] = set()
        self.messages = 0
        self.size = 0

    def left(self, holder: Holder | None = None) -> int:
        """How many more messages this inbox may take, into the partition *holder*."""
        return self._room.left(holder)

    def join(self, holder: Holder) -> None:
        """A partition of this inbox takes messages from now on."""
        self._holders.add(holder)
        self._common.holders.add(holder)

    def leave(self, holder: Holder) -> None:
        """It takes no more."""
        self._holders.discard(holder)
        self._common.holders.discard(holder)

    def take(self, size: int) -> None:
        """As :meth:`Room.take`."""
        self.messages += 1
        self.size += size
        self._room.take(size)

    def give(self, size: int) -> None:
        """As :meth:`Room.give`."""
        self.messages -= 1
        self.size -= size
        self._room.give(size)

    def freed(self) -> None:
        """There is room again for another reason than a message's end."""
        self._common.freed()

    def step_aside(self, aside: bool) -> None:
        """Leave the room to others, or come back to it, with all that is held."""
        self._room.move(self.messages, self.size)
        self._room = self._common.like(self._holders) if aside else self._common
        self._room.move(-self.messages, -self.size)
        self._common.freed()
