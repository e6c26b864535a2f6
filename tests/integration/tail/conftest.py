"""Topics with known records, and the command as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmagentos.streams.admin import ensure_topics
from llmagentos.streams.endpoints import brokers
from llmagentos.streams.message import Message, child_id
from llmagentos.streams.partition import murmur2_partition
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.topology import named
from llmagentos.streams.wire import Codec

#: In all these tests time begins here; well within the topics' retention.
AGENTS = ("greeter", "poet")


@dataclass
class Cast:
    """Writes records as agents would, at chosen times."""

    settings: Settings
    codec: Codec
    producer: Producer
    begin_ms: int

    def partition(self, conversation: str) -> int:
        return murmur2_partition(conversation.encode(), self.settings.partitions)

    def child(self, parent: Message, agent: str, step: int, content: object, **fields: Any) -> Message:
        """What *agent* sends while it handles *parent*."""
        fields.setdefault("to", "")
        fields.setdefault("conversation", parent.conversation_id)
        message = Message.create(content, sender=agent, message_id=child_id(parent.message_id, agent, step), **fields)
        message.record |= {"root_conversation": parent.root_conversation, "caused_by": parent.message_id}
        return message

    def put(self, topic: str, message: Message, at_ms: int, *, key: str | None = None, partition: int = -1) -> None:
        self.raw(topic, self.codec.encode(message), at_ms, key=key or message.conversation_id, partition=partition)

    def raw(self, topic: str, value: bytes | None, at_ms: int, *, key: str | None, partition: int = -1) -> None:
        self.producer.produce(
            self.settings.topic(topic),
            value,
            None if key is None else key.encode(),
            partition,
            timestamp_ms=self.begin_ms + at_ms,
        )

    async def dialogue(self, conversation: str, at_ms: int = 0) -> Message:
        """A client asks greeter, which asks poet twice in children, streams tokens, and answers."""
        part = self.partition(conversation)
        question = Message.create(
            "two lines, please",
            to="greeter",
            conversation=conversation,
            reply_to=(self.settings.topic("replies"), part),
            attributes={"team": "a"},
        )
        self.put("agent.greeter", question, at_ms)
        for number in (1, 2):
            name = f"{conversation}/{number}"
            asked = self.child(
                question,
                "greeter",
                number,
                {"line": number},
                to="poet",
                conversation=name,
                reply_to=(self.settings.topic("answers.greeter"), part),
            )
            self.put("agent.poet", asked, at_ms + number)
            answer = self.child(asked, "poet", 0, f"line {number}", to="greeter", conversation=name, type="result")
            answer.record["usage"] = {"model": "m", "tokens_in": 10, "tokens_out": 5, "cost": 0.01}
            self.put("answers.greeter", answer, at_ms + 100 * number, key=asked.message_id, partition=part)
        for number in range(5):
            token = self.child(question, "greeter", 10 + number, f"w{number} ", type="token")
            self.put("replies", token, at_ms + 300 + number)
        self.put("replies", self.child(question, "greeter", 20, "line 1\nline 2", type="result"), at_ms + 400)
        await self.producer.delivered()
        return question


@pytest.fixture
async def stage(settings: Settings) -> AsyncIterator[Cast]:
    """Two agents' topics, empty, and a producer for them."""
    import time

    kinds = ("agent.NAME", "answers.NAME", "dead.NAME")
    ensure_topics(settings, [named(kind).of(agent) for agent in AGENTS for kind in kinds] + [named("replies")])
    codec = Codec(open_registry(settings))
    async with Producer(settings, codec) as producer:
        yield Cast(settings, codec, producer, time.time_ns() // 1_000_000 - 60_000)


Command = Callable[..., "subprocess.CompletedProcess[str]"]


def environment(settings: Settings) -> dict[str, str]:
    return os.environ | {
        "LLMAGENTOS_BROKERS": brokers(settings),
        "LLMAGENTOS_PREFIX": settings.prefix,
        "LLMAGENTOS_HOME": str(settings.home),
        "COLUMNS": "120",
        "TZ": "UTC",
    }


def program() -> str:
    return str(Path(sys.executable).parent / "llmagentos")


@pytest.fixture
def command(settings: Settings) -> Command:
    """Runs `llmagentos` with arguments for the test's topics; checks the exit status."""

    def run(*arguments: str, status: int = 0, **changed: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [program(), *arguments],
            env=environment(settings) | changed,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]
