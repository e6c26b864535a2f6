"""Questions that come back to who asks: they run inside their cause, and nothing else of the conversation does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmagentos.agents import Agent, Context, Message, agent
from llmagentos.agents.outputs import Output
from llmagentos.agents.reentrance import Reentrance
from llmagentos.agents.testing import Agents
from llmagentos.streams.errors import AnswerError
from llmagentos.streams.registry import open_registry
from llmagentos.streams.wire import Codec

from .journals import Books
from .reading import read_topic


class Shop:
    """A till that asks a poet, who asks back; and what they did, in order."""

    def __init__(self, **options: Any) -> None:
        self.did: list[str] = []
        self.asked = asyncio.Event()
        self.ask_back = asyncio.Event()
        self.ask_back.set()
        self.go = asyncio.Event()
        self.go.set()

        @agent("till", **options)
        async def till(message: Message, ctx: Context) -> Any:
            inside = " inside" if ctx.reentrant else ""
            self.did.append(f"{message.text} begins{inside}")
            said = ""
            if message.text.startswith("sell"):
                said = await ctx.ask("poet", message.text)
            elif message.text.startswith("deep"):
                said = await ctx.ask("till", message.text[5:])
            elif ctx.reentrant:
                await ctx.step("look up", lambda: self.did.append("looks up"))
                await self.go.wait()
            self.did.append(f"{message.text} ends")
            return f"{message.text}: {said}"

        @agent("poet")
        async def poet(message: Message, ctx: Context) -> Any:
            self.asked.set()
            await self.ask_back.wait()
            return f"poem on {await ctx.ask('till', 'price')}"

        self.till: Agent = till
        self.poet: Agent = poet


IN_ORDER = ["sell begins", "price begins inside", "looks up", "price ends", "sell ends", "next begins", "next ends"]


async def test_a_question_back_runs_inside_and_the_next_message_waits(agents: Agents) -> None:
    shop = Shop(max_in_flight=1)
    shop.go.clear()
    async with agents.run(shop.till, shop.poet) as run:
        sold = asyncio.create_task(run.ask("till", "sell", conversation="c"))
        await shop.asked.wait()
        following = asyncio.create_task(run.ask("till", "next", conversation="c"))
        other = await run.ask("till", "other", conversation="d")
        assert other.text == "other: "
        shop.go.set()
        assert (await sold).text == "sell: poem on price: "
        assert (await following).text == "next: "
    assert [did for did in shop.did if not did.startswith("other")] == IN_ORDER


async def test_it_runs_inside_a_suspended_one_and_what_is_held_comes_behind(agents: Agents) -> None:
    shop = Shop()
    shop.ask_back.clear()
    async with agents.run(shop.till, shop.poet, suspend_after_s=0.1) as run:
        sold = asyncio.create_task(run.ask("till", "sell", conversation="c"))
        books = Books(agents.settings, "till")
        await books.until("suspend", conversation="c")
        following = asyncio.create_task(run.ask("till", "next", conversation="c"))
        await books.until("held", conversation="c")
        shop.ask_back.set()
        assert (await sold).text == "sell: poem on price: "
        assert (await following).text == "next: "
    assert shop.did == ["sell begins", *IN_ORDER[1:4], "sell begins", *IN_ORDER[4:]]


@pytest.mark.parametrize("suspended", [False, True])
async def test_both_meet_again_in_another_worker(agents: Agents, suspended: bool) -> None:
    shop = Shop()
    shop.ask_back.clear()
    books = Books(agents.settings, "till")
    async with agents.run(shop.poet):
        async with agents.run(shop.till, drain_timeout_s=0.1, suspend_after_s=0.1 if suspended else 60.0) as first:
            await first.send("till", "sell", conversation="c")
            await shop.asked.wait()
            if suspended:
                await books.until("suspend", conversation="c")
            await first.send("till", "next", conversation="c")
        shop.did.clear()
        shop.ask_back.set()
        await read_topic(agents.settings, "agent.till", 3)  # the question back is there
        async with agents.run(shop.till, suspend_after_s=60.0):
            replies = await read_topic(agents.settings, "replies", 2)
    assert [each.text for each in replies] == ["sell: poem on price: ", "next: "]
    order = [did for did in shop.did if not (suspended and did == "sell begins")]
    assert order == [did for did in IN_ORDER if not (suspended and did == "sell begins")]


async def test_what_was_completed_inside_and_not_sent_is_sent_by_the_next_owner(agents: Agents) -> None:
    """It stands behind the message that it ran inside, which waits for it."""
    shop = Shop()
    shop.ask_back.clear()
    books = Books(agents.settings, "till")
    async with agents.run(shop.poet):
        async with agents.run(shop.till, suspend_after_s=0.1) as first:
            await first.send("till", "sell", conversation="c")
            await books.until("suspend", conversation="c")
        shop.ask_back.set()
        _, question = await read_topic(agents.settings, "agent.till", 2)
        answer = Message.create("42", to="poet", conversation="c", sender="till", type="result")
        answer.record["caused_by"] = question.message_id
        codec = await asyncio.to_thread(lambda: Codec(open_registry(agents.settings)))
        topic, partition = question.reply_to
        output = Output(agents.settings.topic("answers.poet"), codec.encode(answer), b"q", partition)
        assert topic == output.topic
        (*_, claim) = [line for line in await books.lines("claim") if line.partition == question.partition]
        await books.append(
            question.partition, kind="done", claim=claim.at, offset=question.offset, conversation_id="c",
            message_id=question.message_id, outputs=[output.record()],
        )  # fmt: skip
        async with agents.run(shop.till, suspend_after_s=60.0):
            (reply,) = await read_topic(agents.settings, "replies", 1)
    assert reply.text == "sell: poem on 42"
    assert not [did for did in shop.did if did.startswith("price")]


async def test_circles_within_circles_come_to_their_end(agents: Agents) -> None:
    shop = Shop()
    async with agents.run(shop.till, shop.poet) as run:
        assert (await run.ask("till", "deep deep sell", conversation="c")).text == (
            "deep deep sell: deep sell: sell: poem on price: "
        )
    assert [did.removesuffix(" inside") for did in shop.did] == [
        "deep deep sell begins", "deep sell begins", "sell begins", "price begins", "looks up",
        "price ends", "sell ends", "deep sell ends", "deep deep sell ends",
    ]  # fmt: skip


async def test_an_endless_circle_ends_at_the_deadline_and_says_who_asked_whom(agents: Agents) -> None:
    @agent("ping", retries=0)
    async def ping(message: Message, ctx: Context) -> Any:
        return await ctx.ask("pong", "x", timeout=None if ctx.reentrant else 600)

    @agent("pong", retries=0)
    async def pong(message: Message, ctx: Context) -> Any:
        await asyncio.sleep(0.2)
        return await ctx.ask("ping", "x")

    async with agents.run(ping, pong) as run:
        asked = asyncio.create_task(run.ask("ping", "x", conversation="c"))
        await read_topic(agents.settings, "agent.ping", 4)
        await run.clock.move(601)
        with pytest.raises(AnswerError, match="the chain is ping -> pong"):
            await asked
        errors = [letter.error for letter in await run.dead_letters()]
    assert any("the chain is ping -> pong -> ping -> pong" in error for error in errors)


async def test_memory_is_read_inside_and_changing_it_is_refused(agents: Agents) -> None:
    @agent("till", memory=dict, retries=0)
    async def till(message: Message, ctx: Context) -> Any:
        if ctx.reentrant:
            seen = dict(ctx.memory)
            if message.text == "change":
                ctx.memory["inside"] = True
            return seen
        ctx.memory["said"] = message.text
        return await ctx.ask("poet", message.text) if message.text != "set" else "kept"

    @agent("poet", retries=0)
    async def poet(message: Message, ctx: Context) -> Any:
        return await ctx.ask("till", message.text)

    async with agents.run(till, poet) as run:
        await run.ask("till", "set", conversation="c")
        assert (await run.ask("till", "look", conversation="c")).content == {"said": "set"}
        with pytest.raises(AnswerError, match="inside an earlier message that is not finished"):
            await run.ask("till", "change", conversation="c")


async def test_the_above_is_red_where_any_message_is_let_inside(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cause(self: Any, key: bytes, work: Any) -> Any:
        return next(iter(self.asking.get(key, ())), None)

    monkeypatch.setattr(Reentrance, "_cause", cause)
    shop = Shop()
    shop.go.clear()
    async with agents.run(shop.till, shop.poet) as run:
        sold = asyncio.create_task(run.ask("till", "sell", conversation="c"))
        await shop.asked.wait()
        following = asyncio.create_task(run.ask("till", "next", conversation="c"))
        async with asyncio.timeout(30):
            while "next begins inside" not in shop.did:
                await asyncio.sleep(0.02)
        shop.go.set()
        await asyncio.gather(sold, following)
    assert shop.did != IN_ORDER
