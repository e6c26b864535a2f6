"""transport: decode Avro, swap two fields, encode, send: Faust on our transport against its peers.

Every runtime is one process that reads the same 8 partitions of 163-byte records, does the same with each (the
function `change`), and writes to a topic of its own, with acks=all, lz4, a linger of 5 ms and every delivery checked.
The clock runs from the first record handled until the last one is acknowledged. A separate reader then counts each
output topic and checks the swap. Rounds are interleaved, and their order turns. Stock Faust and FastStream are slow,
so they handle fewer records; their rates are steady.

What a profile of ours says (200k records, py-spy, one core): see docs/explanation/transport.md.

    make bench NAME=transport ARGS="--rounds 3 --messages 200000"
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from fastavro import parse_schema, schemaless_reader, schemaless_writer

MESSAGES = 200_000
ROUNDS = 3
PARTITIONS = 8
LINGER_MS = 5

#: Records for those that would take minutes for all: seconds at 1k to 3k/s.
SLOW = {"faust": 20_000, "faststream": 5_000, "faststream_batches": 20_000}

SCHEMA = parse_schema(
    {
        "type": "record",
        "name": "Event",
        "fields": [
            {"name": "number", "type": "long"},
            {"name": "first", "type": "string"},
            {"name": "second", "type": "string"},
            {"name": "score", "type": "double"},
            {"name": "text", "type": "string"},
        ],
    }
)
HEADER = b"\x00\x00\x00\x00\x01"


def encode(record: dict[str, Any]) -> bytes:
    out = BytesIO()
    out.write(HEADER)
    schemaless_writer(out, SCHEMA, record)
    return out.getvalue()


def decode(raw: bytes) -> dict[str, Any]:
    stream = BytesIO(raw)
    stream.seek(5)
    return schemaless_reader(stream, SCHEMA, None)  # type: ignore[return-value]


def change(raw: bytes) -> bytes:
    """The work: the same code for every runtime."""
    record = decode(raw)
    record["first"], record["second"] = record["second"], record["first"]
    return encode(record)


def records(count: int) -> list[tuple[bytes, bytes]]:
    """Keys and values; each value is 163 bytes."""
    made: list[tuple[bytes, bytes]] = []
    for number in range(count):
        record = {"number": number, "first": "alpha", "second": "omega", "score": number / 7, "text": ""}
        room = 163 - len(encode(record)) - 1
        value = encode(record | {"text": ("lorem ipsum " * 20)[: room + 1]})
        value = value if len(value) == 163 else encode(record | {"text": ("lorem ipsum " * 20)[:room]})
        made.append((f"conversation-{number % 1000}".encode(), value))
    return made


# -- the runtimes, each in a process of its own -----------------------------------------------------------------------


class Clock:
    """Starts with the first record; counts."""

    def __init__(self) -> None:
        self.started = 0.0
        self.count = 0

    def work(self, raw: bytes) -> bytes:
        if not self.count:
            self.started = time.perf_counter()
        self.count += 1
        return change(raw)

    def told(self) -> dict[str, float]:
        return {"events": self.count, "seconds": time.perf_counter() - self.started}


def run_raw(brokers: str, source: str, target: str, group: str, count: int) -> dict[str, float]:
    """consume() and produce() in one loop."""
    from confluent_kafka import Consumer, Producer

    failed = 0

    def report(error: Any, _: Any) -> None:
        nonlocal failed
        failed += error is not None

    consumer = Consumer(
        {"bootstrap.servers": brokers, "group.id": group, "auto.offset.reset": "earliest",
         "enable.auto.commit": False, "fetch.queue.backoff.ms": 5}
    )  # fmt: skip
    producer = Producer(
        {"bootstrap.servers": brokers, "acks": "all", "enable.idempotence": True, "linger.ms": LINGER_MS,
         "compression.type": "lz4", "partitioner": "murmur2_random", "queue.buffering.max.messages": 1_000_000}
    )  # fmt: skip
    consumer.subscribe([source])
    clock, committed_at = Clock(), time.perf_counter()
    while clock.count < count:
        batch = consumer.consume(1000, 0.1)
        for record in batch:
            assert record.error() is None, record.error()
            producer.produce(target, clock.work(record.value()), record.key(), on_delivery=report)
        producer.poll(0)
        if batch and time.perf_counter() - committed_at > 0.2:
            committed_at = time.perf_counter()
            consumer.commit(asynchronous=True)
    producer.flush()
    told = clock.told()
    consumer.close()
    assert not failed, f"{failed} sends failed"
    return told


def run_ours(brokers: str, source: str, target: str, group: str, count: int) -> dict[str, float]:
    """Plain Faust, with our broker URL."""
    return _faust(f"llmagentos://{brokers}", source, target, group, count)


def run_faust(brokers: str, source: str, target: str, group: str, count: int) -> dict[str, float]:
    """Plain Faust on aiokafka."""
    url = ";".join(f"kafka://{broker}" for broker in brokers.split(","))
    settings = {
        "producer_acks": -1, "producer_linger": LINGER_MS / 1000, "producer_compression_type": "lz4",
        "broker_max_poll_records": 1000, "stream_buffer_maxsize": 16384, "web_enabled": False,
        "topic_disable_leader": True, "producer_max_batch_size": 131072, "cython_optimizations": True,
    }  # fmt: skip
    return _faust(url, source, target, group, count, **settings)


def _faust(url: str, source: str, target: str, group: str, count: int, **settings: Any) -> dict[str, float]:
    import faust
    import uvloop

    app = faust.App(group, broker=url, **{"topic_disable_leader": True, **settings})
    events = app.topic(source, key_type=bytes, value_type=bytes, value_serializer="raw", key_serializer="raw")
    outputs = app.topic(target, key_type=bytes, value_type=bytes, value_serializer="raw", key_serializer="raw")
    clock = Clock()

    done = asyncio.Event()

    @app.agent(events)
    async def swap(stream: Any) -> None:
        work, send = clock.work, outputs.send
        async for event in stream.events():
            await send(key=event.key, value=work(event.value))
            if clock.count == count:
                done.set()

    async def main() -> dict[str, float]:
        await app.start()
        await done.wait()
        await app.producer.flush()  # until each is acknowledged, as before every commit
        told = clock.told()
        await app.stop()
        return told

    return uvloop.run(main())


def run_quix(brokers: str, source: str, target: str, group: str, count: int) -> dict[str, float]:
    """Quix Streams' dataframe."""
    from quixstreams import Application

    app = Application(
        broker_address=brokers, consumer_group=group, auto_offset_reset="earliest", commit_interval=0.2,
        auto_create_topics=False, loglevel="WARNING",
        producer_extra_config={"linger.ms": LINGER_MS, "compression.type": "lz4", "acks": "all",
                               "enable.idempotence": True, "queue.buffering.max.messages": 1_000_000},
        consumer_extra_config={"fetch.queue.backoff.ms": 5},
    )  # fmt: skip
    inputs = app.topic(source, value_deserializer="bytes", key_deserializer="bytes")
    outputs = app.topic(target, value_serializer="bytes", key_serializer="bytes")
    clock = Clock()
    frame = app.dataframe(inputs).apply(clock.work)
    frame.to_topic(outputs)
    app.run(count=count)  # flushes and commits at its end
    return clock.told()


