"""produce: `Producer.send(Message)` against fastavro and librdkafka called by hand, and Confluent's `AvroSerializer`.

Each is a process of its own that sends the same messages, in the same schema, with the same key and header, at the
same acks, idempotence, linger, compression and queue bound, to a topic of 8 partitions; the clock runs from the first
send until all are acknowledged, and each checks every delivery report. A separate reader then counts the topic.
Rounds are interleaved, and their order turns. The serializer's registry is Apicurio over HTTP, asked once; ours is in
the cluster.

Where a send's 6 us on the loop's thread go (2 cores, by thread time): encoding 2.8 (compiled; fastavro 6.9),
librdkafka's produce 1.1, its header 0.5, the delivery report 0.3 and its Delivery with partition and offset 0.5,
bounds and the coroutine 0.5. librdkafka's own threads add 1.3. By hand takes 11-12, of which fastavro is 7;
AvroSerializer 13.

    make bench NAME=produce ARGS="--rounds 5 --messages 200000"
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MESSAGES = 200_000
ROUNDS = 5
PARTITIONS = 8

#: So many different messages are sent over and over: real texts where LLMAGENTOS_DATA names them.
DISTINCT = 10_000

#: What all three give librdkafka.
CONFIG = {
    "acks": "all",
    "enable.idempotence": True,
    "partitioner": "murmur2_random",
    "compression.type": "lz4",
    "linger.ms": 5,
    "queue.buffering.max.messages": 80_000,
}
#: The by-hand loops serve delivery reports as often.
POLL_EVERY = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--run", choices=sorted(RUNS), help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        job = json.loads(options.job)
        records = json.loads(Path(job.pop("records")).read_text())
        records = [record | {"body": record["body"].encode()} for record in records]
        print(json.dumps(RUNS[options.run](records, **job)))
        return

    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    from cluster import cluster

    with cluster() as settings:
        compare(settings, settings.home, options.messages, options.rounds)


def compare(settings: Any, folder: Path, messages: int, rounds: int) -> None:
    """Run the rounds, count the topics, print the table and the figures."""
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    import peers
    from rich.console import Console
    from rich.table import Table

    from llmagentos import schemas
    from llmagentos.streams.admin import Admin
    from llmagentos.streams.endpoints import brokers
    from tests.integration.registry import apicurio

    console = Console(highlight=False)
    admin = Admin(settings)
    records = folder / "records.json"
    records.write_text(json.dumps([record | {"body": record["body"].decode()} for record in messages_of(DISTINCT)]))
    pythons = {"ours": sys.executable, "by_hand": sys.executable, "serializer": str(peers.ensure())}
    rates: dict[str, list[float]] = {name: [] for name in pythons}
    cpu: dict[str, list[float]] = {name: [] for name in pythons}
    with apicurio.running(settings.cache) as url:
        job = {"brokers": brokers(settings), "prefix": settings.prefix, "messages": messages, "registry": url}
        job |= {"records": str(records), "schema": json.dumps(schemas.load("message"))}
        order = list(pythons)
        for number in range(rounds):
            for name in order:
                topic = settings.topic(f"agent.{name.replace('_', '-')}-{number}")
                admin.ensure([(topic, PARTITIONS, {})])
                told = json.dumps(job | {"topic": topic})
                command = [pythons[name], "-W", "ignore", __file__, "--run", name, "--job", told]
                done = subprocess.run(command, capture_output=True, text=True, timeout=300)
                if done.returncode:
                    sys.exit(f"{name} failed:\n{done.stderr}")
                result = json.loads(done.stdout.splitlines()[-1])
                found = count(settings, topic)
                if found != messages or result["failed"]:
                    sys.exit(f"{name}: {messages} sent, {result['failed']} failed, {found} in {topic}")
                rates[name].append(messages / result["seconds"])
                cpu[name].append(result["cpu"] / messages * 1e6)
                admin.delete([topic])
            order = order[1:] + order[:1]

    best = {name: statistics.median(values) for name, values in rates.items()}
    table = Table(title=f"{messages:,} messages, {rounds} rounds, medians; delivery checked, topics counted")
    for column in ("", "events/s", "CPU us/event", "ours is", "must be"):
        table.add_column(column, justify="right" if column else "left")
    for name, must in (("ours", ""), ("by_hand", "0.8x"), ("serializer", "1.2x")):
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates[name], strict=True))
        table.add_row(
            name, f"{best[name]:,.0f}", f"{statistics.median(cpu[name]):.1f}", f"{ratio:.2f}x" if must else "", must
        )
    console.print(table)
    print(json.dumps({name: round(rate) for name, rate in best.items()}))


def messages_of(count: int) -> Iterator[dict[str, Any]]:
    """The records of *count* messages: turns of real dialogues, or sentences of their length."""
    from llmagentos.streams.message import Message

    data = Path(os.environ.get("LLMAGENTOS_DATA", "/nowhere")) / "sgd_dev.ndjson.gz"
    if data.is_file():
        with gzip.open(data) as lines:
            turns = [
                (turn["conversation"], turn["text"])
                for turn, _ in zip(map(json.loads, lines), range(count), strict=False)
            ]
    else:
        turns = [
            (f"1_{i // 18:05}", f"Turn {i} of a dialogue about a table for two at half past 11.") for i in range(count)
        ]
    for conversation, text in turns:
        yield Message.create(text, to="placeholder", conversation=conversation).record


def count(settings: Any, topic: str) -> int:
    """Records in *topic*, read from its beginning to its end."""
    import confluent_kafka

    from llmagentos.streams.endpoints import client_config

    config = client_config(settings, group_id="count", enable_auto_commit=False, enable_partition_eof=True)
    consumer = confluent_kafka.Consumer(config)
    try:
        consumer.assign([confluent_kafka.TopicPartition(topic, p, 0) for p in range(PARTITIONS)])
        found = ended = 0
        while ended < PARTITIONS:
            for record in consumer.consume(10_000, 1.0):
                if record.error() is None:
                    found += 1
                else:
                    ended += 1
        return found
    finally:
        consumer.close()


# -- each runs in a process of its own ------------------------------------------------------------------------------


def ours(
    records: list[dict[str, Any]], brokers: str, prefix: str, topic: str, messages: int, **_: Any
) -> dict[str, float]:
    """`Producer.send`, awaited for each message; then `delivered`."""
    import uvloop

    from llmagentos.streams.message import Message
    from llmagentos.streams.producer import Producer
    from llmagentos.streams.registry import open_registry
    from llmagentos.streams.settings import Settings
    from llmagentos.streams.wire import MESSAGE, Codec

    agent = topic.removeprefix(f"{prefix}agent.")
    prepared = [Message(record | {"recipient": agent}) for record in records]
    settings = Settings.load(brokers=brokers, prefix=prefix, linger_ms=CONFIG["linger.ms"])
    codec = Codec(open_registry(settings))
    codec.writer(MESSAGE, "message")

    async def run() -> dict[str, float]:
        async with Producer(settings, codec, max_queued=CONFIG["queue.buffering.max.messages"] // 4) as producer:
            await (await producer.send(Message.create("connect", to=agent)))  # all connect before the clock starts
            begun, used = time.perf_counter(), time.process_time()
            distinct = len(prepared)
            send = producer.send
            for i in range(messages - 1):
                await send(prepared[i % distinct])
            await producer.delivered()
            return {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - used, "failed": 0}

    return uvloop.run(run())


def _loop(
    records: list[dict[str, Any]], brokers: str, topic: str, messages: int, encode: Callable[[dict[str, Any]], bytes]
) -> dict[str, float]:
    """What a careful person writes around librdkafka."""
    import confluent_kafka

    producer = confluent_kafka.Producer({"bootstrap.servers": brokers, **CONFIG})
    failed = 0

    def report(error: Any, _: Any) -> None:
        nonlocal failed
        if error is not None:
            failed += 1

    def send(record: dict[str, Any]) -> None:
        value = encode(record)
        while True:
            try:
                producer.produce(
                    topic,
                    value,
                    record["conversation_id"].encode(),
                    on_delivery=report,
                    headers=[("message-id", record["message_id"])],
                )
                return
            except BufferError:
                producer.poll(0.01)

    prepared = [record | {"recipient": topic.rpartition(".")[2]} for record in records]
    send(prepared[0])
    producer.flush()
    begun, used = time.perf_counter(), time.process_time()
    distinct = len(prepared)
    for i in range(messages - 1):
        send(prepared[i % distinct])
        if not i % POLL_EVERY:
            producer.poll(0)
    producer.flush()
    return {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - used, "failed": failed}


def by_hand(
    records: list[dict[str, Any]], brokers: str, topic: str, messages: int, schema: str, **_: Any
) -> dict[str, float]:
    """fastavro into a buffer behind five bytes."""
    import io

    import fastavro

    parsed = fastavro.parse_schema(json.loads(schema))
    write = fastavro.schemaless_writer

    def encode(record: dict[str, Any]) -> bytes:
        out = io.BytesIO()
        out.write(b"\0\0\0\0\1")
        write(out, parsed, record)
        return out.getvalue()

    return _loop(records, brokers, topic, messages, encode)


def serializer(
    records: list[dict[str, Any]], brokers: str, topic: str, messages: int, schema: str, registry: str, **_: Any
) -> dict[str, float]:
    """Confluent's, with its registry client."""
    from confluent_kafka.schema_registry import SchemaRegistryClient, record_subject_name_strategy
    from confluent_kafka.schema_registry.avro import AvroSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    serialize: Any = AvroSerializer(
        SchemaRegistryClient({"url": registry}), schema, conf={"subject.name.strategy": record_subject_name_strategy}
    )
    context = SerializationContext(topic, MessageField.VALUE)
    return _loop(records, brokers, topic, messages, lambda record: serialize(record, context))


RUNS: dict[str, Callable[..., dict[str, float]]] = {"ours": ours, "by_hand": by_hand, "serializer": serializer}

if __name__ == "__main__":
    main()
