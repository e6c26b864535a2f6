"""The codec: what goes in comes out; anything else is a RecordError that says what is wrong."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import fastavro
import fastavro.utils
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmagentos import schemas
from llmagentos.streams.compiled import FAILURES, compile_decoder, compile_encoder
from llmagentos.streams.errors import RecordError, SchemaError, UnknownSchema
from llmagentos.streams.message import Message
from llmagentos.streams.registry import RegisteredSchema, full_name
from llmagentos.streams.wire import MESSAGE, Codec, plain

Schema = dict[str, Any]


class InMemory:
    """A registry that holds what it is given, and counts what it is asked."""

    def __init__(self, *known: Schema) -> None:
        self.known = list(known)
        self.asked = 0

    def register(self, subject: str, schema: Schema) -> int:
        if schema not in self.known:
            self.known.append(schema)
        return self.known.index(schema) + 1

    def schema(self, schema_id: int) -> Schema:
        self.asked += 1
        if not 0 < schema_id <= len(self.known):
            raise UnknownSchema(f"no schema {schema_id}")
        return self.known[schema_id - 1]

    def latest(self, subject: str) -> RegisteredSchema:
        return self.versions(subject)[-1]

    def versions(self, subject: str) -> list[RegisteredSchema]:
        own = [(number, schema) for number, schema in enumerate(self.known, 1) if full_name(schema) == subject]
        found = [RegisteredSchema(subject, number, number, schema) for number, schema in own]
        if not found:
            raise UnknownSchema(f"no subject {subject}")
        return found

    def subjects(self) -> list[str]:
        return sorted({full_name(schema) for schema in self.known})

    def check(self, subject: str, schema: Schema) -> None: ...

    def close(self) -> None: ...


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
longs = st.integers(-(2**63), 2**63 - 1)
ints = st.integers(-(2**31), 2**31 - 1)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """A message with anything that a field can hold."""
    message = Message.create(
        draw(st.binary(max_size=5000) | texts),
        to=draw(texts),
        conversation=draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9000)),
        message_id=draw(texts) or None,
        sender=draw(texts),
        type=draw(st.sampled_from(["command", "task", "result", "event", "token", "control", "error"])),
        tenant=draw(texts),
        sequence=draw(longs),
        deadline=draw(st.none() | longs),
        priority=draw(ints),
        reply_to=draw(st.none() | st.tuples(texts, ints)),
        attributes=draw(st.dictionaries(texts, texts, max_size=5)),
        created_at=draw(longs),
    )
    message.record["caused_by"] = draw(st.none() | texts)
    message.record["attempt"] = draw(ints)
    usage = st.fixed_dictionaries(
        {"model": texts, "tokens_in": longs, "tokens_out": longs, "cost": st.floats(allow_nan=False)}
    )
    message.record["usage"] = draw(st.none() | usage)
    return message


def codec() -> Codec:
    return Codec(InMemory(schemas.load("message")))


def outcome(read: Callable[[], Schema]) -> Schema | RecordError:
    """The record, or the one error that there may be."""
    try:
        return read()
    except RecordError as error:
        return error


def raw_of(message: Message) -> bytes:
    return codec().encode(message)


HELLO = Message.create("hello", to="greeter", conversation="c-1", message_id="m-1", created_at=1_800_000_000_000)


@given(messages())
@example(HELLO)
def test_every_message_comes_back(message: Message) -> None:
    one = codec()
    raw = one.encode(message)
    assert raw[:5] == b"\0\0\0\0\1"
    back = one.message(raw, "t", 3, 42, 7)
    assert back.record == message.record
    assert (back.topic, back.partition, back.offset, back.timestamp) == ("t", 3, 42, 7)
    assert one.decode(raw) == message.record


@given(messages(), st.data())
def test_damaged_bytes_raise_or_decode(message: Message, data: st.DataObject) -> None:
    one = codec()
    raw = bytearray(one.encode(message))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    raw = raw[: data.draw(st.integers(0, len(raw)))] + data.draw(st.just(b"") | st.binary(max_size=3))
    found = outcome(lambda: one.message(bytes(raw), "agent.x", 3, 42, 7).record)
    if isinstance(found, RecordError):
        assert "agent.x[3]@42" in str(found)
        assert found.cause == "undecodable"
    else:
        assert set(found) == set(message.record)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise(raw: bytes) -> None:
    found = outcome(lambda: codec().decode(raw))
    assert not isinstance(found, RecordError) or found.cause == "undecodable"


@given(messages(), st.data())
def test_compiled_code_is_fastavros(message: Message, data: st.DataObject) -> None:
    """The same bytes; and wherever the compiled decoder gives a record, fastavro gives the same one."""
    schema = plain(schemas.load("message"))
    parsed: Any = fastavro.parse_schema(copy.deepcopy(schema))
    encode, decode = compile_encoder(schema, b""), compile_decoder(schema, 0)
    assert encode is not None
    assert decode is not None
    out = io.BytesIO()
    fastavro.schemaless_writer(out, parsed, message.record)
    assert encode(message.record) == out.getvalue()
    raw = bytearray(out.getvalue())
    for _ in range(data.draw(st.integers(0, 2))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        record = decode(bytes(raw))
    except Exception:
        return
    source = io.BytesIO(raw)
    assert repr(fastavro.schemaless_reader(source, parsed, None)) == repr(record)  # NaN is not equal to itself
    assert source.tell() == len(raw)


@given(st.data())
def test_the_journals_compiled_code_is_fastavros(data: st.DataObject) -> None:
    """As above, of a record with arrays, records in them, and one that is meant by its name."""
    schema = plain(schemas.load("journal"))
    parsed: Any = fastavro.parse_schema(copy.deepcopy(schema))
    encode, decode = compile_encoder(schema, b""), compile_decoder(schema, 0)
    assert encode is not None
    assert decode is not None
    headers = st.lists(st.fixed_dictionaries({"name": st.text(max_size=4), "value": st.none() | st.binary(max_size=4)}))
    some = st.none() | st.binary(max_size=70)
    kept = {"key": some, "value": some, "headers": headers, "timestamp": st.integers(-1, 2**42)}
    output = {"topic": st.text(max_size=4), "partition": st.integers(-1, 9), "key": some, "value": some}
    record = next(iter(fastavro.utils.generate_many(schema, 1))) | {
        "record": data.draw(st.none() | st.fixed_dictionaries(kept)),
        "outputs": data.draw(st.lists(st.fixed_dictionaries(output | {"headers": headers}), max_size=70)),
    }
    out = io.BytesIO()
    fastavro.schemaless_writer(out, parsed, record)
    assert encode(record) == out.getvalue()
    assert decode(out.getvalue()) == record
    raw = bytearray(out.getvalue())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = decode(bytes(raw))
    except Exception:
        return
    source = io.BytesIO(raw)
    assert fastavro.schemaless_reader(source, parsed, None) == found
    assert source.tell() == len(raw)


@pytest.mark.parametrize("outputs", [None, (), "ab", {"topic": 1}, [None], [{"topic": "t"}]])
def test_what_is_no_array_is_fastavros_to_judge(outputs: object) -> None:
    encode = compile_encoder(plain(schemas.load("journal")), b"")
    assert encode is not None
    record = next(iter(fastavro.utils.generate_many(plain(schemas.load("journal")), 1)))
    with pytest.raises(FAILURES):
        encode(record | {"outputs": outputs})


@pytest.mark.parametrize("name", schemas.NAMES)
def test_every_schema_of_ours_encodes(name: str) -> None:
    one = Codec(InMemory())
    schema = schemas.load(name)
    encode = one.writer(full_name(schema), name)
    record = next(iter(fastavro.utils.generate_many(plain(schema), 1)))
    assert one.decode(encode(record)) == record


RAW = raw_of(HELLO)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (None, "the value is null"),
        (b"", "0 bytes are too few"),
        (b"\0\0\0", "3 bytes are too few"),
        (b'{"text": "hi"}', "the magic byte is 0x7b, not 0x00"),
        (b"\0\0\0\0\x63" + RAW[5:], "the registry knows no schema 99"),
        (RAW[:-3], "are not of schema 1 (llmagentos.Message)"),
        (RAW[:5], "are not of schema 1 (llmagentos.Message)"),
        (RAW + b"!", "1 bytes follow the body"),
        (RAW.replace(b"hello", b"jello"), "the checksum is"),
        (RAW.replace(b"greeter", b"gr\xffeter"), "utf-8"),
    ],
)
def test_bad_records_say_what_and_where(raw: bytes | None, says: str) -> None:
    with pytest.raises(RecordError) as raised:
        codec().message(raw, "llmagentos.agent.greeter", 3, 42, 7)
    assert says in str(raised.value)
    assert "llmagentos.agent.greeter[3]@42" in str(raised.value)
    assert raised.value.cause == "undecodable"


def test_another_record_is_no_message() -> None:
    one = Codec(InMemory())
    event = {"kind": "deployed", "at": 1, "deployment": "d", "worker": "", "agent": "", "detail": {}}
    raw = one.writer("llmagentos.Event", "event")(event)
    assert one.decode(raw)["kind"] == "deployed"
    with pytest.raises(RecordError, match=r"it is a llmagentos.Event, not a llmagentos.Message"):
        one.message(raw, "t", 0, 0, 0)


def test_unknown_ids_are_not_asked_for_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("llmagentos.streams.wire.time.monotonic", lambda: now)
    registry = InMemory(schemas.load("message"))
    one = Codec(registry)
    raw = b"\0\0\0\0\2" + RAW[5:]
    for _ in range(10):
        with pytest.raises(RecordError):
            one.decode(raw)
    assert registry.asked == 1
    registry.known.append(schemas.load("message"))
    now += 6
    assert one.decode(raw) == HELLO.record


def test_a_registry_out_of_reach_is_no_fault_of_the_record() -> None:
    class Down(InMemory):
        def schema(self, schema_id: int) -> Schema:
            raise SchemaError("the registry is out of reach")

    with pytest.raises(SchemaError, match="out of reach"):
        Codec(Down()).message(RAW, "t", 0, 0, 0)


def test_records_of_other_versions_are_read_as_ours() -> None:
    older = copy.deepcopy(schemas.load("message"))
    older["fields"] = [field for field in older["fields"] if field["name"] not in ("usage", "attempt")]
    newer = copy.deepcopy(schemas.load("message"))
    newer["fields"].insert(3, {"name": "mood", "type": "string", "default": "calm"})
    registry = InMemory(older, newer)
    for number, schema in enumerate((older, newer), 1):
        out = io.BytesIO()
        out.write(bytes([0, 0, 0, 0, number]))
        fastavro.schemaless_writer(out, fastavro.parse_schema(plain(schema)), {**HELLO.record, "mood": "merry"})
        read = Codec(registry).message(out.getvalue(), "t", 0, 0, 0)
        assert read.record == HELLO.record


def test_foreign_schemas_decode() -> None:
    schema: Schema = {
        "type": "record",
        "name": "Order",
        "fields": [
            {"name": "lines", "type": {"type": "array", "items": ["null", "string", "long"]}},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        ],
    }
    out = io.BytesIO()
    out.write(b"\0\0\0\0\1")
    record = {"lines": ["a", None, 7], "at": 1_800_000_000_000}
    fastavro.schemaless_writer(out, fastavro.parse_schema(plain(schema)), record)
    assert Codec(InMemory(schema)).decode(out.getvalue()) == record


@pytest.mark.parametrize(("schema", "raw", "value"), [("string", b"\x04hi", "hi"), (["null", "int"], b"\x02\x08", 4)])
def test_schemas_that_are_no_record_decode(schema: Any, raw: bytes, value: Any) -> None:
    one = Codec(InMemory(schema))
    assert one.decode(b"\0\0\0\0\1" + raw) == value
    with pytest.raises(RecordError, match="not a llmagentos.Message"):
        one.message(b"\0\0\0\0\1" + raw, "t", 0, 0, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("sender", 5), ("body", "text"), ("type", "shout"), ("created_at", "now"), ("usage", {"model": 1})],
)
def test_a_record_of_other_types_is_refused_by_field(field: str, value: Any) -> None:
    with pytest.raises(RecordError, match=field) as raised:
        codec().encode(Message(HELLO.record | {field: value}))
    assert raised.value.cause == "invalid"


def test_missing_keys_take_their_defaults() -> None:
    slim = {name: value for name, value in HELLO.record.items() if name not in ("priority", "attributes")}
    assert codec().decode(codec().encode(Message(slim))) == HELLO.record
    with pytest.raises(RecordError, match="sender"):
        codec().encode(Message({name: value for name, value in slim.items() if name != "sender"}))


def test_the_subject_is_the_records_name() -> None:
    registry = InMemory()
    Codec(registry).encode(HELLO)
    assert registry.subjects() == [MESSAGE]
