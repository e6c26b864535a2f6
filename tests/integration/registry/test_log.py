"""The log-backed registry: its records are those of Confluent's own, and its log is the lock of its writers."""

from __future__ import annotations

import json
from typing import Any

import confluent_kafka
import pytest

from llmagentos.streams.admin import ensure_topics
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.errors import SchemaError, UnknownSchema
from llmagentos.streams.registry_log import LogRegistry
from llmagentos.streams.settings import Settings

SCHEMA = {"type": "record", "name": "R", "namespace": "t", "fields": [{"name": "a", "type": "string"}]}


def records(settings: Settings) -> list[tuple[Any, Any]]:
    """Every committed (key, value) of the topic."""
    consumer = confluent_kafka.Consumer(
        client_config(settings, group_id="x", enable_partition_eof=True, enable_auto_commit=False)
    )
    found: list[tuple[Any, Any]] = []
    try:
        consumer.assign([confluent_kafka.TopicPartition(settings.topic("schemas"), 0, 0)])
        while True:
            record = consumer.poll(10)
            assert record is not None
            if record.error():
                return found
            value = record.value()
            found.append((record.key(), None if value is None else json.loads(value)))
    finally:
        consumer.close()


def append(settings: Settings, key: bytes, value: bytes | None) -> None:
    ensure_topics(settings, [(settings.topic("schemas"), 1, {"cleanup.policy": "compact"})])
    producer = confluent_kafka.Producer(client_config(settings))
    producer.produce(settings.topic("schemas"), value, key)
    assert producer.flush(10) == 0


def test_records_are_confluents(settings: Settings) -> None:
    assert LogRegistry(settings).register("t.R", SCHEMA) == 1
    [(key, value)] = records(settings)
    assert key == b'{"keytype":"SCHEMA","subject":"t.R","version":1,"magic":1}', "compaction compares bytes"
    assert json.loads(value.pop("schema")) == SCHEMA
    assert value == {"subject": "t.R", "version": 1, "id": 1, "deleted": False}


def test_what_a_real_registry_wrote_is_read(settings: Settings) -> None:
    append(settings, b'{"keytype":"NOOP","magic":0}', None)
    append(settings, b'{"keytype":"CONFIG","subject":null,"magic":0}', b'{"compatibilityLevel":"BACKWARD"}')
    for version in (1, 2):
        entry = {"subject": "a", "version": version, "id": 40 + version, "schema": json.dumps(SCHEMA)}
        append(
            settings,
            b'{"keytype":"SCHEMA","subject":"a","version":%d,"magic":1}' % version,
            json.dumps(entry | {"deleted": version == 1}).encode(),
        )
    registry = LogRegistry(settings)
    assert [version.version for version in registry.versions("a")] == [2]
    assert registry.schema(41) == SCHEMA, "a deleted version still decodes what was written with it"
    other = SCHEMA | {"name": "Other"}
    assert registry.register("b", other) == 43, "ids go on from the highest"


def test_an_empty_cluster_has_no_subjects(settings: Settings) -> None:
    registry = LogRegistry(settings)
    assert registry.subjects() == []
    with pytest.raises(UnknownSchema):
        registry.schema(1)


def test_a_stranger_in_the_topic_is_told(settings: Settings) -> None:
    append(settings, b"hello", b"world")
    with pytest.raises(SchemaError, match=r"no registry wrote"):
        LogRegistry(settings).subjects()


def test_a_writer_that_was_fenced_writes_nothing(settings: Settings) -> None:
    """A zombie: its transaction was open when another registry took the log."""
    registry = LogRegistry(settings)
    registry.register("t.R", SCHEMA)
    zombie = confluent_kafka.Producer(
        client_config(settings, transactional_id=f"{settings.topic('schemas')}-writer") | {"error_cb": lambda _: None}
    )
    zombie.init_transactions(30)
    zombie.begin_transaction()
    zombie.produce(settings.topic("schemas"), b"{}", b'{"keytype":"SCHEMA","subject":"z","version":1,"magic":1}')
    zombie.flush(10)
    assert LogRegistry(settings).register("t.S", SCHEMA | {"name": "S"}) == 2
    with pytest.raises(confluent_kafka.KafkaException):
        zombie.commit_transaction(30)
    assert LogRegistry(settings).subjects() == ["t.R", "t.S"]


def test_a_broker_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmagentos.streams.registry_log.TIMEOUT_S", 1.0)
    registry = LogRegistry(Settings(brokers="127.0.0.1:1"))
    with pytest.raises(SchemaError, match="out of reach"):
        registry.schema(1)
