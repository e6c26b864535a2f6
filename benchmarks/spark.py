"""spark: messages read, decoded and aggregated by the jobs' own reader on Spark, and by a loop in Python.

Both read the same topic of 8 partitions whole, decode each message with all its fields, and count messages and sum
bytes by agent and type; their results must be equal. Spark is `local[2]`, warm (one round is not counted). The loop
is confluent-kafka's `consume(1000)` with 8 MB fetches and fastavro's `schemaless_reader`, writer's schema and
reader's the same: its fastest form. Rounds are interleaved.
`pruned` is Spark decoding just the fields that the count needs, which is what the job does.

    make bench NAME=spark ARGS="--rounds 5 --messages 1000000"

Profile: of the loop's 8 to 10 microseconds a message 6.3 are fastavro's (measured alone), on one core, while librdkafka
fetches on the other; Spark decodes on both. Two things made Spark slow before: a filter that the optimizer moved below
the decoding, which then ran twice (half the rate, cold), and fetches of 1 MiB (half the rate, by the design's notes).
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import confluent_kafka
import fastavro
from cluster import cluster
from confluent_kafka import TopicPartition
from rich.console import Console
from rich.table import Table

from llmagentos import schemas
from llmagentos.jobs.spark import session
from llmagentos.jobs.topics import Span, records, window
from llmagentos.streams.admin import ensure_topics
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.message import Message
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec, plain

MESSAGES = 1_000_000
ROUNDS = 3
PARTITIONS = 8
AGENTS, TYPES = 7, ("task", "result", "token")
#: So many different messages are sent over and over.
DISTINCT = 10_000
MUST_HOLD = 1.0

#: By (agent, type): messages and bytes.
Counts = dict[tuple[str, str], tuple[int, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    with cluster(partitions=PARTITIONS) as settings:
        compare(settings, options.messages, options.rounds)


def compare(settings: Settings, messages: int, rounds: int) -> None:
    """Fill the topic, run the rounds, print the table and the figures."""
    console = Console()
    fill(settings, messages)
    spans = window(settings, "agent.bench")
    assert sum(span.end - span.start for span in spans) == messages
    rates: dict[str, list[float]] = {"ours": [], "pruned": [], "python": []}
    with session(settings, "benchmark", master="local[2]") as spark:

        def by_spark(fields: list[str] | None) -> Counts:
            from pyspark.sql import functions as F

            frame = records(spark, settings, spans, fields=fields)
            rows = frame.groupBy("record.recipient", "record.type").agg(F.count(F.lit(1)), F.sum("bytes")).collect()
            return {(row[0], row[1]): (row[2], row[3]) for row in rows}

        ways: dict[str, Callable[[], Counts]] = {
            "ours": lambda: by_spark(None),
            "pruned": lambda: by_spark(["recipient", "type"]),
            "python": lambda: by_loop(settings, spans),
        }
        for number in range(-1, rounds):
            found: list[Counts] = []
            for name, count in ways.items():
                began = time.perf_counter()
                found.append(count())
                if number >= 0:
                    rates[name].append(messages / (time.perf_counter() - began))
            if not found[0] == found[1] == found[2] or sum(count for count, _ in found[0].values()) != messages:
                sys.exit("the ways count differently: the run is wrong")
    middle = {name: statistics.median(of) for name, of in rates.items()}
    table = Table(title=f"{messages:,} messages, median of {rounds} rounds", box=None)
    for column in ("", "rows/s", "of python", "rounds"):
        table.add_column(column, justify="left" if column in ("", "rounds") else "right")
    names = {"ours": "Spark local[2], all fields", "pruned": "Spark local[2], two fields", "python": "Python loop"}
    for name, label in names.items():
        each = " ".join(f"{rate / 1000:.0f}k" for rate in rates[name])
        table.add_row(label, f"{middle[name]:,.0f}", f"{middle[name] / middle['python']:.2f}x", each)
    console.print(table)
    ratio = middle["ours"] / middle["python"]
    console.print(f"must hold {MUST_HOLD}x: {'holds' if ratio >= MUST_HOLD else 'DOES NOT HOLD'} ({ratio:.2f}x)")
    print(json.dumps({name: round(rate) for name, rate in middle.items()}))


def fill(settings: Settings, messages: int) -> None:
    """Send messages of 60 to 260 bytes of text, over 5,000 conversations."""
    topic = settings.topic("agent.bench")
    ensure_topics(settings, [(topic, PARTITIONS, {})])
    with closing(open_registry(settings)) as registry:
        codec = Codec(registry)
        values: list[tuple[bytes, str]] = []
        for number in range(DISTINCT):
            text = f"message {number}: " + "hello world " * (4 + number % 17)
            conversation = f"conversation-{number % 5_000}"
            message = Message.create(
                text,
                to=f"agent{number % AGENTS}",
                conversation=conversation,
                type=TYPES[number % len(TYPES)],  # pyright: ignore[reportArgumentType]
                attributes={"lang": "en"},
            )
            values.append((codec.encode(message), conversation))
    producer = confluent_kafka.Producer(
        client_config(settings, linger_ms=20, batch_size=1_000_000, compression_type="lz4", acks="all")
    )
    for number in range(messages):
        value, key = values[number % DISTINCT]
        while True:
            try:
                producer.produce(topic, value, key)
                break
            except BufferError:
                producer.poll(0.1)
        if number % 1_000 == 0:
            producer.poll(0)
    if producer.flush(120):
        sys.exit("Kafka did not take all messages")


def by_loop(settings: Settings, spans: list[Span]) -> Counts:
    """The peer."""
    schema = fastavro.parse_schema(plain(schemas.load("message")))
    config: dict[str, Any] = client_config(
        settings,
        group_id="bench",
        enable_auto_commit=False,
        fetch_message_max_bytes=8 * 1024 * 1024,
        fetch_queue_backoff_ms=5,
        queued_min_messages=200_000,
        queued_max_messages_kbytes=256 * 1024,
        check_crcs=False,
    )
    consumer = confluent_kafka.Consumer(config)
    consumer.assign([TopicPartition(span.topic, span.partition, span.start) for span in spans])
    todo = sum(span.end - span.start for span in spans)
    read, source = fastavro.schemaless_reader, io.BytesIO
    counts: dict[tuple[str, str], list[int]] = {}
    while todo:
        for record in consumer.consume(1_000, 1.0):
            raw = record.value()
            if raw[0] != 0:
                sys.exit("not in the wire format")
            body = source(raw)
            body.seek(5)
            message: Any = read(body, schema, None)
            place = message["recipient"], message["type"]
            entry = counts.get(place)
            if entry is None:
                entry = counts[place] = [0, 0]
            entry[0] += 1
            entry[1] += len(raw)
            todo -= 1
    consumer.close()
    return {place: (count, size) for place, (count, size) in counts.items()}


if __name__ == "__main__":
    main()
