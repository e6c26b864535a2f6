"""`llmagentos waiting`, `approve`, `reject` and `steps`: what handlers wait for, what people decide, what was done."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.agent import Agent
from llmagentos.agents.testing import Agents, Run
from llmagentos.cli.waiting import opened
from llmagentos.streams.decisions import decide
from llmagentos.streams.errors import LLMAgentOSError
from llmagentos.streams.journal_record import SUBJECT
from llmagentos.streams.pending import Pendings, Selection
from llmagentos.streams.producer import Producer
from llmagentos.streams.tail import Log
from llmagentos.streams.views import Place


@dataclass
class Result:
    """What a command printed, and how it ended."""

    status: int
    out: str
    said: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def llmagentos(*arguments: str, status: int = 0) -> Result:
    """The command as a user types it, in this process; its exit status is checked."""

    def call() -> Result:
        from llmagentos.cli.main import app

        done = CliRunner().invoke(app, arguments)
        if isinstance(done.exception, LLMAgentOSError):  # as main() prints it
            return Result(done.exception.exit_code, done.stdout, str(done.exception))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Result(done.exit_code, done.stdout, done.stderr)

    result = await asyncio.to_thread(call)
    assert result.status == status, result
    return result


def shop() -> list[Agent]:
    """`refunds` looks up, asks `bank`, which asks a person; then it asks people itself, twice."""

    @agent("bank")
    async def bank(message: Message, ctx: Context) -> str:
        if message.text == "nap":
            await ctx.sleep(3600)
        balance = await ctx.step("balance", lambda: {"euro": 5, "api_key": "sk-abcdefghijklmnop1234"}, retries=1)
        decided = await ctx.approve(f"is {message.text} good for {balance['euro']} euro?")
        return "yes" if decided else f"no: {decided.why}"

    @agent("refunds", retries=0)
    async def refunds(message: Message, ctx: Context) -> str:
        if message.text == "fail":
            raise ValueError("no refund today, password=hunter22")
        order = await ctx.step("look up", lambda: message.text)
        if order == "nap":
            await ctx.ask("bank", "nap")
        if order == "quick":
            return order
        if order == "ask":
            assert await ctx.ask("bank", "ada") == "yes"
        first = await ctx.approve(f"refund <b>{order}</b>")
        second = await ctx.approve(f"and tell {order}", timeout=86_400)
        return f"{first.by}: {first.why}; {second.approved}"

    return [bank, refunds]


async def until(look: Callable[[], Any], wanted: Callable[[Any], bool], seconds: float = 20) -> Any:
    """What *look* gives once it is as *wanted*."""
    over = time.monotonic() + seconds
    while not wanted(found := await look()):
        assert time.monotonic() < over, found
        await asyncio.sleep(0.05)
    return found


async def waits(run: Run, conversation: str, text: str, *, suspended: bool | None = None) -> None:
    await until(
        lambda: run.waiting(conversation),
        lambda found: any(text in f"{p.kind} {p.about}" and suspended in (None, p.suspended) for p in found),
    )


@pytest.mark.parametrize("suspend_after_s", [0.05, 600.0], ids=["suspended", "running"])
async def test_people_decide_and_see_what_was_done(agents: Agents, suspend_after_s: float, tmp_path: Path) -> None:
    suspended = suspend_after_s < 1
    async with agents.run(*shop(), suspend_after_s=suspend_after_s) as run:
        asked = {
            c: asyncio.create_task(run.ask("refunds", c.partition("-")[0], conversation=c)) for c in ("ask-1", "x-2")
        }
        await waits(run, "ask-1", "good for 5", suspended=suspended)
        await waits(run, "x-2", "refund <b>", suspended=suspended)
        await run.send("refunds", "quick", conversation="x-2")

        rows = {
            (row["agent"], row["conversation"], row["for"]): row
            for row in (await llmagentos("waiting", "-o", "json")).json
        }
        assert ("bank", "ask-1", "approval") in rows
        assert rows["refunds", "x-2", "approval"]["about"] == "refund <b>x</b>"
        assert rows["refunds", "x-2", "approval"]["suspended"] is suspended
        if suspended:
            await waits(run, "ask-1", "answer")
            chosen = (await llmagentos("waiting", "--for", "answer", "-c", "ask-1", "-o", "json")).json
            assert [(row["agent"], row["asked"]) for row in chosen] == [("refunds", "bank")]
            await until(lambda: run.waiting("x-2"), lambda found: found[0].held == 1)
        shown = (await llmagentos("waiting", "--agent", "bank")).out
        assert "good for 5" in shown
        assert "x-2" not in shown
        assert (await llmagentos("waiting", "--older", "1h", "-o", "json")).json == []

        assert "approved by eve: so" in (await llmagentos("approve", "x-2", "--as", "eve", "--why", "so")).out
        late = (await llmagentos("reject", "x-2", "--as", "dan", status=1)).said
        assert "already, by eve at" in late
        assert ": so" in late

        # A second approval of the same handler has to be named, so that nobody decides it by saying the first again.
        await waits(run, "x-2", "and tell x")
        assert "--step 2" in (await llmagentos("approve", "x-2", status=1)).said
        assert "already, by eve" in (await llmagentos("reject", "x-2", "--step", "1", status=1)).said
        done = await llmagentos("approve", "x-2", "--step", "2", "--as", "ada", "--wait")
        assert "approved by ada" in done.out
        assert "has gone on" in done.out
        assert (await asked["x-2"]).text == "eve: so; True"

        # The question of another agent.
        assert "close to it: ask-1" in (await llmagentos("approve", "ask-2", status=1)).said
        assert (
            "no agent 'bnak'; close to it: bank" in (await llmagentos("approve", "ask-1", "-a", "bnak", status=1)).said
        )
        tree = (await llmagentos("steps", "ask-1", "-o", "json")).json
        assert [step["name"] for step in tree[0]["steps"]] == ["look up", "ask bank"]
        assert tree[0]["steps"][1]["message"]["waits"][0]["for"] == "approval"
        assert tree[0]["state"] == ("waiting" if suspended else "open")
        await one_of_three_decisions_counts("ask-1")
        if not suspended:  # the rest is the same for both
            await run.approve("ask-1", agent="refunds", by="ada")
            await waits(run, "ask-1", "and tell")
            await run.reject("ask-1", agent="refunds", by="ada")
            assert (await asked["ask-1"]).text == "ada: ; False"
            return
        await run.approve("ask-1", agent="refunds", by="ada", why="<script>alert(1)</script>")
        await waits(run, "ask-1", "and tell")
        await run.clock.move(86_401)
        assert "False" in (await asked["ask-1"]).text
        late = (await llmagentos("approve", "ask-1", "--step", "2", status=1)).said
        assert "its time was over" in late
        assert (await llmagentos("reject", "ask-1", "--step", "1", "-o", "json", status=1)).json["first"]["by"] in (
            "ada",
            "test",
        )

        tree = (await llmagentos("steps", "ask-1", "-o", "json")).json
        assert [(s["name"], s["state"]) for s in tree[0]["steps"]] == [
            ("look up", "done"), ("ask bank", "done"), ("ctx.approve", "approved"), ("ctx.approve", "expired"),
        ]  # fmt: skip
        asked_of = tree[0]["steps"][1]["message"]
        assert [(s["name"], s["state"]) for s in asked_of["steps"]] == [
            ("balance", "done"),
            ("ctx.approve", "approved"),
        ]
        assert (tree[0]["state"], asked_of["state"], asked_of["answer"]) == ("done", "done", "yes")
        text = (await llmagentos("steps", "ask-1")).out
        assert "over" in text.splitlines()[0]
        assert "sk-abc" not in text
        assert "sk-abc" in (await llmagentos("steps", "ask-1", "--show")).out

        await llmagentos("steps", "ask-1", "--html", str(tmp_path / "page.html"))
        page = (tmp_path / "page.html").read_text()
        assert "&lt;b&gt;ask&lt;/b&gt;" in page
        assert not any(word in page for word in ("<script", "http://", "https://", "<b>", "sk-abc", "src="))


class LastCounts(Pendings):
    """A known bug: whoever was last to decide believes to have decided."""

    def _heard(self, place: Place, record: Mapping[str, Any], at: int) -> None:
        if record["kind"] in ("approve", "reject"):
            for steps in self._steps.values():
                for begun in steps.begun.values():
                    begun.end = None
        super()._heard(place, record, at)


async def one_of_three_decisions_counts(conversation: str) -> None:
    """All have read that it waits before the first decides."""
    with opened() as (settings, first), opened() as (_, second), Log(settings) as log:
        seeded = LastCounts(settings, first.codec, {}, log)
        for reader in (first, second):
            reader.codec.writer(SUBJECT, "journal")  # asks the registry, once
        selection = Selection(["bank"], conversation=conversation)
        found = [await asyncio.to_thread(reader.read, selection) for reader in (first, second, seeded)]
        async with Producer(settings, first.codec) as producer:
            # One after the other in the log, before the handler's worker has seen any.
            (end, ours), (told, lost), (_, wrong) = await asyncio.gather(
                decide(producer, first, found[0][0], approve=True, by="ada"),
                decide(producer, second, found[1][0], approve=False, by="eve", why="no"),
                decide(producer, seeded, found[2][0], approve=False, by="dan", why="no"),
            )
        assert (end is not None and end.by, ours) == ("ada", True)
        assert (told is not None and (told.outcome, told.by), lost) == (("approve", "ada"), False)
        assert wrong, "the seeded bug is not seen"
        seeded.close()


async def test_what_failed_and_what_needs_no_step_is_shown_too(agents: Agents) -> None:
    async with agents.run(*shop(), suspend_after_s=0.05) as run:
        assert (await run.ask("refunds", "quick", conversation="q")).text == "quick"
        await run.send("refunds", "fail", conversation="f")
        followed = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "llmagentos.cli.main", "steps", "n", "--follow", stdout=PIPE, stderr=PIPE
        )
        assert followed.stdout is not None
        assert followed.stderr is not None
        assert b"nothing of conversation n yet" in await followed.stderr.readline()
        await run.send("refunds", "nap", conversation="n")
        await waits(run, "n", "answer")
        await waits(run, "n", "timer")
        lines: list[str] = []
        async with asyncio.timeout(30):
            while not (lines and "bank · sleep  waits for" in lines[-1]):
                lines.append((await followed.stdout.readline()).decode())
                assert lines[-1], "it has ended"
        assert "refunds ← test" in lines[0]
        assert any("refunds · look up" in shown for shown in lines)
        followed.send_signal(signal.SIGINT)
        assert await followed.wait() == 130
        letters = await run.dead_letters("refunds")
        assert len(letters) == 1
        assert (await llmagentos("steps", "q", "-o", "json")).json[0]["state"] == "done"
        failed = (await llmagentos("steps", "f")).out
        assert "ValueError: no refund today" in failed
        assert "hunter22" not in failed
        assert "approval, but for answer of bank" in (await llmagentos("approve", "n", "-a", "refunds", status=1)).said
        assert "bank waits for a timer until" in (await llmagentos("steps", "n")).out
        assert "no message of conversation 'nobody'" in (await llmagentos("steps", "nobody", status=1)).said


async def test_who_decides_and_waits_is_told_that_the_handler_failed(agents: Agents) -> None:
    @agent("till", retries=0)
    async def till(message: Message, ctx: Context) -> None:
        await ctx.approve("pay?")
        raise ValueError("no money")

    async with agents.run(till) as run:
        await run.send("till", "x", conversation="p-1")
        await waits(run, "p-1", "pay?")
        told = await llmagentos("approve", "p-1", "--wait", status=1)
        assert "approved by" in told.out
        assert "dead show --conversation p-1" in told.said
