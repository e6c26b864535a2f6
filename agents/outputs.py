"""Outputs: the messages that a handler sends, with deterministic ids, in order, and never lost unnoticed.

The producer counts what was sent; an offset is committed only when everything sent before was acknowledged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import google_crc32c

from llmagentos.agents.history import History
from llmagentos.agents.models.service import Models
from llmagentos.streams.admin import partitions_of
from llmagentos.streams.clock import Clock
from llmagentos.streams.errors import RecordTooLarge, TopicError, UnknownAgent
from llmagentos.streams.message import Message, MessageType, child_id, encode_content
from llmagentos.streams.producer import MESSAGE_ID, Producer
from llmagentos.streams.settings import Settings

__all__ = ["LATE", "Output", "Outputs"]

#: The attribute of what stands in an answer's place where none came in time.
LATE = "late"

#: A topic that did not exist is looked for again after this: as soon as a person has deployed what was missing.
MISSING_FOR_S = 5.0
#: Names of missing topics that are remembered; messages may bring any number of them.
MISSING_KEPT = 1_000


class Output(NamedTuple):
    """One record to send."""

    topic: str
    value: bytes | None
    key: bytes | None
    partition: int = -1
    headers: Sequence[tuple[str, bytes | str | None]] = ()

    def record(self) -> dict[str, Any]:
        """As the journal keeps it."""
        headers = [{"name": n, "value": v.encode() if isinstance(v, str) else v} for n, v in self.headers]
        return {
            "topic": self.topic,
            "partition": self.partition,
            "key": self.key,
            "value": self.value,
            "headers": headers,
        }

    @classmethod
    def restored(cls, record: Mapping[str, Any]) -> Output:
        """The output that :meth:`record` made *record* of."""
        headers = [(header["name"], header["value"]) for header in record["headers"]]
        return cls(record["topic"], record["value"], record["key"], record["partition"], headers)


class Outputs:
    """Builds and sends what an agent says while it handles a message.

    Args:
        encode: a message to Confluent wire bytes; also an attribute.
        clock: that deadlines, pauses and limits go by.
        history: reads what was said before.
    """

    def __init__(
        self,
        settings: Settings,
        producer: Producer,
        encode: Callable[[Message], bytes],
        clock: Clock | None = None,
        history: History | None = None,
    ) -> None:
        self.settings = settings
        self.history = history
        self.producer = producer
        self.clock = clock or Clock()
        self.models = Models(settings, self.clock)
        self.event: Callable[..., None] | None = None  # writes to topic `events`; of a worker
        self.encode = encode
        self._replies = settings.topic("replies")
        self._inbox_prefix = settings.topic("agent.")
        self._limit = settings.max_message_bytes
        self._partitions: dict[str, int] = {}  # of topics that exist
        self._missing: dict[str, float] = {}  # topics that did not, and until when that is believed

    async def partitions_of(self, topic: str) -> int:
        """How many partitions *topic* has; 0 where there is no such topic.

        What is sent to a topic that does not exist fails only at its delivery, which ends the worker; so everything
        that a handler or a message names is looked up first, once.
        """
        known = self._partitions.get(topic)
        if known is not None:
            return known
        if self._missing.get(topic, 0.0) > time.monotonic():
            return 0
        try:
            known = await asyncio.to_thread(partitions_of, self.settings, topic)
        except TopicError:
            if len(self._missing) >= MISSING_KEPT:
                self._missing.clear()
            self._missing[topic] = time.monotonic() + MISSING_FOR_S
            return 0
        self._partitions[topic] = known
        return known

    async def check_inbox(self, agent: str) -> None:
        """Raise UnknownAgent where *agent* has no inbox."""
        if not await self.partitions_of(self._inbox_prefix + agent):
            raise UnknownAgent(
                f"no agent is named {agent!r}: topic {self._inbox_prefix}{agent} does not exist",
                fix="`llmagentos agents` lists those there are; deploy the module that defines it first",
            )

    def child(
        self,
        cause: Message,
        agent: str,
        step: int,
        content: object,
        *,
        message_id: str | None = None,
        type: MessageType,  # noqa: A002 - the field's own name
        recipient: str,
        conversation: str | None = None,
        deadline: int | None = None,
        reply_to: Mapping[str, Any] | None = None,
        attributes: Mapping[str, str] | None = None,
        usage: Mapping[str, Any] | None = None,
    ) -> Message:
        """A message that *agent* sends as *step* of handling *cause*; the same id on every rerun.

        Args:
            message_id: None: made of *cause*, *agent* and *step*.

        Raises:
            RecordError: *content* can't be said in JSON.
        """
        if isinstance(content, Message):  # handed on: its body, not its header
            body, media = content.body, content.content_type
        else:
            body, media = encode_content(content)
        parent = cause.record
        return Message(
            {
                "message_id": message_id or child_id(parent["message_id"], agent, step),
                "conversation_id": conversation or parent["conversation_id"],
                "root_conversation": parent["root_conversation"],
                "type": type,
                "sender": agent,
                "recipient": recipient,
                "tenant": parent["tenant"],
                "sequence": step,
                "created_at": time.time_ns() // 1_000_000,
                "deadline": deadline,
                "priority": parent["priority"],
                "caused_by": parent["message_id"],
                "reply_to": reply_to,
                "attempt": 0,
                "content_type": media,
                "body": body,
                "attributes": attributes or {},
                "usage": usage,
                "checksum": google_crc32c.value(body),
            }
        )

    def to_inbox(self, message: Message, *headers: tuple[str, bytes]) -> Output:
        """For the recipient's inbox."""
        output = self._output(message, self._inbox_prefix + message.recipient, message.conversation_id, -1)
        return output._replace(headers=[*output.headers, *headers]) if headers else output

    def to_asker(self, message: Message, cause: Message) -> Output:
        """An answer for where *cause*'s asker reads it, or for `replies` where none waits by hand."""
        place = cause.record["reply_to"]
        if place is None:
            return self._output(message, self._replies, message.record["conversation_id"], -1)
        if place["topic"] == self._replies:
            return self._output(message, self._replies, message.record["conversation_id"], place["partition"])
        # an agent's answers: keyed by the question
        return self._output(message, place["topic"], cause.record["message_id"], place["partition"])

    def late(self, agent: str, partition: int, conversation: str, question: str, asked: str) -> Output:
        """What *agent* says to itself when the deadline of a question has passed.

        It stands among the answers, so that the first of them, whatever it says, is the result of every run.
        """
        message = Message.create(
            {"error": f"no answer from {asked!r} by the deadline", "cause": "timeout"},
            to=agent,
            conversation=conversation,
            message_id=child_id(question, agent, "late"),
            sender=agent,
            type="error",
            attributes={LATE: "yes"},
        )
        message.record["caused_by"] = question
        return self._output(message, self.settings.topic(f"answers.{agent}"), question, partition)

    def to_client(self, message: Message) -> Output:
        """For `replies`, whoever asked: tokens and partial results are for the client at the root."""
        return self._output(message, self._replies, message.conversation_id, -1)

    def send(self, output: Output) -> None:
        """Hand *output* to the producer."""
        self.producer.produce(*output)

    def _output(self, message: Message, topic: str, key: str, partition: int) -> Output:
        value = self.encode(message)
        if len(value) > self._limit:
            raise RecordTooLarge(
                f"{message.type} of agent {message.sender!r} to {topic} is {len(value):,} bytes in conversation"
                f" {message.conversation_id}; the limit is {self._limit:,}",
                cause="too-large",
                fix="send less, or raise LLMAGENTOS_MAX_MESSAGE_BYTES and the topic's max.message.bytes",
            )
        return Output(topic, value, key.encode(), partition, [(MESSAGE_ID, message.record["message_id"])])
