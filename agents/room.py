"""Room: how much a worker may have in flight, by count and by bytes, over all its inboxes."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Room", "Share"]


class Room:
    """How much a worker may take before it must finish something.

    Args:
        messages, size: the bounds; bytes.
        freed: called when room returns after there was none.
    """

    __slots__ = ("_full", "freed", "messages", "size")

    def __init__(self, messages: int, size: int, freed: Callable[[], None]) -> None:
        self.messages = messages
        self.size = size
        self.freed = freed
        self._full = False

    def left(self) -> int:
        """How many more messages there is room for."""
        if self.messages > 0 and self.size > 0:
            return self.messages
        self._full = True
        return 0

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


class Share:
    """One inbox's part of a room. An inbox that is paused steps aside: what it holds is no other's loss then.

    So a worker holds at most as much as its room for each of its paused agents, and as much again for all others.
    """

    __slots__ = ("_aside", "_room", "messages", "size")

    def __init__(self, room: Room) -> None:
        self._room = room
        self._aside = False
        self.messages = 0
        self.size = 0

    def left(self) -> int:
        """How many more messages this inbox may take."""
        if self._aside:
            return 0 if self.messages else 1  # one that tries whether the pause may end
        return self._room.left()

    def take(self, size: int) -> None:
        """As :meth:`Room.take`."""
        self.messages += 1
        self.size += size
        if not self._aside:
            self._room.take(size)

    def give(self, size: int) -> None:
        """As :meth:`Room.give`."""
        self.messages -= 1
        self.size -= size
        if not self._aside:
            self._room.give(size)
        elif not self.messages:
            self._room.freed()

    def freed(self) -> None:
        """There is room again for another reason than a message's end."""
        self._room.freed()

    def step_aside(self, aside: bool) -> None:
        """Leave the room to others, or come back to it, with all that is held."""
        self._aside = aside
        sign = 1 if aside else -1
        self._room.messages += sign * self.messages
        self._room.size += sign * self.size
        self._room.freed()
