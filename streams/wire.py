"""The wire format: a record as Confluent's bytes (byte 0, 4-byte big-endian schema id, Avro body), and back.

Schemas are compiled to Python where they are simple, as Message's is, and fastavro does the rest and the errors.
Logical types are taken off every schema before it is used: the bytes are the same, a time stays the integer that it
is on the wire, and no datetime is built (2 us a field). Writer and reader functions are made once per schema and kept.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import confluent_kafka
import fastavro
import google_crc32c
from fastavro.read import SchemaResolutionError
from fastavro.schema import SchemaParseException
from fastavro.validation import ValidationError, validate

from llmagentos import schemas
from llmagentos.streams.compiled import FAILURES, compile_decoder, compile_encoder
from llmagentos.streams.errors import RecordError, SchemaError, UnknownSchema
from llmagentos.streams.message import Message
from llmagentos.streams.registry import Registry, full_name

__all__ = ["MESSAGE", "Codec", "plain"]

#: The subject of all messages: the record's full name.
MESSAGE: Final = "llmagentos.Message"

MAGIC: Final = 0
#: Magic byte and schema id.
PREFIX_BYTES: Final = 5

#: How long an unknown schema id is not asked for again: shorter than a person waits, longer than a burst of garbage.
UNKNOWN_FOR_S: Final = 5.0
#: Unknown ids that are remembered; at the limit all are forgotten. Garbage may name 2**32 of them.
MAX_UNKNOWN: Final = 10_000

#: What fastavro raises on bytes that are not of the schema.
_BAD_BYTES: Final = (EOFError, ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError)
#: What it raises on a record that is not of the schema.
_BAD_RECORD: Final = (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError)

Encode = Callable[[dict[str, Any]], bytes]
Decode = Callable[[bytes], dict[str, Any]]


def plain(schema: Any) -> Any:
    """*schema* without its logical types: the same bytes, and integers where there were times."""
    if isinstance(schema, list):
        return [plain(branch) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    nested = ("type", "items", "values", "fields")
    return {name: plain(part) if name in nested else part for name, part in schema.items() if name != "logicalType"}


class Codec:
    """Encodes records of the project's schemas, and decodes records of any schema that the registry knows.

    Safe to use from several threads. The first use of a schema asks the registry, and blocks for it: call
    :meth:`writer` off the event loop where that matters.

    Args:
        registry: where schemas get their ids, and ids their schemas.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._lock = threading.Lock()
        self._writers: dict[tuple[str, str], Encode] = {}
        self._decoders: dict[bytes, Decode] = {}  # by the record's first five bytes
        self._messages: dict[bytes, Decode] = {}  # those of Message
        self._unknown: dict[int, float] = {}  # id -> when it may be asked for again
        self._encode_message: Encode | None = None
        self._ours = {full_name(schema): schema for schema in map(schemas.load, schemas.NAMES)}

    # -- writing ------------------------------------------------------------------------------------------------

    def writer(self, subject: str, name: str) -> Encode:
        """The encoder of our schema *name* (of :data:`llmagentos.schemas.NAMES`), registered under *subject*.

        The encoder raises :class:`RecordError`, cause "invalid", for a record that is not of the schema.

        Raises:
            IncompatibleSchema: *subject* holds versions whose records could not be read with it.
            SchemaError: the registry is out of reach.
        """
        known = self._writers.get((subject, name))
        if known is None:
            schema = schemas.load(name)
            known = _encoder(schema, self.registry.register(subject, schema))
            self._writers[subject, name] = known
        return known

    def prepare(self) -> None:
        """Register all of our schemas, each under its full name, in one go; raises as :meth:`writer` does.

        One by one, each costs a transaction of the log-backed registry, which a first deployment waits for.
        """
        ids = self.registry.register_all(self._ours)
        for name in schemas.NAMES:
            schema = schemas.load(name)
            subject = full_name(schema)
            self._writers.setdefault((subject, name), _encoder(schema, ids[subject]))

    def encode(self, message: Message) -> bytes:
        """*message* as a record's value; raises as :meth:`writer` and its encoder do."""
        encode = self._encode_message
        if encode is None:
            encode = self._encode_message = self.writer(MESSAGE, "message")
        return encode(message.record)

    # -- reading ------------------------------------------------------------------------------------------------

    def decode(self, raw: bytes) -> dict[str, Any]:
        """The record in *raw*, of any schema; read as the project's own schema of that name, where there is one.

        Raises:
            RecordError: cause "undecodable": not Confluent's wire format, an id that the registry does not know, a
                body that is not of its schema, or bytes behind the body.
            SchemaError: the registry is out of reach; the record may be fine.
        """
        prefix = raw[:PREFIX_BYTES]
        decode = self._decoders.get(prefix)
        if decode is None:
            decode = self._decoder(prefix)
        return decode(raw)

    def message(self, raw: bytes | None, topic: str, partition: int, offset: int, timestamp: int) -> Message:
        """The message in *raw*, which was read at that place. The fast path.

        Raises:
            RecordError: as in :meth:`decode`; or it is of another schema, or its checksum is wrong. Names the place.
            SchemaError: as in :meth:`decode`.
        """
        try:
            if raw is None:
                raise RecordError("the value is null")
            decode = self._messages.get(raw[:PREFIX_BYTES])
            if decode is None:
                decode = self._message_decoder(raw[:PREFIX_BYTES])
            record = decode(raw)
            body = record["body"]
            if google_crc32c.value(body) != record["checksum"]:
                raise RecordError(
                    f"the checksum is {record['checksum']}, but that of its {len(body)} bytes of body is"
                    f" {google_crc32c.value(body)}: the body was changed after it was made"
                )
        except RecordError as error:
            place = f"record {topic}[{partition}]@{offset}"
            raise RecordError(f"{place}: {error.what}", cause=error.cause, fix=error.fix) from error
        return Message(record, topic, partition, offset, timestamp)

    def read(self, record: confluent_kafka.Message) -> Message:
        """The message in a consumed record; raises as :meth:`message` does."""
        return self.message(
            record.value(),
            record.topic() or "",
            record.partition() or 0,
            record.offset() or 0,
            record.timestamp()[1],
        )

    def _message_decoder(self, prefix: bytes) -> Decode:
        decode = self._decoders.get(prefix) or self._decoder(prefix)
        name = full_name(self.registry.schema(_schema_id(prefix)))
        if name != MESSAGE:
            raise RecordError(
                f"it is a {name}, not a {MESSAGE}", fix="read it with Codec.decode, or an agent with `topic=`"
            )
        self._messages[prefix] = decode
        return decode

    def _decoder(self, prefix: bytes) -> Decode:
        schema_id = _schema_id(prefix)
        with self._lock:
            asked_again_at = self._unknown.get(schema_id)
        if asked_again_at is None or asked_again_at <= time.monotonic():
            try:
                writer = self.registry.schema(schema_id)
            except UnknownSchema:
                self._forget(schema_id)
            else:
                decode = _decoder(writer, self._ours.get(full_name(writer)), schema_id)
                self._decoders[prefix] = decode
                return decode
        raise RecordError(
            f"the registry knows no schema {schema_id}",
            fix="`llmagentos schema list` shows what it knows; was the record made for another registry?",
        )

    def _forget(self, schema_id: int) -> None:
        with self._lock:
            if len(self._unknown) >= MAX_UNKNOWN:
                self._unknown.clear()
            self._unknown[schema_id] = time.monotonic() + UNKNOWN_FOR_S


