"""The schema registry, as the rest sees it: a seam with two implementations.

:class:`~llmagentos.streams.registry_http.HttpRegistry` speaks to any Confluent-compatible registry;
:class:`~llmagentos.streams.registry_log.LogRegistry` needs none, and keeps the schemas in a compacted topic in the
format of Confluent's own, so that a real registry can take it over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from llmagentos.streams.errors import IncompatibleSchema
from llmagentos.streams.evolution import Break, breaks
from llmagentos.streams.settings import Settings

__all__ = ["RegisteredSchema", "Registry", "full_name", "open_registry", "refuse_breaks"]


@dataclass(frozen=True, slots=True)
class RegisteredSchema:
    """One version of a subject.

    Attributes:
        subject: the record's full name, for the project's own (Confluent's RecordNameStrategy): one subject for all
            the topics that hold it.
        version: counts from 1 within the subject.
        id: of the schema, unique in the registry; what the wire format carries.
        schema: Avro, as parsed JSON.
    """

    subject: str
    version: int
    id: int
    schema: dict[str, Any]


class Registry(Protocol):
    """Every method blocks, may be called from any thread, and raises :class:`SchemaError` while the registry can't
    be reached. What has an id never changes, so `schema` answers from memory what it has answered before.
    """

    def register(self, subject: str, schema: dict[str, Any]) -> int:
        """The id of *schema* under *subject*; a new version where it is not there yet.

        Of clients that register at the same time, one goes first: the same schema gets one id, different ones
        different ids, and versions have no gaps.

        Raises:
            IncompatibleSchema: records of an earlier version can't be read with it; nothing was registered.
        """
        ...

    def register_all(self, schemas: Mapping[str, dict[str, Any]]) -> dict[str, int]:
        """As :meth:`register`, for several subjects, in fewer steps where that is possible: their ids by subject.

        Where one is refused, others may be registered or not.
        """
        ...

    def schema(self, schema_id: int) -> dict[str, Any]:
        """The schema with that id.

        Raises:
            UnknownSchema: there is none.
        """
        ...

    def latest(self, subject: str) -> RegisteredSchema:
        """The newest version.

        Raises:
            UnknownSchema: there is no such subject.
        """
        ...

    def versions(self, subject: str) -> list[RegisteredSchema]:
        """Every version, oldest first; raises as :meth:`latest` does."""
        ...

    def subjects(self) -> list[str]:
        """In alphabetical order."""
        ...

    def check(self, subject: str, schema: dict[str, Any]) -> None:
        """Raise what :meth:`register` would, and register nothing. A new subject takes any schema."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def open_registry(settings: Settings) -> Registry:
    """The registry at `settings.registry`, or the log-backed one in the topic `schemas`."""
    if settings.registry:
        from llmagentos.streams.registry_http import HttpRegistry

        return cast(Registry, HttpRegistry(settings.registry))
    from llmagentos.streams.registry_log import LogRegistry

    return cast(Registry, LogRegistry(settings))


def full_name(schema: Any) -> str:
    """The record's namespace and name, for example ``llmagentos.Message``; of a schema without name its JSON."""
    if not isinstance(schema, dict) or "name" not in schema:
        return json.dumps(schema)
    name = schema["name"]
    namespace = schema.get("namespace", "")
    return name if "." in name or not namespace else f"{namespace}.{name}"


def refuse_breaks(subject: str, schema: dict[str, Any], versions: list[RegisteredSchema]) -> None:
    """BACKWARD_TRANSITIVE: a reader with *schema* must read the records of every one of *versions*.

    Raises:
        IncompatibleSchema: naming each field that breaks, the rule, and the version that it breaks with.
    """
    seen: dict[Break, int] = {}
    for old in versions:
        for found in breaks(reader=schema, writer=old.schema):
            seen.setdefault(found, old.version)
    if not seen:
        return
    lines = "; ".join(f"{found} [version {version}]" for found, version in seen.items())
    raise IncompatibleSchema(
        f"subject {subject} refuses this schema: {lines} (BACKWARD_TRANSITIVE: new readers must read old records)",
        kept=f"the subject stays at version {versions[-1].version}",
        fix="; ".join(dict.fromkeys(found.fix for found in seen)),
    )
