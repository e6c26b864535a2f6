"""A record as people and programs look at it: decoded by its schema id, or with the reason why not."""

from __future__ import annotations

import base64
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import orjson
from confluent_kafka import Message as KafkaMessage

from llmagentos.streams.errors import LLMAgentOSError, RecordError
from llmagentos.streams.message import JSON, TEXT, Message
from llmagentos.streams.settings import Settings

if TYPE_CHECKING:
    from llmagentos.streams.wire import Codec

__all__ = ["Decoder", "Entry", "content", "said", "text"]


class Entry:
    """One record, decoded.

    Attributes:
        topic, partition, offset, timestamp (ms since the epoch), key, raw: of the Kafka record.
        message: where it holds one, also the one inside a dead letter.
        record: the fields, where it holds another Avro record (dead letter, card, event).
        error: why it can't be decoded; empty where it can.
        plain: whether it holds no Avro record, in a topic of others, where that is no error.
        headers: of the Kafka record; a header that occurs twice counts by its last.
    """

    __slots__ = (
        "error",
        "headers",
        "key",
        "message",
        "offset",
        "partition",
        "plain",
        "raw",
        "record",
        "timestamp",
        "topic",
    )

    def __init__(self, kafka: KafkaMessage) -> None:
        self.topic = cast(str, kafka.topic())
        self.partition = cast(int, kafka.partition())
        self.offset = cast(int, kafka.offset())
        self.timestamp: int = kafka.timestamp()[1]
        self.key = kafka.key()
        self.raw = kafka.value()
        self.headers: dict[str, bytes | None] = dict(cast(Any, kafka.headers()) or ())
        self.message: Message | None = None
        self.record: dict[str, Any] | None = None
        self.error = ""
        self.plain = False

    @property
    def place(self) -> str:
        """`topic[partition]@offset`, for people."""
        return f"{self.topic}[{self.partition}]@{self.offset}"

    @property
    def is_dead_letter(self) -> bool:
        """Whether it is a dead letter."""
        return self.record is not None and "died_at" in self.record

    @property
    def conversation(self) -> str:
        """The conversation that it belongs to, by its fields or else by its key; empty where it has neither."""
        if self.message is not None:
            return self.message.conversation_id
        named = (self.record or {}).get("conversation_id")
        return named or text(self.key or b"")

    def fields(self) -> dict[str, Any]:
        """Everything flat, as `--where` and JSON see it: the place, then the fields; the body as its content."""
        fields: dict[str, Any] = {
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "timestamp": self.timestamp,
            "key": None if self.key is None else text(self.key),
        }
        if self.message is not None:
            fields |= self.message.record
            fields["body"] = content(self.message)
        if self.record is not None:
            lifted = {name: value for name, value in self.record.items() if name not in _RECORD_PLACE}
            fields |= {name: text(value) if isinstance(value, bytes) else value for name, value in lifted.items()}
        if self.is_dead_letter:
            fields["type"] = "dead-letter"
        elif self.plain:
            fields["body"] = _parsed(self.raw or b"")
        elif self.error:
            fields |= {"error": self.error, "value": None if self.raw is None else said(self.raw)}
        return fields


#: Of a dead letter: where the record was before, and its bytes; said by `message` and by the renderer.
_RECORD_PLACE = frozenset(("topic", "partition", "offset", "timestamp", "key", "value", "headers"))


def text(value: bytes) -> str:
    """UTF-8, with what isn't shown as escapes."""
    return value.decode("utf-8", "backslashreplace")


def said(value: bytes) -> Any:
    """Bytes for JSON: text where they are UTF-8, else `{"base64": ...}`."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def content(message: Message) -> Any:
    """The body by its content type; one that isn't what it says it is, as text or base64."""
    if not message.body:
        return None
    try:
        return message.content if message.content_type in (JSON, TEXT) else said(message.body)
    except RecordError:
        return said(message.body)


def _parsed(value: bytes) -> Any:
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return said(value)


class Decoder:
    """Decodes records; the registry is reached in a thread meanwhile, as its schemas are needed only for what is kept.

    Args:
        codec: None: one of its own.

    Raises:
        SchemaError: (by :meth:`entry`) the registry is out of reach.
    """

    def __init__(self, settings: Settings, codec: Codec | None = None) -> None:
        self._settings = settings
        self._opening: Future[Codec] = Future()
        self._codec = codec
        if codec is None:
            # A daemon: where the topics turn out to be out of reach, nobody waits for the registry too.
            threading.Thread(target=self._open, name="registry", daemon=True).start()
        self._messages = tuple(settings.topic(kind) for kind in ("agent.", "answers.", "replies"))
        self._others = tuple(settings.topic(kind) for kind in ("dead.", "cards", "events"))

    @property
    def codec(self) -> Codec:
        """The codec, once the registry is reached."""
        if self._codec is None:
            self._codec = self._opening.result()
        return self._codec

    def entry(self, kafka: KafkaMessage) -> Entry:
        """*kafka* decoded; never an error for what the record holds."""
        entry = Entry(kafka)
        if entry.raw is None:
            entry.error = "no value: a tombstone"
            return entry
        try:
            if entry.topic.startswith(self._messages):
                entry.message = self.codec.message(
                    entry.raw, entry.topic, entry.partition, entry.offset, entry.timestamp
                )
                return entry
            if entry.raw[:1] != b"\0" and not entry.topic.startswith(self._others):
                entry.plain = True
                return entry
            record = self.codec.decode(entry.raw)
        except RecordError as error:
            entry.error = error.what
            return entry
        if "message_id" in record and "reply_to" in record:
            entry.message = Message(record, entry.topic, entry.partition, entry.offset, entry.timestamp)
            return entry
        entry.record = record
        if entry.is_dead_letter and record["value"] is not None:
            try:
                entry.message = self.codec.message(
                    record["value"], record["topic"], record["partition"], record["offset"], record["timestamp"]
                )
            except RecordError:  # it is dead for just that: the letter's own fields say why
                entry.message = None
        return entry

    def _open(self) -> None:
        from llmagentos.streams.registry import open_registry
        from llmagentos.streams.wire import Codec

        try:
            codec = Codec(open_registry(self._settings))
            with suppress(LLMAgentOSError):  # then the first record that needs a schema says so
                codec.registry.subjects()  # reads what there is, while the topics are looked up
            self._opening.set_result(codec)
        except BaseException as error:  # noqa: BLE001 - whoever asks for the codec gets it
            self._opening.set_exception(error)
