"""Partitions come and go under handlers that take their time: what was taken away changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
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
from llmagentos.streams.journal_record import SUBJECT
from llmagentos.streams.message import Message
from llmagentos.streams.ownership import Journal
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.topology import named
from llmagentos.streams.transport.sink import Start
from llmagentos.streams.wire import Codec

ZERO = TP("inbox", 0)


class Hands:
    """An inbox whose records are handed to it by the test, as the transport would."""

    def __init__(self) -> None:
        self.finished: list[int] = []
        self.started: list[int] = []
        self.go = asyncio.Event()
        self.begun_again: list[TP] = []
        self.swallow = False
        self.room = Room(1_000, 1_000_000, lambda: None)
        self.inbox: Inbox

    def deliver(self, *offsets: int) -> None:
        records = [
            confluent_kafka.Message(topic="inbox", partition=0, offset=n, key=b"c%d" % n, value=b"v", timestamp=(1, 1))
            for n in offsets
        ]
        self.inbox.deliver(ZERO, records)


@pytest.fixture
async def hands(settings: Settings) -> AsyncIterator[Hands]:
    made = Hands()
    codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
    answers = Answers(settings, codec, name="test")

    @agent("slow")
    async def slow(message: Message, ctx: Any) -> None:
        made.started.append(message.offset)
        try:
            await made.go.wait()
        except asyncio.CancelledError:
            if not made.swallow:
                raise

    def decode(record: Any) -> Message:
        message = Message.create("x", to="slow", conversation=f"c{record.offset()}")
        return Message(message.record, "inbox", 0, record.offset())

    quick = settings.model_copy(update={"drain_timeout_s": 0.2})
    await asyncio.to_thread(
        ensure_topics, settings, [named(kind).of("slow") for kind in ("journal.NAME", "answers.NAME")]
    )
    await asyncio.to_thread(codec.writer, SUBJECT, "journal")
    async with Producer(settings) as producer:
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
    await hands.inbox.assigned({ZERO: Start(None)})
    hands.deliver(1, 2)
    await started(hands, 2)
    drain = asyncio.create_task(hands.inbox.revoked({ZERO}))
    await asyncio.sleep(0)
    hands.go.set()
    await drain
    assert sorted(hands.finished) == [1, 2]
    assert hands.room.messages == 1_000


async def test_what_does_not_end_is_cancelled_and_not_finished(hands: Hands) -> None:
    await hands.inbox.assigned({ZERO: Start(None)})
    hands.deliver(1)
    await started(hands, 1)
    await hands.inbox.revoked({ZERO})
    assert hands.finished == []
    assert hands.room.messages == 1_000


async def test_a_handler_that_swallows_its_cancellation_has_not_handled_its_message(hands: Hands) -> None:
    hands.swallow = True
    await hands.inbox.assigned({ZERO: Start(None)})
    hands.deliver(1)
    await started(hands, 1)
    await hands.inbox.revoked({ZERO})
    assert hands.finished == []


async def test_a_partition_lost_and_regained_is_not_undone_by_its_own_drain(hands: Hands) -> None:
    await hands.inbox.assigned({ZERO: Start(None)})
    hands.deliver(1)
    await started(hands, 1)
    drain = asyncio.create_task(hands.inbox.revoked({ZERO}))  # lost: the transport does not wait for this
    await asyncio.sleep(0)
    await hands.inbox.assigned({ZERO: Start(None)})
    hands.deliver(1, 2)
    await drain
    assert ZERO in hands.inbox.owned
    await started(hands, 3)  # 1 of the new assignment waited in its lane for that of the old one
    hands.go.set()
    async with asyncio.timeout(5):
        while len(hands.finished) < 2:
            await asyncio.sleep(0.005)
    assert sorted(hands.finished) == [1, 2]
