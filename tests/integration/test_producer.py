"""The producer against a real broker: what it says was acknowledged is there, and what failed is told."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import confluent_kafka
import pytest

from llmagentos.streams.admin import ensure_topics
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.errors import DeliveryError, RecordError, RecordTooLarge, TopicError
from llmagentos.streams.message import Message
from llmagentos.streams.partition import murmur2_partition
from llmagentos.streams.producer import MESSAGE_ID, Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec

PARTITIONS = 4


@pytest.fixture
def topic(settings: Settings) -> str:
    name = settings.topic("agent.greeter")
    ensure_topics(settings, [(name, PARTITIONS, {})])
    return name


@pytest.fixture
async def producer(settings: Settings, topic: str) -> AsyncIterator[Producer]:
    async with Producer(settings, Codec(open_registry(settings))) as running:
        yield running


def read(settings: Settings, topic: str, partitions: int = PARTITIONS) -> list[Any]:
    """Every record of *topic*."""
    config = client_config(settings, group_id="read", enable_auto_commit=False, enable_partition_eof=True)
    consumer = confluent_kafka.Consumer(config)
    found: list[Any] = []
    try:
        consumer.assign([confluent_kafka.TopicPartition(topic, p, 0) for p in range(partitions)])
        ended = 0
        while ended < partitions:
            for record in consumer.consume(1000, 10.0):
                if record.error() is None:
                    found.append(record)
                else:
                    ended += 1
        return found
    finally:
        consumer.close()


async def test_what_is_delivered_is_there(settings: Settings, topic: str, producer: Producer) -> None:
    for number in range(1000):
        producer.produce(topic, b"%d" % number, b"key-%d" % (number % 7), headers=[("h", b"1")], timestamp_ms=1_000)
    assert producer.sent == 1000
    await producer.delivered()
    assert producer.queued == producer.queued_bytes == 0
    records = read(settings, topic)
    assert len(records) == 1000
    for key in range(7):
        values = [int(r.value()) for r in records if r.key() == b"key-%d" % key]
        assert values == list(range(key, 1000, 7)), "a key's order is kept"
    for record in records:
        assert record.partition() == murmur2_partition(record.key(), PARTITIONS)
        assert record.headers() == [("h", b"1")]
        assert record.timestamp()[1] == 1_000


async def test_send_routes_by_recipient_and_conversation(settings: Settings, topic: str, producer: Producer) -> None:
    message = Message.create("hello", to="greeter", conversation="c-1")
    delivery = await producer.send(message)
    place = await delivery
    assert (place.topic, place.partition) == (topic, murmur2_partition(b"c-1", PARTITIONS))
    assert await delivery == place, "it may be awaited again"
    [record] = read(settings, topic)
    assert record.offset() == place.offset
    assert record.key() == b"c-1"
    assert record.headers() == [(MESSAGE_ID, message.message_id.encode())]
    raw = record.value()
    assert Codec(open_registry(settings)).message(raw, topic, 0, 0, 0).record == message.record


async def test_nobody_in_particular_is_no_recipient(producer: Producer) -> None:
    with pytest.raises(RecordError, match="names no recipient"):
        await producer.send(Message.create("hello", to=""))
    assert producer.sent == 0


async def test_delivered_does_not_wait_for_what_comes_later(topic: str, producer: Producer) -> None:
    """librdkafka's flush would: under load its queue is never empty."""
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            producer.produce(topic, b"x")
            if producer.full:
                await producer.ebb()
            await asyncio.sleep(0)

    loading = asyncio.create_task(load())
    for _ in range(20):
        upto = producer.sent
        await asyncio.wait_for(producer.delivered(upto), 30)
    stop.set()
    await loading


async def test_many_wait_for_their_own(producer: Producer) -> None:
    deliveries = [await producer.send(Message.create(f"{i}", to="greeter")) for i in range(500)]
    places = await asyncio.gather(*deliveries)
    assert len(set(places)) == 500
    waiter = asyncio.ensure_future(producer.delivered())
    other = asyncio.ensure_future(producer.delivered())
    waiter.cancel()
    await other


