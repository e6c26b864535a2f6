"""Avro schemas as Python functions: straight-line code for one record, in place of fastavro's walk over its schema.

For a flat record of short fields this takes a third to a half of fastavro's time, although that is compiled C: the
walk costs it a dictionary look-up, a call and a read or write on a file object per field, and here a field is one or
two expressions. The functions know the common case only. What they can't do, or what isn't as it should be, raises
:class:`Unusual` or an ordinary error, and the caller has fastavro do it: it defines what is right and says what is
wrong. (tests/unit/test_wire.py holds both against each other, on whole, cut and flipped bytes.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from struct import Struct
from struct import error as StructError
from typing import Any, Final, cast

__all__ = ["FAILURES", "Unusual", "compile_decoder", "compile_encoder"]

Encode = Callable[[dict[str, Any]], bytes]
Decode = Callable[[bytes], dict[str, Any]]


class Unusual(Exception):
    """Not for the straight-line code. Never leaves the codec."""


#: What the functions raise where fastavro must decide.
FAILURES: Final = (
    Unusual, StructError, KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError, ArithmeticError,
)  # fmt: skip

#: Lengths and small numbers, zigzagged, as bytes: one look-up each. 4,096 cover texts and bodies of messages.
SHORT: Final = 4096
_DOUBLE: Final = Struct("<d")


def _varint(z: int) -> bytes:
    out = bytearray()
    while z > 0x7F:
        out.append(z & 0x7F | 0x80)
        z >>= 7
    out.append(z)
    return bytes(out)


_LENGTHS: Final = tuple(_varint(n << 1) for n in range(SHORT))


def _long(value: int) -> bytes:
    """An Avro long. Five and six bytes, checksums and times, are spelled out."""
    if 0 <= value < SHORT:
        return _LENGTHS[value]
    z = value << 1 ^ value >> 63
    if z >> 28 and not z >> 35:
        return bytes((z & 127 | 128, z >> 7 & 127 | 128, z >> 14 & 127 | 128, z >> 21 & 127 | 128, z >> 28))
    if z >> 35 and not z >> 42:
        return bytes(
            (z & 127 | 128, z >> 7 & 127 | 128, z >> 14 & 127 | 128, z >> 21 & 127 | 128, z >> 28 & 127 | 128, z >> 35)
        )
    if z < 0 or z >> 64:
        raise Unusual
    return _varint(z)


def _text(value: str) -> bytes:
    raw = value.encode()
    return _long(len(raw)) + raw


def _text_map(value: dict[str, str]) -> bytes:
    if value == {}:
        return b"\0"
    parts = [_long(len(value))]
    for name, text in value.items():
        parts += _text(name), _text(text)
    return b"".join(parts) + b"\0" if value else b"\0"


def _read_long(raw: bytes, at: int) -> tuple[int, int]:
    """The long at *at*, and where the next value is."""
    five = raw[at : at + 5]
    if len(five) == 5:  # five and six bytes, as checksums and times have, are spelled out
        a, b, c, d, e = five
        if a & b & c & d & 0x80:
            z = a & 127 | (b & 127) << 7 | (c & 127) << 14 | (d & 127) << 21 | (e & 127) << 28
            if e < 0x80:
                return z >> 1 ^ -(z & 1), at + 5
            f = raw[at + 5]
            if f < 0x80:
                z |= f << 35
                return z >> 1 ^ -(z & 1), at + 6
    z = shift = 0
    while True:
        byte = raw[at]
        at += 1
        if shift > 63:
            raise Unusual
        z |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    if z >> 64:
        raise Unusual
    return z >> 1 ^ -(z & 1), at


def _read_size(raw: bytes, at: int) -> tuple[int, int]:
    size, at = _read_long(raw, at)
    if size < 0:
        raise Unusual
    return size, at


def _read_text_map(raw: bytes, at: int) -> tuple[dict[str, str], int]:
    found: dict[str, str] = {}
    while True:
        count, at = _read_size(raw, at)  # a negative one is followed by a size in bytes: fastavro's
        if not count:
            return found, at
        for _ in range(count):
            size, at = _read_size(raw, at)
            name = raw[at : at + size].decode()
            at += size
            size, at = _read_size(raw, at)
            found[name] = raw[at : at + size].decode()
            at += size
            if at > len(raw):
                raise Unusual


class _Writer:
    """Collects the lines of one function, and the constants that they name."""

    def __init__(self, **constants: Any) -> None:
        self.lines: list[str] = []
        self.constants: dict[str, Any] = constants
        self._named: dict[str, Mapping[str, Any]] = {}
        self._count = 0

    def name(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def define(self, described: Mapping[str, Any]) -> None:
        """A record or enum, whole, which may be meant by its name from here on. A namespace is not looked at."""
        if self._named.setdefault(_last(described["name"]), described) is not described:
            raise Unusual

    def kind(self, kind: Any) -> tuple[str, Mapping[str, Any]]:
        """The type's word, and its object."""
        if isinstance(kind, str):
            described = self._named.get(_last(kind))
            return (kind, {}) if described is None else (described["type"], described)
        if isinstance(kind, dict):
            described = cast(dict[str, Any], kind)
            if isinstance(described["type"], str):
                return described["type"], described
            return self.kind(described["type"])
        raise Unusual

    def add(self, depth: int, *lines: str) -> None:
        self.lines += ["    " * depth + line for line in lines]

    def function(self, head: str) -> Any:
        scope = dict(self.constants)
        # The source holds no text from outside but field names, and these as literals.
        exec("\n".join([head, *self.lines]), scope)
        return scope[head[4 : head.index("(")]]


