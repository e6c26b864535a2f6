"""ask: from agent to agent and back at 200 a second, against a raw produce-consume echo of the same run.

One worker has both agents; the asker's handler takes the time around its `ctx.ask`. So a question is encoded, sent,
read by the other agent's inbox, handled, its answer sent, read from `answers.NAME` and given to the handler: that is
two records through Kafka, where the echo is one. A client produces a record, with the same linger, and reads it back
itself. Both are measured at the same time.

    make bench NAME=ask ARGS="--seconds 20"
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import confluent_kafka
from cluster import cluster
from rich.console import Console
from rich.table import Table

from llmagentos.agents import Context, Message, agent
from llmagentos.streams.settings import Settings

RATE = 200
SECONDS = 20.0
CONVERSATIONS = 500
#: The echo takes some of the same machine: this often is enough for a median.
ECHO_RATE = 20
#: Of the beginning, for connections and caches; not counted.
WARM_UP = 0.2
#: What must hold, as ours to the echo.
MUST = 5.0


def echo(settings: Settings, topic: str, over: threading.Event, times: list[float]) -> None:
    """Produce, read back, note how long that took; in a thread."""
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": settings.brokers, "acks": "all", "linger.ms": settings.linger_ms}
    )
    reader = confluent_kafka.Consumer({"bootstrap.servers": settings.brokers, "group.id": "echo"})
    reader.assign([confluent_kafka.TopicPartition(topic, 0, 0)])
    while not over.is_set():
        before = time.perf_counter()
        producer.produce(topic, b"x" * 300)
        while (record := reader.poll(0.001)) is None or record.error():
            producer.poll(0)
        times.append(time.perf_counter() - before)
        over.wait(max(0.0, 1 / ECHO_RATE - times[-1]))
    producer.flush()
    reader.close()


def run_worker(brokers: str, prefix: str, seconds: float) -> dict[str, float]:
    """A worker with both agents in this process, and who sends to it."""
    import uvloop

    from llmagentos.agents.loading import LoadedModule
    from llmagentos.agents.worker import Worker
    from llmagentos.streams.producer import Producer
    from llmagentos.streams.registry import open_registry
    from llmagentos.streams.wire import Codec

    times: list[float] = []

    @agent("asker")
    async def asker(message: Message, ctx: Context) -> None:
        before = time.perf_counter()
        assert await ctx.ask("told", message.text) == message.text
        times.append(time.perf_counter() - before)

    @agent("told")
    async def told(message: Message, ctx: Context) -> str:
        return message.text

    async def main() -> dict[str, float]:
        settings = Settings.load(brokers=brokers, prefix=prefix)
        loaded = LoadedModule(__file__, "bench", Path(__file__), "0", {"asker": asker, "told": told}, None)
        worker = Worker(settings, f"{prefix}bench", loaded)
        running = asyncio.create_task(worker.run())
        while worker.state != "running":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        over, echoes = threading.Event(), list[float]()
        thread = threading.Thread(target=echo, args=(settings, f"{prefix}echo", over, echoes))
        thread.start()
        codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
        count, started = round(seconds * RATE), time.perf_counter()
        async with Producer(settings, codec) as producer:
            for number in range(count):
                await asyncio.sleep(max(0.0, started + number / RATE - time.perf_counter()))
                message = Message.create("hello", to="asker", conversation=f"c{number % CONVERSATIONS}")
                await producer.send(message)
        until = time.perf_counter() + 30
        while len(times) < count:
            assert time.perf_counter() < until, f"{len(times)} of {count} answers came"
            await asyncio.sleep(0.05)
        over.set()
        await asyncio.to_thread(thread.join)
        worker.stop()
        await running
        return {"ask_p50_ms": _p50_ms(times), "echo_p50_ms": _p50_ms(echoes)}

    return uvloop.run(main())


def _p50_ms(times: list[float]) -> float:
    return statistics.median(times[round(len(times) * WARM_UP) :]) * 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run_worker(*options.run, options.seconds)))
        return
    from llmagentos.streams.admin import ensure_topics
    from llmagentos.streams.topology import named

    with cluster() as settings:
        prefix = f"bench{os.getpid()}."
        settings = settings.model_copy(update={"prefix": prefix})
        kinds = ("agent", "answers", "dead", "journal")
        topics = [named(f"{kind}.NAME").of(name) for kind in kinds for name in ("asker", "told")]
        ensure_topics(settings, [*topics, named("replies"), named("events"), named("cards")])
        ensure_topics(settings, [(f"{prefix}echo", 1, {})])
        command = [sys.executable, __file__, "--run", settings.brokers, prefix, "--seconds", str(options.seconds)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
    figures = json.loads(done.stdout.splitlines()[-1])
    table = Table("what", "p50", "asking is", "must be at most", title=f"{RATE} questions a second")
    table.add_row("agent to agent and back", f"{figures['ask_p50_ms']:.2f} ms", "", "")
    ratio = figures["ask_p50_ms"] / figures["echo_p50_ms"]
    table.add_row("raw echo", f"{figures['echo_p50_ms']:.2f} ms", f"{ratio:.2f}x", f"{MUST:g}x")
    Console().print(table)
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
