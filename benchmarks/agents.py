"""agents: the work of the benchmark `transport` through `@agent` with a reply, everything on.

The same 200k events as there, each the body of a message in an agent's inbox: so besides the event, the message is
decoded and the reply encoded, with checksum, ids, lanes, commit gate and the check of every delivery. Beside it run
Faust on our transport and the raw loop, with the bare events, as in `transport`. The clock runs from the first message
handled until the last reply is acknowledged; a separate reader counts the replies and looks at each for the swap.

What a profile says (180k messages, py-spy, share of the event loop's time): decoding the message 20 %, the work itself
20 %, encoding the reply 12 %, making it 12 % (half of that its id), handing it to librdkafka 8 %, delivery reports 2 %;
lanes, gate and hand-out together under 10 %. So what `agents` costs over `transport` is mostly the second Avro record
around the event, in and out, which the raw loop does not have.

    make bench NAME=agents ARGS="--rounds 3 --messages 200000"
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peers
import transport
from cluster import cluster
from rich.console import Console
from rich.table import Table

from llmagentos.agents import Context, Message, agent
from llmagentos.streams.settings import Settings

MESSAGES = 200_000
ROUNDS = 3
#: What runs, and its name in table and figures; `agents` is this benchmark's, the others are of `transport`.
RUNTIMES = {"agents": "agents", "transport": "ours", "raw": "raw"}
#: What must hold, as ours to the other's rate.
MUST = {"transport": 0.6, "raw": 0.25}


def run_agents(brokers: str, prefix: str, count: int) -> dict[str, float]:
    """A worker with one agent, in this process."""
    import uvloop

    from llmagentos.agents.loading import LoadedModule
    from llmagentos.agents.worker import Worker

    clock = transport.Clock()
    done = asyncio.Event()

    @agent("swap")
    async def swap(message: Message, ctx: Context) -> bytes:
        changed = clock.work(message.body)
        if clock.count == count:
            done.set()
        return changed

    async def main() -> dict[str, float]:
        settings = Settings.load(brokers=brokers, prefix=prefix)
        loaded = LoadedModule(__file__, "bench", Path(__file__), "0", {"swap": swap}, None)
        worker = Worker(settings, f"{prefix}bench", loaded)
        running = asyncio.create_task(worker.run())
        await asyncio.wait((running, asyncio.create_task(done.wait())), return_when=asyncio.FIRST_COMPLETED)
        # The last reply is sent after its handler has returned.
        while worker.app.producer.core.sent < count:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await worker.app.producer.core.delivered()
        told = clock.told()
        worker.stop()
        await running
        return told

    return uvloop.run(main())


async def fill(settings: Settings, count: int) -> None:
    """The events, as messages in the inbox of the agent."""
    from llmagentos.streams.producer import Producer
    from llmagentos.streams.registry import open_registry
    from llmagentos.streams.wire import Codec

    codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
    async with Producer(settings, codec) as producer:
        for key, value in transport.records(count):
            await producer.send(Message.create(value, to="swap", conversation=key.decode()))


def check(settings: Settings, count: int) -> None:
    """Read the replies with a reader of its own: all there, each the swapped event."""
    from confluent_kafka import Consumer, TopicPartition

    from llmagentos.streams.registry import open_registry
    from llmagentos.streams.wire import Codec

    codec = Codec(open_registry(settings))
    topic = settings.topic("replies")
    reader = Consumer({"bootstrap.servers": settings.brokers, "group.id": "check", "enable.auto.commit": False})
    ends = [reader.get_watermark_offsets(TopicPartition(topic, p), 10)[1] for p in range(transport.PARTITIONS)]
    reader.assign([TopicPartition(topic, p, 0) for p in range(transport.PARTITIONS) if ends[p]])
    seen: set[int] = set()
    left = sum(ends)
    while left:
        batch = reader.consume(1000, 5.0)
        assert batch, f"{left} replies can't be read"
        for record in batch:
            event = transport.decode(codec.read(record).body)
            assert event["first"] == "omega", event
            seen.add(event["number"])
        left -= len(batch)
    reader.close()
    assert len(seen) == count, f"{topic} answers {len(seen)} different events, not {count}"


def one(name: str, brokers: str, prefix: str, count: int) -> float:
    """One run in a process of its own; events a second, after its outputs were checked.

    Args:
        name: `agents`, or of a runtime of the benchmark `transport`.
    """
    from llmagentos.streams.admin import Admin, ensure_topics
    from llmagentos.streams.topology import named

    settings = Settings.load(brokers=brokers, prefix=prefix)
    source, target = f"{prefix}in", f"{prefix}out"
    if name == "agents":
        topics = [named(kind).of("swap") for kind in ("agent.NAME", "answers.NAME", "dead.NAME", "journal.NAME")]
        ensure_topics(settings, [*topics, named("replies"), named("events"), named("cards")])
        asyncio.run(fill(settings, count))
        command = [sys.executable, __file__, "--run", brokers, prefix, str(count)]
    else:
        ensure_topics(settings, [(topic, transport.PARTITIONS, {}) for topic in (source, target)])
        transport.fill(brokers, source, count)
        count = min(count, transport.SLOW.get(name, count))
        python = sys.executable if name in ("ours", "raw") else str(peers.ensure())
        command = [python, transport.__file__, "--run", name, brokers, source, target, prefix, str(count)]
    with tempfile.TemporaryDirectory(prefix="llmagentos-bench-") as folder:  # Faust keeps state where it runs
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if name == "agents":
        check(settings, count)
    else:
        transport.check(brokers, target, count)
    admin = Admin(settings)
    admin.delete([topic for topic in admin.topics(prefix) if topic != settings.topic("schemas")])
    return told["events"] / told["seconds"]


def compare(brokers: str, messages: int, rounds: int, runtimes: Mapping[str, str], must: Mapping[str, float]) -> None:
    """Run the rounds, print the table and the figures.

    Args:
        runtimes: what runs, by the name that it has in table and figures; the first is ours.
        must: what must hold, as ours to the other's rate.
    """
    names = list(runtimes)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            rate = one(runtimes[name], brokers, f"bench{os.getpid()}-{name}-{turn}.", messages)
            rates[name].append(rate)
            print(f"round {turn + 1} {name}: {rate:,.0f}/s", file=sys.stderr)
    middle = {name: statistics.median(found) for name, found in rates.items()}
    table = Table(title=f"{messages:,} events of 163 bytes, 8 partitions, one process, median of {rounds}")
    for column in ("runtime", "events/s", "lowest", "highest", "ours is", "must be"):
        table.add_column(column, justify="left" if column == "runtime" else "right")
    for name in names:
        ratio = f"{middle[names[0]] / middle[name]:.2f}x" if name != names[0] else ""
        wanted = f"{must[name]:g}x" if name in must else ""
        table.add_row(
            name, f"{middle[name]:,.0f}", f"{min(rates[name]):,.0f}", f"{max(rates[name]):,.0f}", ratio, wanted
        )
    Console().print(table)
    print(json.dumps({name: round(rate) for name, rate in middle.items()}))


def main(about: str | None = __doc__, runtimes: Mapping[str, str] = RUNTIMES, must: Mapping[str, float] = MUST) -> None:
    """As the command line says; see :func:`compare`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        brokers, prefix, count = options.run
        print(json.dumps(run_agents(brokers, prefix, int(count))))
        return
    with cluster() as settings:
        compare(settings.brokers, options.messages, options.rounds, runtimes, must)


if __name__ == "__main__":
    main()
