"""`topics`, `agents`, `lag` and `conversations`."""

from __future__ import annotations

import asyncio
import json
import time

import confluent_kafka
from confluent_kafka import TopicPartition

from llmagentos.schemas import load
from llmagentos.streams.admin import ensure_topics
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.gate import CommitGate
from llmagentos.streams.message import Message
from llmagentos.streams.topology import named

from .conftest import Cast, Command


async def ask(command: Command, *arguments: str) -> list[dict[str, object]]:
    return json.loads((await asyncio.to_thread(command, *arguments, "-o", "json")).stdout)


async def card(stage: Cast, agent: str, deployment: str) -> None:
    ensure_topics(stage.settings, [named("cards")])
    record = {
        "name": agent, "deployment": deployment, "description": "Says hello.\nMore.",
        "topic": stage.settings.topic(f"agent.{agent}"), "partitions": stage.settings.partitions,
        "module": "hello", "version": "abc", "deployed_at": time.time_ns() // 1_000_000,
    }  # fmt: skip
    assert {field["name"] for field in load("card")["fields"]} == set(record)
    stage.raw("cards", stage.codec.writer("llmagentos.Card", "card")(record), 0, key=agent)
    await stage.producer.delivered()


async def test_topics_lists_the_topology_with_what_there_is(stage: Cast, command: Command) -> None:
    await stage.dialogue("order-1")
    rows = {str(row["topic"]).removeprefix(stage.settings.prefix): row for row in await ask(command, "topics")}
    assert rows["agent.greeter"]["messages"] == 1
    assert rows["agent.poet"]["partitions"] == stage.settings.partitions
    assert rows["replies"]["messages"] == 6
    assert rows["replies"]["retention_ms"] == 86_400_000
    assert rows["cards"]["partitions"] is None  # not made yet
    assert rows["schemas"]["cleanup"] == "compact"
    pretty = (await asyncio.to_thread(command, "topics")).stdout
    assert "the inbox of an agent" in pretty


async def test_lag_leaves_out_what_finished_above_the_watermark(stage: Cast, command: Command) -> None:
    topic, deployment = stage.settings.topic("agent.greeter"), f"{stage.settings.prefix}hello"
    for number in range(10):
        message = Message.create(number, to="greeter", conversation=f"c{number % 4}")
        stage.put("agent.greeter", message, number * 1000, partition=0)
    stage.put("agent.greeter", Message.create("x", to="greeter", conversation="other"), 0, partition=1)
    await stage.producer.delivered()
    await card(stage, "greeter", deployment)

    [fresh, *_] = rows = await ask(command, "lag", deployment)
    assert len(rows) == stage.settings.partitions
    assert (fresh["behind"], fresh["waiting"], fresh["committed"]) == (10, 4, None)

    gate = CommitGate(0)
    gate.delivered(range(10))
    for offset in (0, 1, 2, 4, 5, 8):
        gate.finish(offset)
    assert gate.committable() == 3
    consumer = confluent_kafka.Consumer(client_config(stage.settings, group_id=deployment))
    consumer.commit(offsets=[TopicPartition(topic, 0, 3, gate.metadata())], asynchronous=False)
    consumer.close()
    [first, second, *_] = await ask(command, "lag", deployment)
    assert (first["behind"], first["waiting"], first["committed"], first["end"]) == (4, 3, 3, 10)  # 3, 6, 7, 9
    assert first["oldest_ms"] == stage.begin_ms + 3_000
    assert first["agent"] == "greeter"
    assert (second["behind"], second["waiting"]) == (1, 1)
    pretty = (await asyncio.to_thread(command, "lag")).stdout
    assert "all 8" in pretty
    assert "ago" in pretty


async def test_lag_of_an_unknown_deployment_names_those_there_are(stage: Cast, command: Command) -> None:
    await card(stage, "greeter", f"{stage.settings.prefix}hello")
    done = await asyncio.to_thread(command, "lag", f"{stage.settings.prefix}helo", status=1)
    assert "hello" in done.stderr


async def test_conversations_lists_the_recent_with_their_state(stage: Cast, command: Command) -> None:
    await stage.dialogue("order-1")
    stage.put("agent.poet", Message.create("?", to="poet", conversation="order-2"), 5_000)
    await stage.producer.delivered()
    second, first = await ask(command, "conversations")
    assert (second["conversation"], second["state"], second["messages"]) == ("order-2", "waiting for poet", 1)
    assert (first["conversation"], first["state"], first["messages"]) == ("order-1", "answered", 11)
    assert first["agents"] == ["greeter", "poet"]
    assert (first["first"], first["last"]) == (stage.begin_ms, stage.begin_ms + 400)
    limited = await asyncio.to_thread(command, "conversations", "--limit", "1")
    assert "order-2" in limited.stdout
    assert "1 more" in limited.stderr


async def test_agents_shows_cards_and_live_workers(stage: Cast, command: Command) -> None:
    deployment = f"{stage.settings.prefix}hello"
    await card(stage, "greeter", deployment)
    await card(stage, "poet", deployment)
    topic = stage.settings.topic("agent.greeter")
    consumer = confluent_kafka.Consumer(client_config(stage.settings, group_id=deployment))
    try:
        consumer.subscribe([topic])
        deadline = time.monotonic() + 30
        while not consumer.assignment() and time.monotonic() < deadline:
            await asyncio.to_thread(consumer.poll, 0.1)
        greeter, poet = await ask(command, "agents")
    finally:
        consumer.close()
    assert (greeter["agent"], greeter["deployment"], greeter["workers"]) == ("greeter", deployment, 1)
    assert greeter["partitions_read"] == stage.settings.partitions
    assert (poet["workers"], poet["partitions_read"]) == (0, 0)
    pretty = (await asyncio.to_thread(command, "agents")).stdout
    assert "Says hello." in pretty
    assert "More." not in pretty
