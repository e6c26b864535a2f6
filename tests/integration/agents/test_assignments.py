"""Partitions come and go under handlers that take their time: what was taken away changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import confluent_kafka
import pytest
from faust.types import TP

from llmagentos.agents.agent import agent
from llmagentos.agents.answers import Answers
from llmagentos.agents.dead_letters import DeadLetters
from llmagentos.agents.inbox import Inbox
from llmagentos.agents.outputs import Outputs
from llmagentos.agents.room import Room
from llmagentos.streams.admin import ensure_topics
from llmagentos.streams.delivery import Delivery
from llmagentos.streams.journal_record import SUBJECT
from llmagentos.streams.message import Message
from llmagentos.streams.ownership import Journal, Ownership
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.saying import say
from llmagentos.streams.settings import Settings
from llmagentos.streams.spans import Spans
from llmagentos.streams.topology import named
from llmagentos.streams.transport.sink import Start
from llmagentos.streams.wire import Codec


class Hands:
    """An inbox whose records are handed to it by the test, as the transport would."""

    def __init__(self, tp: TP) -> None:
        self.tp = tp
        self.finished: list[int] = []
        self.started: list[int] = []
        self.go = asyncio.Event()
        self.begun_again: list[TP] = []
        self.swallow = False
        self.asks = self.approves = False
        self.heard: list[str] = []
        self.producer: Producer
        self.codec: Codec
        self.answers: Answers
        self.room = Room(1_000, 1_000_000, lambda: None)
        self.inbox: Inbox

    def deliver(self, *offsets: int) -> None:
        records = [
            confluent_kafka.Message(
                topic=self.tp.topic, partition=0, offset=n, key=b"c%d" % n, value=b"v", timestamp=(1, 1)
            )
            for n in offsets
        ]
        self.inbox.deliver(self.tp, records)


@pytest.fixture
async def hands(settings: Settings, request: pytest.FixtureRequest) -> AsyncIterator[Hands]:
    """With settings of their own where a test gives some."""
    made = Hands(TP(settings.topic("agent.slow"), 0))
    codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
    answers = Answers(settings, codec, name="test")

    @agent("slow")
    async def slow(message: Message, ctx: Any) -> None:
        made.started.append(message.offset)
        if made.approves:
            made.heard.append((await ctx.approve("sure?")).by)
            return
        if made.asks:
            made.heard.append(await ctx.ask("other", "well?"))
            return
        try:
            await made.go.wait()
        except asyncio.CancelledError:
            if not made.swallow:
                raise

    def decode(record: Any) -> Message:
        name = str(record.offset())
        message = Message.create("x", to="slow", conversation=f"c{name}", message_id=f"m{name}")
        return Message(message.record, made.tp.topic, 0, record.offset())

    quick = settings.model_copy(update={"drain_timeout_s": 0.2, **getattr(request, "param", {})})
    await asyncio.to_thread(
        ensure_topics,
        settings,
        [named(kind).of("slow") for kind in ("journal.NAME", "answers.NAME")]
        + [named("agent.NAME").of(each) for each in ("slow", "other")],
    )
    made.codec, made.answers = codec, answers
    await asyncio.to_thread(codec.writer, SUBJECT, "journal")
    async with Producer(settings) as producer:
        made.producer = producer
        journal = Journal(settings, producer, codec, writer="test", broken=lambda error: pytest.fail(repr(error)))
        made.inbox = Inbox(
            slow,
            decode=decode,
            outputs=Outputs(quick, producer, codec.encode),
            answers=answers,
            dead_letters=DeadLetters(settings, producer, lambda record: b"", worker="test"),
            journal=journal,
            room=made.room,
            finish=lambda tp, offset: made.finished.append(offset),
            committed=lambda tp: 0,
            begin_again=made.begun_again.append,
            broken=lambda error: pytest.fail(repr(error)),
            told=lambda kind, **detail: None,
        )
        yield made
        await made.inbox.stop()
        await journal.stop()
    await answers.stop()


async def started(hands: Hands, count: int) -> None:
    async with asyncio.timeout(5):
        while len(hands.started) < count:
            await asyncio.sleep(0.005)


async def test_what_ends_within_the_drain_is_finished(hands: Hands) -> None:
    await hands.inbox.assigned({hands.tp: Start(None)})
    hands.deliver(1, 2)
    await started(hands, 2)
    drain = asyncio.create_task(hands.inbox.revoked({hands.tp}))
    await asyncio.sleep(0)
    hands.go.set()
    await drain
    assert sorted(hands.finished) == [1, 2]
    assert hands.room.messages == 1_000


async def test_what_does_not_end_is_cancelled_and_not_finished(hands: Hands) -> None:
    await hands.inbox.assigned({hands.tp: Start(None)})
    hands.deliver(1)
    await started(hands, 1)
    await hands.inbox.revoked({hands.tp})
    assert hands.finished == []
    assert hands.room.messages == 1_000


async def test_a_handler_that_swallows_its_cancellation_has_not_handled_its_message(hands: Hands) -> None:
    hands.swallow = True
    await hands.inbox.assigned({hands.tp: Start(None)})
    hands.deliver(1)
    await started(hands, 1)
    await hands.inbox.revoked({hands.tp})
    assert hands.finished == []


async def test_a_partition_lost_and_regained_is_not_undone_by_its_own_drain(hands: Hands) -> None:
    await hands.inbox.assigned({hands.tp: Start(None)})
    hands.deliver(1)
    await started(hands, 1)
    drain = asyncio.create_task(hands.inbox.revoked({hands.tp}))  # lost: the transport does not wait for this
    await asyncio.sleep(0)
    await hands.inbox.assigned({hands.tp: Start(None)})
    hands.deliver(1, 2)
    await drain
    assert hands.tp in hands.inbox.owned
    await started(hands, 3)  # 1 of the new assignment waited in its lane for that of the old one
    hands.go.set()
    async with asyncio.timeout(5):
        while len(hands.finished) < 2:
            await asyncio.sleep(0.005)
    assert sorted(hands.finished) == [1, 2]


async def question(hands: Hands, settings: Settings) -> Message:
    """What was asked of `other`."""
    topic = settings.topic("agent.other")
    with closing(Spans(settings, name="test")) as spans:
        async with asyncio.timeout(10):
            while True:
                ends = {(topic, n): await asyncio.to_thread(spans.ends, topic, n) for n in range(settings.partitions)}
                for batch in spans.read({place: span for place, span in ends.items() if span[0] < span[1]}):
                    return hands.codec.read(batch[0])


async def answer(hands: Hands, settings: Settings, asked: Message) -> None:
    """Answer what was asked."""
    said = Message.create("yes", to="slow", conversation="c1", sender="other", type="result")
    said.record["caused_by"] = asked.message_id
    await hands.producer.post(settings.topic("answers.slow"), hands.codec.encode(said), b"c1", 0, kind=Delivery)


async def heard(hands: Hands, *answers: str) -> None:
    async with asyncio.timeout(10):
        while hands.heard != [*answers]:
            await asyncio.sleep(0.005)


async def test_who_regains_a_partition_hears_again_what_was_answered_before(hands: Hands, settings: Settings) -> None:
    hands.asks = True
    await hands.inbox.assigned({hands.tp: Start(None)})
    hands.deliver(1)
    asked = await question(hands, settings)
    note = hands.inbox.note(hands.tp, 0)  # of the last commit: the question is not answered yet
    await answer(hands, settings, asked)
    await heard(hands, "yes")
    await hands.inbox.assigned({hands.tp: Start(None, note=note)})  # lost and regained; nothing was committed meanwhile
    hands.deliver(1)
    await heard(hands, "yes", "yes")


@pytest.mark.parametrize("hands", [{"drain_timeout_s": 10, "suspend_after_s": 0.05}], indirect=True)
async def test_an_answer_that_comes_while_its_asker_leaves_with_its_partition_is_kept(
    hands: Hands, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is being suspended when the partition is revoked: then the answer comes, then the suspension counts."""
    leaving, go = asyncio.Event(), asyncio.Event()
    write = Ownership.write

    async def late(self: Ownership, kind: Any, entry: Any, *, conversation_id: str) -> int:
        if kind == "suspend":
            leaving.set()
            await go.wait()
        return await write(self, kind, entry, conversation_id=conversation_id)

    monkeypatch.setattr(Ownership, "write", late)
    hands.asks = True
    await hands.inbox.assigned({hands.tp: Start(None)})
    hands.deliver(1)
    asked = await question(hands, settings)
    async with asyncio.timeout(10):
        await leaving.wait()
    revoked = asyncio.create_task(hands.inbox.revoked({hands.tp}))
    await asyncio.sleep(0)  # all that is let go at once is, now
    await answer(hands, settings, asked)
    async with asyncio.timeout(10):
        while hands.answers.position(settings.topic("answers.slow"), 0) < 1:
            await asyncio.sleep(0.005)
    go.set()
    await revoked
    await hands.inbox.assigned({hands.tp: Start(None, note=hands.inbox.note(hands.tp, 0))})
    hands.deliver(1)
    await heard(hands, "yes")


