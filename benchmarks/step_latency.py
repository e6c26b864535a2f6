"""step-latency: one step at low load, beside a bare produce with acks=all and one step of DBOS, in the same run.

The step's function does nothing, so what is measured is its record: from the call of `ctx.step` until the handler
goes on. The bare produce is librdkafka's with the same linger, awaited from asyncio in the same process, in turns with
ours: a record counts for it when Kafka has it, for ours when it was read back. What lies between the two is a fetch.

    make bench NAME=step-latency ARGS="--seconds 20"
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
import peers
from cluster import cluster
from postgres import postgres
from rich.console import Console
from rich.table import Table

from llmagentos.agents import Context, Message, agent
from llmagentos.streams.settings import Settings

RATE = 20
SECONDS = 20.0
#: Of the beginning, for connections and caches; not counted.
WARM_UP = 0.1
#: What must hold, as ours to the bare produce; and to DBOS.
MUST = 2.5


class Bare:
    """Awaits records from asyncio, with a thread that serves librdkafka's reports."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._producer = confluent_kafka.Producer(
            {
                "bootstrap.servers": settings.brokers,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": settings.linger_ms,
            }
        )
        self._topic = topic
        self._loop = asyncio.get_running_loop()
        self._over = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while not self._over.is_set():
            self._producer.poll(0.1)

    async def produce(self, value: bytes) -> float:
        """Seconds until Kafka has it."""
        future: asyncio.Future[None] = self._loop.create_future()

        def report(error: object, _: object) -> None:
            assert error is None, error
            self._loop.call_soon_threadsafe(future.set_result, None)

        before = time.perf_counter()
        self._producer.produce(self._topic, value, on_delivery=report)
        await future
        return time.perf_counter() - before

    def close(self) -> None:
        self._over.set()


def run_worker(brokers: str, prefix: str, seconds: float) -> dict[str, float]:
    """A worker with one agent in this process, and a client that asks it; medians of both."""
    import uvloop

    from llmagentos.agents.loading import LoadedModule
    from llmagentos.agents.worker import Worker
    from llmagentos.streams.producer import Producer
    from llmagentos.streams.registry import open_registry
    from llmagentos.streams.wire import Codec

    times: list[float] = []
    done = asyncio.Event()

    async def nothing() -> int:
        return 1

    @agent("stepper")
    async def stepper(message: Message, ctx: Context) -> None:
        before = time.perf_counter()
        await ctx.step("nothing", nothing)
        times.append(time.perf_counter() - before)
        done.set()

    async def main() -> dict[str, float]:
        settings = Settings.load(brokers=brokers, prefix=prefix)
        loaded = LoadedModule(__file__, "bench", Path(__file__), "0", {"stepper": stepper}, None)
        worker = Worker(settings, f"{prefix}bench", loaded)
        running = asyncio.create_task(worker.run())
        while worker.state != "running":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        bare, bares = Bare(settings, f"{prefix}bare"), list[float]()
        codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
        async with Producer(settings, codec) as producer:
            for number in range(round(seconds * RATE)):
                started = time.perf_counter()
                done.clear()
                await producer.send(Message.create("x", to="stepper", conversation=f"c{number % 50}"))
                await asyncio.wait_for(done.wait(), 30)
                bares.append(await bare.produce(b"x" * 300))  # a step's record is as long
                await asyncio.sleep(max(0.0, 1 / RATE - (time.perf_counter() - started)))
        bare.close()
        worker.stop()
        await running
        return {"step_p50_ms": _p50_ms(times), "produce_p50_ms": _p50_ms(bares)}

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

    python = peers.ensure("dbos")
    with cluster() as settings, postgres() as url:
        prefix = f"bench{os.getpid()}."
        settings = settings.model_copy(update={"prefix": prefix})
        topics = [named(f"{kind}.NAME").of("stepper") for kind in ("agent", "answers", "dead", "journal")]
        ensure_topics(settings, [*topics, named("replies"), named("events"), named("cards")])
        ensure_topics(settings, [(f"{prefix}bare", 1, {})])
        told = _told([sys.executable, __file__, "--run", settings.brokers, prefix, "--seconds", str(options.seconds)])
        program = str(Path(__file__).with_name("dbos_steps.py"))
        dbos = _told([str(python), program, url, "latency", str(round(options.seconds * RATE)), str(RATE)])
    figures = {**told, "dbos_p50_ms": dbos["p50_ms"]}
    table = Table("what", "p50", "a step of ours is", "must be at most", title=f"{RATE} a second")
    ours = figures["step_p50_ms"]
    table.add_row("a step of ours", f"{ours:.2f} ms", "", "")
    for name, what, most in (("produce_p50_ms", "a bare produce", MUST), ("dbos_p50_ms", "a step of DBOS", 1.0)):
        table.add_row(what, f"{figures[name]:.2f} ms", f"{ours / figures[name]:.2f}x", f"{most:g}x")
    Console().print(table)
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


def _told(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise SystemExit(f"{command[1]} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
