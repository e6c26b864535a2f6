"""Open work against changed code: what `deploy` says of it, and what becomes of it by each choice."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from llmagentos.agents.client import Client
from llmagentos.agents.rehearsing import Rehearsal
from llmagentos.agents.testing import Agents
from llmagentos.agents.versions import Replacing, examined
from llmagentos.cli.waiting import opened
from llmagentos.streams.errors import AnswerError, DeploymentError
from llmagentos.streams.pending import Pending, Selection

from .agents.journals import Books
from .test_deployments import House, house

__all__ = ["house"]

#: `{steps}` is the body; PLACE notes what is done.
SOURCE = """
    import asyncio, time
    from pathlib import Path
    from llmagentos.agents import agent

    PLACE = Path({place!r})

    def note(what):
        with PLACE.open("a") as file:
            file.write(what + "\\n")
        return what

    {code}
"""

TILL = """
    @agent("{agent}", retries=0)
    async def till(message, ctx):
        price = await ctx.step("price", note, "price " + message.text)
        await ctx.approve("sure?")
        return price + " " + await ctx.step("pay", note, "pay " + message.text)
"""

#: A change of the name of its step, marked.
MARKED = """
    @agent("{agent}", retries=0)
    async def till(message, ctx):
        name = "cost" if await ctx.version("cost") else "price"
        price = await ctx.step(name, note, name + " " + message.text)
        await ctx.approve("sure?")
        return price + " " + await ctx.step("pay", note, "pay " + message.text)
