"""How long `llmagentos up` takes to the first acknowledged produce, and what Kafka and Redis then weigh.

Three kinds of start, interleaved, each a process of its own as a person would run it, jars present:

- first: a new data folder, and Java has no archive of Kafka's classes yet (the very first start on a machine)
- new: a new data folder
- again: a data folder that ran before

`up_s` is the median of the slowest kind. `rss_mb` is the resident memory of Kafka and Redis together after 100,000
messages went in, came out, and each left a key in Redis: the largest of all rounds.

Profile: a start costs 1.5 s of CPU in Kafka; with Java's defaults it was 3.9 s and 333 MB. What helped: an archive of
the 6,500 classes that Kafka loads from 45 jars (1.4 s), C1 without C2 (1.0 s), 8 partitions in place of 50 for each of
Kafka's own topics, the serial collector. The rest of a new folder's `up` is Python's imports (0.4 s) and the format
(0.6 s of CPU). A restart in a running Python took 1.0 s on two otherwise idle cores, 2.6 s at a load of 13.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from redis import Redis
from rich.console import Console
from rich.table import Table

from llmagentos.streams.node import Node
from llmagentos.streams.settings import Settings

MESSAGES = 100_000
SIZE = 200
TOPIC = "bench"
KINDS = ("first", "new", "again")
LIMITS = {"up_s": 10.0, "rss_mb": 700.0}


def start(settings: Settings) -> float:
    """Seconds from the command to the first acknowledged record."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LLMAGENTOS_")}
    env |= {"LLMAGENTOS_HOME": str(settings.home), "LLMAGENTOS_CACHE": str(settings.cache)}
    began = time.perf_counter()
    command = [sys.executable, "-m", "llmagentos.cli.main", "up", "--output", "json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"llmagentos up failed:\n{done.stderr}")
    brokers = json.loads(done.stdout)["brokers"]
    admin = AdminClient({"bootstrap.servers": brokers})
    if TOPIC not in admin.list_topics(timeout=30).topics:
        admin.create_topics([NewTopic(TOPIC, 8)])[TOPIC].result(30)
    acknowledged: list[bool] = []
    producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True, "linger.ms": 0})
    producer.produce(TOPIC, b"first", on_delivery=lambda error, _: acknowledged.append(error is None))
    producer.flush(60)
    if acknowledged != [True]:
        sys.exit("the first record was not acknowledged")
    return time.perf_counter() - began


def weigh(node: Node) -> dict[str, float]:
    """MiB of each part after MESSAGES went through; checks that all of them came out."""
    producer = Producer({"bootstrap.servers": node.brokers, "enable.idempotence": True, "linger.ms": 5})
    value = b"x" * SIZE
    for number in range(MESSAGES):
        while True:
            try:
                producer.produce(TOPIC, value, str(number).encode())
                break
            except BufferError:
                producer.poll(0.05)
    producer.flush(60)
    group = {"group.id": "bench", "auto.offset.reset": "earliest", "enable.auto.commit": False}
    consumer = Consumer({"bootstrap.servers": node.brokers, **group})
    consumer.subscribe([TOPIC])
    redis = Redis.from_url(node.redis)
    seen, deadline = 0, time.monotonic() + 60
    while seen <= MESSAGES and time.monotonic() < deadline:  # the first record of start() is one more
        batch = consumer.consume(1000, 0.2)
        pipeline = redis.pipeline(transaction=False)
        for message in batch:
            pipeline.set(message.key() or b"first", message.value() or b"")
        pipeline.execute()
        seen += len(batch)
    consumer.commit(asynchronous=False)
    consumer.close()
    redis.close()
    if seen <= MESSAGES:
        sys.exit(f"only {seen:,} of {MESSAGES + 1:,} records came back")
    return {part.name: part.rss_mb or 0.0 for part in node.status().parts}


def cache_without_archive(full: Path, folder: Path) -> Path:
    """A cache that has the jars and nothing else."""
    (folder / "jars").mkdir(parents=True)
    for jars in (full / "jars").glob("kafka-*"):
        (folder / "jars" / jars.name).symlink_to(jars)
    return folder


def main() -> None:
    """Run the rounds, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    console = Console(stderr=True)
    cache = Settings.load().cache
    Node(Settings(cache=cache)).jars(lambda what, done, total: None)
    took: dict[str, list[float]] = {kind: [] for kind in KINDS}
    rss: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="llmagentos-bench-") as scratch:
        warm = Node(Settings(home=Path(scratch) / "warm", cache=cache, brokers="", redis=""))
        warm.up()  # writes the archive where there is none
        warm.down()
        shutil.rmtree(warm.home)
        for number in range(rounds):
            bare = cache_without_archive(cache, Path(scratch) / f"cache{number}")
            homes = {kind: Path(scratch) / f"{kind}{number}" for kind in ("first", "new")}
            homes["again"] = homes["new"]
            for kind in KINDS:
                used = bare if kind == "first" else cache
                node = Node(Settings(home=homes[kind], cache=used, brokers="", redis=""))
                try:
                    took[kind].append(start(node.settings))
                    if kind != "again":
                        rss.append(weigh(node))
                finally:
                    node.down()
                console.print(f"round {number + 1}, {kind}: {took[kind][-1]:.2f} s", style="dim")
            for home in set(homes.values()):
                shutil.rmtree(home)
    table = Table(title=f"llmagentos up to the first acknowledged record, {rounds} rounds")
    for column in ("start", "median s", "worst s", "of 10 s"):
        table.add_column(column, justify="left" if column == "start" else "right")
    medians = {kind: statistics.median(times) for kind, times in took.items()}
    for kind in KINDS:
        share = f"{medians[kind] / LIMITS['up_s']:.0%}"
        table.add_row(kind, f"{medians[kind]:.2f}", f"{max(took[kind]):.2f}", share)
    heaviest = max(rss, key=lambda parts: sum(parts.values()))
    table.add_section()
    for name, size in heaviest.items():
        table.add_row(
            f"{name}, MiB after {MESSAGES:,} messages", "", f"{size:.0f}", f"{size / LIMITS['rss_mb']:.0%} of 700"
        )
    Console().print(table)
    print(json.dumps({"up_s": round(max(medians.values()), 2), "rss_mb": round(sum(heaviest.values()), 1)}))


if __name__ == "__main__":
    main()