def run_faststream(brokers: str, source: str, target: str, group: str, count: int) -> dict[str, float]:
    """FastStream's subscriber, on confluent-kafka.

    Each output is acknowledged before its handler returns, as the others acknowledge before they commit. Waiting for
    one takes a linger, so it has none here: 9 times as fast as with 5 ms.
    """
    broker, app = _faststream(brokers, linger_ms=0)
    clock = Clock()
    told: dict[str, float] = {}

    @broker.subscriber(source, group_id=group, auto_offset_reset="earliest", decoder=_as_it_is)
    async def swap(body: bytes) -> None:
        if clock.count < count:
            await broker.publish(clock.work(body), target)
            if clock.count == count:
                told.update(clock.told())
                app.exit()

    return _run_faststream(app, told)


def run_faststream_batches(brokers: str, source: str, target: str, group: str, count: int) -> dict[str, float]:
    """The same with a handler that takes and publishes lists: not one message at a time, so beside the comparison."""
    broker, app = _faststream(brokers, linger_ms=LINGER_MS)
    clock = Clock()
    told: dict[str, float] = {}

    @broker.subscriber(source, group_id=group, auto_offset_reset="earliest", batch=True, max_records=1000)
    async def swap(bodies: list[bytes]) -> None:
        if clock.count < count:
            await broker.publish_batch(*[clock.work(body) for body in bodies], topic=target)
            if clock.count >= count:
                told.update(clock.told())
                app.exit()

    return _run_faststream(app, told)


def _faststream(brokers: str, linger_ms: int) -> tuple[Any, Any]:
    from faststream import FastStream
    from faststream.confluent import KafkaBroker

    broker = KafkaBroker(
        brokers, acks="all", enable_idempotence=True, linger_ms=linger_ms, compression_type="lz4", logger=None
    )
    return broker, FastStream(broker, logger=None)


