"""The message: what one record of a conversation says, and its deterministic ids."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from hashlib import sha1
from typing import Any, Literal

import google_crc32c
import orjson

from llmagentos.streams.errors import RecordError

__all__ = ["Message", "MessageType", "asker_of", "child_id", "new_id", "question_id"]

MessageType = Literal["command", "task", "result", "event", "token", "control", "error"]

TEXT = "text/plain"
JSON = "application/json"
BYTES = "application/octet-stream"


def new_id() -> str:
    """A UUIDv7 (RFC 9562): time-ordered, for the ids of root messages."""
    ms = time.time_ns() // 1_000_000
    value = (ms << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76) | (0x7 << 76)) & ~(0x3 << 62) | (0x2 << 62)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


#: Namespace of the UUIDv5 ids below; any fixed value serves, as the parent's id tells families apart.
_NAMESPACE = uuid.UUID("6f1a1f0e-6b57-5c5e-9c7e-4c4c4d41474f").bytes

#: RFC 9562's variant in the high bits of a hex digit: 10xx.
_VARIANT = "89ab89ab89ab89ab"


def child_id(parent_id: str, agent: str, step: int | str) -> str:
    """The id of what *agent* sends as *step* while it handles *parent_id*: a UUIDv5, the same on every rerun."""
    # As uuid.uuid5, which takes three times as long to make an object of it first.
    digest = sha1(_NAMESPACE + f"{parent_id}\x00{agent}\x00{step}".encode(), usedforsecurity=False).digest()
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{_VARIANT[digest[8] >> 4]}{text[17:20]}-{text[20:32]}"


def question_id(parent_id: str, agent: str, step: str, offset: int) -> str:
    """The id of a question that *agent* asks while it handles *parent_id*, which lies at *offset* of its inbox.

    A UUIDv8 (RFC 9562), the same on every rerun: 74 bits say which question it is, the last 48 the offset. So who reads
    an answer, which names its question, knows whose it is.
    """
    digest = sha1(_NAMESPACE + f"{parent_id}\x00{agent}\x00{step}".encode(), usedforsecurity=False).digest()
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-8{text[13:16]}-{_VARIANT[digest[8] >> 4]}{text[17:20]}-{offset:012x}"


def asker_of(question: str) -> int | None:
    """The offset of the message whose handler asked *question*; None where its id doesn't say."""
    if len(question) != 36 or question[14] != "8":  # a UUID's length, and the place of its version
        return None
    try:
        return int(question[24:], 16)
    except ValueError:
        return None