def _nullable(kind: Any) -> tuple[int, Any] | None:
    """(position of null, the other branch) of a union of null and one type."""
    if isinstance(kind, list):
        branches = cast(list[Any], kind)
        if len(branches) == 2 and "null" in branches and branches[0] != branches[1]:
            position = branches.index("null")
            return position, branches[1 - position]
        raise Unusual
    return None


def _last(name: str) -> str:
    return name.rpartition(".")[2]


# -- encoding -------------------------------------------------------------------------------------------------------


def compile_encoder(schema: Any, prefix: bytes) -> Encode | None:
    """The function from a record to *prefix* and its bytes; None where *schema* has types that it does not know.

    Args:
        schema: without logical types.
    """
    if not isinstance(schema, dict):  # a union, or a bare name
        return None
    writer = _Writer(L=_LENGTHS, long=_long, text_map=_text_map, double=_DOUBLE.pack, join=b"".join, prefix=prefix)
    writer.constants["Unusual"] = Unusual
    try:
        parts = ["prefix", *_encode_fields(writer, 1, cast(dict[str, Any], schema), "record")]
    except (Unusual, KeyError):
        return None
    writer.add(1, f"return join(({', '.join(parts)},))")
    return writer.function("def encode(record):")


def _encode_fields(writer: _Writer, depth: int, record: Mapping[str, Any], source: str) -> list[str]:
    """Adds what prepares the fields; gives the expressions whose bytes follow each other."""
    parts: list[str] = []
    for field in record["fields"]:
        parts += _encode_value(writer, depth, field["type"], f"{source}[{json.dumps(field['name'])}]")
    return parts


def _encode_value(writer: _Writer, depth: int, kind: Any, source: str) -> list[str]:
    nullable = _nullable(kind)
    if nullable is not None:
        position, branch = nullable
        value, whole = writer.name(), writer.name()
        null = repr(bytes([position << 1]))
        writer.add(depth, f"{value} = {source}", f"if {value} is None:", f"    {whole} = {null}", "else:")
        parts = [repr(bytes([(1 - position) << 1])), *_encode_value(writer, depth + 1, branch, value)]
        writer.add(depth + 1, f"{whole} = join(({', '.join(parts)},))")
        return [whole]
    word, described = writer.kind(kind)
    if word == "string" or word == "bytes":
        value, size = writer.name(), writer.name()
        writer.add(depth, f"{value} = {source}{'.encode()' if word == 'string' else ''}", f"{size} = len({value})")
        return [f"L[{size}] if {size} < {SHORT} else long({size})", value]
    if word == "int" or word == "long":
        value = writer.name()
        writer.add(depth, f"{value} = {source}")
        return [f"L[{value}] if 0 <= {value} < {SHORT} else long({value})"]
    if word == "double":
        return [f"double({source})"]
    if word == "boolean":
        return [f"{writer.constant({True: bytes([1]), False: bytes([0])})}[{source}]"]
    if word == "enum":
        writer.define(described)
        symbols = {symbol: _long(number) for number, symbol in enumerate(described["symbols"])}
        return [f"{writer.constant(symbols)}[{source}]"]
    if word == "map" and described["values"] == "string":
        return [f"text_map({source})"]
    if word == "record":
        value = writer.name()
        writer.add(depth, f"{value} = {source}")
        parts = _encode_fields(writer, depth, described, value)
        writer.define(described)  # behind its fields: what names itself is fastavro's
        return parts
    if word == "array":
        value, items, item, whole = (writer.name() for _ in range(4))
        writer.add(
            depth, f"{value} = {source}", f"if {value}:", f"    {items} = [long(len({value}))]",
            f"    for {item} in {value}:",
        )  # fmt: skip
        parts = _encode_value(writer, depth + 2, described["items"], item)
        writer.add(depth + 2, f"{items} += ({', '.join(parts)},)")
        writer.add(depth + 1, f"{items}.append({bytes(1)!r})", f"{whole} = join({items})")
        writer.add(depth, f"elif {value} == []:", f"    {whole} = {bytes(1)!r}", "else:", "    raise Unusual")
        return [whole]
    raise Unusual


