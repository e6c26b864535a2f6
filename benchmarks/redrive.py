"""redrive: 100,000 messages held behind 1,000 dead letters are put back by one command. How fast, and in order?

A worker, as `deploy` starts it, serves one agent that fails each conversation's first message. 100 more of each
conversation are held behind it. Then the cause is mended, and `llmagentos dead redrive --agent desk` is typed. The
time is from that to the last answer; the answers, read from Kafka, must be each conversation's own, whole, once, and in
order: everything else is a violation. Must hold: at least 5,000/s, and no violation.

By py-spy the worker's time goes into reading and decoding what was held, and the record of its completion read back
(27 %), writing that record (13 %), the reply and its id (15 %), the lanes and futures around it. Before held messages
were brought in the order of the journal, eight records were read for one that was wanted (22 %), and fastavro's walk
over the journal's schema took 21 %.

    make bench NAME=redrive ARGS="--conversations 100 --held 20"
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from cluster import cluster
from rich.console import Console
from rich.table import Table

from llmagentos.agents import Message
from llmagentos.agents.deploying import deploy, undeploy
from llmagentos.agents.deployment import Deployments
from llmagentos.streams.entries import Decoder
from llmagentos.streams.position import BEGINNING, END
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.tail import Log
from llmagentos.streams.views import Place, Served, Views
from llmagentos.streams.wire import Codec

AGENT = """
import os
from pathlib import Path

from llmagentos.agents import agent

MENDED = Path(os.environ["LLMAGENTOS_BENCH_MENDED"])


@agent("desk", retries=0)
async def desk(message, ctx):
    if message.text == "0" and not MENDED.exists():
        # Of many kinds: for one alone the circuit breaker would pause the agent, and nothing would be parked.
        raise type(f"Broken{hash(message.conversation_id) % 50}", (Exception,), {})("not mended yet")
    return message.text
"""

DEPLOYMENT = "redrive"
#: Longer than anything here takes on a busy machine.
PATIENCE_S = 240.0


async def send(settings: Settings, conversations: int, held: int) -> None:
    """The first message of every conversation, then the second of every one, and so on."""
    codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
    async with Producer(settings, codec) as producer:
        for number in range(held + 1):
            for conversation in range(conversations):
                await producer.send(Message.create(str(number), to="desk", conversation=f"c{conversation}"))


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {PATIENCE_S:g} s in vain for {what}")
        time.sleep(0.1)


def open_messages(settings: Settings) -> Callable[[], int]:
    """A function that says how many messages are parked or held."""
    views = Views(settings, Decoder(settings).codec, {"desk": Served(DEPLOYMENT, settings.topic("agent.desk"))})
    places = [Place("desk", partition) for partition in range(settings.partitions)]
    with Log(settings) as log:
        views.add(places, time.time_ns() // 1_000_000, log)

    def count() -> int:
        views.refresh()
        return sum(len(views[place]) for place in places)

    return count


def replies(settings: Settings) -> int:
    """How many records there are of answers."""
    topic = settings.topic("replies")
    with Log(settings) as log:
        return sum(
            map(len, log.spans([(topic, partition) for partition in range(log.topics()[topic])], BEGINNING, END))
        )


def answers(settings: Settings) -> tuple[dict[str, list[int]], float]:
    """The results by conversation, in the order of the topic; and when the last one was written."""
    decoder = Decoder(settings)
    found: dict[str, list[int]] = {}
    last_ms = 0
    topic = settings.topic("replies")
    with Log(settings) as log:
        places = [(topic, partition) for partition in range(log.topics()[topic])]
        for record in log.read(log.spans(places, BEGINNING, END)):
            assert record is not None
            message = decoder.entry(record).message
            assert message is not None
            if message.type == "result":
                found.setdefault(message.conversation_id, []).append(int(message.text))
                last_ms = max(last_ms, record.timestamp()[1])
    return found, last_ms / 1000


def measure(settings: Settings, conversations: int, held: int) -> dict[str, float]:
    mended = settings.home / "mended"
    program = settings.home / "desk_agent.py"
    program.write_text(AGENT, encoding="utf-8")
    environment = {
        **os.environ,
        "LLMAGENTOS_HOME": str(settings.home),
        "LLMAGENTOS_BROKERS": settings.brokers,
        "LLMAGENTOS_PREFIX": settings.prefix,
        "LLMAGENTOS_BENCH_MENDED": str(mended),
    }
    try:
        deploy(settings, str(program), name=DEPLOYMENT, workers=1, environment=environment)
        begun = time.time()
        asyncio.run(send(settings, conversations, held))
        count = open_messages(settings)
        until(lambda: count() == conversations * (held + 1), "all messages to be held")
        hold_s = time.time() - begun
        process = Deployments(settings.home).workers(DEPLOYMENT)[0].process
        assert process is not None
        worker = psutil.Process(process.pid)
        spent_s = sum(worker.cpu_times()[:2])
        mended.touch()
        begun = time.time()
        command = [str(Path(sys.executable).with_name("llmagentos")), "dead", "redrive", "--agent", "desk"]
        done = subprocess.run([*command, "--yes"], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"the command ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        said_s = time.time() - begun
        answered = conversations * (held + 2)  # each conversation's error is among them
        until(lambda: replies(settings) >= answered, "all messages to be answered")
        spent_s = sum(worker.cpu_times()[:2]) - spent_s
        found, ended = answers(settings)
    finally:
        if DEPLOYMENT in Deployments(settings.home).names():
            undeploy(settings, DEPLOYMENT)
    wanted = list(range(held + 1))
    violations = sum(found.get(f"c{number}") != wanted for number in range(conversations))
    total = conversations * held
    return {
        "events_s": total / (ended - begun),
        "violations": violations,
        "hold_s": total / hold_s,
        "said_s": said_s,
        "cpu_us": spent_s / total * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--conversations", type=int, default=1_000)
    parser.add_argument("--held", type=int, default=100, help="messages behind each dead letter")
    arguments = parser.parse_args()
    with cluster() as settings:
        result = measure(settings, arguments.conversations, arguments.held)
    table = Table("", "measured", "must hold", title=f"{arguments.conversations:,} x {arguments.held} held messages")
    table.add_row("redriven, messages/s", f"{result['events_s']:,.0f}", "5,000")
    table.add_row("conversations not whole, once, in order", f"{result['violations']:,}", "0")
    table.add_row("of that, seconds until the command has ended", f"{result['said_s']:.1f}", "")
    table.add_row("of the worker, CPU microseconds a message", f"{result['cpu_us']:.0f}", "")
    table.add_row("before: sent and held, messages/s", f"{result['hold_s']:,.0f}", "")
    Console().print(table)
    figures = {"events_s": round(result["events_s"]), "violations": int(result["violations"])}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
