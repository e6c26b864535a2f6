"""The registry over HTTP: any that speaks Confluent's API (Confluent's own, Apicurio, Karapace, Redpanda's)."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import httpx

from llmagentos.streams.errors import AccessError, IncompatibleSchema, SchemaError, UnknownSchema
from llmagentos.streams.registry import RegisteredSchema, refuse_breaks

__all__ = ["HttpRegistry"]

#: For each request; a registry answers from memory.
TIMEOUT_S: Final = 10.0
#: Tries of a request while the registry is out of reach or answers that it is not ready, and the pause between them.
TRIES: Final = 3
PAUSE_S: Final = 0.3

#: Tries of a registration that the registry refuses although our own check does not: it, or another client, was first.
CONFLICTS: Final = 5

_HEADERS: Final = {
    "Accept": "application/vnd.schemaregistry.v1+json, application/json",
    "Content-Type": "application/vnd.schemaregistry.v1+json",
}


class HttpRegistry:
    """A :class:`~llmagentos.streams.registry.Registry` at *url*, to which the API's paths are added.

    A user and password in the URL are sent as basic authentication. Besides that interface's errors, each method
    raises :class:`AccessError` where the registry denies.
    """

    def __init__(self, url: str) -> None:
        self._url = httpx.URL(url.rstrip("/") + "/")
        self._shown = str(self._url.copy_with(username=None, password=None))  # in errors: no secrets
        self._client = httpx.Client(base_url=self._url, timeout=TIMEOUT_S, headers=_HEADERS, follow_redirects=True)
        self._lock = threading.Lock()
        self._ids: dict[int, dict[str, Any]] = {}
        self._versions: dict[tuple[str, int], RegisteredSchema] = {}

    def schema(self, schema_id: int) -> dict[str, Any]:
        known = self._ids.get(schema_id)
        if known is None:
            answer = self._ask("GET", f"schemas/ids/{schema_id}", missing=f"schema {schema_id}")
            known = self._parse(answer, f"schema {schema_id}")
            self._ids[schema_id] = known
        return known

    def versions(self, subject: str) -> list[RegisteredSchema]:
        numbers = self._ask("GET", f"subjects/{_path(subject)}/versions", missing=f"subject {subject}")
        return [self._version(subject, number) for number in sorted(numbers)]

    def latest(self, subject: str) -> RegisteredSchema:
        return self._version(subject, "latest")

    def subjects(self) -> list[str]:
        return sorted(self._ask("GET", "subjects"))

    def check(self, subject: str, schema: dict[str, Any]) -> None:
        try:
            versions = self.versions(subject)
        except UnknownSchema:
            return
        if all(version.schema != schema for version in versions):
            refuse_breaks(subject, schema, versions)

    def register(self, subject: str, schema: dict[str, Any]) -> int:
        for attempt in range(1, CONFLICTS + 1):
            try:
                versions = self.versions(subject)
            except UnknownSchema:
                versions = []
            for version in versions:
                if version.schema == schema:
                    return version.id
            refuse_breaks(subject, schema, versions)
            try:
                answer = self._ask(
                    "POST", f"subjects/{_path(subject)}/versions", {"schema": json.dumps(schema)}, subject=subject
                )
            except IncompatibleSchema:
                # Perhaps another client was first, with this schema or another: look again.
                if attempt == CONFLICTS:
                    raise
                time.sleep(random.uniform(0, PAUSE_S))
            else:
                if not versions:
                    # From now on the registry holds others to the rule too, also those that register at this moment.
                    self._ask("PUT", f"config/{_path(subject)}", {"compatibility": "BACKWARD_TRANSITIVE"})
                self._ids[answer["id"]] = schema
                return answer["id"]
        raise AssertionError("the last try returns or raises")

    def register_all(self, schemas: Mapping[str, dict[str, Any]]) -> dict[str, int]:
        return {subject: self.register(subject, schema) for subject, schema in schemas.items()}

    def close(self) -> None:
        self._client.close()

    # -- how ----------------------------------------------------------------------------------------------------

    def _version(self, subject: str, number: int | str) -> RegisteredSchema:
        known = self._versions.get((subject, number)) if isinstance(number, int) else None
        if known is None:
            what = f"version {number} of subject {subject}"
            answer = self._ask("GET", f"subjects/{_path(subject)}/versions/{number}", missing=what)
            known = RegisteredSchema(subject, answer["version"], answer["id"], self._parse(answer, what))
            self._versions[subject, known.version] = known
            self._ids.setdefault(known.id, known.schema)
        return known

    def _parse(self, answer: dict[str, Any], what: str) -> dict[str, Any]:
        if answer.get("schemaType", "AVRO") != "AVRO":
            raise SchemaError(f"{what} at {self._shown} is {answer['schemaType']}, not Avro")
        if answer.get("references"):
            raise SchemaError(f"{what} at {self._shown} refers to other subjects, which is not supported")
        return json.loads(answer["schema"])

    def _ask(self, method: str, path: str, body: Any = None, *, missing: str = "", subject: str = "") -> Any:
        """One request, tried again while the registry is out of reach. Each of ours may be repeated safely."""
        for attempt in range(1, TRIES + 1):
            try:
                with self._lock:  # one connection is enough, and httpx's pool is then never contended
                    answer = self._client.request(method, path, json=body)
            except httpx.TransportError as error:
                if attempt == TRIES:
                    raise self._unreachable(f"{type(error).__name__}: {error}") from error
            else:
                if answer.status_code < 500:
                    return self._said(answer, missing, subject)
                if attempt == TRIES:
                    raise self._unreachable(_reason(answer))
            time.sleep(PAUSE_S * attempt)
        raise AssertionError("the last try returns or raises")

    def _said(self, answer: httpx.Response, missing: str, subject: str) -> Any:
        status = answer.status_code
        if status == 404 and missing:
            raise UnknownSchema(
                f"the registry at {self._shown} has no {missing}", fix="`llmagentos schema list` shows what it has"
            )
        if status == 409:
            raise IncompatibleSchema(
                f"the registry at {self._shown} refuses this schema for subject {subject}: {_reason(answer)}",
                kept="nothing was registered",
                fix="`llmagentos schema check` says which field breaks which rule",
            )
        if status in (401, 403):
            raise AccessError(
                f"the registry at {self._shown} denies: {_reason(answer)}",
                fix="put user and password into LLMAGENTOS_REGISTRY: https://USER:PASSWORD@HOST",
            )
        if status >= 400:
            raise SchemaError(
                f"the registry at {self._shown} refuses {answer.request.method} "
                f"{answer.request.url.path}: {_reason(answer)}"
            )
        try:
            return answer.json()
        except ValueError as error:
            raise self._unreachable(f"it does not answer in JSON: {answer.text[:80]!r}") from error

    def _unreachable(self, reason: str) -> SchemaError:
        return SchemaError(
            f"the registry at {self._shown} is out of reach: {reason}",
            fix="check LLMAGENTOS_REGISTRY; unset it to use the registry in the topic `schemas`",
        )


def _path(subject: str) -> str:
    return quote(subject, safe="")


def _reason(answer: httpx.Response) -> str:
    try:
        return f"{answer.json()['message']} ({answer.status_code})"
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.reason_phrase}"
