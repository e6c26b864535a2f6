"""The local node: starts, serves, survives, and leaves nothing behind."""

from __future__ import annotations

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from llmagentos.streams.endpoints import client_config
from llmagentos.streams.settings import Settings


def test_produces_to_the_shared_node(settings: Settings):
    admin = AdminClient(client_config(settings))
    name = settings.topic("node")
    admin.create_topics([NewTopic(name, 3)])[name].result(20)
    errors: list[object] = []
    producer = Producer(client_config(settings, enable_idempotence=True))
    producer.produce(name, b"x", on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(30) == 0
    assert errors == [None]
