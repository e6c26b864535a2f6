"""Memory: what a handler left is what the next message of its conversation finds, whatever happens in between."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Any

import pytest
from pydantic import BaseModel

from llmagentos.agents import Context, Message, agent, memory
from llmagentos.agents.memory import SUBJECT, Remembering
from llmagentos.agents.testing import Agents, Run
from llmagentos.streams.errors import AgentError, AnswerError
from llmagentos.streams.message import JSON
from llmagentos.streams.mirror import Mirror
from llmagentos.streams.newest import ORDER, order_of
from llmagentos.streams.partition import murmur2_partition
from llmagentos.streams.registry import open_registry
from llmagentos.streams.spans import Spans
from llmagentos.streams.wire import Codec

from .test_ownership import write


class Cart(BaseModel):
    items: list[str] = []
    paid: bool = False


class Shop:
    """An agent that remembers what was put into the cart; `ill` has it fail, `calls` is what it handled."""

    def __init__(self) -> None:
        self.ill = False
        self.calls: list[str] = []

        @agent("till", memory=Cart, retries=1, backoff=0.01)
        async def till(message: Message, ctx: Context) -> Any:
            self.calls.append(message.text)
            cart: Cart = ctx.memory
            word = message.text
            if word == "look":
                return cart.items
            if word == "forget":
                ctx.forget()
                return None
            cart.items.append(word)
            if word == "fail" and ctx.attempt == 0:
                raise ValueError("once")
            if word == "break" and self.ill:
                raise ValueError("ill")
            if word == "sleep":
                await ctx.sleep(3_600)
            if word == "much":
                cart.items.append("x" * 5_000)
            if word == "odd":
                cart.items = {object()}  # type: ignore[assignment]
            if word == "wrong":
                cart.paid = "perhaps"  # type: ignore[assignment]
            return len(cart.items)

        self.till = till


@pytest.fixture
def shop() -> Shop:
    return Shop()


async def look(run: Run, conversation: str = "a") -> Any:
    return (await run.ask("till", "look", conversation=conversation)).content


async def put(run: Run, *words: str, conversation: str = "a") -> None:
    for word in words:
        await run.ask("till", word, conversation=conversation)


async def test_what_a_handler_left_is_what_the_next_message_finds(agents: Agents, shop: Shop) -> None:
    async with agents.run(shop.till) as run:
        await put(run, "tea", "cake")
        await put(run, "milk", conversation="b")
        await put(run, "fail")  # its first attempt leaves nothing
        assert await look(run) == ["tea", "cake", "fail"]
        await run.send("till", "forget", conversation="a")
        assert await look(run) == []
        assert await look(run, "b") == ["milk"]
        written = await run.records(run.settings.topic("memory.till"))
    assert [record.value is None for record in written].count(True) == 1
    assert len(written) == 5  # whoever only looks writes nothing


async def dies_before_it_sends(agents: Agents, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is seen after a worker recorded a completion, and was killed before it sent what was to be remembered.

    Redis stays as it was before that is sent: it may be behind for as long as it likes.
    """
    async with agents.run(shop.till) as run:
        await put(run, "tea")
    # Sent while nobody runs, and completed by a hand that writes just the record.
    partition = murmur2_partition(b"a", run.settings.partitions)
    async with agents.run(shop.till, faults="") as other:
        place = await other.send("till", "look", conversation="a")
        await other.settled()
    offset = place.offset + 1
    codec = await asyncio.to_thread(lambda: Codec(open_registry(run.settings)))
    encode = await asyncio.to_thread(codec.writer, SUBJECT, "memory")
    claim = await write(run.settings, "till", partition, kind="claim")
    value = encode(
        {"conversation_id": "a", "message_id": "m", "offset": offset, "at": 0, "content_type": JSON,
         "body": b'{"items": ["tea", "cake"]}'}
    )  # fmt: skip
    output = {
        "topic": run.settings.topic("memory.till"), "partition": partition, "key": b"a", "value": value,
        "headers": [{"name": ORDER, "value": order_of(claim, offset, "0").encode()}],
    }  # fmt: skip
    await write(
        run.settings, "till", partition, kind="done", claim=claim, offset=offset, conversation_id="a", message_id="m",
        outputs=[output],
    )  # fmt: skip
    topic = run.settings.topic("memory.till")
    ends = Spans.ends
    with closing(Spans(run.settings, name="before")) as spans:
        before = await asyncio.to_thread(ends, spans, topic, partition)
    monkeypatch.setattr(
        Spans, "ends", lambda self, of, at: before if (of, at) == (topic, partition) else ends(self, of, at)
    )
    monkeypatch.setattr(Mirror, "arrived", lambda self, record: None)
    async with agents.run(shop.till) as run:
        await run.send("till", "cake", conversation="a", message_id="m")
        return await look(run)


