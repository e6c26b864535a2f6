"""Topics and groups through Admin, on a real broker."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import OffsetSpec

from llmagentos.streams.admin import Admin, ensure_topics, partitions_of, translate
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.errors import AccessError, BrokerError, RecordTooLarge, TopicError
from llmagentos.streams.node import ports
from llmagentos.streams.settings import Settings
from llmagentos.streams.topology import named


def test_makes_what_is_missing_once(settings: Settings):
    topics = [named("agent.NAME").of("greeter"), named("cards")]
    made = ensure_topics(settings, topics)
    assert made == [settings.topic("agent.greeter"), settings.topic("cards")]
    assert ensure_topics(settings, topics) == []
    admin = Admin(settings)
    assert {name: topic.partitions for name, topic in admin.topics(settings.prefix).items()} == {
        settings.topic("agent.greeter"): settings.partitions,
        settings.topic("cards"): 1,
    }
    assert admin.config(settings.topic("cards"))["cleanup.policy"] == "compact"
    assert admin.describe(settings.topic("cards")).in_sync == 1


def test_two_that_make_the_same_topic_at_once_both_succeed(settings: Settings):
    topics = [(settings.topic(f"race{number}"), 2, {}) for number in range(5)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ensure_topics(settings, topics), range(4)))
    assert len(Admin(settings).topics(settings.prefix)) == 5


def test_other_partitions_are_refused(settings: Settings):
    name = settings.topic("fixed")
    ensure_topics(settings, [(name, 2, {})])
    with pytest.raises(TopicError, match=f"{name} has 2 partitions, but 3 are asked for") as caught:
        ensure_topics(settings, [(name, 3, {})])
    assert "LLMAGENTOS_PARTITIONS=2" in caught.value.fix
    assert partitions_of(settings, name) == 2


def test_unknown_topics_are_errors_that_name_them(settings: Settings):
    with pytest.raises(TopicError, match=settings.topic("nowhere")):
        partitions_of(settings, settings.topic("nowhere"))
    with pytest.raises(TopicError, match=settings.topic("nowhere")):
        Admin(settings).delete([settings.topic("nowhere")])


def test_a_name_that_kafka_refuses_says_why(settings: Settings):
    with pytest.raises(TopicError, match="a b"):
        ensure_topics(settings, [("a b", 1, {})])


def test_deleted_topics_are_gone(settings: Settings):
    name = settings.topic("short")
    ensure_topics(settings, [(name, 1, {})])
    admin = Admin(settings)
    admin.delete([name])
    deadline = time.monotonic() + 10
    while name in admin.topics(settings.prefix):
        assert time.monotonic() < deadline


def test_offsets_by_end_and_by_time(settings: Settings):
    name = settings.topic("timed")
    ensure_topics(settings, [(name, 2, {})])
    producer = Producer(client_config(settings))
    for moment in (1_000, 2_000, 3_000):
        producer.produce(name, b"x", partition=0, timestamp=moment)
    assert producer.flush(20) == 0
    admin = Admin(settings)
    assert admin.offsets(name, OffsetSpec.earliest()) == {0: 0, 1: 0}
    assert admin.offsets(name, OffsetSpec.latest()) == {0: 3, 1: 0}
    assert admin.offsets(name, 1_500) == {0: 1, 1: 0}
    assert admin.offsets(name, 9_000) == {0: 3, 1: 0}


def test_committed_offsets_of_a_group(settings: Settings):
    name = settings.topic("read")
    ensure_topics(settings, [(name, 1, {})])
    group = settings.topic("group")
    admin = Admin(settings)
    assert admin.committed(group, [name]) == {}
    consumer = Consumer(client_config(settings, group_id=group))
    consumer.commit(offsets=[TopicPartition(name, 0, 7)], asynchronous=False)
    consumer.close()
    assert admin.committed(group, [name]) == {(name, 0): 7}
    assert group in admin.groups()


def test_an_unreachable_broker_is_named_with_the_reason():
    (port,) = ports.free(1)
    lost = Settings(brokers=f"127.0.0.1:{port}")
    began = time.monotonic()
    with pytest.raises(BrokerError, match=rf"127\.0\.0\.1:{port} is out of reach.*refused") as caught:
        Admin(lost, timeout_s=1.0).topics()
    assert "llmagentos status" in caught.value.fix
    assert time.monotonic() - began < 5


def test_no_node_and_no_setting_says_how_to_get_one(tmp_path: Path):
    with pytest.raises(BrokerError, match="LLMAGENTOS_BROKERS is not set") as caught:
        Admin(Settings(home=tmp_path))
    assert "llmagentos up" in caught.value.fix


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError.SASL_AUTHENTICATION_FAILED, AccessError),
        (KafkaError._AUTHENTICATION, AccessError),
        (KafkaError._SSL, AccessError),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, AccessError),
        (KafkaError._TRANSPORT, BrokerError),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, TopicError),
        (KafkaError.MSG_SIZE_TOO_LARGE, RecordTooLarge),
        (KafkaError.NOT_CONTROLLER, BrokerError),
    ],
)
def test_each_error_of_kafka_has_its_own_of_ours(code: int, kind: type[Exception]):
    error = translate(KafkaError(code), Settings(brokers="b:1"), "try it", topic="t", kept="all")
    assert type(error) is kind
    assert "try it" in error.what
    assert error.fix
    assert error.kept == "all"
