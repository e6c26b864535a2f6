"""Rehearsals of one message: given what is recorded, and nothing else done."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import plain_handlers
import pytest
from typer.testing import CliRunner

from llmagentos.agents import Context, Message, agent, rehearsal
from llmagentos.agents.agent import Agent
from llmagentos.agents.deployment import Deployments
from llmagentos.agents.open_work import Underway
from llmagentos.agents.rehearsal import Past, Verdict, rehearse
from llmagentos.agents.rehearsing import STRIKES, AgentWork, Rehearsal, _Told, chosen  # pyright: ignore[reportPrivateUsage]
from llmagentos.agents.standing import Still, stand_still, stands_still
from llmagentos.agents.versions import Replacing, _drain  # pyright: ignore[reportPrivateUsage]
from llmagentos.cli.main import app
from llmagentos.streams.errors import DeploymentError
from llmagentos.streams.journal_record import step_record
from llmagentos.streams.message import question_id
from llmagentos.streams.settings import Settings
from llmagentos.streams.unfinished import Entry
from llmagentos.streams.views import Place

MESSAGE = Message.create("x", to="till", conversation="c")


def step(name: str, number: int = 0, outcome: str = "result", body: bytes = b'"r"', **more: Any) -> dict[str, Any]:
    content = {"content_type": "application/json", "body": body}
    return {"at": 0, "step": step_record(name, number, outcome, **content, **more)}


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(rehearsal, "PATIENCE_S", 0.1)
    settings = Settings.load(home=tmp_path)

    async def run(who: Agent, *records: Any, limit_s: float = 10.0, **past: Any) -> Verdict:
        return await rehearse(
            who,
            MESSAGE,
            Past(steps=records, **past),
            settings=settings,
            decode=lambda value: Message.create(value, to="till"),
            limit_s=limit_s,
        )

    return run


async def test_it_goes_by_what_is_recorded_and_does_nothing(look: Any) -> None:
    done: list[str] = []

    @agent("till")
    async def till(message: Message, ctx: Context) -> str:
        price = await ctx.step("price", lambda: done.append("price"))
        await ctx.tell("poet", price)
        await ctx.publish("orders", price)
        await ctx.emit("token")
        await ctx.ask("poet", price)
        done.append("on")
        return await ctx.step("pay", lambda: done.append("pay"))

    assert await look(till) == Verdict("goes-on")  # nothing is recorded: not even run
    assert await look(till, step("price")) == Verdict("goes-on")  # as far as the question
    assert done == []
    question = question_id(MESSAGE.message_id, "till", "ctx.ask poet#0", 0)
    answer = Message.create("a line", to="till", sender="poet", type="result")
    assert (await look(till, step("price"), step("pay"), answers={question: answer})).kind == "goes-on"
    assert done == ["on"]
    left = await look(till, step("price"), step("pay"))
    assert (left.kind, left.recorded, left.instead) == ("breaks", "pay", "ctx.ask poet")


async def test_what_breaks_is_named_with_its_line(look: Any) -> None:
    @agent("till")
    async def till(message: Message, ctx: Context) -> str:
        if message.text == "x":
            return await ctx.step("cost", str)
        return ""

    verdict = await look(till, step("price"), step("pay"))
    assert (verdict.kind, verdict.recorded, verdict.instead) == ("breaks", "price", "cost")
    assert verdict.where == f"{__file__}:{till.function.__code__.co_firstlineno + 3}"

    @agent("ends")
    async def ends(message: Message, ctx: Context) -> str:
        return await ctx.step("price", str)

    verdict = await look(ends, step("price"), step("price", 1), step("pay"))
    assert (verdict.kind, verdict.recorded, verdict.instead) == ("breaks", "price #2", "")
    assert verdict.where == ends.source
    assert (await look(ends, step("price", body=b'{"$": ["gone", 1]}'))).kind == "breaks"  # its type is not there
    assert "gone" in (await look(ends, step("price", body=b'{"$": ["gone", 1]}'))).why


async def test_a_mark_takes_the_old_way_or_the_new(look: Any) -> None:
    @agent("till")
    async def till(message: Message, ctx: Context) -> None:
        if await ctx.version("twice"):
            await ctx.step("first", str)
        await ctx.step("price", str)

    assert (await look(till, step("price"))).kind == "goes-on"
    assert (await look(till, step("ctx.version twice", 0, "version"), step("first"))).kind == "goes-on"
    assert (await look(till, step("ctx.version twice", 0, "version"), step("price"))).instead == "first"


async def test_branches_side_by_side_wait_for_each_other(look: Any) -> None:
    @agent("till")
    async def till(message: Message, ctx: Context) -> None:
        async def long() -> None:
            await ctx.step("a", str)
            await asyncio.sleep(0.02)
            await ctx.step("b", str)

        await asyncio.gather(ctx.step("new", str), long(), ctx.sleep(60), ctx.step("c", str), ctx.step("c", str))

    assert (await look(till, step("c", 1), step("a"), step("c"), step("b"))).kind == "goes-on"
    verdict = await look(till, step("a"), step("d"))
    assert (verdict.kind, verdict.recorded) == ("breaks", "d")


async def test_threads_are_rehearsed_and_processes_have_no_steps(look: Any) -> None:
    def typist(message: Message, ctx: Any) -> str:
        word = ctx.step("word", str)
        ctx.sleep(3600)
        return word

    threads = agent("typist", blocking="thread")(typist)
    assert (await look(threads, step("word"))).kind == "goes-on"
    assert (await look(threads, step("words"))).instead == "word"
    await threads.close()
    verdict = await look(plain_handlers.work, step("word"))
    assert (verdict.kind, verdict.recorded) == ("breaks", "word")
    assert "process" in verdict.why


async def test_what_raises_or_never_ends_is_told_apart(look: Any) -> None:
    @agent("raises")
    async def raises(message: Message, ctx: Context) -> None:
        if await ctx.step("price", str):
            raise KeyError("password=hunter22")

    verdict = await look(raises, step("price"), step("pay"))
    assert verdict.kind == "fails"
    assert verdict.why.startswith("KeyError: ")
    assert "hunter" not in verdict.why
    assert verdict.where == f"{__file__}:{raises.function.__code__.co_firstlineno + 3}"

    @agent("exits")
    async def exits(message: Message, ctx: Context) -> None:
        raise SystemExit(3)

    assert (await look(exits, step("price"))).why == "SystemExit: 3"

    @agent("sleeps")
    async def sleeps(message: Message, ctx: Context) -> None:
        while True:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                if time.monotonic() > until:
                    raise

    until = time.monotonic() + 1
    verdict = await look(sleeps, step("price"), limit_s=0.1)
    assert (verdict.kind, "0.1 s" in verdict.why) == ("unknown", True)
    await asyncio.sleep(1.1)

    @agent("swallows")
    async def swallows(message: Message, ctx: Context) -> None:
        for _ in range(3):
            with suppress(BaseException):
                await ctx.step("new", str)

    assert (await look(swallows, step("price"))).instead == "new"


async def test_a_memory_is_given_and_a_waiting_approval_is_no_end(look: Any) -> None:
    @agent("till", memory=dict)
    async def till(message: Message, ctx: Context) -> None:
        ctx.memory["n"] += 1
        await ctx.step(f"price {ctx.memory['n']}", str)
        ctx.forget()
        assert ctx.memory == {}
        if await ctx.approve("sure?"):
            await ctx.step("pay", str)

    records = (step("price 3"), step("ctx.approve", 0, "approval"))
    assert (await look(till, *records, memory={"n": 2})).kind == "goes-on"
    decided = step("ctx.approve", 0, "approve", b'{"by": "eve", "why": ""}')
    assert (await look(till, *records, decided, step("pay"), memory={"n": 2})).kind == "goes-on"
    assert (await look(till, *records, memory={"n": 1})).instead == "price 2"


def test_of_each_way_some_are_chosen() -> None:
    def under(offset: int, *way: str) -> Underway:
        entry = Entry(offset, f"c{offset}", "m", "waiting", offset)
        return Underway(Place("till", 0), entry, False, way)

    common = [under(n, "a") for n in range(100)]
    rare = [under(200, "a", "b")]
    found = chosen(common + rare, 10)
    assert len(found) == 10
    assert rare[0] in found
    assert [each.entry.offset for each in found] == sorted(each.entry.offset for each in found)
    assert chosen([], 10) == []


def test_who_holds_a_child_up_is_found_one_by_one() -> None:
    told = _Told(lambda done, total: None)

    def begin(*offsets: int) -> None:
        told.begun.clear()
        for n in offsets:
            about = f'"id": ["till", 0, {n}], "conversation": "c", "message": "m", "parked": false'
            told.take(f'{{{about}, "begun": ["till", 0, {n}]}}'.encode())

    told.take(b'{"plan": [{"agent": "till", "open": 5}], "total": 5}')
    begin(1, 2, 3)
    assert told.blame(100) == 1
    for n in range(STRIKES):
        begin(n)
        assert told.passed == set()
        assert told.blame(1) == 1
    assert told.passed == {"till"}
    begin()
    told.blame(1)
    assert told.ended
    (work,) = told.rehearsal().agents
    assert (sum(work.unknown.values()), work.left) == (STRIKES, 5 - STRIKES)


def test_what_is_gone_counts() -> None:
    assert Rehearsal([AgentWork("a", open=1, inbox=3, gone=True), AgentWork("b", breaks=1, fails=1)]).stopped == 6


def test_a_drain_needs_a_worker_that_finishes(tmp_path: Path) -> None:
    open_ = Rehearsal([AgentWork("a", open=1, breaks=1)])
    with ExitStack() as standing, pytest.raises(DeploymentError, match="no running worker"):
        _drain(Deployments(tmp_path), "shop", Replacing("drain"), open_, standing, "shop.py", "/", {})


@pytest.mark.parametrize("command", ["deploy", "rollout"])
def test_one_choice_at_most(command: str) -> None:
    done = CliRunner().invoke(app, [command, "shop.py", "--hold", "--force"])
    assert (done.exit_code, "give one of --check, --hold, --drain and --force" in done.stderr) == (2, True)


async def test_standing_still_ends_with_who_said_it_and_is_not_for_the_new(tmp_path: Path) -> None:
    before = time.time() - 1
    assert not stands_still(tmp_path, before)("a")
    with stand_still(tmp_path, ["gone"]):
        assert stands_still(tmp_path, before)("a")
        assert not stands_still(tmp_path, before)("gone")
        assert not stands_still(tmp_path, time.time() + 1)("a")
    assert not stands_still(tmp_path, before)("a")
    (tmp_path / "standing.json").write_text('{"since": 99999999999, "until": 1, "but": []}')  # who said it is dead
    assert not stands_still(tmp_path, before)("a")
    (tmp_path / "standing.json").write_text("{")
    assert not stands_still(tmp_path, before)("a")

    still = Still()
    still.stand(True)
    turns = [asyncio.create_task(still.turn(n)) for n in range(3)]
    await asyncio.sleep(0)
    still.release(lambda work: work == 1)
    assert await turns[1] is False
    still.stand(False)
    assert await turns[0]
    assert await turns[2]
