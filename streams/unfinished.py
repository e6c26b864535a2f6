"""Messages that are not finished: what the view of a journal has of each, by conversation.

A hundred thousand of them may be suspended in one worker, so each is kept small.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from struct import pack
from typing import Any, Literal

from llmagentos.streams.journal_record import Wait

__all__ = ["Conversation", "Conversations", "Entry", "State"]

State = Literal["open", "parked", "held", "waiting", "done", "unknown"]


@dataclass(slots=True, eq=False)
class Entry:
    """One message that is not finished, though its offset may be released.

    Attributes:
        offset: of the message in the inbox partition.
        state: open: its handler recorded steps, and it is still in the inbox; parked, held; waiting: suspended; done:
            completed, and its outputs perhaps not sent; unknown: a newer release wrote something of it.
        at: where in the journal its payload is; of one that is done, its outputs; -1 where it has none.
        park: where in the journal it was parked; -1 where it is not.
        wish: what a person wants of a parked one; empty: nothing yet.
        wish_at: where in the journal that was said.
        edited: the wish brings a message to run in place of the parked one.
        since: when its payload was written; milliseconds since the epoch.
        low: the lowest place in the journal that it needs; -1: none. The view keeps it.
        waits: what it is suspended for; without what has come.
        waits_at: where the newest of that was said, if not with the payload.
        ready: something that it was suspended for has come.
        early: answers and decisions that came since it was suspended last: a run that began before it had read them
            may be suspended for them yet.
    """

    offset: int
    conversation_id: str
    message_id: str
    state: State
    at: int
    park: int = -1
    wish: Literal["", "redrive", "discard"] = ""
    wish_at: int = -1
    edited: bool = False
    since: int = 0
    low: int = -1
    waits: tuple[Wait, ...] = ()
    waits_at: int = -1
    ready: bool = False
    early: tuple[Mapping[str, Any], ...] = ()
    _steps: bytes = field(default=b"", init=False, repr=False)  # as machine words: a quarter of tuples' size

    @property
    def steps(self) -> list[tuple[int, int]]:
        """Where in the journal its steps were written first, and where they are now, in their order."""
        places = memoryview(self._steps).cast("q")
        return list(zip(places[::2], places[1::2], strict=True))

    def add_step(self, at: int) -> None:
        """One more step was written."""
        self._steps += pack("qq", at, at)

    def move_step(self, first: int, at: int) -> None:
        """A step is at *at* now; what is copied of one that is not known puts it in its place."""
        steps = dict(self.steps) | {first: at}
        self._steps = b"".join(pack("qq", *each) for each in sorted(steps.items()))

    def drop_steps(self) -> None:
        """They are needed no more."""
        self._steps = b""

    def lowest(self) -> int:
        """What `low` is to be."""
        places = [at for at in (self.at, self.wish_at, self.waits_at) if at >= 0]
        return min([*places, *memoryview(self._steps).cast("q")[1::2]], default=-1)

    @property
    def payload_at(self) -> int:
        """Where in the journal the message is that is to be run."""
        return self.wish_at if self.edited else self.at


class Conversation:
    """What is open of one conversation, in the order of the inbox, as of now.

    Attributes:
        order: the offsets of its messages, ascending.
    """

    __slots__ = ("_entries", "order")

    def __init__(self, entries: Mapping[int, Entry], order: Sequence[int]) -> None:
        self._entries = entries
        self.order = order

    @property
    def first(self) -> Entry:
        """The entry whose turn it is."""
        return self._entries[self.order[0]]

    def __iter__(self) -> Iterator[Entry]:
        return map(self._entries.__getitem__, self.order)

    def __getitem__(self, index: int) -> Entry:
        return self._entries[self.order[index]]

    @property
    def waits(self) -> bool:
        """Whether its first message can't go on: parked, and nobody has said what is to be done, or suspended."""
        first = self.first
        if first.state == "parked":
            return not first.wish
        return (first.state == "waiting" and not first.ready) or first.state == "unknown"

    def __len__(self) -> int:
        return len(self.order)


class Conversations(Mapping[str, Conversation]):
    """The conversations with something open, by id.

    A hundred thousand may be suspended, most with one message: of such a one only the offset is kept, and what is
    given out is made when it is asked for. An object and a list for each were 140 bytes more.

    Attributes:
        entries: all that is in them, by the offset in the inbox.
    """

    __slots__ = ("_orders", "entries")

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self._orders: dict[str, int | list[int]] = {}

    def __getitem__(self, conversation_id: str) -> Conversation:
        order = self._orders[conversation_id]
        return Conversation(self.entries, (order,) if isinstance(order, int) else order)

    def get(self, conversation_id: str, default: Any = None) -> Any:
        """As of a dictionary; asked once a message, so without the exception."""
        return self[conversation_id] if conversation_id in self._orders else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._orders)

    def __len__(self) -> int:
        return len(self._orders)

    def add(self, entry: Entry) -> None:
        """Put in a new entry."""
        self.entries[entry.offset] = entry
        order = self._orders.setdefault(entry.conversation_id, entry.offset)
        if isinstance(order, list):
            insort(order, entry.offset)
        elif order != entry.offset:
            self._orders[entry.conversation_id] = sorted((order, entry.offset))

    def remove(self, entry: Entry) -> None:
        """Take an entry out."""
        del self.entries[entry.offset]
        order = self._orders[entry.conversation_id]
        if isinstance(order, list) and len(order) > 1:
            order.remove(entry.offset)  # it is the first, or nearly
        else:
            del self._orders[entry.conversation_id]
