"""The compatibility check against Avro's rules, and against what fastavro really reads."""

from __future__ import annotations

import copy
import io
from typing import Any

import fastavro
import pytest
from fastavro.read import SchemaResolutionError
from fastavro.utils import generate_one
from hypothesis import given
from hypothesis import strategies as st

from llmagentos import schemas
from llmagentos.streams.errors import IncompatibleSchema
from llmagentos.streams.evolution import breaks
from llmagentos.streams.registry import RegisteredSchema, refuse_breaks


def record(*fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "record", "name": "R", "namespace": "t", "fields": list(fields), **more}


def field(kind: Any, name: str = "f", **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, **more}


def enum(*symbols: str, **more: Any) -> dict[str, Any]:
    return {"type": "enum", "name": "E", "symbols": list(symbols), **more}


def fixed(size: int) -> dict[str, Any]:
    return {"type": "fixed", "name": "F", "size": size}


def array(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


inner = {"type": "record", "name": "Inner", "fields": [field("int", "a")]}
wider = {"type": "record", "name": "Inner", "fields": [field("int", "a"), field("int", "b")]}
TREE = record(field(["null", "R"], "next"), field("int", "value"))


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        (field("int"), field("long")),
        (field("int"), field("double")),
        (field("float"), field("double")),
        (field("string"), field("bytes")),
        (field("int"), field(["null", "int"])),
        (field("int"), field(["null", "long"])),
        (field(enum("a")), field(enum("a", "b"))),
        (field(enum("a", "b", "c")), field(enum("a", default="a"))),
        (field({"type": "long", "logicalType": "timestamp-millis"}), field("long")),
        (field(array("int")), field(array("long"))),
        (field({"type": "map", "values": "int"}), field({"type": "map", "values": "double"})),
        (field("int", "old"), field("int", "new", aliases=["old"])),
        (field(["int", "long"]), field("long")),
        (field(inner), field(inner)),
    ],
)
def test_readable(writer: dict[str, Any], reader: dict[str, Any]) -> None:
    assert breaks(reader=record(reader), writer=record(writer)) == []


@pytest.mark.parametrize(
    ("writer", "reader", "says"),
    [
        (field("long"), field("int"), "field 'f' changed its type from long to int"),
        (field("string"), field("int"), "field 'f' changed its type from string to int"),
        (field(["null", "int"]), field("int"), "field 'f' changed its type from null to int"),
        (field(["null", "int", "string"]), field(["null", "int"]), "field 'f' was also string"),
        (field("string"), field(["null", "int"]), "field 'f' was string, which is none of the new union"),
        (field(enum("a", "b", "c")), field(enum("a")), "field 'f' lost the symbols b, c"),
        (field(fixed(4)), field(fixed(8)), "field 'f' changed its size from 4 to 8"),
        (field(inner), field(wider), "field 'f.b' was added without a default"),
        (field(array(inner)), field(array(wider)), "field 'f[].b' was added without a default"),
        (field({"type": "map", "values": "int"}), field({"type": "map", "values": "string"}), "field 'f{}' changed"),
        (field("int", "a"), field("int", "b"), "field 'b' was added without a default"),
    ],
)
def test_broken(writer: dict[str, Any], reader: dict[str, Any], says: str) -> None:
    [found] = breaks(reader=record(reader), writer=record(writer))
    assert str(found).startswith(says)
    assert found.fix


def test_names() -> None:
    renamed = record(field("int")) | {"name": "S"}
    assert "changed its name from t.R to t.S" in str(breaks(reader=renamed, writer=record(field("int")))[0])
    assert breaks(reader=renamed | {"aliases": ["R"]}, writer=record(field("int"))) == []


def test_recursive_types_end() -> None:
    assert breaks(reader=TREE, writer=TREE) == []
    changed = record(field(["null", "R"], "next"), field("string", "value"))
    assert [str(found) for found in breaks(reader=changed, writer=TREE)] == [
        "field 'value' changed its type from int to string, which Avro does not promote"
    ]


@pytest.mark.parametrize("name", schemas.NAMES)
def test_every_schema_of_ours_reads_itself(name: str) -> None:
    assert breaks(reader=schemas.load(name), writer=schemas.load(name)) == []


def test_the_refusal_names_versions_and_all_fields() -> None:
    old = [
        RegisteredSchema("t.R", 1, 1, record(field("int", "a"))),
        RegisteredSchema("t.R", 2, 2, record(field("int", "a"), field("string", "b", default=""))),
    ]
    with pytest.raises(IncompatibleSchema) as raised:
        refuse_breaks("t.R", record(field("string", "a"), field("int", "b", default=0)), old)
    text = str(raised.value)
    assert "field 'a' changed its type from int to string, which Avro does not promote [version 1]" in text
    assert "field 'b' changed its type from string to int, which Avro does not promote [version 2]" in text
    assert "t.R" in text
    assert "the subject stays at version 2" in text


kinds = st.sampled_from(
    ["null", "boolean", "int", "long", "float", "double", "string", "bytes", ["null", "int"],
     ["null", "string", "long"],
     enum("a", "b"), enum("a", "b", "c"), enum("b", default="b"), fixed(2), array("int"), array("string"), inner, wider]
)  # fmt: skip


@given(kinds, kinds)
def test_what_passes_fastavro_reads(written: Any, read: Any) -> None:
    writer, reader = record(field(copy.deepcopy(written))), record(field(copy.deepcopy(read)))
    if breaks(reader=reader, writer=writer):
        return
    parsed, wanted = fastavro.parse_schema(writer), fastavro.parse_schema(reader)
    for _ in range(4):
        out = io.BytesIO()
        value: Any = generate_one(parsed)
        fastavro.schemaless_writer(out, parsed, value)
        try:
            fastavro.schemaless_reader(io.BytesIO(out.getvalue()), parsed, wanted)
        except UnicodeDecodeError:
            assert "bytes" in (written, read), "bytes that are no text can't become a string; Avro promotes them"
        except SchemaResolutionError as error:
            pytest.fail(f"{written} -> {read}: {error}")
