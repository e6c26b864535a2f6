"""Workers that are killed in the middle of steps: every conversation ends, and no step runs behind its record.

Each execution writes a line with its process, and returns that process; so the record of a step says which execution
it is of. One that was killed between the two leaves a line without a record, and another line behind it: that is what
the idempotency key is for. A line behind the one that is recorded is a step that ran though it was recorded.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest

from llmagentos.agents.loading import load
from llmagentos.agents.provision import provision
from llmagentos.agents.testing import Agents
from llmagentos.streams.journal import View
from llmagentos.streams.message import Message
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.wire import Codec

from .journals import Books

CONVERSATIONS, STEPS, KILLS = 200, 3, 3

SOURCE = """
    import asyncio, os
    from llmagentos.agents import agent
    {seed}

    def effect(conversation, *, key):
        line = f"{{conversation}} {{key}} {{os.getpid()}}\\n".encode()
        file = os.open({file!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line)
        os.close(file)
        return os.getpid()

    @agent("till", max_in_flight=50)
    async def till(message, ctx):
        for n in range({steps}):
            await ctx.step(f"step {{n}}", effect, ctx.conversation, key_as="key")
            await asyncio.sleep(0.1)
        return "done"
"""

#: The seed: a new owner doesn't look at what its predecessor recorded.
NOT_LOADED = """
    from llmagentos.agents.suspending import Suspending

    async def resume(self, work, message):
        work.recorded = []
        self.steps(work, message)

    Suspending.resume = resume
"""


class Outcome(NamedTuple):
    """What came of it: by step, the processes that ran it, in order, and the one that is recorded."""

    done: int
    ran: dict[tuple[str, str], list[int]]
    recorded: dict[tuple[str, str], int]

    @property
    def behind(self) -> list[tuple[str, str]]:
        """Steps that ran though they were recorded."""
        return [step for step, ran in self.ran.items() if ran[-1] != self.recorded[step]]


async def killed(agents: Agents, folder: Path, seed: str) -> Outcome:
    """Have conversations handled by workers that are killed in turns."""
    file, source = folder / "lines", folder / f"till_{agents.settings.prefix.rstrip('.')}.py"
    code = dedent(SOURCE)
    source.write_text(code.format(seed="", file=str(file), steps=STEPS))  # the seed is for the workers only
    file.touch()
    deployment = f"{agents.settings.prefix}{source.stem}"
    await asyncio.to_thread(lambda: provision(agents.settings, deployment, load(str(source))))
    sys.modules.pop(source.stem, None)
    source.write_text(code.format(seed=dedent(seed), file=str(file), steps=STEPS))
    codec = await asyncio.to_thread(lambda: Codec(open_registry(agents.settings)))
    async with Producer(agents.settings, codec) as producer:
        for number in range(CONVERSATIONS):
            await producer.send(Message.create("x", to="till", conversation=f"c{number}"))

    def lines() -> int:
        return file.read_bytes().count(b"\n")

    books = Books(agents.settings, "till")
    total = CONVERSATIONS * STEPS
    for kill in range(KILLS):
        async with worker(source, deployment, folder) as process:
            await until(process, lambda kill=kill: asyncio.sleep(0, lines() >= total * (kill + 1) // (KILLS + 1)))
    async with worker(source, deployment, folder) as process:
        await until(process, lambda: completed(books))
    return await judge(books, file)


async def completed(books: Books) -> bool:
    return len({line.record["message_id"] for line in await books.lines("done")}) == CONVERSATIONS


@asynccontextmanager
async def worker(source: Path, deployment: str, folder: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A worker's process, killed at the end of the block."""
    with (folder / "log").open("ab") as log:
        command = [sys.executable, "-m", "llmagentos.agents.worker", "--deployment", deployment]
        command += ["--target", str(source), "--run-dir", str(folder)]
        process = await asyncio.to_thread(subprocess.Popen, command, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


async def until(process: subprocess.Popen[bytes], come: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await come():
            assert process.poll() is None, "the worker ended"
            await asyncio.sleep(0.02)


async def judge(books: Books, file: Path) -> Outcome:
    ran: dict[tuple[str, str], list[int]] = defaultdict(list)
    for line in (await asyncio.to_thread(file.read_text)).splitlines():
        conversation, key, process = line.split()
        ran[conversation, key].append(int(process))
    keys: dict[str, list[str]] = defaultdict(list)  # in the order of the steps
    for conversation, key in ran:
        keys[conversation].append(key)
    recorded: dict[tuple[str, str], int] = {}
    done: set[str] = set()
    views: dict[int, View] = defaultdict(View)
    for partition, at, record in await books.lines():
        view = views[partition]
        valid = record["claim"] >= view.claim
        view.fold(record, at)
        if valid and record["kind"] == "step":
            conversation = record["conversation_id"]
            key = keys[conversation][int(record["step"]["name"].split()[1])]
            recorded.setdefault((conversation, key), int(record["step"]["body"]))
        elif valid and record["kind"] == "done":
            done.add(record["message_id"])
    assert not any(view.entries for view in views.values() if any(e.state != "done" for e in view.entries.values()))
    return Outcome(len(done), dict(ran), recorded)


async def test_no_recorded_step_runs_again_whenever_workers_are_killed(agents: Agents, tmp_path: Path) -> None:
    outcome = await killed(agents, tmp_path, "")
    assert outcome.done == CONVERSATIONS
    assert len(outcome.ran) == len(outcome.recorded) == CONVERSATIONS * STEPS
    assert not outcome.behind
    again = sum(len(ran) - 1 for ran in outcome.ran.values())
    assert again <= KILLS * 50, "more steps were under way than the agent's limit"


async def test_the_above_is_red_where_steps_are_not_loaded(
    agents: Agents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "CONVERSATIONS", 60)
    monkeypatch.setattr(sys.modules[__name__], "KILLS", 1)
    assert (await killed(agents, tmp_path, NOT_LOADED)).behind


CLEANUP = """
    import asyncio, os
    from llmagentos.agents import agent

    def effect(what):
        with open({file!r}, "a") as file:
            file.write(f"{{what}} {{os.getpid()}}\\n")

    @agent("till")
    async def till(message, ctx):
        await ctx.step("charge", effect, "charge")
        try:
            await ctx.approve("ship it?")
        finally:
            for n in range(3):
                await ctx.step(f"refund {{n}}", effect, f"refund-{{n}}")
                await asyncio.sleep(0.3 if n else 0.0)
"""


async def test_a_cleanup_goes_on_when_its_worker_is_killed_in_the_middle(agents: Agents, tmp_path: Path) -> None:
    file, source = tmp_path / "lines", tmp_path / f"till_{agents.settings.prefix.rstrip('.')}.py"
    source.write_text(dedent(CLEANUP).format(file=str(file)))
    file.touch()
    deployment = f"{agents.settings.prefix}{source.stem}"
    await asyncio.to_thread(lambda: provision(agents.settings, deployment, load(str(source))))
    books = Books(agents.settings, "till")
    codec = await asyncio.to_thread(lambda: Codec(open_registry(agents.settings)))
    async with Producer(agents.settings, codec) as producer:
        await producer.send(Message.create("x", to="till", conversation="c"))
    async with worker(source, deployment, tmp_path) as process:
        _, asked = await books.until("step", conversation="c", count=2)
        begun = asked.record
        fields = {"offset": begun["offset"], "message_id": begun["message_id"], "conversation_id": "c"}
        await books.append(asked.partition, kind="cancel", **fields)
        await until(process, lambda: asyncio.sleep(0, "refund-1" in file.read_text()))
    async with worker(source, deployment, tmp_path):
        (done,) = await books.until("done")
    assert done.record["outputs"]
    lines = [line.split()[0] for line in file.read_text().splitlines()]
    assert list(dict.fromkeys(lines)) == ["charge", "refund-0", "refund-1", "refund-2"]
    recorded = [line.record["step"]["name"] for line in await books.lines("step")]
    assert recorded == ["charge", "ctx.approve", "refund 0", "refund 1", "refund 2"]
    assert len(lines) <= 5  # the one that was under way may run twice
