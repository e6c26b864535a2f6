"""The batch path: a topic's records go to a sink in batches, past Faust's streams, with the same commit gate.

The topic joins the app's subscription, so its partitions are assigned, drained and committed with the app's others.
All calls are made on the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import faust
from confluent_kafka import Message
from faust.types import TP

from llmagentos.streams.transport.poller import Start

__all__ = ["TP", "Sink", "Start", "attach", "sinks_of"]


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

    async def assigned(self, starts: Mapping[TP, Start]) -> None:
        """Partitions are this worker's from now on; their records follow when this returns.

        Cancelled where they are revoked meanwhile.
        """
        ...

    def note(self, tp: TP, committable: int) -> str:
        """A text of under 100 characters that travels with the next commit of *tp*, to the offset *committable*.

        It comes back in the `Start` of the next assignment. Ask for `app.consumer.commit` if nothing else will.
        """
        ...

    async def revoked(self, tps: set[TP]) -> None:
        """Partitions go to another worker: finish what runs and drop what waits, then return.

        Bounded by the settings' `drain_timeout_s`, after which the partitions go anyway. What finishes by then is
        committed; later calls of `finish` for them change nothing.
        """
        ...


#: The attribute of an app that holds its sinks. Not a WeakKeyDictionary: a sink refers to its app, which would then
#: never be collected, nor its Kafka clients (a process can have 1,024 at most: each takes a pthread key).
_SINKS = "_llmagentos_sinks"


def attach(app: faust.App, topic_name: str, sink: Sink) -> None:
    """Route the records of the Kafka topic *topic_name* to *sink*; call it before the app starts.

    Raises:
        ValueError: the topic has a sink already.
    """
    sinks: dict[str, Sink] = vars(app).setdefault(_SINKS, {})
    if topic_name in sinks:
        raise ValueError(f"topic {topic_name} has a sink already")
    sinks[topic_name] = sink


def sinks_of(app: faust.App) -> dict[str, Sink]:
    """The sinks of *app* by topic."""
    return vars(app).get(_SINKS, {})
