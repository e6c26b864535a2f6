"""Reading topics from outside the engine, for what a test expects of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import confluent_kafka
from confluent_kafka import TopicPartition

from llmagentos.streams.endpoints import client_config
from llmagentos.streams.producer import librdkafka_log
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec


async def read_topic(
    settings: Settings,
    name: str,
    count: int,
    *,
    decoded: bool = False,
    raw: bool = False,
    ordered_by_time: bool = False,
    wanted: Callable[[bytes], bool] = lambda value: True,
    deadline_s: float = 30.0,
) -> list[Any]:
    """The first *count* wanted values of a topic: messages, records (*decoded*) or bytes (*raw*)."""
    records = await asyncio.to_thread(_read, settings, settings.topic(name), count, wanted, deadline_s)
    if ordered_by_time:
        records.sort(key=lambda record: record.timestamp()[1])
    if raw:
        return [record.value() for record in records]
    codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
    if decoded:
        return [codec.decode(record.value()) for record in records]
    return [
        codec.message(record.value(), record.topic(), record.partition(), record.offset(), record.timestamp()[1])
        for record in records
    ]


def _read(
    settings: Settings, topic: str, count: int, wanted: Callable[[bytes], bool], deadline_s: float
) -> list[confluent_kafka.Message]:
    consumer = confluent_kafka.Consumer(
        client_config(settings, group_id=f"{settings.prefix}reading", enable_auto_commit=False)
        | {"logger": librdkafka_log}
    )
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        records: list[confluent_kafka.Message] = []
        until = time.monotonic() + deadline_s
        while len(records) < count:
            assert time.monotonic() < until, f"{len(records)} of {count} records of {topic} after {deadline_s} s"
            record = consumer.poll(0.2)
            if record is not None and record.error() is None and wanted(record.value()):
                records.append(record)
        return records
    finally:
        consumer.close()
