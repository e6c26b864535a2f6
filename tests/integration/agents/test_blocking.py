"""Plain functions as agents of a real worker: in threads that ask others, in processes that die, and none left."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from llmagentos.agents.client import Client
from llmagentos.agents.loading import load
from llmagentos.agents.provision import provision
from llmagentos.streams.settings import Settings

SOURCE = """
    import os, pathlib, signal, threading, time
    from llmagentos.agents import agent

    HERE = pathlib.Path({folder!r})

    @agent("desk", blocking="thread")
    def desk(message, ctx):
        assert threading.current_thread() is not threading.main_thread()
        if message.text == "hang":
            (HERE / "hangs").touch()
            time.sleep(3600)
        ctx.tell("desk2", "noted", conversation=f"{{ctx.conversation}}/note")
        return f"{{ctx.ask('sums', message.text)}}, says the desk"

    @agent("desk2")
    async def desk2(message, ctx):
        (HERE / "noted").touch()

    @agent("sums", blocking="process", backoff=0, max_in_flight=1)
    def sums(message, ctx):
        if message.text == "100" and not (HERE / "died").exists():
            (HERE / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return str(sum(range(int(message.text))))
"""


def source(folder: Path) -> str:
    return dedent(SOURCE.format(folder=str(folder)))


async def test_a_thread_asks_and_a_process_that_was_killed_is_replaced(deploy, client, tmp_path: Path) -> None:
    await deploy(source(tmp_path))
    asker: Client = await client()
    assert (await asker.ask("desk", "10", timeout=30)).text == "45, says the desk"
    assert (await asker.ask("desk", "100", timeout=30)).text == "4950, says the desk"
    assert (tmp_path / "died").exists()
    assert (tmp_path / "noted").exists()
    assert len(multiprocessing.active_children()) == 1


@pytest.fixture
def program(settings: Settings, tmp_path: Path):
    """The worker's process, as `deploy` starts it."""
    module = tmp_path / f"users_{settings.prefix.rstrip('.')}.py"
    module.write_text(source(tmp_path))
    provision(settings, f"{settings.prefix}users", load(str(module)))
    environment = os.environ | {
        "LLMAGENTOS_HOME": str(settings.home),
        "LLMAGENTOS_PREFIX": settings.prefix,
        "LLMAGENTOS_DRAIN_TIMEOUT_S": "0.5",
    }
    command = [sys.executable, "-m", "llmagentos.agents.worker", "--deployment", f"{settings.prefix}users"]
    command += ["--target", str(module), "--run-dir", str(tmp_path)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
    yield process
    process.kill()
    process.wait()


async def test_a_worker_ends_though_a_thread_does_not(
    program: subprocess.Popen[bytes], settings: Settings, tmp_path: Path
) -> None:
    async with Client(settings) as asker:
        assert (await asker.ask("sums", "10", timeout=60)).text == "45"
        children = psutil.Process(program.pid).children(recursive=True)
        assert children
        hanging = asyncio.create_task(asker.ask("desk", "hang"))
        async with asyncio.timeout(30):
            while not (tmp_path / "hangs").exists():
                await asyncio.sleep(0.05)
        hanging.cancel()
    program.send_signal(signal.SIGTERM)
    assert program.wait(30) == 0
    log = (tmp_path / "log").read_text()
    assert "handler desk" in log
    assert "do not end" in log
    psutil.wait_procs(children, timeout=10)
    assert not [child for child in children if child.is_running()]