async def test_what_is_decided_while_a_message_is_recalled_is_not_missing(
    hands: Hands, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its partition is regained, and its steps are being read as one more comes: it was parked for that."""
    reading, go = asyncio.Event(), asyncio.Event()
    payloads = Ownership.payloads

    async def slow(self: Ownership, entries: Any) -> Any:
        found = await payloads(self, entries)
        reading.set()
        await go.wait()
        return found

    hands.approves = True
    await hands.inbox.assigned({hands.tp: Start(None)})
    hands.deliver(1)
    entries = hands.inbox.owned[hands.tp].entries
    async with asyncio.timeout(10):
        while 1 not in entries:
            await asyncio.sleep(0.005)
    monkeypatch.setattr(Ownership, "payloads", slow)
    await hands.inbox.assigned({hands.tp: Start(None, note=hands.inbox.note(hands.tp, 0))})
    hands.deliver(1)
    async with asyncio.timeout(10):
        await reading.wait()
    subject = hands.inbox.owned[hands.tp].entries[1]
    said = SimpleNamespace(partition=0, offset=1, conversation_id="c1", message_id="m1")
    names = {"name": "ctx.approve", "number": 0, "by": "ada", "why": ""}
    await say(hands.producer, hands.codec, settings.topic("journal.slow"), said, "approve", **names)
    async with asyncio.timeout(10):
        while len(subject.steps) < 2:
            await asyncio.sleep(0.005)
    go.set()
    await heard(hands, "ada")
