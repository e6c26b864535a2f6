"""Dedup: a message is dropped where another offset of its partition, with the same id, is finished already.

The window is a count of messages below the committed offset; what finished above it is always remembered, so a
window never ends above the committed offset. It is rebuilt from the inbox when the partition is assigned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import confluent_kafka

from llmagentos.streams.producer import MESSAGE_ID

__all__ = ["REDRIVE", "Dedup", "identity_in"]

#: The Kafka header of a message that a person had sent again from a dead letter: the place where it was before. It is
#: the message's identity then, so that it runs although its id was seen, and only once however often it is sent.
REDRIVE = "redrive"

#: Old ids leave when there are this many times the window, so that the look at what is committed is rare.
_SLACK = 1.25


class Dedup:
    """The ids that finished in one inbox partition.

    Args:
        window: ids that are remembered at least, where so many finished.
        committed: the offset that is committed: ids at or above it stay.
    """

    __slots__ = ("_committed", "_finished", "_limit", "_order", "_window")

    def __init__(self, window: int, committed: Callable[[], int]) -> None:
        self._window = window
        self._limit = int(window * _SLACK)
        self._committed = committed
        self._finished: dict[str, int] = {}  # id -> the offset that finished
        self._order: deque[tuple[str, int]] = deque()  # as they finished

    def __len__(self) -> int:
        return len(self._finished)

    def finished(self, identity: str, offset: int) -> None:
        """The message *identity* at *offset* is handled, with all its effects."""
        if self._finished.setdefault(identity, offset) == offset:
            self._order.append((identity, offset))
            if len(self._order) > self._limit:
                self._forget()

    def twin(self, identity: str, offset: int) -> bool:
        """Whether another offset than *offset* with this identity is finished."""
        known = self._finished.get(identity)
        return known is not None and known != offset

    def _forget(self) -> None:
        committed = self._committed()
        order = self._order
        while len(order) > self._window and order[0][1] < committed:
            identity, _ = order.popleft()
            del self._finished[identity]
        self._limit = max(int(self._window * _SLACK), int(len(order) * _SLACK))


def identity_in(headers: list[tuple[str, bytes | str | None]] | None) -> str | None:
    """The identity that a record's headers give: of a redrive, or the message's id; None where they give none."""
    identity: bytes | str | None = None
    for name, value in headers or ():
        if name == REDRIVE:
            identity = value
            break
        if name == MESSAGE_ID:
            identity = value
    return identity.decode(errors="replace") if isinstance(identity, bytes) else identity


def identity_of(record: confluent_kafka.Message, message_id: str) -> str:
    """As :func:`identity_in`, for a record whose message is decoded."""
    headers = record.headers()
    if headers is None or len(headers) < 2:  # the common case: no more than the id
        return message_id
    for name, value in headers:
        if name == REDRIVE and value is not None:
            return value if isinstance(value, str) else value.decode(errors="replace")
    return message_id
