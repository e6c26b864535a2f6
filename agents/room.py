"""Room: how much a worker may have in flight, by count and by bytes, over all its inboxes."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Room"]


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