async def test_a_recorded_change_counts_though_its_worker_died(
    agents: Agents, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await dies_before_it_sends(agents, shop, monkeypatch) == ["tea", "cake"]
    assert shop.calls.count("cake") == 0


async def test_a_change_that_is_sent_and_not_seen_is_found(
    agents: Agents, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seeded bug: who takes over looks at Redis alone, which doesn't have yet what was just sent."""
    monkeypatch.setattr(Remembering, "sent", lambda self, work, outputs: None)
    assert await dies_before_it_sends(agents, shop, monkeypatch) == ["tea"]


async def test_an_order_is_kept_through_parking_and_redrive(agents: Agents, shop: Shop) -> None:
    shop.ill = True
    async with agents.run(shop.till) as run:
        await put(run, "tea")
        with pytest.raises(AnswerError, match="ill"):
            await put(run, "break")
        await run.send("till", "cake", conversation="a")
        await run.settled()
        shop.ill = False
        await run.redrive()
        assert await look(run) == ["tea", "break", "cake"]


async def test_what_cannot_be_kept_parks_the_message_and_changes_nothing(agents: Agents, shop: Shop) -> None:
    wrong = {
        "much": r"agent 'till' in conversation much would be 5,\d+ bytes .* the limit is 2,048",
        "odd": r"agent 'till', conversation odd, can't be kept: ctx\.memory\.items",
        "wrong": r"agent 'till', conversation wrong, can't be kept: paid = 'perhaps'",
    }
    async with agents.run(shop.till, max_memory_bytes=2_048) as run:
        for word, says in wrong.items():
            await put(run, "tea", conversation=word)
            with pytest.raises(AnswerError, match=says):
                await put(run, word, conversation=word)
        letters = await run.dead_letters()
        assert [(letter.cause, letter.attempts) for letter in letters] == [("failed", 1)] * 3
        await run.drop()
        for word in wrong:
            assert await look(run, word) == ["tea"]


async def test_a_suspended_handler_finds_the_same_memory_again(agents: Agents, shop: Shop) -> None:
    async with agents.run(shop.till, suspend_after_s=0.05) as run:
        await put(run, "tea")
        await run.send("till", "sleep", conversation="a")
        await run.settled()  # suspended: its offset is released
        await run.send("till", "cake", conversation="a")
        await run.settled()  # held
        assert shop.calls == ["tea", "sleep"]
        await run.clock.move(3_601)
        assert await look(run) == ["tea", "sleep", "cake"]
    assert shop.calls.count("sleep") == 2


async def test_memory_outlives_changes_of_its_class(agents: Agents, shop: Shop) -> None:
    async with agents.run(shop.till) as run:
        await put(run, "tea")

    class Newer(Cart):
        coupon: str = "none"

    class Other(BaseModel):
        items: dict[str, int] = {}

    def deploy(kind: type[BaseModel]) -> Any:
        @agent("till", memory=kind)
        async def till(message: Message, ctx: Context) -> Any:
            return ctx.memory.model_dump()

        return agents.run(till, name="till")

    async with deploy(Newer) as run:
        assert await look(run) == {"items": ["tea"], "paid": False, "coupon": "none"}
        assert len(await run.records(run.settings.topic("memory.till"))) == 1
    async with deploy(Other) as run:
        with pytest.raises(AnswerError, match="can't be read as .*Other: items = "):
            await look(run)
        (letter,) = await run.dead_letters()
        assert letter.cause == "changed-code"
    async with deploy(Cart) as run:
        await run.redrive()
        assert await look(run) == {"items": ["tea"], "paid": False}


async def test_a_record_that_comes_late_changes_nothing(agents: Agents, shop: Shop) -> None:
    """As of a worker that was frozen before its producer sent what it had remembered."""
    topic = agents.settings.topic("memory.till")
    async with agents.run(shop.till) as run:
        for conversation in "ab":
            await put(run, "tea", conversation=conversation)
        before = {record.key: record for record in await run.records(topic)}
        await put(run, "cake", conversation="a")
        await run.send("till", "forget", conversation="b")
        await run.settled()
        for key in (b"a", b"b"):
            late = before[key]
            headers = {name: value or b"" for name, value in late.headers.items()}
            await run.produce(topic, late.value, key=key.decode(), headers=headers)

        async def last() -> dict[bytes | None, bytes | None]:
            return {record.key: record.value for record in await run.records(topic)}

        async with asyncio.timeout(20):
            while b"cake" not in ((found := await last())[b"a"] or b"") or found[b"b"] is not None:
                await asyncio.sleep(0.02)
        assert await look(run, "a") == ["tea", "cake"]
        assert await look(run, "b") == []


async def test_a_journal_that_begins_anew_makes_nothing_old_of_what_is_new(
    agents: Agents, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with agents.run(shop.till) as run:
        await put(run, "tea")
    # As where somebody deleted the journal's topic: claims are low again.
    monkeypatch.setattr(memory, "order_of", lambda claim, offset, before: order_of(-1, -1, before))
    async with agents.run(shop.till) as run:
        await put(run, "cake", "milk")
        assert await look(run) == ["tea", "cake", "milk"]
        (*_, last) = await run.records(run.settings.topic("memory.till"))
        assert b"milk" in (last.value or b"")


async def test_a_mapping_and_a_thread_and_no_memory(agents: Agents) -> None:
    @agent("notes", memory=dict)
    async def notes(message: Message, ctx: Context) -> Any:
        if message.text == "clear":
            ctx.memory.clear()
        else:
            ctx.memory["n"] = ctx.memory.get("n", 0) + 1
        return ctx.memory

    @agent("clerk", memory=Cart, blocking="thread")
    def clerk(message: Message, ctx: Any) -> Any:
        ctx.memory = Cart(items=[*ctx.memory.items, message.text])
        return ctx.memory.items

    @agent("plain", retries=5)
    async def plain(message: Message, ctx: Context) -> Any:
        return ctx.memory

    async with agents.run(notes, clerk, plain) as run:
        for n in (1, 2):
            assert (await run.ask("notes", "x", conversation="a")).content == {"n": n}
        assert (await run.ask("notes", "clear", conversation="a")).content == {}
        assert (await run.ask("notes", "x", conversation="a")).content == {"n": 1}
        assert (await run.ask("clerk", "tea", conversation="a")).content == ["tea"]
        assert (await run.ask("clerk", "cake", conversation="a")).content == ["tea", "cake"]
        with pytest.raises(AnswerError, match="agent 'plain' has no memory"):
            await run.ask("plain", "x")


async def test_a_process_has_a_copy_and_what_it_makes_of_it_is_kept(deploy: Any, client: Any) -> None:
    await deploy(
        """
        from llmagentos.agents import agent

        @agent("sums", memory=dict, blocking="process", max_in_flight=1)
        def sums(message, ctx):
            if message.text == "forget":
                ctx.forget()
            else:
                ctx.memory["sum"] = ctx.memory.get("sum", 0) + int(message.text)
            return ctx.memory

        @agent("bare", blocking="process", max_in_flight=1, retries=0)
        def bare(message, ctx):
            return ctx.memory
        """
    )
    asker = await client()
    said = [(await asker.ask("sums", text, conversation="a", timeout=30)).content for text in ("3", "4", "forget", "5")]
    assert said == [{"sum": 3}, {"sum": 7}, {}, {"sum": 5}]
    with pytest.raises(AnswerError, match="agent 'bare' has no memory"):
        await asker.ask("bare", "x", timeout=30)


def test_a_memory_that_cannot_be_one_is_refused() -> None:
    class Needs(BaseModel):
        name: str

    async def handler(message: Message, ctx: Context) -> None: ...

    with pytest.raises(AgentError, match="field 'name' of its memory, .*Needs, has no default"):
        agent("x", memory=Needs)(handler)
    with pytest.raises(AgentError, match="no Pydantic model"):
        agent("x", memory=int)(handler)
