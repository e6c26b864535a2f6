"""Steps: recorded once, whoever runs the handler, and however often."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any, cast

import pytest

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents
from llmagentos.agents.testing.run import running
from llmagentos.streams.admin import Admin
from llmagentos.streams.errors import AnswerTimeout
from llmagentos.streams.gate import decode_note
from llmagentos.streams.journal import Note
from llmagentos.streams.registry import open_registry
from llmagentos.streams.wire import Codec

from .journals import Books
from .reading import read_topic


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


async def test_a_thread_has_steps_asks_and_sleeps_and_goes_on_with_what_is_recorded(agents: Agents) -> None:
    calls: list[str] = []

    @agent("typist", blocking="thread", retries=0)
    def typist(message: Message, ctx: Any) -> str:
        word = ctx.step("word", lambda: calls.append("word") or "fine")
        asked = ctx.ask("poet", word)
        ctx.sleep(3600)
        return f"{asked} {ctx.step('end', lambda: calls.append('end') or '!')}"

    @agent("poet")
    async def poet(message: Message, ctx: Context) -> str:
        calls.append("poet")
        return f"a {message.text} line"

    async with agents.run(typist, poet, suspend_after_s=0.1) as run:
        asked = asyncio.create_task(run.ask("typist", "x", conversation="c"))
        await Books(agents.settings, "typist").until_waiting("timer")
        await run.clock.move(3601)
        assert (await asked).text == "a fine line !"
    assert calls == ["word", "poet", "end"]


async def test_changed_code_is_parked_with_both_names_and_goes_on_once_it_is_mended(
    agents: Agents, tmp_path: Path
) -> None:
    source = """
        from llmagentos.agents import agent

        @agent("till", retries=0)
        async def till(message, ctx):
            price = await ctx.step("{first}", note, "price")
            if message.text == "fail" and not {mended}:
                raise ValueError("not yet")
            return price + " " + await ctx.step("pay", note, "pay")

        def note(what):
            with open({file!r}, "a") as file:
                file.write(what + "\\n")
            return what
    """

    def code(first: str, mended: bool) -> Path:
        path = tmp_path / f"till_{agents.settings.prefix.rstrip('.')}.py"
        path.write_text(dedent(source.format(first=first, mended=mended, file=str(tmp_path / "calls"))))
        return path

    async with agents.run(code("price", False)) as run:
        await run.send("till", "fail", conversation="c")
        (letter,) = await run.dead_letters()
        assert letter.cause == "failed"
    async with agents.run(code("cost", True)) as run:
        await run.redrive()
        letter = (await run.dead_letters())[-1]
        assert letter.cause == "changed-code"
        assert "came to step 'cost' where step 'price' is recorded" in letter.error
        assert "ctx.version(name)" in letter.traceback
    async with agents.run(code("price", True)) as run:
        await run.redrive()
        assert [message.text for message in await run.outputs("c") if message.type == "result"] == ["price pay"]
    assert (tmp_path / "calls").read_text().split() == ["price", "pay"]


async def test_old_code_leaves_what_newer_code_began_to_a_worker_that_has_it(agents: Agents) -> None:
    """In a roll-out a partition may go from a new worker back to an old one, which parked what it did not know."""
    met: list[str] = []

    @agent("till", retries=0)
    async def new(message: Message, ctx: Context) -> str:
        if await ctx.version("look twice"):
            await ctx.step("look", str)
        await ctx.sleep(3_600)
        return await ctx.step("pay", lambda: "paid")

    @agent("till", retries=0)
    async def old(message: Message, ctx: Context) -> str:
        met.append(message.text)
        await ctx.sleep(3_600)
        return await ctx.step("pay", lambda: "paid")

    async with agents.run(new, suspend_after_s=0.05) as run:
        await run.send("till", "x", conversation="c")
        await run.settled()
        waits = await run.waiting()
    assert len(waits) == 1
    async with agents.run(old, suspend_after_s=0.05) as run:
        await run.clock.move(3_601)
        async with asyncio.timeout(30):
            while len(met) < 3:
                await run.clock.skip()
        assert await run.dead_letters() == []
    async with agents.run(new, suspend_after_s=0.05) as run:
        await run.clock.move(3_601)
        async with asyncio.timeout(30):
            while not await run.outputs("c"):
                await asyncio.sleep(0.05)
        assert [message.text for message in await run.outputs("c")] == ["paid"]


async def test_a_redrive_keeps_recorded_steps_and_an_edited_message_has_its_own(agents: Agents) -> None:
    calls: list[str] = []

    @agent("till", retries=0)
    async def till(message: Message, ctx: Context) -> str:
        said: str = await ctx.step("say", lambda: calls.append(message.text) or message.text)
        if len(calls) == 1 and len(failed) < 2:
            failed.append(said)
            raise ValueError("not yet")
        return said

    failed: list[str] = []
    async with agents.run(till) as run:
        sent = await run.send("till", "first", conversation="c")
        await run.redrive()
        assert failed == ["first", "first"]
        assert calls == ["first"]
        books = Books(agents.settings, "till")
        *_, park = await books.lines("park")
        edited = Message.create("second", to="till", conversation="c")
        codec = await asyncio.to_thread(lambda: Codec(open_registry(agents.settings)))
        await asyncio.to_thread(codec.prepare)
        kept = {"key": b"c", "value": codec.encode(edited), "headers": [], "timestamp": 0}
        await books.append(
            park.partition, kind="redrive", offset=sent.offset, conversation_id="c", refers=park.at,
            message_id=edited.message_id, record=kept,
        )  # fmt: skip
        await books.until("done")
        assert [message.text for message in await run.outputs("c") if message.type == "result"] == ["second"]
    assert calls == ["first", "second"]


async def test_a_handler_waits_for_several_things_over_a_restart_of_all_workers(agents: Agents) -> None:
    """The answer comes while no worker runs, the approval while it is suspended, and the time is set back and forth."""
    runs: list[str] = []
    going = asyncio.Event()

    @agent("asker")
    async def asker(message: Message, ctx: Context) -> str:
        runs.append("run")
        async with asyncio.TaskGroup() as group:  # a suspension is a group of exceptions here
            said = group.create_task(cast(Any, ctx.ask("oracle", "when?", timeout=90_000)))
            sure = group.create_task(cast(Any, ctx.approve("sure?")))
            group.create_task(cast(Any, ctx.sleep(7200)))
        return f"{said.result()} {sure.result().by} {await ctx.step('end', lambda: 'end')}"

    @agent("oracle")
    async def oracle(message: Message, ctx: Context) -> str:
        await going.wait()
        return "now"

    async with agents.run(oracle) as answering:
        async with agents.run(asker, suspend_after_s=0.1) as first:
            await first.send("asker", "x", conversation="c")
            await Books(agents.settings, "asker").until("suspend", conversation="c")
        going.set()
        await answering.settled()
        async with agents.run(asker, suspend_after_s=0.1) as second:
            second.clock._ahead_s = -3600  # set back an hour: timers are later by that, and not lost
            await second.approve("c", by="Ada")
            await Books(agents.settings, "asker").until("suspend", conversation="c", count=2)
            await second.clock.move(7100)
            assert not await Books(agents.settings, "asker").lines("done")
            await second.clock.move(3700)
            (done,) = await Books(agents.settings, "asker").until("done", conversation="c")
        (reply,) = await read_topic(agents.settings, "replies", 1)
        assert reply.text == "now Ada end"
    records = [line.record["step"] for line in await Books(agents.settings, "asker").lines("step")]
    # It is written again where its handler ran when it came, and was suspended then: of the same, the first counts.
    assert len({each["body"] for each in records if each["outcome"] == "answer"}) == 1
    steps = [each["outcome"] for each in records]
    assert steps.count("approval") == steps.count("timer") == 1
    assert done.record["outputs"]


async def test_a_deadline_that_passes_while_suspended_is_the_answer_of_every_run(agents: Agents) -> None:
    said: list[str] = []

    @agent("asker", retries=2, backoff=0.01)
    async def asker(message: Message, ctx: Context) -> str:
        try:
            return cast(str, await ctx.ask("silent", "x", timeout=600))
        except AnswerTimeout as error:
            said.append(str(error))
        if len(said) < 3:
            raise ValueError("once more")
        return "no answer"

    @agent("silent")
    async def silent(message: Message, ctx: Context) -> str:
        await late.wait()
        return "late"

    late = asyncio.Event()
    async with agents.run(asker, silent, suspend_after_s=0.1) as run:
        asked = asyncio.create_task(run.ask("asker", "x", conversation="c"))
        books = Books(agents.settings, "asker")
        (suspended,) = await books.until("suspend")
        question = suspended.record["waits"][0]["about"]
        await books.answer(suspended.partition, question, "stranger", "from somebody else")
        await run.clock.move(601)
        await books.until("step")
        late.set()
        assert (await asked).text == "no answer"
        answers = [line for line in await books.lines("step") if line.record["step"]["outcome"] == "answer"]
        # The one who was asked is ended by the deadline too, and says so, be it before or when the result is known.
        assert 1 <= len(answers) <= 2
    assert len(said) == 3
    assert len(set(said)) == 1
    assert "'silent' within 600.0 s: question" in said[0]


async def test_the_first_answer_of_who_was_asked_counts(agents: Agents, caplog: pytest.LogCaptureFixture) -> None:
    @agent("asker")
    async def asker(message: Message, ctx: Context) -> str:
        return cast(str, await ctx.ask("silent", "x", timeout=600))

    @agent("silent")
    async def silent(message: Message, ctx: Context) -> str:
        await asyncio.Event().wait()
        return "never"

    books = Books(agents.settings, "asker")
    async with agents.run(asker, silent, drain_timeout_s=0.2, suspend_after_s=0.1) as run:
        asked = asyncio.create_task(run.ask("asker", "x", conversation="c"))
        (line,) = await books.until("suspend")
        question = line.record["waits"][0]["about"]
        for sender, content in (("stranger", "foreign"), ("silent", "first"), ("silent", "second")):
            await books.answer(line.partition, question, sender, content)
        assert (await asked).text == "first"
    assert "an answer from 'stranger' to question" in caplog.text


async def test_who_is_suspended_is_answered_though_no_commit_says_that_anybody_asked(agents: Agents) -> None:
    """Its worker died between the suspension and the next commit, and nobody was ever answered."""
    going = asyncio.Event()

    @agent("asker")
    async def asker(message: Message, ctx: Context) -> str:
        return await ctx.ask("oracle", "why")

    @agent("oracle")
    async def oracle(message: Message, ctx: Context) -> str:
        await going.wait()
        return "42"

    settings, books = agents.settings, Books(agents.settings, "asker")
    async with agents.run(oracle):
        async with agents.run(asker, suspend_after_s=0.1) as first:
            await first.send("asker", "x", conversation="c")
            await books.until("suspend")
        admin, inbox = await asyncio.to_thread(Admin, settings), settings.topic("agent.asker")
        said = await asyncio.to_thread(admin.commits, first.deployment, [inbox])
        before = {}
        for place, (offset, metadata) in said.items():
            note = decode_note(metadata)
            before[place] = offset, metadata.replace(note, str(replace(Note.parse(note), answers=-1)))
        await asyncio.to_thread(admin.commit, first.deployment, before)
        async with agents.run(asker) as second:
            await second.send("asker", "y", conversation="c")
            await books.until("held")  # its worker has read all that there is
            going.set()
            assert (await books.until("done"))[0].record["outputs"]
