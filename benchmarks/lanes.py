"""lanes: a handler that waits for 100 ms, 1,000 conversations, each strictly in order, 8 partitions, one worker.

So 10,000 messages a second are possible. Ours runs against stock Faust with concurrency 8, and against Confluent's
Parallel Consumer (Java, key order, a concurrency of 1,000) in its two forms: a thread for each message, and reactor.
All read the same topic, where the conversations take turns; each is a process of its own, and the clock runs from the
first handler's begin to the last one's end. Each checks that no conversation's messages overtake each other. Stock
Faust handles few messages at a time, so it gets fewer.

What a profile of ours says: a message costs 36 us of CPU, 33 of them in the event loop's thread, so 9,000 a second take
a third of a core. The rest to 10,000 is delay: a conversation's next message begins some 5 ms after the 100 are over,
as timers and what became ready wait for the loop's turn. So the figure falls when others use the cores.

    make bench NAME=lanes ARGS="--rounds 3 --messages 100000"
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MESSAGES = 100_000
ROUNDS = 3
PARTITIONS = 8
CONVERSATIONS = 1_000
HANDLER_S = 0.1

#: Ten seconds at the 77 messages a second that it can handle.
FAUST_MESSAGES = 800

NAMES = ("ours", "faust", "core", "reactor")
#: What must hold: messages a second, and as ours to the peer's rate.
MUST_RATE = 9_000
MUST = {"faust": 100.0, "parallel_consumer": 1.0}


class Clock:
    """Counts what was handled, from the first one on, and looks at the order."""

    def __init__(self, count: int) -> None:
        self.wanted = count
        self.done = asyncio.Event()
        self.handled = 0
        self.disorder = 0
        self.started = 0.0
        self.last: dict[object, int] = {}

    async def handle(self, conversation: object, offset: int) -> None:
        if not self.started:
            self.started = time.perf_counter()
        if self.last.get(conversation, -1) >= offset:
            self.disorder += 1
        self.last[conversation] = offset
        await asyncio.sleep(HANDLER_S)
        self.handled += 1
        if self.handled == self.wanted:
            self.seconds = time.perf_counter() - self.started
            self.done.set()

    def told(self) -> dict[str, float]:
        return {"events": self.handled, "seconds": self.seconds, "disorder": self.disorder}


def run_ours(brokers: str, prefix: str, group: str, count: int) -> dict[str, float]:
    """A worker with one agent, in this process."""
    import uvloop

    from llmagentos.agents import Context, Message, agent
    from llmagentos.agents.loading import LoadedModule
    from llmagentos.agents.worker import Worker
    from llmagentos.streams.settings import Settings

    clock = Clock(count)

    @agent("wait")
    async def wait(message: Message, ctx: Context) -> None:
        await clock.handle(message.conversation_id, message.offset)

    async def main() -> dict[str, float]:
        # Room for what waits behind the thousand that run.
        settings = Settings.load(brokers=brokers, prefix=prefix, max_in_flight=10_000)
        loaded = LoadedModule(__file__, "bench", Path(__file__), "0", {"wait": wait}, None)
        worker = Worker(settings, group, loaded)
        running = asyncio.create_task(worker.run())
        await asyncio.wait((running, asyncio.create_task(clock.done.wait())), return_when=asyncio.FIRST_COMPLETED)
        worker.stop()
        await running
        return clock.told()

    return uvloop.run(main())


def run_faust(brokers: str, prefix: str, group: str, count: int) -> dict[str, float]:
    """Plain Faust on aiokafka, an agent with concurrency 8."""
    import faust
    import uvloop

    url = ";".join(f"kafka://{broker}" for broker in brokers.split(","))
    app = faust.App(
        group, broker=url, topic_disable_leader=True, web_enabled=False, broker_max_poll_records=1000,
        cython_optimizations=True,
    )  # fmt: skip
    topic = app.topic(f"{prefix}agent.wait", key_type=bytes, value_type=bytes, value_serializer="raw")
    clock = Clock(count)

    @app.agent(topic, concurrency=8)
    async def wait(stream: Any) -> None:
        async for event in stream.events():
            # Eight streams share the partitions, so conversations overtake each other: that is not looked at.
            await clock.handle(object(), event.message.offset)

    async def main() -> dict[str, float]:
        await app.start()
        await clock.done.wait()
        await app.stop()
        return clock.told()

    return uvloop.run(main())


RUNS: dict[str, Callable[..., dict[str, float]]] = {"ours": run_ours, "faust": run_faust}


def parallel_consumer(cache: Path) -> list[str]:
    """The command that runs it, after its jars were fetched and its program was compiled."""
    from llmagentos.streams.node.jars import fetch, read_list

    compiler = shutil.which("javac")
    if compiler is None:
        raise SystemExit("there is no javac: install a JDK, or leave it out: --only ours faust")
    folder = cache / "parallel-consumer"
    path = ":".join(map(str, fetch(read_list(HERE / "parallel_consumer.txt"), folder)))
    subprocess.run([compiler, "-cp", path, "-d", str(folder), str(HERE / "ParallelConsumer.java")], check=True)
    return ["java", "-Xmx2g", "-cp", f"{folder}:{path}", "ParallelConsumer"]


async def fill(settings: Any, count: int) -> None:
    """The messages, in the inbox of the agent `wait`."""
    from llmagentos.agents import Message
    from llmagentos.streams.producer import Producer
    from llmagentos.streams.registry import open_registry
    from llmagentos.streams.wire import Codec

    codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
    async with Producer(settings, codec) as producer:
        for number in range(count):
            await producer.send(Message.create(b"x" * 100, to="wait", conversation=f"c{number % CONVERSATIONS}"))


def compare(settings: Any, messages: int, rounds: int, names: list[str]) -> None:
    """Run the rounds, print the table and the figures."""
    import peers
    from rich.console import Console
    from rich.table import Table

    from llmagentos.streams.admin import ensure_topics
    from llmagentos.streams.topology import named

    kinds = [named(kind).of("wait") for kind in ("agent.NAME", "answers.NAME", "dead.NAME", "journal.NAME")]
    ensure_topics(settings, [*kinds, named("replies"), named("events"), named("cards")])
    asyncio.run(fill(settings, messages))
    commands: dict[str, list[str]] = {"ours": [sys.executable, __file__, "--run", "ours"]}
    if "faust" in names:
        commands["faust"] = [str(peers.ensure()), __file__, "--run", "faust"]
    if {"core", "reactor"} & set(names):
        java = parallel_consumer(settings.cache)
        commands |= {form: [*java, form] for form in ("core", "reactor")}
    rates: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            count = min(messages, FAUST_MESSAGES) if name == "faust" else messages
            group = f"{settings.prefix}{name}-{turn}"
            arguments = [settings.brokers, settings.prefix, group, str(count)]
            if name in ("core", "reactor"):
                arguments = [settings.brokers, settings.topic("agent.wait"), group, str(count)]
                arguments += [str(CONVERSATIONS), str(round(HANDLER_S * 1000))]
            with tempfile.TemporaryDirectory(prefix="llmagentos-bench-") as folder:
                command = [*commands[name], *arguments]
                done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
            told = json.loads(done.stdout.splitlines()[-1])
            assert not told["disorder"], f"{name}: {told['disorder']} messages overtook others of their conversation"
            rates[name].append(told["events"] / told["seconds"])
            print(f"round {turn + 1} {name}: {rates[name][-1]:,.0f}/s", file=sys.stderr)
    middle = {name: statistics.median(found) for name, found in rates.items()}
    figures = {name: middle[name] for name in ("ours", "faust") if name in middle}
    if "core" in middle or "reactor" in middle:
        figures["parallel_consumer"] = max(middle.get("core", 0.0), middle.get("reactor", 0.0))
    titles = {
        "core": "Parallel Consumer, threads",
        "reactor": "Parallel Consumer, reactor",
        "faust": "Faust, 8 at once",
    }
    table = Table(
        title=f"{messages:,} messages of {CONVERSATIONS:,} conversations, a handler of {HANDLER_S * 1000:.0f} ms,"
        f" {PARTITIONS} partitions, median of {rounds}"
    )
    for column in ("runtime", "messages/s", "lowest", "highest", "ours is", "must be"):
        table.add_column(column, justify="left" if column == "runtime" else "right")
    for name in names:
        ratio = f"{middle['ours'] / middle[name]:.2f}x" if name != "ours" else ""
        must = MUST.get(name if name == "faust" else "parallel_consumer")
        wanted = f"{MUST_RATE:,}/s" if name == "ours" else f"{must:g}x"
        found = rates[name]
        table.add_row(
            titles.get(name, name), f"{middle[name]:,.0f}", f"{min(found):,.0f}", f"{max(found):,.0f}", ratio, wanted
        )
    Console().print(table)
    print(json.dumps({name: round(rate) for name, rate in figures.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--run", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        name, brokers, prefix, group, count = options.run
        print(json.dumps(RUNS[name](brokers, prefix, group, int(count))))
        return

    from cluster import cluster

    os.environ.setdefault("LLMAGENTOS_PARTITIONS", str(PARTITIONS))
    with cluster() as settings:
        compare(settings, options.messages, options.rounds, options.only)


if __name__ == "__main__":
    main()
