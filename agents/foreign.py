"""Agents over topics that exist already: a foreign record becomes a message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import confluent_kafka
import google_crc32c
import orjson

from llmagentos.agents.agent import Agent
from llmagentos.streams.errors import RecordError, SchemaError
from llmagentos.streams.message import BYTES, JSON, TEXT, Message, child_id
from llmagentos.streams.wire import Codec

__all__ = ["ForeignMessage", "reader"]


class ForeignMessage(Message):
    """A record of a topic that is not ours. Its header is made from the record's place; `content` is what the
    agent's `decode` made of the value."""

    __slots__ = ("_content",)

    def __init__(self, record: dict[str, Any], content: Any, source: confluent_kafka.Message) -> None:
        super().__init__(
            record,
            source.topic() or "",
            source.partition() if source.partition() is not None else -1,  # type: ignore[arg-type]
            source.offset() if source.offset() is not None else -1,  # type: ignore[arg-type]
            source.timestamp()[1],
        )
        self._content = content

    @property
    def content(self) -> Any:
        """What `decode` made of the value."""
        return self._content


def reader(agent: Agent, codec: Codec) -> Callable[[confluent_kafka.Message], Message]:
    """A function that reads a record of *agent*'s topic as a message.

    The id is made of topic, partition and offset, so that it is the same on every rerun. A record that can't be
    read raises RecordError naming its place and what was expected.
    """
    decode = _decoder(agent, codec)
    media = {"json": JSON, "text": TEXT}.get(agent.decode if isinstance(agent.decode, str) else "", BYTES)

    def read(record: confluent_kafka.Message) -> Message:
        raw = record.value() or b""
        key: Any = record.key()  # bytes or None, where librdkafka is asked for no strings
        place = f"{record.topic()} [{record.partition()}] offset {record.offset()}"
        try:
            content = decode(raw)
            if agent.key is not None:
                conversation = agent.key(key, content)
            elif key:
                conversation = key.decode()
            else:
                conversation = f"{record.topic()}/{record.partition()}"
        except (RecordError, SchemaError):
            raise
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # it is the user's function
            raise RecordError(
                f"{place}: agent {agent.name!r} can't read it: {type(error).__name__}: {error}",
                fix="correct the agent's `decode` or `key`, or the producer of the topic",
            ) from error
        if not isinstance(conversation, str) or not conversation:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RecordError(
                f"{place}: `key` of agent {agent.name!r} gave {conversation!r}, not a conversation's name",
                cause="invalid",
                fix="return a non-empty str",
            )
        timestamp = record.timestamp()[1]
        return ForeignMessage(
            {
                "message_id": child_id(record.topic() or "", str(record.partition()), str(record.offset())),
                "conversation_id": conversation,
                "root_conversation": conversation,
                "type": "event",
                "sender": record.topic() or "",
                "recipient": agent.name,
                "tenant": "default",
                "sequence": 0,
                "created_at": max(timestamp, 0),
                "deadline": None,
                "priority": 5,
                "caused_by": None,
                "reply_to": None,
                "attempt": 0,
                "content_type": media,
                "body": raw,
                "attributes": {
                    name: value if isinstance(value, str) else value.decode(errors="replace")
                    for name, value in record.headers() or ()
                    if value is not None
                },
                "usage": None,
                "checksum": google_crc32c.value(raw),
            },
            content,
            record,
        )

    return read


def _decoder(agent: Agent, codec: Codec) -> Callable[[bytes], Any]:
    if callable(agent.decode):
        return agent.decode
    return {
        "json": orjson.loads,
        "text": bytes.decode,
        "bytes": bytes,
        "avro": codec.decode,
    }[agent.decode]
