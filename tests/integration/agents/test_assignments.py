"""Partitions come and go under handlers that take their time: what was taken away changes nothing."""

from __future__ import annotations

import asyncio
import struct
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
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.journal import SUBJECT
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
    await asyncio.to_thread(ensure_topics, settings, [named("journal.NAME").of("slow")])
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


async def test_committed_offsets_never_fall_while_workers_with_slow_handlers_come_and_go(
    deploy, settings: Settings
) -> None:
    source = """
        import asyncio
        from llmagentos.agents import agent

        @agent("slow")
        async def slow(message, ctx):
            await asyncio.sleep(int(message.text) / 1000)
            return message.text
    """
    from llmagentos.agents.testing.run import running

    first = await deploy(source)
    stop = asyncio.Event()

    async def feed() -> int:
        sent = 0
        codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
        async with Producer(settings, codec) as producer:
            while not stop.is_set():
                for _ in range(20):
                    ms = 1_000 + sent * 37 % 3_000
                    await producer.send(Message.create(str(ms), to="slow", conversation=f"c{sent % 400}"))
                    sent += 1
                await asyncio.sleep(0.2)
        return sent

    feeding = asyncio.create_task(feed())
    try:
        for index in (1, 2):
            async with running(type(first)(first.settings, first.deployment, first.loaded, index=index)):
                await asyncio.sleep(3)  # not a wait for a condition, but the load under which it must hold
    finally:
        stop.set()
        sent = await feeding
    assert sent > 100
    commits = await asyncio.to_thread(committed_offsets, settings, first.deployment)
    assert sum(map(len, commits.values())) > 20
    falls = {place: offsets for place, offsets in commits.items() if offsets != sorted(offsets)}
    assert falls == {}


def committed_offsets(settings: Settings, group: str) -> dict[tuple[str, int], list[int]]:
    """Every offset that *group* ever committed, in order, from the topic in which Kafka keeps them.

    The layout is that of Kafka's OffsetCommitKey and OffsetCommitValue (group-coordinator, version 1 and 3).
    """
    topic = "__consumer_offsets"
    consumer = confluent_kafka.Consumer(
        client_config(settings, group_id="watcher", enable_auto_commit=False, enable_partition_eof=True)
    )
    found: dict[tuple[str, int], list[int]] = {}
    try:
        left = set(consumer.list_topics(topic, 10).topics[topic].partitions)
        consumer.assign([confluent_kafka.TopicPartition(topic, partition, 0) for partition in left])
        while left:
            record = consumer.poll(10)
            assert record is not None
            if record.error() is not None:
                left.discard(record.partition())
                continue
            key, value = record.key(), record.value()
            (version,) = struct.unpack_from(">h", key)
            if version > 1 or value is None:
                continue
            size = struct.unpack_from(">h", key, 2)[0]
            name, rest = key[4 : 4 + size].decode(), key[4 + size :]
            size = struct.unpack_from(">h", rest)[0]
            place = (rest[2 : 2 + size].decode(), struct.unpack_from(">i", rest, 2 + size)[0])
            if name == group:
                found.setdefault(place, []).append(struct.unpack_from(">q", value, 2)[0])
    finally:
        consumer.close()
    return found
