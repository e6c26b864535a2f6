"""many: a handler that waits for 2 s, 100,000 conversations, 20,000 in flight in one worker: its memory and its rate.

The worker is the real process, as `deploy` starts it, and the handler counts how many run at once. Memory is the
highest resident size seen while it works, less that of the idle worker, a message in flight: so it has what librdkafka
has fetched and what the allocator keeps in it too. 10,000 messages a second are possible. Must hold: at most 20 kB,
at least 8,000/s.

What a profile says: a message costs 47 us of CPU in the event loop's thread, its start included. Python's collector
took 2.8 of 12.7 s (by the wall, on a busy machine): it has more to look at the more handlers wait.

    make bench NAME=many ARGS="--messages 200000"
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from cluster import cluster
from rich.console import Console
from rich.table import Table

from llmagentos.agents import Message
from llmagentos.agents.loading import load
from llmagentos.agents.provision import provision
from llmagentos.agents.worker import read_status
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec

CONVERSATIONS = 100_000
IN_FLIGHT = 20_000
MUST_KB = 20
MUST_RATE = 8_000

AGENT = """
import asyncio, json, pathlib, time
from llmagentos.agents import agent

running = most = handled = 0
started = 0.0

@agent("wait")
async def wait(message, ctx):
    global running, most, handled, started
    started = started or time.perf_counter()
    running += 1
    most = max(most, running)
    await asyncio.sleep(2)
    running -= 1
    handled += 1
    if handled == {messages}:
        told = {{"most": most, "seconds": time.perf_counter() - started}}
        pathlib.Path({result!r}).write_text(json.dumps(told))
"""


async def send(settings: Settings, count: int) -> None:
    codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
    async with Producer(settings, codec) as producer:
        for number in range(count):
            await producer.send(Message.create(b"x" * 100, to="wait", conversation=f"c{number % CONVERSATIONS}"))


def measure(settings: Settings, count: int) -> dict[str, float]:
    """Fill the inbox while the worker is not there yet for it, and look at the worker's memory as it works it off."""
    home = settings.home
    result = home / "result.json"
    module = home / "wait_agent.py"
    module.write_text(AGENT.format(messages=count, result=str(result)), encoding="utf-8")
    provision(settings, "many", load(str(module)))
    environment = os.environ | {
        "LLMAGENTOS_BROKERS": settings.brokers,
        "LLMAGENTOS_PREFIX": settings.prefix,
        "LLMAGENTOS_MAX_IN_FLIGHT": str(IN_FLIGHT),
    }
    idle_mb = peak_mb = 0.0
    for filled in (False, True):  # an idle one, and one with work
        if filled:
            asyncio.run(send(settings, count))
        process = _start(home, module, environment)
        try:
            worker = psutil.Process(process.pid)
            if not filled:
                time.sleep(3)  # what its start left to do
                idle_mb = worker.memory_info().rss / 2**20
                continue
            until = time.monotonic() + 240
            while not result.exists() or not result.read_text(encoding="utf-8"):
                assert process.poll() is None, (home / "worker.log").read_text(encoding="utf-8")[-3000:]
                assert time.monotonic() < until, "the worker did not handle all messages"
                peak_mb = max(peak_mb, worker.memory_info().rss / 2**20)
                time.sleep(0.1)
        finally:
            process.terminate()
            process.wait(30)
    told = json.loads(result.read_text(encoding="utf-8"))
    assert told["most"] <= IN_FLIGHT + 2_000, f"{told['most']} were in flight"
    return {
        "kb_per_message": round((peak_mb - idle_mb) * 1024 / told["most"], 1),
        "events_s": round(count / told["seconds"]),
        "idle_mb": round(idle_mb, 1),
        "peak_mb": round(peak_mb, 1),
        "in_flight": told["most"],
    }


def _start(home: Path, module: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    (home / "worker-0.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "llmagentos.agents.worker", "--deployment", "many", "--target", str(module)]
    with (home / "worker.log").open("wb") as log:
        process = subprocess.Popen([*command, "--run-dir", str(home)], env=environment, stderr=log)
    until = time.monotonic() + 60
    while (status := read_status(home, 0)) is None or status.state != "running":
        assert process.poll() is None, (home / "worker.log").read_text(encoding="utf-8")
        assert time.monotonic() < until, "the worker did not start"
        time.sleep(0.05)
    return process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=200_000)
    options = parser.parse_args()
    with cluster() as settings:
        figures = measure(settings, options.messages)
    table = Table("figure", "measured", "must be")
    table.add_row("memory a message in flight", f"{figures['kb_per_message']:.1f} kB", f"at most {MUST_KB} kB")
    table.add_row("messages/s", f"{figures['events_s']:,.0f}", f"at least {MUST_RATE:,}")
    table.add_row("in flight at once", f"{figures['in_flight']:,.0f}", f"{IN_FLIGHT:,}")
    table.add_row("worker, idle", f"{figures['idle_mb']:.0f} MB", "")
    table.add_row("worker, at most", f"{figures['peak_mb']:.0f} MB", "")
    Console().print(table)
    print(json.dumps({name: figures[name] for name in ("kb_per_message", "events_s")}))


if __name__ == "__main__":
    main()