async def test_memory_is_bounded(settings: Settings, topic: str) -> None:
    """Far more than the bounds, without a poll between: it waits, and raises no BufferError."""
    async with Producer(settings, max_queued=100, max_queued_bytes=100_000) as producer:
        for _ in range(3000):
            producer.produce(topic, b"x" * 1000)
            assert producer.queued <= 400 + 1
        await producer.ebb()
        assert not producer.full
    assert len(read(settings, topic)) == 3000


async def test_send_waits_at_the_bounds(settings: Settings, topic: str) -> None:
    async with Producer(settings, Codec(open_registry(settings)), max_queued=50) as producer:
        most = 0
        for number in range(1000):
            await producer.send(Message.create(f"{number}", to="greeter"))
            most = max(most, producer.queued)
        assert most <= 50
    assert len(read(settings, topic)) == 1000


async def test_too_large_is_told_at_once(settings: Settings, topic: str, producer: Producer) -> None:
    with pytest.raises(RecordTooLarge) as raised:
        producer.produce(topic, b"x" * (settings.max_message_bytes + 1), b"key")
    text = str(raised.value)
    assert "1,000,004 bytes" in text
    assert "1,000,000 bytes" in text
    assert "max_message_bytes" in text
    assert topic in text
    assert raised.value.cause == "too-large"
    producer.produce(topic, b"fine")
    await producer.delivered()
    assert len(read(settings, topic)) == 1


async def test_the_topics_own_limit_is_told(settings: Settings, producer: Producer) -> None:
    name = settings.topic("agent.small")
    ensure_topics(settings, [(name, 1, {"max.message.bytes": "2000"})])
    await (await producer.send(Message.create("hello", to="small")))  # Kafka would refuse both in one batch
    large = await producer.send(Message.create(os.urandom(5000), to="small"))
    with pytest.raises(RecordTooLarge, match=r"max\.message\.bytes"):
        await large
    with pytest.raises(DeliveryError) as raised:
        await producer.delivered()
    assert isinstance(raised.value.__cause__, RecordTooLarge)
    await producer.delivered()  # told once


async def test_a_missing_topic_is_told(settings: Settings) -> None:
    async with Producer(settings, topic_metadata_propagation_max_ms=1) as producer:
        producer.produce(settings.topic("agent.nobody"), b"x", b"k-1")
        with pytest.raises(DeliveryError, match=r"agent\.nobody") as raised:
            await producer.delivered()
        assert isinstance(raised.value.__cause__, TopicError)
        assert "k-1" in str(raised.value)


async def test_failures_are_told_to_all_who_wait(settings: Settings) -> None:
    async with Producer(settings, topic_metadata_propagation_max_ms=1) as producer:
        for _ in range(3):
            producer.produce(settings.topic("agent.nobody"), b"x")
        told = await asyncio.gather(producer.delivered(), producer.delivered(), return_exceptions=True)
        assert all(isinstance(error, DeliveryError) and "3 sends failed" in str(error) for error in told)


async def test_stop_tells_of_failures() -> None:
    producer = await Producer(Settings(brokers="127.0.0.1:1", delivery_timeout_s=1)).start()
    producer.produce("t", b"x")
    with pytest.raises(DeliveryError, match="not acknowledged within 1 s"):
        await producer.stop()
    with pytest.raises(DeliveryError, match="not started"):
        producer.produce("t", b"x")


async def test_an_error_inside_keeps_its_place() -> None:
    async def fail() -> None:
        async with Producer(Settings(brokers="127.0.0.1:1", delivery_timeout_s=1)) as producer:
            producer.produce("t", b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        await fail()
    assert "not acknowledged" in raised.value.__notes__[0]


async def test_a_broker_out_of_reach_is_told() -> None:
    async with Producer(Settings(brokers="127.0.0.1:1", delivery_timeout_s=1)) as producer:
        producer.produce("t", b"x", b"conversation-9")
        begun = time.monotonic()
        with pytest.raises(DeliveryError) as raised:
            await producer.delivered()
        assert time.monotonic() - begun < 30
        text = str(raised.value)
        assert "conversation-9" in text
        assert "kept:" in text
        assert "Connection refused" in text or "brokers are down" in text
