"""What the benchmarks `waiting`, `resume` and `recover` share: workers as `deploy` starts them, that sleep."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from llmagentos.agents import Message
from llmagentos.agents.loading import load
from llmagentos.agents.provision import provision
from llmagentos.agents.worker import read_status
from llmagentos.streams.admin import Admin
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.spans import Spans
from llmagentos.streams.wire import Codec

__all__ = ["Sleepers"]

#: The step appends to a file, which is the effect; the sleep ends at a time that the file `until` names.
AGENT = """
import pathlib, time
from llmagentos.agents import agent

HERE = pathlib.Path({folder!r})
UNTIL = float((HERE / "until").read_text())
effects = (HERE / "effects").open("a", buffering=1)

async def effect(name):
    effects.write(name + "\\n")
    return name

@agent("sleeper")
async def sleeper(message, ctx):
    await ctx.step("effect", effect, ctx.conversation)
    await ctx.sleep(UNTIL - time.time())
    return "awake"
"""

#: Handlers that wait are let go this soon, so that the benchmark is over some day.
SUSPEND_AFTER_S = 0.2


class Sleepers:
    """The agent's folder, topics and workers.

    Args:
        until: when the handlers wake up, seconds since the epoch.
        agent: the code of `sleeper`, with the folder in braces.
    """

    def __init__(self, settings: Settings, until: float, agent: str = AGENT) -> None:
        self.settings = settings
        self.home = settings.home
        self.module = self.home / "sleeping_agent.py"
        (self.home / "until").write_text(str(until), encoding="utf-8")
        (self.home / "effects").touch()
        self.module.write_text(agent.format(folder=str(self.home)), encoding="utf-8")
        provision(settings, "sleepers", load(str(self.module)))

    def send(self, count: int, text: bytes = b"x" * 100, stem: str = "c") -> None:
        """One message to each of *count* conversations, whose names begin with *stem*."""

        async def produce() -> None:
            codec = await asyncio.to_thread(lambda: Codec(open_registry(self.settings)))
            async with Producer(self.settings, codec) as producer:
                for number in range(count):
                    await producer.send(Message.create(text, to="sleeper", conversation=f"{stem}{number}"))

        asyncio.run(produce())

    def start(self, name: str = "") -> subprocess.Popen[bytes]:
        """A worker, from when it serves; *name* it where there are several at a time."""
        folder = self.home / name
        folder.mkdir(exist_ok=True)
        (folder / "worker-0.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "llmagentos.agents.worker", "--deployment", "sleepers"]
        command += ["--target", str(self.module), "--run-dir", str(folder)]
        environment = os.environ | {
            "LLMAGENTOS_HOME": str(self.home),
            "LLMAGENTOS_BROKERS": self.settings.brokers,
            "LLMAGENTOS_PREFIX": self.settings.prefix,
            "LLMAGENTOS_PARTITIONS": str(self.settings.partitions),
            "LLMAGENTOS_SUSPEND_AFTER_S": str(SUSPEND_AFTER_S),
        }
        with (self.home / "worker.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stderr=log)
        self.until(lambda: (said := read_status(folder, 0)) is not None and said.state == "running", 120, process)
        return process

    def until(self, come: object, seconds: float, process: subprocess.Popen[bytes]) -> None:
        """Wait until *come* says so."""
        deadline = time.monotonic() + seconds
        while not come():  # pyright: ignore[reportCallIssue]
            log = (self.home / "worker.log").read_text(encoding="utf-8")[-3000:]
            assert process.poll() is None, log
            assert time.monotonic() < deadline, f"not within {seconds:g} s:\n{log}"
            time.sleep(0.1)

    def journal(self, *kinds: str) -> int:
        """How many records of *kinds* the journal has."""
        codec, spans = Codec(open_registry(self.settings)), Spans(self.settings, name="count")
        found = 0
        for batch in spans.whole(self.settings.topic("journal.sleeper")):
            found += sum(codec.decode(record.value() or b"")["kind"] in kinds for record in batch)
        spans.close()
        return found

    def committed(self) -> int:
        """How many messages are below the committed offsets."""
        found = Admin(self.settings).committed("sleepers", [self.settings.topic("agent.sleeper")])
        return sum(found.values())

    def effects(self) -> int:
        """How often the step's function ran."""
        with Path(self.home / "effects").open("rb") as file:
            return sum(1 for _ in file)
