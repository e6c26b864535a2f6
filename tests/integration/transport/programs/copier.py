"""A worker of the rebalance tests: copies every record of a topic into another, telling where it came from.

One process is one member. With `sink` it takes the batch path, and finishes records out of order, though those of
one key in order. `seed` plants a bug that the tests must see.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import faust
import orjson
from confluent_kafka import Message
from faust.types import TP

from llmagentos.streams.gate import CommitGate
from llmagentos.streams.settings import Settings
from llmagentos.streams.transport import attach, configure
from llmagentos.streams.transport.consumer import Consumer
from llmagentos.streams.transport.sink import Start

GROUP, SOURCE, TARGET, MODE, SEED, WORK_MS = sys.argv[1:7]
ME = str(os.getpid())

if SEED == "gate":  # passes work that is in flight
    CommitGate.committable = lambda self: self._next  # type: ignore[method-assign,assignment]
elif SEED == "drain":  # gives partitions up at once

    async def _no_drain(self: Any, tps: set[TP]) -> None:
        self._unacked = {message for message in self._unacked if message.tp not in tps}

    Consumer._drain = _no_drain  # type: ignore[method-assign]
elif SEED == "forget":  # takes up again where the group's first commit stood
    from llmagentos.streams.transport.poller import Poller

    Poller._commit = lambda self, offsets: None  # type: ignore[method-assign]
elif SEED == "order":  # hands a batch out in reverse
    from llmagentos.streams.transport.inbox import Inbox

    _take = Inbox.take
    Inbox.take = lambda self, count: _take(self, count)[::-1]  # type: ignore[method-assign]

settings = Settings.load()
app = faust.App(GROUP, broker=f"llmagentos://{settings.brokers}", topic_disable_leader=True)
configure(app, settings)
target = app.topic(TARGET, key_type=bytes, value_type=bytes, value_serializer="raw")


def told(partition: int, offset: int, value: bytes) -> bytes:
    return orjson.dumps({"worker": ME, "partition": partition, "offset": offset, "seq": int(value)})


async def work() -> None:
    ms = float(WORK_MS)
    if ms:
        await asyncio.sleep(random.uniform(0, 2 * ms) / 1000)


if MODE == "stream":
    source = app.topic(SOURCE, key_type=bytes, value_type=bytes, value_serializer="raw")

    @app.agent(source)
    async def copy(stream: Any) -> None:
        async for event in stream.events():
            message = event.message
            await work()
            await target.send(
                key=event.key,
                value=told(message.partition, message.offset, event.value),
                partition=message.partition,
            )

else:

    class Lanes:
        """A sink with a queue for each key."""

        def __init__(self) -> None:
            self.queues: dict[bytes, asyncio.Queue[Message]] = defaultdict(asyncio.Queue)
            self.lanes: dict[bytes, asyncio.Task[None]] = {}
            self.running: dict[TP, int] = defaultdict(int)
            self.mine: set[TP] = set()

        def room(self, tp: TP) -> int:
            return max(0, 100 - self.running[tp])

        def deliver(self, tp: TP, records: Sequence[Message]) -> None:
            for record in records:
                key: Any = record.key()
                self.running[tp] += 1
                self.queues[key].put_nowait(record)
                if key not in self.lanes:
                    self.lanes[key] = asyncio.create_task(self.lane(key))

        async def lane(self, key: bytes) -> None:
            while True:
                record: Any = await self.queues[key].get()
                tp = TP(record.topic(), record.partition())
                if tp in self.mine:
                    await work()
                    app.producer.core.produce(  # type: ignore[attr-defined]
                        TARGET, told(tp.partition, record.offset(), record.value()), key, tp.partition
                    )
                    app.consumer.finish(tp, record.offset())  # type: ignore[attr-defined]
                self.running[tp] -= 1
                app.consumer.wake()  # type: ignore[attr-defined]

        async def assigned(self, starts: Mapping[TP, Start]) -> None:
            self.mine |= starts.keys()

        def note(self, tp: TP, committable: int) -> str:
            return f"{committable:x}"

        async def revoked(self, tps: set[TP]) -> None:
            self.mine -= tps  # what waits is dropped; what runs finishes
            while any(self.running[tp] for tp in tps):
                await asyncio.sleep(0.005)

    attach(app, SOURCE, Lanes())

if __name__ == "__main__":
    app.worker_init()
    faust.Worker(app, loglevel="INFO").execute_from_commandline()
