"""latency: producer to agent to reply, at 500 messages a second, against a raw confluent-kafka echo.

Both ways are one sender, one echo process and one reader; the message carries the time at which it was sent, and the
reader takes the time when it has the reply. The raw echo is a `poll`, `produce`, `poll` loop; ours is a worker with one
agent, with its checksum, ids, lanes, commit gate and delivery checks. Sender and reader are the same code for both.
Acks, idempotence and linger are the same: first with a linger of 0, where the difference is widest, then with ours as
it is by default. Rounds are interleaved.

What a profile says: at this rate nothing queues; of the added time most is the hand-over from the poll thread to the
event loop and the wake-up of librdkafka's threads on a busy core, not Python's work on the message (60 us).

    make bench NAME=latency ARGS="--rounds 3 --seconds 20"
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import cluster
from rich.console import Console
from rich.table import Table

from llmagentos.agents import Context, Message, agent
from llmagentos.streams.settings import Settings

RATE = 500
SECONDS = 20.0
ROUNDS = 3
PARTITIONS = 8
CONVERSATIONS = 1_000
#: Of the first seconds, for connections and caches; not counted.
WARM_UP_S = 3.0
#: What must hold, as ours to the raw echo's.
MUST = {"p50": 2.5, "p99": 3.0}


def config(brokers: str, linger_ms: float) -> dict[str, object]:
    return {
        "bootstrap.servers": brokers,
        "acks": "all",
        "enable.idempotence": True,
        "linger.ms": linger_ms,
        "compression.type": "lz4",
        "partitioner": "murmur2_random",
    }


# -- the two echoes, each in a process of its own ---------------------------------------------------------------------


def echo_raw(brokers: str, source: str, target: str, linger_ms: float) -> None:
    """poll, produce, poll, for ever."""
    from confluent_kafka import Consumer, Producer

    consumer = Consumer(
        {"bootstrap.servers": brokers, "group.id": f"{source}-echo", "auto.offset.reset": "earliest",
         "enable.auto.commit": False}
    )  # fmt: skip
    producer = Producer(config(brokers, linger_ms))
    failures: list[object] = []
    consumer.subscribe([source])
    committed_at = time.monotonic()
    while not failures:
        record = consumer.poll(0.05)
        if record is not None:
            assert record.error() is None, record.error()
            producer.produce(
                target, record.value(), record.key(), on_delivery=lambda e, _: failures.append(e) if e else None
            )
        producer.poll(0)
        if time.monotonic() - committed_at > 0.2:
            committed_at = time.monotonic()
            if record is not None:
                consumer.commit(asynchronous=True)
    raise SystemExit(f"a send failed: {failures[0]}")


def echo_agent(brokers: str, prefix: str, linger_ms: float) -> None:
    """A worker with one agent."""
    import uvloop

    from llmagentos.agents.loading import LoadedModule
    from llmagentos.agents.worker import Worker

    @agent("echo")
    async def echo(message: Message, ctx: Context) -> bytes:
        return message.body

    settings = Settings.load(brokers=brokers, prefix=prefix, linger_ms=linger_ms)
    loaded = LoadedModule(__file__, "bench", Path(__file__), "0", {"echo": echo}, None)

    async def main() -> None:
        await Worker(settings, f"{prefix}bench", loaded).run()

    uvloop.run(main())


@contextmanager
def running(*arguments: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, __file__, "--run", *arguments], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


# -- sender and reader, the same for both -----------------------------------------------------------------------------


def measure(brokers: str, source: str, target: str, linger_ms: float, seconds: float, settings: Settings | None):
    """Milliseconds from the sending of each message to its reply. *settings*: messages to an agent, not bare ones."""
    from confluent_kafka import Consumer, Producer, TopicPartition

    from llmagentos.streams.registry import open_registry
    from llmagentos.streams.wire import Codec

    codec = Codec(open_registry(settings)) if settings else None
    reader = Consumer({"bootstrap.servers": brokers, "group.id": "latency", "enable.auto.commit": False})
    reader.assign([TopicPartition(target, p, 0) for p in range(PARTITIONS)])
    got: list[tuple[int, bytes]] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            record = reader.poll(0.1)
            if record is not None:
                got.append((time.perf_counter_ns(), record.value()))

    # The reader is a thread of its own; it waits in librdkafka, without the interpreter's lock.
    thread = threading.Thread(target=read)
    thread.start()
    producer = Producer(config(brokers, linger_ms))

    def send(number: int) -> None:
        conversation = f"c{number % CONVERSATIONS}"
        body = b"%020d%-143d" % (time.perf_counter_ns(), number)
        value = codec.encode(Message.create(body, to="echo", conversation=conversation)) if codec else body
        producer.produce(source, value, conversation)
        producer.poll(0)

    def answered(count: int, within_s: float) -> None:
        until = time.monotonic() + within_s
        while len(got) < count:
            assert time.monotonic() < until, f"{count - len(got)} replies are missing"
            time.sleep(0.05)

    # The echo has started when it has answered one message of each conversation.
    for number in range(CONVERSATIONS):
        send(number)
    answered(CONVERSATIONS, 60)
    got.clear()
    count = int(RATE * seconds)
    started = time.perf_counter()
    for number in range(count):
        wait = started + number / RATE - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        send(number)
    assert producer.flush(30) == 0
    answered(count, 30)
    stop.set()
    thread.join()
    reader.close()
    bodies = [(at, codec.message(value, "", 0, 0, 0).body if codec else value) for at, value in got]
    warm = int(WARM_UP_S * RATE)
    return [(at - int(body[:20])) / 1e6 for at, body in bodies if int(body[20:]) >= warm]


def one(name: str, brokers: str, linger_ms: float, seconds: float, turn: int) -> list[float]:
    from llmagentos.streams.admin import ensure_topics
    from llmagentos.streams.topology import named

    prefix = f"latency{os.getpid()}-{name}-{linger_ms:g}-{turn}."
    settings = Settings.load(brokers=brokers, prefix=prefix)
    if name == "raw":
        source, target = f"{prefix}in", f"{prefix}out"
        ensure_topics(settings, [(topic, PARTITIONS, {}) for topic in (source, target)])
        with running("raw", brokers, source, target, str(linger_ms)):
            return measure(brokers, source, target, linger_ms, seconds, None)
    topics = [named(kind).of("echo") for kind in ("agent.NAME", "answers.NAME", "dead.NAME")]
    ensure_topics(settings, [*topics, named("replies"), named("events"), named("cards")])
    with running("agent", brokers, prefix, str(linger_ms)):
        source, target = settings.topic("agent.echo"), settings.topic("replies")
        return measure(brokers, source, target, linger_ms, seconds, settings)


def compare(brokers: str, rounds: int, seconds: float) -> None:
    default = Settings.load().linger_ms
    figures: dict[str, float] = {}
    table = Table(title=f"{RATE} messages a second for {seconds:g} s, producer to echo to reader, median of {rounds}")
    for column in ("linger", "echo", "p50 ms", "p99 ms", "ours is", "must be"):
        table.add_column(column, justify="left" if column == "echo" else "right")
    for linger_ms in dict.fromkeys((0.0, default)):
        found: dict[str, list[list[float]]] = {"ours": [], "raw": []}
        for turn in range(rounds):
            for name in ("ours", "raw") if turn % 2 else ("raw", "ours"):
                found[name].append(statistics.quantiles(one(name, brokers, linger_ms, seconds, turn), n=100))
                last = found[name][-1]
                print(f"linger {linger_ms:g} {name}: p50 {last[49]:.2f} ms, p99 {last[98]:.2f} ms", file=sys.stderr)
        middle = {
            name: {"p50": statistics.median(q[49] for q in runs), "p99": statistics.median(q[98] for q in runs)}
            for name, runs in found.items()
        }
        ratio = " ".join(f"{p} {middle['ours'][p] / middle['raw'][p]:.2f}x" for p in MUST)
        must = " ".join(f"{p} {limit:g}x" for p, limit in MUST.items())
        for name, is_ours in (("ours", True), ("raw", False)):
            row = (f"{middle[name]['p50']:.2f}", f"{middle[name]['p99']:.2f}")
            table.add_row(f"{linger_ms:g} ms", name, *row, ratio if is_ours else "", must if is_ours else "")
        if linger_ms == 0:
            figures = {f"{name}_{p}_ms": round(middle[name][p], 2) for name in middle for p in MUST}
    Console().print(table)
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        kind, brokers, *names, linger_ms = options.run
        (echo_raw if kind == "raw" else echo_agent)(brokers, *names, float(linger_ms))
        return
    with cluster() as settings:
        compare(settings.brokers, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
