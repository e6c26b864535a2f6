"""Messages whose counts are known: what the job must find."""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import fastavro

from llmagentos import schemas
from llmagentos.streams.admin import ensure_topics
from llmagentos.streams.message import Message, child_id
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.topology import named
from llmagentos.streams.wire import MESSAGE, Codec, plain

AGENTS = ("planner", "coder", "critic", "poet")
TENANTS = ("acme", "globex", "initech")
HOUR_MS = 3_600_000
#: A full hour, 20 ago: replies are kept for a day, and Kafka refuses times in the future.
BEGIN_MS = (int(time.time()) // 3_600 - 20) * HOUR_MS
PARTITIONS = 4


@dataclass
class Truth:
    """What was sent."""

    traffic: Counter[tuple[str, str, str, datetime]] = field(default_factory=Counter)
    latencies: dict[str, list[int]] = field(default_factory=dict)
    tokens: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    dead: Counter[tuple[str, str]] = field(default_factory=Counter)
    conversations: set[str] = field(default_factory=set)
    undecodable: Counter[str] = field(default_factory=Counter)

    @property
    def messages(self) -> int:
        return self.traffic.total()

    def saw(self, agent: str, message: Message, at_ms: int) -> None:
        hour = datetime.fromtimestamp(at_ms // HOUR_MS * 3600, UTC).replace(tzinfo=None)
        self.traffic[agent, message.type, message.tenant, hour] += 1
        self.conversations.add(message.conversation_id)


def old_schema() -> dict[str, object]:
    """Message as an earlier version might have been: without two fields that have defaults."""
    schema = schemas.load("message")
    return {**schema, "fields": [f for f in schema["fields"] if f["name"] not in ("attempt", "priority")]}


def ensure(settings: Settings, agents: Iterable[str] = AGENTS) -> None:
    """Make the topics."""
    small = settings.model_copy(update={"partitions": PARTITIONS})
    kinds = [named(kind).of(agent) for agent in agents for kind in ("agent.NAME", "answers.NAME", "dead.NAME")]
    ensure_topics(small, [*kinds, named("replies")])


def send(settings: Settings, questions: int, *, seed: int = 7, begin_ms: int = BEGIN_MS, hours: int = 10) -> Truth:
    """Send *questions*, with most of their answers, some dead letters; half of it in the old schema."""
    return asyncio.run(_send(settings, questions, seed, begin_ms, hours))


def spoil(settings: Settings, truth: Truth, begin_ms: int = BEGIN_MS) -> None:
    """Send one record of each undecodable kind, and one more with an id that nobody registered."""
    body = io.BytesIO()
    record = Message.create("x", to="planner", conversation="spoilt").record
    fastavro.schemaless_writer(body, fastavro.parse_schema(plain(schemas.load("message"))), record)
    with closing(open_registry(settings)) as registry:
        known = registry.latest(MESSAGE).id.to_bytes(4, "big")
    values = {
        "wrong magic byte": [b"\x01" + known + body.getvalue(), b'{"json": true}', b"\x00\x00"],
        "unknown schema id": [b"\x00\x7f\xff\xff\xff" + body.getvalue(), b"\x00\x00\x0f\x42\x40" + body.getvalue()],
        "undecodable body": [b"\x00" + known + body.getvalue()[:-4], b"\x00" + known],
        "no value": [None],
    }

    async def hand_over() -> None:
        async with Producer(settings) as producer:
            for cause, raws in values.items():
                for raw in raws:
                    producer.produce(settings.topic("agent.planner"), raw, b"spoilt", timestamp_ms=begin_ms)
                    truth.undecodable[cause] += 1

    asyncio.run(hand_over())


async def replay(settings: Settings, turns: list[dict[str, Any]]) -> None:
    """Send dialogues: a user's turn asks the agent `assistant`, the system's answers it."""
    asked: dict[str, str] = {}
    with closing(open_registry(settings)) as registry:
        codec = Codec(registry)
        async with Producer(settings) as producer:
            for number, turn in enumerate(turns):
                user = turn["speaker"] == "user"
                message = Message.create(
                    turn["text"],
                    to="assistant" if user else "",
                    conversation=turn["conversation"],
                    sender="client" if user else "assistant",
                    type="task" if user else "result",
                    created_at=BEGIN_MS + number,
                )
                if user:
                    asked[turn["conversation"]] = message.message_id
                else:
                    message.record["caused_by"] = asked[turn["conversation"]]
                topic = settings.topic("agent.assistant" if user else "replies")
                producer.produce(topic, codec.encode(message), turn["conversation"].encode())
                if producer.full:
                    await producer.ebb()


async def _send(settings: Settings, questions: int, seed: int, begin_ms: int, hours: int) -> Truth:
    dice = random.Random(seed)
    truth = Truth(latencies={agent: [] for agent in AGENTS})
    with closing(open_registry(settings)) as registry:
        old_id = registry.register(MESSAGE, dict(old_schema()))
        codec = Codec(registry)
        new = codec.writer(MESSAGE, "message")
        letter = codec.writer("llmagentos.DeadLetter", "dead_letter")
    old = fastavro.parse_schema(plain(old_schema()))

    def encode(message: Message) -> bytes:
        if dice.random() < 0.5:
            return new(message.record)
        out = io.BytesIO(b"\x00" + old_id.to_bytes(4, "big"))
        out.seek(5)
        fastavro.schemaless_writer(out, old, message.record)
        return out.getvalue()

    async with Producer(settings) as producer:
        # Sent in order of time below, as agents do: (time, topic, value, key).
        outbox: list[tuple[int, str, bytes, bytes]] = []

        def produce(topic: str, agent: str, message: Message, at_ms: int) -> None:
            outbox.append((at_ms + 1, settings.topic(topic), encode(message), message.conversation_id.encode()))
            truth.saw(agent, message, at_ms + 1)

        for number in range(questions):
            agent = dice.choices(AGENTS, (8, 5, 3, 1))[0]
            at_ms = begin_ms + int(dice.betavariate(2, 2) * hours * HOUR_MS)
            latency_ms = int(dice.lognormvariate(5 + AGENTS.index(agent), 0.7))
            question = Message.create(
                f"question {number} " + "word " * dice.randrange(60),
                to=agent,
                conversation=f"{begin_ms}-{dice.randrange(questions // 5 + 1)}",
                message_id=f"{begin_ms}-{seed}-{number}",
                tenant=dice.choices(TENANTS, (5, 3, 1))[0],
                reply_to=("replies", 0),
                created_at=at_ms,
            )
            produce(f"agent.{agent}", agent, question, at_ms)
            fate = dice.random()
            if fate < 0.02:
                cause = dice.choice(("failed", "timeout", "invalid"))
                truth.dead[agent, cause] += 1
                value = letter(_letter(settings, agent, cause, number, question, at_ms))
                outbox.append((at_ms, settings.topic(f"dead.{agent}"), value, question.conversation_id.encode()))
                continue
            if fate < 0.03:
                continue  # never answered
            answer = Message.create(
                "an answer " * dice.randrange(1, 40),
                to="",
                conversation=question.conversation_id,
                message_id=child_id(question.message_id, agent, 0),
                sender=agent,
                type="error" if fate < 0.05 else "result",
                tenant=question.tenant,
                created_at=at_ms + latency_ms,
            )
            answer.record["caused_by"] = question.message_id
            truth.latencies[agent].append(latency_ms)
            if answer.type == "error":
                truth.errors[agent] += 1
            elif dice.random() < 0.7:
                usage = {"model": dice.choice(("small", "large")), "tokens_in": 40, "tokens_out": dice.randrange(400)}
                answer.record["usage"] = usage | {"cost": usage["tokens_out"] * 2e-6}
                truth.tokens[question.tenant, agent, usage["model"]] += usage["tokens_out"]
            topic = "replies" if dice.random() < 0.7 else f"answers.{dice.choice(AGENTS)}"
            produce(topic, agent, answer, at_ms + latency_ms)
        for at_ms, topic, value, key in sorted(outbox):
            producer.produce(topic, value, key, timestamp_ms=at_ms)
            if producer.full:
                await producer.ebb()
    return truth


def _letter(
    settings: Settings, agent: str, cause: str, number: int, question: Message, at_ms: int
) -> dict[str, object]:
    return {
        "topic": settings.topic(f"agent.{agent}"),
        "partition": 0,
        "offset": number,
        "timestamp": at_ms,
        "key": question.conversation_id.encode(),
        "value": b"",
        "headers": [],
        "agent": agent,
        "message_id": question.message_id,
        "conversation_id": question.conversation_id,
        "cause": cause,
        "error": "ValueError: the plan <b>has</b> no step 7" if cause == "failed" else f"{cause}: it was",
        "traceback": "",
        "attempts": 3,
        "worker": "w1",
        "died_at": at_ms + 500,
    }