# -- decoding -------------------------------------------------------------------------------------------------------


def compile_decoder(schema: Any, start: int) -> Decode | None:
    """The function from bytes, whose body begins at *start*, to the record; None as :func:`compile_encoder`.

    A slice beyond the end of bytes is short and no error, so the one check that all was there is at the end: the
    body ends where the bytes do.
    """
    if not isinstance(schema, dict):
        return None
    writer = _Writer(long=_read_long, size=_read_size, text_map=_read_text_map)
    writer.constants |= {"double": _DOUBLE.unpack_from, "Unusual": Unusual}
    writer.add(1, f"at = {start}")
    try:
        record = _decode_record(writer, 1, cast(dict[str, Any], schema))
    except (Unusual, KeyError):
        return None
    writer.add(1, "if at != len(raw):", "    raise Unusual", f"return {record}")
    return writer.function("def decode(raw):")


def _decode_record(writer: _Writer, depth: int, record: Mapping[str, Any]) -> str:
    """Adds what reads the fields; gives the expression of the record."""
    fields: list[str] = []
    for field in record["fields"]:
        value = writer.name()
        _decode_value(writer, depth, field["type"], value)
        fields.append(f"{json.dumps(field['name'])}: {value}")
    return "{" + ", ".join(fields) + "}"


def _decode_value(writer: _Writer, depth: int, kind: Any, value: str) -> None:
    """Adds the lines that put the value at `at` into the variable *value*, and `at` behind it."""
    nullable = _nullable(kind)
    if nullable is not None:
        position, branch = nullable
        writer.add(depth, "n = raw[at]", "at += 1", f"if n == {position << 1}:", f"    {value} = None")
        writer.add(depth, f"elif n == {(1 - position) << 1}:")
        _decode_value(writer, depth + 1, branch, value)
        writer.add(depth, "else:", "    raise Unusual")
        return
    word, described = writer.kind(kind)
    if word == "string" or word == "bytes":
        writer.add(
            depth,
            "n = raw[at]",
            "if n & 0x81:",  # longer than 63, or negative
            "    m = raw[at + 1]",
            "    if n & 1 or m > 0x7f:",  # longer than 8,191
            "        n, at = size(raw, at)",
            "    else:",
            "        n = (n & 0x7f | m << 7) >> 1",
            "        at += 2",
            "else:",
            "    n >>= 1",
            "    at += 1",
            f"{value} = raw[at : (at := at + n)]{'.decode()' if word == 'string' else ''}",
        )
    elif word == "int" or word == "long":
        writer.add(
            depth, "n = raw[at]", "if n & 0x81:", f"    {value}, at = long(raw, at)", "else:", f"    {value} = n >> 1",
            "    at += 1",
        )  # fmt: skip
    elif word == "double":
        writer.add(depth, f"{value} = double(raw, at)[0]", "at += 8")
    elif word == "boolean":
        writer.add(depth, f"{value} = (False, True)[raw[at]]", "at += 1")
    elif word == "enum":
        writer.define(described)
        symbols = writer.constant(tuple(described["symbols"]))
        writer.add(depth, "n = raw[at]", "if n & 0x81:", "    raise Unusual", f"{value} = {symbols}[n >> 1]", "at += 1")
    elif word == "map" and described["values"] == "string":
        writer.add(
            depth, "if raw[at]:", f"    {value}, at = text_map(raw, at)", "else:", f"    {value} = {{}}", "    at += 1"
        )
    elif word == "record":
        record = _decode_record(writer, depth, described)
        writer.define(described)
        writer.add(depth, f"{value} = {record}")
    elif word == "array":
        item, count = writer.name(), writer.name()
        writer.add(
            depth,
            f"{value} = []",
            "while raw[at]:",
            f"    {count}, at = size(raw, at)",
            f"    for _ in range({count}):",
        )
        start = len(writer.lines)
        _decode_value(writer, depth + 2, described["items"], item)
        if not any("raw[at]" in line for line in writer.lines[start:]):
            raise Unusual  # nothing would end the loop where a damaged count is far beyond the bytes
        writer.add(depth + 2, f"{value}.append({item})")
        writer.add(depth, "at += 1")
    else:
        raise Unusual
