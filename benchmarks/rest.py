"""rest: a worker that has nothing to do: its CPU and memory; and its memory after 200k messages went through it.

The worker is the real process, as `deploy` starts it. Must hold: at rest under 1% of a core and under 150 MB; after
200k messages under 100 MB more.

    make bench NAME=rest ARGS="--seconds 20"
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time

import psutil
import transport
from cluster import cluster
from rich.console import Console
from rich.table import Table

from llmagentos.agents import Message
from llmagentos.agents.loading import load
from llmagentos.agents.provision import provision
from llmagentos.agents.worker import read_status
from llmagentos.streams.admin import Admin
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec

AGENT = """
from llmagentos.agents import agent

@agent("echo")
async def echo(message, ctx):
    return message.body
"""


async def send(settings: Settings, count: int) -> None:
    codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
    async with Producer(settings, codec) as producer:
        for key, value in transport.records(count):
            await producer.send(Message.create(value, to="echo", conversation=key.decode()))


def wait_until_handled(settings: Settings, group: str, count: int) -> None:
    """Until the group's committed offsets cover *count* messages."""
    admin, topic = Admin(settings), settings.topic("agent.echo")
    until = time.monotonic() + 300
    while sum(offset for offset in admin.committed(group, [topic]).values() if offset > 0) < count:
        assert time.monotonic() < until, "the worker did not handle all messages"
        time.sleep(0.2)


def measure(settings: Settings, seconds: float, count: int) -> dict[str, float]:
    home = settings.home
    module = home / "echo_agent.py"
    module.write_text(AGENT, encoding="utf-8")
    provision(settings, "rest", load(str(module)))
    environment = os.environ | {"LLMAGENTOS_BROKERS": settings.brokers, "LLMAGENTOS_PREFIX": settings.prefix}
    command = [sys.executable, "-m", "llmagentos.agents.worker", "--deployment", "rest", "--target", str(module)]
    with (home / "worker.log").open("wb") as log:
        process = subprocess.Popen([*command, "--run-dir", str(home)], env=environment, stderr=log)
    try:
        until = time.monotonic() + 60
        while (status := read_status(home, 0)) is None or status.state != "running":
            assert process.poll() is None, (home / "worker.log").read_text()
            assert time.monotonic() < until, "the worker did not start"
            time.sleep(0.1)
        worker = psutil.Process(process.pid)
        time.sleep(3)  # what its start left to do
        spent = sum(worker.cpu_times()[:2])
        time.sleep(seconds)
        idle = sum(worker.cpu_times()[:2]) - spent
        rest_mb = worker.memory_info().rss / 2**20
        asyncio.run(send(settings, count))
        wait_until_handled(settings, "rest", count)
        after_mb = worker.memory_info().rss / 2**20
    finally:
        process.terminate()
        process.wait(30)
    return {
        "cpu_percent": round(100 * idle / seconds, 2),
        "rest_mb": round(rest_mb, 1),
        "grown_mb": round(after_mb - rest_mb, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--messages", type=int, default=200_000)
    options = parser.parse_args()
    with cluster() as settings:
        figures = measure(settings, options.seconds, options.messages)
    table = Table("figure", "measured", "must be")
    table.add_row("CPU at rest", f"{figures['cpu_percent']:.2f}% of a core", "under 1%")
    table.add_row("memory at rest", f"{figures['rest_mb']:.0f} MB", "under 150 MB")
    table.add_row(f"more after {options.messages:,} messages", f"{figures['grown_mb']:.0f} MB", "under 100 MB")
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
