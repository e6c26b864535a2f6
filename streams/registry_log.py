"""The registry without a server: the topic `schemas`, compacted, in the record format of Confluent's own registry.

The log is the lock. A writer takes the transactional id of the topic, which fences every earlier writer; reads the
log to its end; decides; and appends in a transaction. A writer that was fenced meanwhile has appended nothing that a
reader sees, and begins again. Source of the idea: Kafka's own use of epochs against zombies (KIP-98).

A client is opened for each read of the log and closed after it: schemas are few and asked for once, and an open
consumer would fetch for ever.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from llmagentos.streams.admin import ensure_topics, translate
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.errors import AccessError, LLMAgentOSError, SchemaError, UnknownSchema
from llmagentos.streams.producer import librdkafka_log
from llmagentos.streams.registry import RegisteredSchema, refuse_breaks
from llmagentos.streams.settings import Settings
from llmagentos.streams.topology import named

__all__ = ["LogRegistry"]

#: A read of the log, or one step of a transaction, that takes longer is an error: a broker that elects a leader
#: after a crash was seen to take 6 s.
TIMEOUT_S: Final = 30.0
#: A registration that was fenced so long gives up. A round takes 0.1 s; this is room for hundreds of writers.
CONTENDED_FOR_S: Final = 60.0
#: An id this far above the highest known was not given within half a second of the last read: ids go one by one, and
#: a registration takes some 50 ms. So garbage in place of ids does not read the log again and again.
FAR: Final = 100
FAR_FOR_S: Final = 0.5

_FENCED: Final = {
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.INVALID_PRODUCER_ID_MAPPING,
    KafkaError.CONCURRENT_TRANSACTIONS,
}
#: Errors of a consumer that it does not get over by trying again.
_REFUSED: Final = {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._SSL}
_SILENCE: Final = {KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE}
_NO_TOPIC: Final = {KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART}


class LogRegistry:
    """A :class:`~llmagentos.streams.registry.Registry` in the topic `schemas`, which it makes where it is missing.

    Besides that interface's errors, each method raises :class:`AccessError` where the cluster denies.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.topic(named("schemas").name)
        self._lock = threading.RLock()  # over what follows, and over the log's readers and writers of this process
        self._ids: dict[int, dict[str, Any]] = {}
        self._subjects: dict[str, dict[int, RegisteredSchema]] = {}
        self._next = 0  # offset that is read next
        self._read_at = float("-inf")

    # -- reading ------------------------------------------------------------------------------------------------

    def schema(self, schema_id: int) -> dict[str, Any]:
        known = self._ids.get(schema_id)
        if known is None:
            with self._lock:
                read_just_now = time.monotonic() - self._read_at < FAR_FOR_S
                if not (read_just_now and schema_id > max(self._ids, default=0) + FAR):
                    self._read()
                known = self._ids.get(schema_id)
        if known is None:
            raise UnknownSchema(
                f"the registry in topic {self._topic} has no schema {schema_id}",
                fix="`llmagentos schema list` shows what it has",
            )
        return known

    def versions(self, subject: str) -> list[RegisteredSchema]:
        with self._lock:
            self._read()
            found = self._versions(subject)
        if not found:
            raise UnknownSchema(
                f"the registry in topic {self._topic} has no subject {subject}",
                fix="`llmagentos schema list` shows what it has",
            )
        return found

    def latest(self, subject: str) -> RegisteredSchema:
        return self.versions(subject)[-1]

    def subjects(self) -> list[str]:
        with self._lock:
            self._read()
            return sorted(subject for subject, versions in self._subjects.items() if versions)

    def check(self, subject: str, schema: dict[str, Any]) -> None:
        with self._lock:
            self._read()
            versions = self._versions(subject)
        if all(version.schema != schema for version in versions):
            refuse_breaks(subject, schema, versions)

    def close(self) -> None:
        """Nothing stays open."""

    def _versions(self, subject: str) -> list[RegisteredSchema]:
        return [version for _, version in sorted(self._subjects.get(subject, {}).items())]

    def _read(self) -> None:
        """Read the committed log to its end. The caller holds the lock."""
        complaints: list[KafkaError] = []
        config = client_config(
            self._settings,
            group_id=self._topic,  # librdkafka wants one; nothing is committed, no group is joined
            enable_auto_commit=False,
            enable_partition_eof=True,
            isolation_level="read_committed",
            auto_offset_reset="earliest",  # compaction may have taken the next one
            fetch_wait_max_ms=10,
        )
        consumer = confluent_kafka.Consumer(config | {"error_cb": complaints.append, "logger": librdkafka_log})
        until = time.monotonic() + TIMEOUT_S
        try:
            found: bool | None = None
            while True:
                record = consumer.poll(0.1 if found else 0)  # serves the error callback too
                refused = next((error for error in complaints if error.code() in _REFUSED), None)
                if refused is not None:
                    raise self._failure(refused, "read")
                if time.monotonic() > until:
                    raise self._failure(complaints[-1] if complaints else KafkaError(KafkaError._TIMED_OUT), "read")
                if not found:  # asked, as a consumer of a missing topic is told of it after 30 s only
                    found = self._exists(consumer)
                    if found is False:
                        return
                    if found:
                        consumer.assign([TopicPartition(self._topic, 0, self._next)])
                elif record is not None:
                    error = record.error()
                    if error is None:
                        self._apply(record.key(), record.value())
                        self._next = (record.offset() or 0) + 1
                    elif error.code() == KafkaError._PARTITION_EOF:
                        self._read_at = time.monotonic()
                        return
                    elif error.code() != KafkaError.GROUP_AUTHORIZATION_FAILED:  # the group is not needed
                        raise self._failure(error, "read")
        except KafkaException as error:
            raise self._failure(error, "read") from error
        finally:
            consumer.close()

    def _exists(self, consumer: confluent_kafka.Consumer) -> bool | None:
        """Whether the topic exists; None: nobody answered."""
        try:
            topic = consumer.list_topics(self._topic, timeout=1.0).topics[self._topic]
        except KafkaException as error:
            if error.args[0].code() in _SILENCE:
                return None
            raise
        if topic.error is None:
            return True
        if topic.error.code() in _NO_TOPIC:
            return False
        raise KafkaException(topic.error)

    def _apply(self, key: bytes | None, value: bytes | None) -> None:
        """Take in one record. Those of other kinds (CONFIG, NOOP, MODE) are a real registry's, and skipped."""
        try:
            place = json.loads(key or b"")
            if place["keytype"] == "DELETE_SUBJECT" and value is not None:
                self._subjects.pop(place["subject"], None)
                return
            if place["keytype"] != "SCHEMA":
                return
            subject, version = place["subject"], place["version"]
            entry = None if value is None else json.loads(value)
            if entry is None or entry.get("deleted"):
                self._subjects.get(subject, {}).pop(version, None)
            if entry is None or entry.get("schemaType", "AVRO") != "AVRO":
                return
            schema = json.loads(entry["schema"])
            self._ids[entry["id"]] = schema  # a deleted version's id still decodes what was written with it
            if not entry.get("deleted"):
                versions = self._subjects.setdefault(subject, {})
                versions[version] = RegisteredSchema(subject, version, entry["id"], schema)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SchemaError(
                f"topic {self._topic} holds a record, offset {self._next} or later, that no registry wrote: {error!r}",
                fix="let nothing but registries write to this topic; delete the record by a null value for its key",
            ) from error

    # -- writing ------------------------------------------------------------------------------------------------

    def register(self, subject: str, schema: dict[str, Any]) -> int:
        return self.register_all({subject: schema})[subject]

    def register_all(self, schemas: Mapping[str, dict[str, Any]]) -> dict[str, int]:
        """As :meth:`register`, in one transaction: all that are new, or none."""
        with self._lock:
            self._read()
            until = time.monotonic() + CONTENDED_FOR_S
            made = False
            while True:
                if not (new := self._new(schemas)):
                    return {subject: self._ids_of(subject, schema)[0] for subject, schema in schemas.items()}
                for subject, schema in new.items():
                    refuse_breaks(subject, schema, self._versions(subject))
                if not made:
                    self._make_topic()
                    made = True
                try:
                    self._append(new)
                except KafkaException as error:
                    if error.args[0].code() not in _FENCED or time.monotonic() > until:
                        raise self._failure(error, "write") from error
                    time.sleep(random.uniform(0.01, 0.2))  # let the one that fenced us end
                self._read()

    def _ids_of(self, subject: str, schema: dict[str, Any]) -> list[int]:
        """Of the versions of *subject* that are *schema*: one or none."""
        return [version.id for version in self._versions(subject) if version.schema == schema]

    def _new(self, schemas: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {subject: schema for subject, schema in schemas.items() if not self._ids_of(subject, schema)}

    def _append(self, schemas: Mapping[str, dict[str, Any]]) -> None:
        """A new version of each subject, decided on and written while nobody else can.

        Raises:
            KafkaException: a later writer fenced this one, so nothing was written; or the cluster failed.
            IncompatibleSchema: what a writer before this one registered does not go with it.
        """
        producer = confluent_kafka.Producer(
            client_config(self._settings, transactional_id=f"{self._topic}-writer") | {"logger": librdkafka_log}
        )
        producer.init_transactions(TIMEOUT_S)
        self._read()
        schemas = self._new(schemas)
        if not schemas:
            return
        ids = dict(self._ids)
        records: list[tuple[bytes, bytes]] = []
        for subject, schema in schemas.items():
            versions = self._versions(subject)
            refuse_breaks(subject, schema, versions)
            schema_id = next((i for i, known in ids.items() if known == schema), max(ids, default=0) + 1)
            ids[schema_id] = schema
            version = versions[-1].version + 1 if versions else 1
            # The order of the keys is Confluent's: compaction compares bytes.
            place = {"keytype": "SCHEMA", "subject": subject, "version": version, "magic": 1}
            fields = {"subject": subject, "version": version, "id": schema_id, "schema": json.dumps(schema)}
            records.append((_json(place), _json(fields | {"deleted": False})))
        producer.begin_transaction()
        for key, value in records:
            producer.produce(self._topic, value, key, partition=0)
        producer.commit_transaction(TIMEOUT_S)

    def _make_topic(self) -> None:
        kind = named("schemas")
        ensure_topics(self._settings, [(self._topic, kind.partitions or 1, kind.config)])

    # -- errors -------------------------------------------------------------------------------------------------

    def _failure(self, error: KafkaError | KafkaException, verb: str) -> LLMAgentOSError:
        """An AccessError where the cluster denies, else a SchemaError: the registry is out of reach."""
        doing = f"{verb} the schema registry in topic {self._topic}"
        found = translate(error, self._settings, doing, topic=self._topic)
        if isinstance(found, AccessError):
            if verb == "write":
                found.fix += f"; a writer of schemas also needs the transactional id {self._topic}-writer"
            return found
        return SchemaError(found.what, fix=found.fix, kept="nothing was registered" if verb == "write" else "")


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
