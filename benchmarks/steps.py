"""steps: three trivial steps a message, 500 conversations, one worker; beside DBOS with PostgreSQL in the same run.

Ours is the worker as it is deployed: each step's result is a record in the journal that is read back before the handler
goes on, and each message is completed by one more. Kafka's durability is replication, so a record counts when the
replicas have it in memory; DBOS has PostgreSQL write it to disk. So ours is also shown with the journal flushed to disk
at each write (`flush.messages=1`). DBOS runs in its best mode in one process, which is sync functions in 8 threads; its
rate is steady, so it does fewer. What was recorded is counted from outside afterwards.

What a profile says (20,000 messages, py-spy, share of the time with the interpreter's lock): writing journal records
24 %, of which encoding 10 and handing them over 6; reading them back 15 %, mostly decoding; the rest of a step, its
name, its result and its tasks 20 %; the message's own way, reply and completion 30 %. A step's result is decoded once
in vain there, as the handler is given what a rerun would be.

    make bench NAME=steps ARGS="--messages 20000 --rounds 3"
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import peers
from cluster import cluster
from postgres import postgres
from rich.console import Console
from rich.table import Table

from llmagentos.agents import Context, Message, agent
from llmagentos.streams.settings import Settings

MESSAGES = 20_000
CONVERSATIONS = 500
DBOS_WORKFLOWS = 600
ROUNDS = 3
#: What must hold, as ours to DBOS.
MUST = 10.0


def run_worker(brokers: str, prefix: str, count: int) -> dict[str, float]:
    """A worker with one agent, in this process, until it has handled *count* messages."""
    import time

    import uvloop

    from llmagentos.agents.loading import LoadedModule
    from llmagentos.agents.worker import Worker

    done = asyncio.Event()
    handled, started = 0, 0.0

    async def trivial(number: int) -> int:
        return number + 1

    @agent("steps")
    async def steps(message: Message, ctx: Context) -> str:
        nonlocal handled, started
        started = started or time.perf_counter()
        number = int(message.text)
        for _ in range(3):
            number = await ctx.step("trivial", trivial, number)
        handled += 1
        if handled == count:
            done.set()
        return str(number)

    async def main() -> float:
        settings = Settings.load(brokers=brokers, prefix=prefix)
        loaded = LoadedModule(__file__, "bench", Path(__file__), "0", {"steps": steps}, None)
        worker = Worker(settings, f"{prefix}bench", loaded)
        running = asyncio.create_task(worker.run())
        await asyncio.wait((running, asyncio.create_task(done.wait())), return_when=asyncio.FIRST_COMPLETED)
        seconds = time.perf_counter() - started
        worker.stop()
        await running
        return seconds

    return {"steps": 3 * count, "seconds": uvloop.run(main())}


async def fill(settings: Settings, count: int) -> None:
    """The messages in the inbox."""
    from llmagentos.streams.producer import Producer
    from llmagentos.streams.registry import open_registry
    from llmagentos.streams.wire import Codec

    codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
    async with Producer(settings, codec) as producer:
        for number in range(count):
            message = Message.create(str(number), to="steps", conversation=f"c{number % CONVERSATIONS}")
            await producer.send(message)


def check(settings: Settings, count: int) -> None:
    """Each message has its three steps and one completion, and nothing of it is there twice."""
    from llmagentos.streams.registry import open_registry
    from llmagentos.streams.spans import Spans
    from llmagentos.streams.wire import Codec

    codec, spans = Codec(open_registry(settings)), Spans(settings, name="check")
    found: Counter[tuple[str, str, int]] = Counter()
    for batch in spans.whole(settings.topic("journal.steps")):
        for record in batch:
            entry: dict[str, Any] = codec.decode(record.value() or b"")
            if entry["kind"] in ("step", "done"):
                found[entry["message_id"], entry["kind"], entry["step"]["number"] if entry["step"] else 0] += 1
    spans.close()
    assert len(found) == 4 * count, f"{len(found)} different records, not {4 * count}"
    assert set(found.values()) == {1}, "some are there twice"


def ours(brokers: str, prefix: str, count: int, *, flush: bool) -> float:
    """Steps a second of one run in a process of its own."""
    from llmagentos.streams.admin import Admin, ensure_topics
    from llmagentos.streams.topology import named

    settings = Settings.load(brokers=brokers, prefix=prefix)
    kind = named("journal.NAME").of("steps")
    config = kind.config | ({"flush.messages": "1"} if flush else {})
    admin = Admin(settings)
    admin.ensure([(settings.topic(kind.name), settings.partitions, config)])
    topics = [named(name).of("steps") for name in ("agent.NAME", "answers.NAME", "dead.NAME")]
    ensure_topics(settings, [*topics, named("replies"), named("events"), named("cards")])
    asyncio.run(fill(settings, count))
    told = _told([sys.executable, __file__, "--run", brokers, prefix, str(count)])
    check(settings, count)
    admin.delete([topic for topic in admin.topics(prefix) if topic != settings.topic("schemas")])
    return told["steps"] / told["seconds"]


def dbos(url: str) -> float:
    """The same of DBOS."""
    program = Path(__file__).with_name("dbos_steps.py")
    told = _told([str(peers.ensure("dbos")), str(program), url, "steps", str(DBOS_WORKFLOWS)])
    return told["steps"] / told["seconds"]


def _told(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise SystemExit(f"{command[1]} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        brokers, prefix, count = options.run
        print(json.dumps(run_worker(brokers, prefix, int(count))))
        return
    rates: dict[str, list[float]] = {"ours": [], "ours_fsync": [], "dbos": []}
    peers.ensure("dbos")
    with cluster() as settings, postgres() as url:
        for turn in range(options.rounds):
            for name in rates:
                prefix = f"bench{os.getpid()}-{name}-{turn}."
                if name == "dbos":
                    rate = dbos(url)
                else:
                    rate = ours(settings.brokers, prefix, options.messages, flush=name == "ours_fsync")
                rates[name].append(rate)
                print(f"round {turn + 1} {name}: {rate:,.0f} steps/s", file=sys.stderr)
    middle = {name: statistics.median(found) for name, found in rates.items()}
    table = Table(
        "runtime", "steps/s", "ours is", "must be", title=f"three steps a message, median of {options.rounds}"
    )
    table.add_row("ours", f"{middle['ours']:,.0f}", "", "")
    table.add_row("ours, flushed to disk", f"{middle['ours_fsync']:,.0f}", "", "")
    table.add_row("DBOS, 8 threads", f"{middle['dbos']:,.0f}", f"{middle['ours'] / middle['dbos']:.1f}x", f"{MUST:g}x")
    Console().print(table)
    print(json.dumps({name: round(rate) for name, rate in middle.items()}))


if __name__ == "__main__":
    main()