def _run_faststream(app: Any, told: dict[str, float]) -> dict[str, float]:
    import uvloop

    uvloop.run(app.run())
    return told


async def _as_it_is(message: Any) -> bytes:
    return message.body


RUNS: dict[str, Callable[..., dict[str, float]]] = {
    "ours": run_ours,
    "raw": run_raw,
    "quix": run_quix,
    "faust": run_faust,
    "faststream": run_faststream,
    "faststream_batches": run_faststream_batches,
}

#: What must hold, as ours to the peer's rate.
MUST = {"faust": 10.0, "quix": 1.2, "faststream": 10.0, "raw": 0.45}


# -- the comparison ---------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", nargs="*", choices=sorted(RUNS), default=list(RUNS))
    parser.add_argument("--run", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        name, brokers, source, target, group, count = options.run
        print(json.dumps(RUNS[name](brokers, source, target, group, int(count))))
        return

    from cluster import cluster

    with cluster() as settings:
        compare(settings.brokers, options.messages, options.rounds, options.only)


def compare(brokers: str, messages: int, rounds: int, names: list[str]) -> None:
    """Fill a topic, run the rounds, count the outputs, print the table and the figures."""
    import peers
    from confluent_kafka.admin import AdminClient, NewTopic
    from rich.console import Console
    from rich.table import Table

    admin = AdminClient({"bootstrap.servers": brokers})
    prefix = f"bench{os.getpid()}"
    source = f"{prefix}.in"

    def make(topic: str) -> None:
        admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)

    make(source)
    fill(brokers, source, messages)
    python = {name: sys.executable if name in ("ours", "raw") else str(peers.ensure()) for name in names}
    rates: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            target = f"{prefix}.{name}.{turn}"
            make(target)
            count = min(messages, SLOW.get(name, messages))
            program = [python[name], str(Path(__file__).resolve()), "--run", name, brokers, source, target]
            # A folder of its own: Faust and Quix keep state in the working directory.
            with tempfile.TemporaryDirectory(prefix="llmagentos-bench-") as folder:
                command = [*program, f"{prefix}-{name}-{turn}", str(count)]
                done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
            told = json.loads(done.stdout.splitlines()[-1])
            check(brokers, target, count)
            rate = told["events"] / told["seconds"]
            rates[name].append(rate)
            print(f"round {turn + 1} {name}: {rate:,.0f}/s", file=sys.stderr)
            admin.delete_topics([target])[target].result(30)
    middle = {name: statistics.median(found) for name, found in rates.items()}
    table = Table(title=f"{messages:,} messages of 163 bytes, 8 partitions, one process, median of {rounds}")
    for column in ("runtime", "events/s", "lowest", "highest", "ours is", "must be"):
        table.add_column(column, justify="left" if column == "runtime" else "right")
    for name in names:
        ratio = f"{middle['ours'] / middle[name]:.2f}x" if "ours" in middle and name != "ours" else ""
        must = f"{MUST[name]:g}x" if name in MUST else ""
        table.add_row(name, f"{middle[name]:,.0f}", f"{min(rates[name]):,.0f}", f"{max(rates[name]):,.0f}", ratio, must)
    Console().print(table)
    print(json.dumps({name: round(rate) for name, rate in middle.items()}))


def fill(brokers: str, topic: str, messages: int) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": brokers, "acks": "all", "partitioner": "murmur2_random",
                         "queue.buffering.max.messages": 1_000_000, "linger.ms": 50})  # fmt: skip
    for key, value in records(messages):
        producer.produce(topic, value, key)
    assert producer.flush(60) == 0


def check(brokers: str, topic: str, count: int) -> None:
    """Count the outputs with a reader of its own, and look at each for the swap."""
    from confluent_kafka import Consumer, TopicPartition

    reader = Consumer({"bootstrap.servers": brokers, "group.id": "bench-check", "enable.auto.commit": False})
    ends = [reader.get_watermark_offsets(TopicPartition(topic, p), 10)[1] for p in range(PARTITIONS)]
    assert sum(ends) >= count, f"{topic} holds {sum(ends)} records, not {count}"
    reader.assign([TopicPartition(topic, p, 0) for p in range(PARTITIONS) if ends[p]])
    seen: set[int] = set()
    left = sum(ends)
    while left:
        batch = reader.consume(1000, 5.0)
        assert batch, f"{left} records of {topic} can't be read"
        for record in batch:
            made = decode(record.value())
            assert made["first"] == "omega", made
            seen.add(made["number"])
        left -= len(batch)
    reader.close()
    assert len(seen) >= count, f"{topic} holds {len(seen)} different records, not {count}"


if __name__ == "__main__":
    main()
