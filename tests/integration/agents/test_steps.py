"""Steps: recorded once, whoever runs the handler, and however often."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents
from llmagentos.agents.testing.run import running


class Died(Exception):
    """The worker ends here."""


async def test_a_retry_is_given_what_is_recorded(agents: Agents) -> None:
    calls: list[str] = []

    def price(item: str, *, key: str) -> dict[str, Any]:
        calls.append(key)
        return {"item": item, "price": 3, "pair": (1, 2)}

    @agent("till", retries=1, backoff=0.01)
    async def till(message: Message, ctx: Context) -> Any:
        found = await ctx.step("price", price, message.text, key_as="key")
        again = await ctx.step("price", price, "another", key_as="key")
        told = (ctx.now().isoformat(), str(ctx.uuid()), ctx.random.random())
        if ctx.attempt == 0:
            first.append((found, again, told))
            raise ValueError("once")
        assert first == [(found, again, told)]
        return found

    first: list[Any] = []
    async with agents.run(till) as run:
        assert (await run.ask("till", "cake")).content == {"item": "cake", "price": 3, "pair": [1, 2]}
    assert len(calls) == len(set(calls)) == 2
    uuid.UUID(calls[0])


async def test_another_worker_goes_on_behind_the_last_recorded_step(deploy, agents: Agents, tmp_path) -> None:
    source = f"""
        import asyncio, os, pathlib
        from llmagentos.agents import agent
        HERE = pathlib.Path({str(tmp_path)!r})

        def note(what):
            with (HERE / "calls").open("a") as file:
                file.write(what + "\\n")
            return what

        @agent("till")
        async def till(message, ctx):
            a = await ctx.step("first", note, "first")
            if not (HERE / "go").exists():
                (HERE / "waits").touch()
                await asyncio.sleep(3600)
            b = await ctx.step("second", note, "second")
            return f"{{a}} {{b}}"
    """
    worker = await deploy(source, drain_timeout_s=0.2)
    from llmagentos.agents.client import Client

    async with Client(agents.settings) as client:
        asked = asyncio.create_task(client.ask("till", "x", timeout=60))
        while not (tmp_path / "waits").exists():
            await asyncio.sleep(0.02)
        (tmp_path / "go").touch()
        worker.stop()
        async with running(type(worker)(worker.settings, worker.deployment, worker.loaded, index=1)):
            assert (await asked).text == "first second"
    assert (tmp_path / "calls").read_text().split() == ["first", "second"]


async def test_a_handler_that_waits_long_is_suspended_and_goes_on(agents: Agents) -> None:
    runs: list[str] = []

    @agent("sleeper")
    async def sleeper(message: Message, ctx: Context) -> str:
        runs.append("run")
        await ctx.step("before", lambda: runs.append("before"))
        await ctx.sleep(3600)
        return "awake"

    async with agents.run(sleeper, suspend_after_s=0.1) as run:
        asked = asyncio.create_task(run.ask("sleeper", "x"))
        while runs != ["run", "before"]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        await run.clock.move(3601)
        assert (await asked).text == "awake"
    assert runs == ["run", "before", "run"]