"""


class Shop:
    """A deployment whose handlers wait for a person behind their first step."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.agent = house.agent
        self.place = house.home / "calls"
        self.place.touch()
        house.environment |= {"LLMAGENTOS_SUSPEND_AFTER_S": "0.2", "LLMAGENTOS_COMMIT_INTERVAL_MS": "50"}

    def write(self, code: str = TILL, old: str = "", new: str = "") -> Path:
        assert old in code
        code = dedent(code.replace(old, new)).format(agent=self.agent)
        path = self.house.home / f"{self.house.name}.py"
        path.write_text(dedent(SOURCE).format(place=str(self.place), code="") + code)
        return path

    def deploy(self, *options: str, status: int = 0) -> str:
        return self.house.run("deploy", f"{self.house.name}.py", *options, status=status)

    def look(self, *options: str, status: int = 0) -> dict[str, Any]:
        done = self.run("deploy", f"{self.house.name}.py", "--check", "--output", "json", *options, status=status)
        return json.loads(done.stdout)

    def run(self, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.house.command(*arguments),
            env=self.house.environment,
            cwd=self.house.home,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    async def waiting(self, count: int) -> list[Pending]:
        """What waits for a person, once there are so many."""
        async with asyncio.timeout(60):
            while len(found := await asyncio.to_thread(self._waiting)) < count:
                await asyncio.sleep(0.1)
        return found

    def _waiting(self) -> list[Pending]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.house.environment.items():
                patch.setenv(name, value)
            with opened() as (_, pendings):
                return pendings.read(Selection(kinds=["approval"]))

    async def until_standing(self, wanted: bool) -> None:
        """Once its worker says that it begins nothing new, or that it does."""
        deployments = self.house.deployments
        async with asyncio.timeout(60):
            while True:
                (worker,) = deployments.workers(self.house.name)
                report = deployments.report(self.house.name, worker)
                if report is not None and report.standing == wanted:
                    return
                await asyncio.sleep(0.05)

    def calls(self) -> list[str]:
        return self.place.read_text().splitlines()


@pytest.fixture
def shop(house: House) -> Shop:
    return Shop(house)


async def test_refused_then_held_then_redriven(shop: Shop) -> None:
    shop.write()
    run = asyncio.to_thread
    await run(shop.deploy)
    async with Client(shop.house.settings) as client:
        asked = {c: asyncio.create_task(client.ask(shop.agent, c, conversation=c, timeout=600)) for c in ("a", "b")}
        await shop.waiting(2)
        path = shop.write(TILL, '"price", note', '"cost", note')
        generation = shop.house.deployments.get(shop.house.name).generation
        done = await run(shop.run, "deploy", path.name, "--output", "json", status=1)
        assert "2 of 2 messages under way would not go on" in done.stderr
        (work,) = json.loads(done.stdout)["agents"]
        assert (work["open"], work["breaks"]) == (2, 2)
        example = work["example"]
        assert (example["recorded"], example["instead"], example["conversation"] in asked) == ("price", "cost", True)
        line = 1 + next(n for n, text in enumerate(path.read_text().splitlines()) if '"cost"' in text)
        assert example["where"] == f"{path}:{line}"
        assert shop.house.deployments.get(shop.house.name).generation == generation

        done = await run(shop.run, "rollout", shop.house.name, "--hold")
        assert f"comes to 'cost' ({path.name}:{line}) where 'price' is recorded" in done.stdout
        assert 'ctx.version("NAME")' in done.stderr
        await run(shop.house.run, "approve", "a", "--as", "eve")
        with pytest.raises(AnswerError, match="came to step 'cost' where step 'price' is recorded"):
            await asked["a"]

        # Mended, so that what was under way goes the old way: the parked one too.
        shop.write(MARKED)
        (work,) = json.loads(await run(shop.deploy, "--output", "json"))["rehearsal"]["agents"]
        assert (work["open"], work["goes_on"], work["parked"], work["parked_breaks"]) == (1, 1, 1, 0)
        await run(shop.house.run, "dead", "redrive", "--agent", shop.agent, "--yes")
        await run(shop.house.run, "approve", "b", "--as", "eve")
        assert (await asked["b"]).text == "price b pay b"
        async with asyncio.timeout(60):
            while "pay a" not in shop.calls():
                await asyncio.sleep(0.05)
    assert sorted(shop.calls()) == ["pay a", "pay b", "price a", "price b"]


async def test_drained_first_while_new_messages_wait(shop: Shop) -> None:
    """And of an agent that the new code does not have, all is finished."""
    gone = f"gone-{shop.agent}"
    run = asyncio.to_thread
    shop.write(TILL + TILL.replace("{agent}", gone).replace("till", "gone"))
    await run(shop.deploy)
    async with Client(shop.house.settings) as client:
        asked = {
            c: asyncio.create_task(client.ask(who, c, conversation=c, timeout=600))
            for c, who in (("a", shop.agent), ("g", gone))
        }
        await shop.waiting(2)
        shop.write(TILL, '"price', '"cost')
        seen = {work["agent"]: work for work in (await run(shop.look, status=1))["agents"]}
        assert (seen[gone]["gone"], seen[gone]["open"]) == (True, 1)
        assert seen[shop.agent]["breaks"] == 1
        said = await run(shop.deploy, "--drain", "--drain-timeout", "1", status=1)
        assert "2 messages that the new code would not go on with are not finished after 1 s" in said
        assert f"waiting --agent {shop.agent}" in said

        await shop.until_standing(False)
        draining = asyncio.create_task(run(shop.deploy, "--drain", "--drain-timeout", "150"))
        await shop.until_standing(True)
        asked["n"] = asyncio.create_task(client.ask(shop.agent, "n", conversation="n", timeout=600))
        for conversation in ("a", "g"):
            assert not draining.done()
            await run(shop.house.run, "approve", conversation, "--as", "eve")
            assert (await asked[conversation]).text == f"price {conversation} pay {conversation}"
        await draining
        await shop.waiting(1)
        assert [call for call in shop.calls() if call.endswith("n")] == ["cost n"]  # by the new code

        shop.write()
        deployed = json.loads(await run(shop.deploy, "--force", "--output", "json"))
        assert "rehearsal" not in deployed
        for task in asked.values():
            task.cancel()


#: Each has a step, and then asks a person.
OLD = """
    from llmagentos.agents import agent
    import asyncio

    async def common(message, ctx):
        await ctx.step("first", str)
        await ctx.approve("sure?")

    for name in ("blocks", "raises", "strange", "same"):
        globals()[name] = agent(name)(common)

    @agent("gathers")
    async def gathers(message, ctx):
        parts = [ctx.step("part", str, n) for n in range(3)]
        await asyncio.gather(*parts, ctx.approve("sure?"), ctx.step("whole", str))

    @agent("thread", blocking="thread")
    def thread(message, ctx):
        ctx.step("first", str)
        ctx.approve("sure?")

    @agent("process")
    async def process(message, ctx):
        await common(message, ctx)
"""

NEW = """
    from llmagentos.agents import agent
    import asyncio

    async def common(message, ctx):
        await ctx.step("first", str)
        if ctx.agent == "raises":
            raise ValueError("not so")
        while ctx.agent == "blocks":
            pass
        await ctx.approve("sure?")

    for name in ("blocks", "raises", "strange", "same"):
        globals()[name] = agent(name)(common)

    @agent("gathers")
    async def gathers(message, ctx):
        parts = [ctx.step("part", str, n) for n in range(3)]
        await asyncio.gather(*parts, ctx.approve("sure?"), ctx.step("whole", str))

    @agent("thread", blocking="thread")
    def thread(message, ctx):
        ctx.step("second", str)

    @agent("process", blocking="process")
    def process(message, ctx):
        return "done"
"""


async def test_whatever_the_new_code_does_is_told(agents: Agents, tmp_path: Path) -> None:
    path = tmp_path / f"shop_{agents.settings.prefix.rstrip('.')}.py"
    path.write_text(dedent(OLD))
    names = ("blocks", "raises", "strange", "same", "gathers", "thread", "process")

    def look() -> Rehearsal:
        return examined(run.deployment, str(path), cwd=str(tmp_path), environment=os.environ, how=Replacing())

    async with agents.run(path, name="shop", suspend_after_s=0.1) as run:
        assert (await asyncio.to_thread(look)).agents == []
        sent = {name: await run.send(name, "x", conversation="c") for name in names}
        async with asyncio.timeout(60):
            while sum(pending.suspended for pending in await run.waiting()) < len(names):
                await asyncio.sleep(0.1)
        message = sent["strange"]
        await Books(agents.settings, "strange").append(
            message.partition, kind="newer", claim=10**9, offset=message.offset, conversation_id="c",
            message_id=message.message_id,
        )  # fmt: skip
        path.write_text(dedent(NEW))
        works = {work.agent: work for work in (await asyncio.to_thread(look)).agents}
        assert {name: (work.open, work.goes_on, work.breaks, work.fails) for name, work in works.items()} == {
            "blocks": (1, 0, 0, 0),
            "raises": (1, 0, 0, 1),
            "strange": (1, 0, 0, 0),
            "same": (1, 1, 0, 0),
            "gathers": (1, 1, 0, 0),
            "thread": (1, 0, 1, 0),
            "process": (1, 0, 1, 0),
        }
        assert ["newer release" in why for why in works["strange"].unknown] == [True]
        assert ["without end" in why for why in works["blocks"].unknown] == [True]
        examples = {name: work.example for name, work in works.items() if work.example is not None}
        assert (examples["thread"].recorded, examples["thread"].instead) == ("first", "second")
        assert "process of its own" in examples["process"].why
        assert examples["raises"].why == "ValueError: not so"
        assert examples["raises"].where.startswith(f"{path}:")

        path.write_text("import not_there\n")
        with pytest.raises(DeploymentError, match="No module named 'not_there'"):
            await asyncio.to_thread(look)


async def test_answers_that_no_journal_has_are_found(agents: Agents, tmp_path: Path) -> None:
    """A handler that runs has them from their topic: without them it would seem to break."""
    source = """
        from llmagentos.agents import agent

        @agent("asks")
        async def asks(message, ctx):
            await ctx.step("before", str)
            line = await ctx.ask("poet", "a line")
            await ctx.step("after " + line, str)
            await ctx.approve("sure?")

        @agent("poet")
        async def poet(message, ctx):
            return "fine"
    """
    path = tmp_path / f"asks_{agents.settings.prefix.rstrip('.')}.py"
    path.write_text(dedent(source))
    async with agents.run(path, name="asks", suspend_after_s=600) as run:
        await run.send("asks", "x", conversation="c")
        async with asyncio.timeout(60):
            while not await run.waiting():
                await asyncio.sleep(0.1)
        seen = await asyncio.to_thread(
            lambda: examined(run.deployment, str(path), cwd=str(tmp_path), environment=os.environ, how=Replacing())
        )
        (work,) = seen.agents
        assert (work.agent, work.open, work.goes_on) == ("asks", 1, 1), work
        await run.approve("c")
