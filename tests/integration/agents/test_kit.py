"""The test kit tells what happened, and where nothing did, why."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from pathlib import Path

import confluent_kafka
import pytest

from llmagentos.agents import Client, Context, Message, agent
from llmagentos.agents.testing import Agents
from llmagentos.streams.admin import ensure_topics
from llmagentos.streams.errors import AnswerError, DeploymentError, SettingsError, UnknownAgent
from llmagentos.streams.settings import Settings

COUNTER = """
from llmagentos.agents import agent

seen = 0

@agent("counter", retries=0)
async def counter(message, ctx):
    global seen
    seen += 1
    if message.text == "fail":
        raise ValueError("told to")
    await ctx.emit("counting")
    return seen
"""


async def test_workers_that_ended_leave_no_kafka_client(agents: Agents) -> None:
    """A process can have 1,024: each takes a pthread key."""

    @agent("quiet")
    async def quiet(message: Message, ctx: Context) -> str:
        return "done"

    def clients() -> int:
        gc.collect()
        return sum(isinstance(each, confluent_kafka.Consumer) for each in gc.get_objects())

    before = clients()
    for _ in range(2):
        async with agents.run(quiet) as run:
            await run.ask("quiet", "x")
            assert clients() > before
            del run
    assert clients() <= before


async def test_a_file_is_run_anew_each_time_and_all_of_it_is_told(agents: Agents, tmp_path: Path) -> None:
    path = tmp_path / "counter.py"
    path.write_text(COUNTER)
    for _ in range(2):
        async with agents.run(path) as run:
            assert (await run.ask("counter", "x", conversation="c")).json() == 1
    assert "counter" not in sys.modules
    assert str(tmp_path) not in sys.path
    async with agents.run(path) as run:
        place = await run.send("counter", "y", conversation="d", attributes={"a": "b"})
        assert place.topic == agents.settings.topic("agent.counter")
        assert [(m.type, m.content) for m in await run.outputs("d")] == [("token", "counting"), ("result", 1)]
        with pytest.raises(AnswerError, match="told to"):
            await run.ask("counter", "fail", conversation="e")
        await run.produce(agents.settings.topic("agent.counter"), b"\x07", key="f")
        failed, broken = sorted(await run.dead_letters(), key=lambda letter: letter.cause)
        assert (failed.cause, failed.message and failed.message.text, failed.attempts) == ("failed", "fail", 1)
        assert "raise ValueError" in failed.traceback
        assert (broken.cause, broken.message, broken.value) == ("undecodable", None, b"\x07")
        assert len(await run.outputs()) == 7  # those of the first two runs too: they are the test's
        with pytest.raises(UnknownAgent, match="no agent with an inbox is named 'cuonter'; there are counter"):
            await run.send("cuonter", "x")


async def test_workers_share_and_what_is_not_done_is_named(agents: Agents) -> None:
    topic = f"{agents.settings.prefix}orders"
    await asyncio.to_thread(ensure_topics, agents.settings, [(topic, 2, {})])
    go_on = asyncio.Event()

    @agent("slow")
    async def slow(message, ctx):
        await go_on.wait()

    @agent("orders", topic=topic)
    async def orders(message, ctx):
        await ctx.publish(topic.replace("orders", "seen"), {"price": message.content["price"] * 2})

    await asyncio.to_thread(ensure_topics, agents.settings, [(topic.replace("orders", "seen"), 1, {})])
    async with agents.run(slow, orders, name="shop", workers=2) as run:
        assert run.deployment == f"{agents.settings.prefix}shop"
        assert len(run.workers) == 2
        await run.send("slow", "x", conversation="c")
        with pytest.raises(pytest.fail.Exception, match=r"not all is handled after 0.5 s: \S+agent.slow\[\d\] from"):
            await run.settled(timeout=0.5)
        go_on.set()
        await run.produce(topic, json.dumps({"price": 21}).encode(), key="ada")
        (seen,) = await run.records(topic.replace("orders", "seen"))
        assert (seen.value, seen.key) == (b'{"price":42}', b"ada")
        assert {event["worker"] for event in await run.events("worker-started")} == {w.name for w in run.workers}
        assert await run.outputs() == []


async def test_a_worker_that_crashes_ends_the_wait_at_once(agents: Agents, tmp_path: Path) -> None:
    path = tmp_path / "crashing.py"
    path.write_text(
        f"""
import asyncio
import faust
from llmagentos.agents import agent

app = faust.App("{agents.settings.prefix}crashing", broker="llmagentos://")
go_on = asyncio.Event()

@app.task
async def crash():
    await go_on.wait()
    raise RuntimeError("the module's own task failed")

@agent("mute")
async def mute(message, ctx):
    go_on.set()
"""
    )
    took: list[float] = []

    async def use() -> None:
        async with agents.run(path) as run:
            started = time.monotonic()
            try:
                await run.ask("mute", "x", timeout=60)
            finally:
                took.append(time.monotonic() - started)

    with pytest.raises(RuntimeError, match="the module's own task failed"):
        await use()
    assert took[0] < 30


async def test_what_reads_settings_by_itself_gets_the_tests_own(agents: Agents) -> None:
    assert Settings.load() == agents.settings

    @agent("asker")
    async def asker(message, ctx):
        async with Client() as client:
            return (await client.ask("told", message.text)).text

    @agent("told")
    async def told(message, ctx):
        return message.text.upper()

    async with agents.run(asker, told) as run:
        assert (await run.ask("asker", "quietly")).text == "QUIETLY"
    with pytest.raises(SettingsError, match="max_inflight"):
        async with agents.run(told, max_inflight=1):
            pass
    for wrong in ((), (told, "hello.py"), ("a.py", "b.py")):
        with pytest.raises(DeploymentError, match=r"agents.run\(\) can't run"):
            async with agents.run(*wrong):
                pass


async def test_dead_letters_are_redriven_or_dropped_with_what_waits_behind_them(agents: Agents) -> None:
    fixed = False
    handled: list[str] = []

    @agent("prices", retries=0)
    async def prices(message, ctx):
        if message.text == "cake" and not fixed:
            raise KeyError(message.text)
        handled.append(message.text)
        return message.text

    async with agents.run(prices) as run:
        for conversation in ("ada", "bob"):
            for text in ("tea", "cake", "coffee"):
                await run.send("prices", text, conversation=conversation)
        assert len(await run.dead_letters("prices")) == 2
        assert handled == ["tea", "tea"]  # the coffees wait behind the cakes
        fixed = True
        assert await run.redrive() == 2
        assert [m.text for m in await run.outputs("ada") if m.type == "result"] == ["tea", "cake", "coffee"]
        fixed = False
        await run.send("prices", "cake", conversation="eve")
        await run.send("prices", "milk", conversation="eve")
        assert await run.drop("prices") == 1
        assert [m.text for m in await run.outputs("eve") if m.type == "result"] == ["milk"]
        assert await run.redrive() == 0
        with pytest.raises(UnknownAgent, match="there are prices"):
            await run.dead_letters("price")
