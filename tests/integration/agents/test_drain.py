"""A worker that is told to end lets what runs end, and waits no longer than the drain timeout."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from llmagentos.agents.testing.run import running
from llmagentos.agents.worker import Worker

from .test_ownership import handled, send
from .test_parking import until

SOURCE = """
    import asyncio, pathlib
    from llmagentos.agents import agent

    @agent("slow")
    async def slow(message, ctx):
        pathlib.Path({begun!r} + message.conversation_id).touch()
        await asyncio.sleep(float(message.text))
        with pathlib.Path({handled!r}).open("a") as out:
            out.write(message.text + chr(10))
"""


async def test_what_ends_in_time_is_handled_once_and_what_does_not_by_the_next(
    deploy: Callable[..., Awaitable[Worker]], tmp_path: Path
) -> None:
    begun, ledger = tmp_path / "begun", tmp_path / "handled"
    worker = await deploy(SOURCE.format(begun=str(begun), handled=str(ledger)), drain_timeout_s=1.5)
    await send(worker.settings, "slow", "a", "0.5")
    await send(worker.settings, "slow", "b", "4")
    await until(lambda: all(begun.with_name(f"begun{name}").exists() for name in "ab"))
    asked = time.monotonic()
    worker.stop()
    await until(lambda: worker.state == "stopped")
    assert time.monotonic() - asked < 5  # the drain timeout, and what leaving takes on a busy machine
    assert handled(ledger) == ["0.5"]
    async with running(type(worker)(worker.settings, worker.deployment, worker.loaded, index=1)):
        await until(lambda: handled(ledger) == ["0.5", "4"])
