"""Whether a reader's schema can read what a writer's wrote: the rules of Avro's schema resolution.

Source: Apache Avro 1.12 specification, "Schema Resolution". fastavro applies these rules while it reads a record;
here they are checked before a schema is registered, and what breaks is said in words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Break", "breaks"]

#: What a reader of the key may meet, besides its own type (Avro's promotions).
_PROMOTED: dict[str, frozenset[str]] = {
    "long": frozenset({"int"}),
    "float": frozenset({"int", "long"}),
    "double": frozenset({"int", "long", "float"}),
    "string": frozenset({"bytes"}),
    "bytes": frozenset({"string"}),
}
_PRIMITIVE = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})

#: A schema as JSON: a name, a list (a union) or an object.
Schema = Any


@dataclass(frozen=True, slots=True)
class Break:
    """One thing that a reader can't make of the writer's records.

    Attributes:
        where: the field's path, for example ``reply_to.topic``; empty for the record itself.
        rule: what is wrong, as a sentence's end.
        fix: what to do instead.
    """

    where: str
    rule: str
    fix: str

    def __str__(self) -> str:
        return f"field '{self.where}' {self.rule}" if self.where else f"the record {self.rule}"


def breaks(reader: Schema, writer: Schema) -> list[Break]:
    """What keeps *reader* from reading every record that *writer* can write; empty where nothing does."""
    return list(_Comparison(_named(reader), _named(writer)).compare(reader, writer, "", "", ""))


def _named(schema: Schema) -> dict[str, dict[str, Any]]:
    """Every named type that *schema* defines, by full name."""
    found: dict[str, dict[str, Any]] = {}

    def visit(node: Schema, namespace: str) -> None:
        if isinstance(node, list):
            for branch in node:
                visit(branch, namespace)
        elif isinstance(node, dict):
            kind = node.get("type")
            if kind in ("record", "error", "enum", "fixed"):
                name = _full(node["name"], node.get("namespace", namespace))
                found[name] = node
                namespace = name.rpartition(".")[0]
                for field in node.get("fields", ()):
                    visit(field["type"], namespace)
            else:
                for part in (kind, node.get("items"), node.get("values")):
                    visit(part, namespace)

    visit(schema, "")
    return found


def _full(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


class _Comparison:
    def __init__(self, readers: dict[str, dict[str, Any]], writers: dict[str, dict[str, Any]]) -> None:
        self._readers = readers
        self._writers = writers
        self._seen: set[tuple[str, str]] = set()  # pairs of records under comparison: types may be recursive

    def compare(self, reader: Schema, writer: Schema, where: str, rspace: str, wspace: str) -> Iterator[Break]:
        """Breaks between two schemas at the path *where*, within the namespaces *rspace* and *wspace*."""
        reader, rkind, rspace = _resolve(reader, rspace, self._readers)
        writer, wkind, wspace = _resolve(writer, wspace, self._writers)
        if wkind == "union":
            for branch in writer:
                if rkind == "union" and self._taken(branch, reader, rspace, wspace):
                    continue
                if rkind == "union":
                    yield Break(
                        where,
                        f"was also {_words(branch)}, which the new type does not take",
                        f"keep {_words(branch)} in the union of '{where}'",
                    )
                else:
                    yield from self.compare(reader, branch, where, rspace, wspace)
        elif rkind == "union":
            if not self._taken(writer, reader, rspace, wspace):
                yield Break(
                    where,
                    f"was {_words(writer)}, which is none of the new union",
                    f"add {_words(writer)} to the union of '{where}'",
                )
        elif rkind == wkind == "record":
            yield from self._records(reader, writer, where, rspace, wspace)
        elif rkind == wkind == "enum":
            lost = [symbol for symbol in writer["symbols"] if symbol not in reader["symbols"]]
            if lost and "default" not in reader:
                yield Break(
                    where,
                    f"lost the symbol{'s' if len(lost) > 1 else ''} {', '.join(lost)} and its enum has no default",
                    f"keep the symbols of '{where}', or give the enum a default",
                )
        elif rkind == wkind == "fixed":
            if reader["size"] != writer["size"]:
                yield Break(
                    where, f"changed its size from {writer['size']} to {reader['size']}", f"keep the size of '{where}'"
                )
        elif rkind == wkind == "array":
            yield from self.compare(reader["items"], writer["items"], f"{where}[]", rspace, wspace)
        elif rkind == wkind == "map":
            yield from self.compare(reader["values"], writer["values"], f"{where}{{}}", rspace, wspace)
        elif rkind != wkind and wkind not in _PROMOTED.get(rkind, ()):
            yield Break(
                where,
                f"changed its type from {_words(writer)} to {_words(reader)}, which Avro does not promote",
                f"keep the type of '{where}', or add a field of another name with a default",
            )

    def _taken(self, branch: Schema, union: list[Schema], rspace: str, wspace: str) -> bool:
        """Whether one branch of the reader's union reads the writer's *branch*."""
        for candidate in union:
            trial = _Comparison(self._readers, self._writers)
            trial._seen = set(self._seen)
            if next(trial.compare(candidate, branch, "", rspace, wspace), None) is None:
                return True
        return False

    def _records(
        self, reader: dict[str, Any], writer: dict[str, Any], where: str, rspace: str, wspace: str
    ) -> Iterator[Break]:
        rname, wname = (_full(node["name"], space) for node, space in ((reader, rspace), (writer, wspace)))
        if (rname, wname) in self._seen:
            return
        self._seen.add((rname, wname))
        aliases = {_full(alias, rspace) for alias in reader.get("aliases", ())}
        if rname.rpartition(".")[2] != wname.rpartition(".")[2] and wname not in aliases:
            yield Break(where, f"changed its name from {wname} to {rname}", f"keep the name, or add the alias {wname}")
            return
        old = {field["name"]: field for field in writer["fields"]}
        for field in reader["fields"]:
            path = f"{where}.{field['name']}" if where else field["name"]
            names = (field["name"], *field.get("aliases", ()))
            match = next((old[name] for name in names if name in old), None)
            if match is not None:
                yield from self.compare(field["type"], match["type"], path, rspace, wspace)
            elif "default" not in field:
                yield Break(path, "was added without a default", f"give '{path}' a default")


def _resolve(schema: Schema, namespace: str, named: dict[str, dict[str, Any]]) -> tuple[Any, str, str]:
    """*schema* with names looked up; its kind; and the namespace inside it."""
    if isinstance(schema, list):
        return schema, "union", namespace
    if isinstance(schema, str):
        if schema in _PRIMITIVE:
            return schema, schema, namespace
        schema = named[_full(schema, namespace) if _full(schema, namespace) in named else schema]
    kind = schema["type"]
    if not isinstance(kind, str):  # {"type": {"type": ...}}
        return _resolve(kind, namespace, named)
    if kind in ("record", "error", "enum", "fixed"):
        name = _full(schema["name"], schema.get("namespace", namespace))
        return schema, "record" if kind == "error" else kind, name.rpartition(".")[0]
    if kind in _PRIMITIVE or kind in ("array", "map"):
        return schema, kind, namespace
    return _resolve(kind, namespace, named)


def _words(schema: Schema) -> str:
    if isinstance(schema, list):
        return " or ".join(_words(branch) for branch in schema)
    if isinstance(schema, str):
        return schema
    return f"{schema['type']} {schema['name']}" if "name" in schema else _words(schema["type"])