class Message:
    """One message. A thin view of its Avro record: reading a field is one dictionary look-up.

    Attributes:
        record: the fields of `message.avsc`; treat as read-only.
        topic, partition, offset: where it was read; empty, -1, -1 for one not sent yet.
        timestamp: of the Kafka record, milliseconds since the epoch; -1 for one not sent yet.
    """

    __slots__ = ("offset", "partition", "record", "timestamp", "topic")

    def __init__(
        self,
        record: dict[str, Any],
        topic: str = "",
        partition: int = -1,
        offset: int = -1,
        timestamp: int = -1,
    ) -> None:
        self.record = record
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.timestamp = timestamp

    @classmethod
    def create(
        cls,
        content: object,
        *,
        to: str,
        conversation: str | None = None,
        message_id: str | None = None,
        sender: str = "client",
        type: MessageType = "task",  # noqa: A002 - the field's own name
        tenant: str = "default",
        sequence: int = 0,
        deadline: int | None = None,
        priority: int = 5,
        reply_to: tuple[str, int] | None = None,
        attributes: Mapping[str, str] | None = None,
        content_type: str | None = None,
        created_at: int | None = None,
    ) -> Message:
        """A root message with *content* for the agent *to*.

        Args:
            content: text, bytes, or anything that JSON can say; None is an empty body.
            conversation: None begins a new one, named by the message's id.
            deadline, created_at: milliseconds since the epoch.
            reply_to: (topic, partition) where the answer is awaited.
            content_type: overrides the one that *content*'s type gives.

        Raises:
            RecordError: *content* can't be said in JSON.
        """
        body, media = encode_content(content)
        message_id = message_id or new_id()
        conversation = conversation or message_id
        return cls(
            {
                "message_id": message_id,
                "conversation_id": conversation,
                "root_conversation": conversation,
                "type": type,
                "sender": sender,
                "recipient": to,
                "tenant": tenant,
                "sequence": sequence,
                "created_at": created_at if created_at is not None else time.time_ns() // 1_000_000,
                "deadline": deadline,
                "priority": priority,
                "caused_by": None,
                "reply_to": None if reply_to is None else {"topic": reply_to[0], "partition": reply_to[1]},
                "attempt": 0,
                "content_type": content_type or media,
                "body": body,
                "attributes": dict(attributes) if attributes else {},
                "usage": None,
                "checksum": google_crc32c.value(body),
            }
        )

    @property
    def message_id(self) -> str:
        return self.record["message_id"]

    @property
    def conversation_id(self) -> str:
        return self.record["conversation_id"]

    @property
    def root_conversation(self) -> str:
        return self.record["root_conversation"]

    @property
    def type(self) -> MessageType:
        return self.record["type"]

    @property
    def sender(self) -> str:
        return self.record["sender"]

    @property
    def recipient(self) -> str:
        return self.record["recipient"]

    @property
    def tenant(self) -> str:
        return self.record["tenant"]

    @property
    def sequence(self) -> int:
        return self.record["sequence"]

    @property
    def created_at(self) -> int:
        """Milliseconds since the epoch."""
        return self.record["created_at"]

    @property
    def deadline(self) -> int | None:
        """Milliseconds since the epoch."""
        return self.record["deadline"]

    @property
    def priority(self) -> int:
        return self.record["priority"]

    @property
    def caused_by(self) -> str | None:
        return self.record["caused_by"]

    @property
    def reply_to(self) -> tuple[str, int] | None:
        """(topic, partition) where the asker reads the answer."""
        place = self.record["reply_to"]
        return None if place is None else (place["topic"], place["partition"])

    @property
    def attempt(self) -> int:
        return self.record["attempt"]

    @property
    def content_type(self) -> str:
        return self.record["content_type"]

    @property
    def body(self) -> bytes:
        return self.record["body"]

    @property
    def attributes(self) -> dict[str, str]:
        return self.record["attributes"]

    @property
    def usage(self) -> dict[str, Any] | None:
        """model, tokens_in, tokens_out, cost (US dollars)."""
        return self.record["usage"]

    @property
    def checksum(self) -> int:
        return self.record["checksum"]

    @property
    def text(self) -> str:
        """The body as UTF-8 text.

        Raises:
            RecordError: it is not.
        """
        try:
            return self.body.decode()
        except UnicodeDecodeError as error:
            raise RecordError(f"body of message {self.message_id} is not UTF-8: {error}", cause="invalid") from error

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            RecordError: it is not.
        """
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise RecordError(f"body of message {self.message_id} is not JSON: {error}", cause="invalid") from error

    @property
    def content(self) -> Any:
        """The body as what its content type says: text, JSON, or bytes; None where it is empty bytes."""
        media = self.content_type
        if media == TEXT:
            return self.text
        if media == JSON:
            return self.json()
        return self.body or None

    def __repr__(self) -> str:
        return (
            f"<Message {self.message_id} {self.type} {self.sender}->{self.recipient or '-'}"
            f" conversation={self.conversation_id} {len(self.body)} bytes>"
        )


def encode_content(content: object) -> tuple[bytes, str]:
    """*content* as (body, content type): text, bytes, or JSON.

    Raises:
        RecordError: *content* can't be said in JSON.
    """
    if isinstance(content, str):
        try:
            return content.encode(), TEXT
        except UnicodeEncodeError as error:
            raise RecordError(
                f"text can't be sent: {error}", cause="invalid", fix="send bytes, or other text"
            ) from error
    if isinstance(content, bytes):
        return content, BYTES
    if content is None:
        return b"", BYTES
    try:
        return orjson.dumps(content), JSON
    except orjson.JSONEncodeError as error:
        raise RecordError(
            f"content of type {type(content).__name__} can't be sent: {error}",
            cause="invalid",
            fix="send text, bytes, or what JSON can say",
        ) from error
