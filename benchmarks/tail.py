"""tail: one conversation of 20,000 among 4M messages over 16 partitions, against kcat and grep.

Ours is the whole command, process start included: `llmagentos tail AGENT --conversation C --from beginning -o json`.
The peer is `kcat -C -e -f '%k %o\\n'` piped to grep over the same topic, page cache warm for both; both must find the
same offsets. Also shown, outside of the ratio: the same command without a topic, which looks for what came of the
conversation in all topics (an agent that asks makes it look at a second partition, for a child without answer).

Where the time goes (2 cores): kcat is bound by its threads that parse all 4M records, 1.5 s of CPU, and grep. Ours
takes 0.5 s of CPU: it reads the sixteenth that can hold the key, 250k records in 0.15-0.25 s (librdkafka's parsing
0.1, Message objects and key() 0.1), decodes 200 of them, and spends the rest starting (Python 0.03, Typer with the
pydantic that it brings 0.12, settings 0.04, librdkafka and fastavro 0.03); connecting and looking up offsets waits for
0.05, the registry is read meanwhile, in a thread. A fetch at a partition's end used to cost half a second
(fetch.wait.max.ms), and packages without compiled files 0.3 s (so the Makefile compiles them).

    make bench NAME=tail ARGS="--rounds 3 --messages 4000000"
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from cluster import cluster
from confluent_kafka import Producer
from rich.console import Console
from rich.table import Table

from llmagentos.streams.admin import Admin
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.message import Message
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec

MESSAGES = 4_000_000
CONVERSATIONS = 20_000
PARTITIONS = 16
ROUNDS = 3

#: Any prime that shares no factor with the conversations: neighbours in the log are of different ones.
STRIDE = 7_919

console = Console(stderr=False, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    if shutil.which("kcat") is None:
        sys.exit("kcat is missing, so there is nothing to compare with: `apt-get install kcat`, then again")
    with cluster() as settings:
        compare(settings, options.messages, options.rounds)


def compare(settings: Settings, messages: int, rounds: int) -> None:
    """Load the topic, run the rounds, print the table and the figures; the topics are deleted again."""
    topic = settings.topic("agent.bench")
    admin = Admin(settings)
    admin.ensure([(topic, PARTITIONS, {}), (settings.topic("replies"), PARTITIONS, {})])
    try:
        load(settings, topic, messages)
        wanted = f"conversation-{STRIDE % CONVERSATIONS:05d}"
        tail(settings, ["bench", "--conversation", wanted])  # once, so that Python's compiled files are there
        seconds: dict[str, list[float]] = {"kcat | grep": [], "llmagentos tail AGENT": [], "llmagentos tail": []}
        for _ in range(rounds):
            began = time.perf_counter()
            theirs = kcat(settings, topic, wanted)
            seconds["kcat | grep"].append(time.perf_counter() - began)
            for name, arguments in (("llmagentos tail AGENT", ["bench"]), ("llmagentos tail", [])):
                began = time.perf_counter()
                ours = tail(settings, [*arguments, "--conversation", wanted])
                seconds[name].append(time.perf_counter() - began)
                if ours != theirs or len(ours) < messages // CONVERSATIONS:
                    sys.exit(f"{name} found {len(ours)} messages, kcat {len(theirs)}: they must be the same")
        report(seconds, len(theirs))
    finally:
        admin.delete(list(admin.topics(settings.prefix)))


def load(settings: Settings, topic: str, messages: int) -> None:
    """Fill the topic: encoded once for each conversation, with a message id of its own spliced in for each message."""
    codec = Codec(open_registry(settings))
    producer = Producer(
        client_config(settings, linger_ms=50, batch_num_messages=10_000, partitioner="murmur2_random", acks="all")
        | {"queue.buffering.max.messages": 1_000_000, "batch.size": 1_000_000}
    )
    mark = "0" * 36
    keys = [f"conversation-{n:05d}" for n in range(CONVERSATIONS)]
    parts = [
        codec.encode(Message.create("x" * 40, to="bench", conversation=key, message_id=mark)).split(mark.encode())
        for key in keys
    ]
    encoded = [key.encode() for key in keys]
    failed: list[object] = []
    began = time.perf_counter()
    with console.status(f"producing {messages:,} messages"):
        for number in range(messages):
            n = number * STRIDE % CONVERSATIONS
            head, rest = parts[n]
            value = b"%b%036d%b" % (head, number, rest)
            producer.produce(
                topic, value, encoded[n], on_delivery=lambda error, _: failed.append(error) if error else None
            )
            if number % 20_000 == 0:
                producer.poll(0)
                while len(producer) > 500_000:
                    producer.poll(0.05)
        producer.flush()
    if failed:
        sys.exit(f"{len(failed)} messages were not produced: {failed[0]}")
    rate = messages / (time.perf_counter() - began)
    console.print(f"{messages:,} messages of {len(value)} bytes in {topic}, produced at {rate:,.0f}/s")


def kcat(settings: Settings, topic: str, wanted: str) -> set[int]:
    """The offsets that kcat and grep find."""
    pipe = f"kcat -b {client_config(settings)['bootstrap.servers']} -t {topic} -C -e -f '%k %o\\n' | grep '^{wanted} '"
    done = subprocess.run(["sh", "-c", pipe], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return {int(line.split()[1]) for line in done.stdout.splitlines()}


def tail(settings: Settings, arguments: list[str]) -> set[int]:
    """The offsets that the command finds."""
    command = [Path(sys.executable).parent / "llmagentos", "tail", *arguments, "--from", "beginning", "-o", "json"]
    environment = os.environ | {
        "LLMAGENTOS_BROKERS": client_config(settings)["bootstrap.servers"],
        "LLMAGENTOS_PREFIX": settings.prefix,
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed runs from compiled files, as everywhere else
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    undecoded = [record for record in records if record.get("error")]
    if undecoded:
        sys.exit(f"tail could not decode {undecoded[0]}")
    return {record["offset"] for record in records}


def report(seconds: dict[str, list[float]], found: int) -> None:
    """The table, and the figures as one JSON object in the last line; medians count."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    table = Table("", "median s", "all rounds", "faster than kcat", title=f"{found} messages found, by each")
    for name, times in seconds.items():
        ratio = medians["kcat | grep"] / medians[name]
        table.add_row(name, f"{medians[name]:.2f}", " ".join(f"{t:.2f}" for t in times), f"{ratio:.1f}x")
    console.print(table)
    names = {"ours_s": "llmagentos tail AGENT", "kcat_s": "kcat | grep", "ours_all_topics_s": "llmagentos tail"}
    print(json.dumps({key: round(medians[name], 3) for key, name in names.items()}))


if __name__ == "__main__":
    main()
