"""What tests do to topics behind the engine's back: read a journal, append to it, and answer in another's name."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from llmagentos.streams.delivery import Delivery
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.journal_record import BLANK, SUBJECT
from llmagentos.streams.message import Message
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.spans import Spans
from llmagentos.streams.wire import Codec

__all__ = ["Books", "Line"]


class Line(NamedTuple):
    """One record of a journal, and where it is."""

    partition: int
    at: int
    record: dict[str, Any]


class Books:
    """The journal of one agent."""

    def __init__(self, settings: Settings, agent: str) -> None:
        self.settings = settings
        self.agent = agent
        self.topic = settings.topic(f"journal.{agent}")

    async def lines(self, *kinds: str, conversation: str | None = None) -> list[Line]:
        """All records of *kinds*, or all."""
        found = await asyncio.to_thread(self._read)
        return [
            line
            for line in found
            if (not kinds or line.record["kind"] in kinds) and conversation in (None, line.record["conversation_id"])
        ]

    async def until(self, *kinds: str, conversation: str | None = None, count: int = 1) -> list[Line]:
        """The same, once there are *count*."""
        async with asyncio.timeout(30):
            while len(found := await self.lines(*kinds, conversation=conversation)) < count:
                await asyncio.sleep(0.05)
        return found

    async def until_waiting(self, kind: str) -> None:
        """Once a message is suspended that waits for a *kind*: a slow answer may have suspended it before."""
        async with asyncio.timeout(30):
            while not [
                line for line in await self.lines("suspend") if kind in (each["kind"] for each in line.record["waits"])
            ]:
                await asyncio.sleep(0.05)

    async def append(self, partition: int, **fields: Any) -> int:
        """A record; its offset."""
        encode = await asyncio.to_thread(lambda: Codec(open_registry(self.settings)).writer(SUBJECT, "journal"))
        return await self.append_raw(partition, encode({"writer": "test", "at": 0, **BLANK, **fields}))

    async def append_raw(self, partition: int, value: bytes) -> int:
        """Bytes."""
        async with Producer(self.settings) as producer:
            return (await producer.post(self.topic, value, None, partition, kind=Delivery)).offset

    async def cut(self, partition: int, below: int) -> None:
        """Have Kafka delete what lies below an offset, as retention does."""
        admin = AdminClient(client_config(self.settings))
        for future in admin.delete_records([TopicPartition(self.topic, partition, below)]).values():
            await asyncio.to_thread(future.result)

    async def answer(self, partition: int, question: str, sender: str, content: Any) -> None:
        """An answer to the agent's question, by whomever."""
        answer = Message.create(content, to=self.agent, sender=sender, type="result")
        answer.record["caused_by"] = question
        codec = await asyncio.to_thread(lambda: Codec(open_registry(self.settings)))
        async with Producer(self.settings) as producer:
            topic = self.settings.topic(f"answers.{self.agent}")
            await producer.post(topic, codec.encode(answer), question.encode(), partition, kind=Delivery)

    def _read(self) -> list[Line]:
        codec, spans = Codec(open_registry(self.settings)), Spans(self.settings, name="test-books")
        try:  # all first: what fails in the middle of a reading keeps the reader's lock
            records = [record for batch in spans.whole(self.topic) for record in batch]
        finally:
            spans.close()
        return [
            Line(record.partition() or 0, record.offset() or 0, codec.decode(value))
            for record in records
            if (value := record.value() or b"")[:1] == b"\0"  # what a test put there that is none is left out
        ]
