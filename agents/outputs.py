"""Outputs: the messages that a handler sends, with deterministic ids, in order, and never lost unnoticed.

The producer counts what was sent; an offset is committed only when everything sent before was acknowledged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import google_crc32c

from llmagentos.streams.errors import RecordTooLarge
from llmagentos.streams.message import Message, MessageType, child_id, encode_content
from llmagentos.streams.producer import MESSAGE_ID, Producer
from llmagentos.streams.settings import Settings

__all__ = ["Outputs"]


class Outputs:
    """Builds and sends what an agent says while it handles a message.

    Args:
        encode: a message to Confluent wire bytes.
    """

    def __init__(self, settings: Settings, producer: Producer, encode: Callable[[Message], bytes]) -> None:
        self.settings = settings
        self.producer = producer
        self._encode = encode
        self._replies = settings.topic("replies")
        self._inbox_prefix = settings.topic("agent.")
        self._limit = settings.max_message_bytes

    def child(
        self,
        cause: Message,
        agent: str,
        step: int,
        content: object,
        *,
        type: MessageType,  # noqa: A002 - the field's own name
        recipient: str,
        conversation: str | None = None,
        deadline: int | None = None,
        reply_to: Mapping[str, Any] | None = None,
        attributes: Mapping[str, str] | None = None,
        usage: Mapping[str, Any] | None = None,
    ) -> Message:
        """A message that *agent* sends as *step* of handling *cause*; the same id on every rerun.

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
                "message_id": child_id(parent["message_id"], agent, step),
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

    def to_inbox(self, message: Message) -> None:
        """Send to the recipient's inbox."""
        self._send(message, self._inbox_prefix + message.recipient, message.conversation_id, -1)

    def to_asker(self, message: Message, cause: Message) -> None:
        """Send an answer to where *cause*'s asker reads it, or to `replies` where none waits by hand."""
        place = cause.record["reply_to"]
        if place is None:
            self._send(message, self._replies, message.record["conversation_id"], -1)
        elif place["topic"] == self._replies:
            self._send(message, self._replies, message.record["conversation_id"], place["partition"])
        else:  # an agent's answers: keyed by the question
            self._send(message, place["topic"], cause.record["message_id"], place["partition"])

    def to_client(self, message: Message) -> None:
        """Send to `replies`, whoever asked: tokens and partial results are for the client at the root."""
        self._send(message, self._replies, message.conversation_id, -1)

    def _send(self, message: Message, topic: str, key: str, partition: int) -> None:
        value = self._encode(message)
        if len(value) > self._limit:
            raise RecordTooLarge(
                f"{message.type} of agent {message.sender!r} to {topic} is {len(value):,} bytes in conversation"
                f" {message.conversation_id}; the limit is {self._limit:,}",
                cause="too-large",
                fix="send less, or raise LLMAGENTOS_MAX_MESSAGE_BYTES and the topic's max.message.bytes",
            )
        self.producer.produce(
            topic, value, key.encode(), partition, headers=[(MESSAGE_ID, message.record["message_id"])]
        )
