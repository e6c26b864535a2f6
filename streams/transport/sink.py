"""The batch path: a topic's records go to a sink in batches, past Faust's streams, with the same commit gate.

The topic joins the app's subscription, so its partitions are assigned, drained and committed with the app's others.
All calls are made on the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import faust
from confluent_kafka import Message
from faust.types import TP

__all__ = ["TP", "Sink", "attach", "sinks_of"]


class Sink(Protocol):
    """Takes the records of the topics that it is attached to.

    For every record it was given it calls `app.consumer.finish(tp, offset)` once, in any order, after everything
    that the record caused was sent; the commit waits for the delivery of all sends made before it.
    """

    def room(self, tp: TP) -> int:
        """How many records of *tp* it takes now; 0 pauses the partition until `app.consumer.wake()`."""
        ...

    def deliver(self, tp: TP, records: Sequence[Message]) -> None:
        """Take *records*, ascending by offset, at most `room(tp)`. Must not block, nor raise for a bad record."""
        ...

    def assigned(self, tps: set[TP]) -> None:
        """Partitions are this worker's from now on; records follow."""
        ...

    async def revoked(self, tps: set[TP]) -> None:
        """Partitions go to another worker: finish what runs and drop what waits, then return.

        Bounded by the settings' `drain_timeout_s`, after which the partitions go anyway. What finishes by then is
        committed; later calls of `finish` for them change nothing.
        """
        ...


_SINKS: WeakKeyDictionary[faust.App, dict[str, Sink]] = WeakKeyDictionary()


def attach(app: faust.App, topic_name: str, sink: Sink) -> None:
    """Route the records of the Kafka topic *topic_name* to *sink*; call it before the app starts.

    Raises:
        ValueError: the topic has a sink already.
    """
    sinks = _SINKS.setdefault(app, {})
    if topic_name in sinks:
        raise ValueError(f"topic {topic_name} has a sink already")
    sinks[topic_name] = sink


def sinks_of(app: faust.App) -> dict[str, Sink]:
    """The sinks of *app* by topic."""
    return _SINKS.get(app) or {}