def _schema_id(prefix: bytes) -> int:
    if len(prefix) < PREFIX_BYTES:
        raise RecordError(f"{len(prefix)} bytes are too few for a magic byte and a schema id")
    if prefix[0] != MAGIC:
        raise RecordError(
            f"the magic byte is {prefix[0]:#04x}, not 0x00: it is not in Confluent's wire format",
            fix="an agent reads other formats with `topic=` and `decode=`",
        )
    return int.from_bytes(prefix[1:], "big")


def _parsed(schema: dict[str, Any], what: str) -> Any:
    try:
        return fastavro.parse_schema(plain(schema))
    except (SchemaParseException, KeyError, ValueError, TypeError, AttributeError) as error:
        raise SchemaError(f"{what} is not an Avro schema: {error}") from error


def _encoder(schema: dict[str, Any], schema_id: int) -> Encode:
    parsed = _parsed(schema, f"schema {schema_id}")
    prefix = bytes([MAGIC]) + schema_id.to_bytes(4, "big")
    write = fastavro.schemaless_writer
    name = full_name(schema)

    def by_fastavro(record: dict[str, Any]) -> bytes:
        out = io.BytesIO()
        out.write(prefix)
        try:
            write(out, parsed, record)
        except _BAD_RECORD as error:
            raise _invalid(record, parsed, name, error) from error
        return out.getvalue()

    fast = compile_encoder(plain(schema), prefix)
    if fast is None:
        return by_fastavro

    def encode(record: dict[str, Any]) -> bytes:
        try:
            return fast(record)
        except FAILURES:
            return by_fastavro(record)  # which fills in defaults, or says what is wrong

    return encode


def _invalid(record: Any, parsed: Any, name: str, error: Exception) -> RecordError:
    """Says which field is wrong: fastavro's writer does not, its validation does."""
    reason = f"{type(error).__name__}: {error}"
    try:
        validate(record, parsed)
    except ValidationError as found:
        reason = "; ".join(str(part) for part in found.errors)
    return RecordError(f"this is no {name}: {reason}", cause="invalid", fix="correct the field named above")


def _decoder(writer: dict[str, Any], reader: dict[str, Any] | None, schema_id: int) -> Decode:
    """Reads bodies of *writer* as *reader* sees them; both the same, or no *reader*, costs no resolution."""
    written = _parsed(writer, f"schema {schema_id}")
    wanted = None if reader is None or plain(reader) == plain(writer) else _parsed(reader, "the project's schema")
    read = fastavro.schemaless_reader
    name = full_name(writer)

    def by_fastavro(raw: bytes) -> dict[str, Any]:
        source = io.BytesIO(raw)
        source.seek(PREFIX_BYTES)
        try:
            record: Any = read(source, written, wanted)
        except SchemaResolutionError as error:
            raise RecordError(f"its schema {schema_id} ({name}) can't be read as ours: {error}") from error
        except _BAD_BYTES as error:
            raise _undecodable(raw, schema_id, name, error) from error
        if source.tell() != len(raw):
            raise RecordError(
                f"{len(raw) - source.tell()} bytes follow the body of schema {schema_id} ({name}):"
                " it was written with another schema"
            )
        return record

    fast = compile_decoder(plain(writer), PREFIX_BYTES) if wanted is None else None
    if fast is None:
        return by_fastavro

    def decode(raw: bytes) -> dict[str, Any]:
        try:
            return fast(raw)
        except FAILURES:
            return by_fastavro(raw)  # which says what is wrong

    return decode


def _undecodable(raw: bytes, schema_id: int, name: str, error: Exception) -> RecordError:
    reason = str(error) or type(error).__name__
    if isinstance(error, EOFError):
        reason = "the body ends too early"
    return RecordError(f"{len(raw) - PREFIX_BYTES} bytes of body are not of schema {schema_id} ({name}): {reason}")
