"""What every registry must do, whichever it is."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

from llmagentos.streams.errors import IncompatibleSchema, UnknownSchema
from llmagentos.streams.registry import Registry
from tests.integration.registry.conftest import Place

Schema = dict[str, Any]


def record(subject: str, **fields: Any) -> Schema:
    """A record schema; each field's type, or (type, default)."""
    described = [
        {"name": name, "type": kind[0], "default": kind[1]} if isinstance(kind, tuple) else {"name": name, "type": kind}
        for name, kind in fields.items()
    ]
    namespace, _, name = subject.rpartition(".")
    return {"type": "record", "name": name, "namespace": namespace, "fields": described}


def test_a_schema_keeps_its_id(registry: Registry, place: Place, subject: str) -> None:
    schema = record(subject, name="string")
    schema_id = registry.register(subject, schema)
    assert registry.register(subject, schema) == schema_id
    assert registry.schema(schema_id) == schema
    other = place.open()
    assert other.schema(schema_id) == schema
    assert other.register(subject, schema) == schema_id
    assert [version.version for version in other.versions(subject)] == [1]
    other.close()


def test_several_are_registered_at_once(registry: Registry, place: Place, subject: str) -> None:
    one, two, three = (f"{subject}{name}" for name in ("One", "Two", "Three"))
    first, second = (record(name, text="string") for name in (one, two))
    known = registry.register(one, first)
    ids = registry.register_all({one: first, two: second, three: first})
    assert ids == {one: known, two: ids[two], three: known}
    assert ids[two] != known
    other = place.open()
    assert [other.latest(name).id for name in (one, two, three)] == list(ids.values())
    with pytest.raises(IncompatibleSchema, match="number"):
        other.register_all({one: first, two: record(two, number="int")})
    assert len(other.versions(two)) == 1
    other.close()


def test_versions_count_from_one(registry: Registry, subject: str) -> None:
    first = record(subject, name="string")
    second = record(subject, name="string", age=("int", 0))
    ids = [registry.register(subject, schema) for schema in (first, second)]
    assert [(v.version, v.id, v.schema) for v in registry.versions(subject)] == [
        (1, ids[0], first),
        (2, ids[1], second),
    ]
    latest = registry.latest(subject)
    assert (latest.subject, latest.version, latest.id, latest.schema) == (subject, 2, ids[1], second)
    assert registry.register(subject, first) == ids[0], "an old version is still there"


def test_one_schema_under_two_subjects_has_one_id(registry: Registry, subject: str) -> None:
    schema = record(subject, name="string")
    assert registry.register(subject, schema) == registry.register(f"{subject}Copy", schema)
    assert {subject, f"{subject}Copy"} <= set(registry.subjects())
    assert registry.subjects() == sorted(registry.subjects())


def test_unknown_ids_and_subjects_are_told(registry: Registry, subject: str) -> None:
    with pytest.raises(UnknownSchema, match="no schema 987654321"):
        registry.schema(987654321)
    with pytest.raises(UnknownSchema, match=subject):
        registry.latest(subject)
    with pytest.raises(UnknownSchema, match=subject):
        registry.versions(subject)
    registry.check(subject, record(subject, name="string"))
    assert subject not in registry.subjects(), "check registers nothing"


def test_breaking_evolution_is_refused_by_field_and_rule(registry: Registry, subject: str) -> None:
    registry.register(subject, record(subject, name="string"))
    broken = record(subject, name="string", deadline="long")
    for attempt in (registry.check, registry.register):
        with pytest.raises(IncompatibleSchema, match=r"field 'deadline' was added without a default") as raised:
            attempt(subject, broken)
        assert "BACKWARD_TRANSITIVE" in str(raised.value)
        assert "give 'deadline' a default" in raised.value.fix
    assert registry.latest(subject).version == 1


def test_every_earlier_version_counts(registry: Registry, subject: str) -> None:
    registry.register(subject, record(subject, a="string"))
    registry.register(subject, record(subject, a="string", b=("int", 0)))
    registry.register(subject, record(subject))
    with pytest.raises(IncompatibleSchema, match=r"version 2\]"):
        registry.register(subject, record(subject, b=("string", "")))
    with pytest.raises(IncompatibleSchema, match=r"'a' was added without a default"):
        registry.register(subject, record(subject, a="string", c="int"))


def test_a_reader_sees_what_came_later(registry: Registry, place: Place, subject: str) -> None:
    first = registry.register(subject, record(subject, a="string"))
    reader = place.open()
    assert reader.schema(first)
    later = registry.register(subject, record(subject, a="string", b=("int", 0)))
    assert reader.schema(later) == record(subject, a="string", b=("int", 0))
    reader.close()


def schemas_for(subject: str, kinds: int) -> list[Schema]:
    return [record(subject, **{f"field{kind}": ("int", 0)}) for kind in range(kinds)]


def in_threads(place: Place, subject: str, schemas: list[Schema]) -> list[int]:
    start = threading.Barrier(len(schemas))

    def work(schema: Schema) -> int:
        registry = place.open()
        start.wait(30)
        try:
            return registry.register(subject, schema)
        finally:
            registry.close()

    with ThreadPoolExecutor(len(schemas)) as pool:
        return list(pool.map(work, schemas))


def register_once(place: Place, subject: str, schema: Schema) -> int:
    registry = place.open()
    try:
        return registry.register(subject, schema)
    finally:
        registry.close()


def in_processes(place: Place, subject: str, schemas: list[Schema]) -> list[int]:
    context = multiprocessing.get_context("spawn")  # a fork would take librdkafka's threads' locks with it
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        futures = [pool.submit(register_once, place, subject, schema) for schema in schemas]
        return [future.result(120) for future in futures]


@pytest.mark.parametrize("at_once", [in_threads, in_processes])
def test_clients_that_register_at_once(
    registry: Registry, place: Place, subject: str, at_once: Callable[[Place, str, list[Schema]], list[int]]
) -> None:
    kinds = schemas_for(subject, 3)
    ids = at_once(place, subject, kinds + kinds)
    assert ids[:3] == ids[3:], "the same schema has one id"
    assert len(set(ids)) == 3, "different schemas have different ids"
    versions = registry.versions(subject)
    assert [version.version for version in versions] == list(range(1, len(versions) + 1)), "versions have no gaps"
    assert {version.id: version.schema for version in versions} == dict(zip(ids, kinds, strict=False))
    if not place.url:  # Apicurio may count one schema twice when it comes twice at once, under one id
        assert len(versions) == 3
