"""Topics for the app: what it subscribes to must be there, and what it declares must be as declared."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # pyright: ignore[reportPrivateImportUsage]

from llmagentos.streams.endpoints import client_config
from llmagentos.streams.errors import BrokerError, TopicError
from llmagentos.streams.settings import Settings

__all__ = ["check_topics", "declare", "known_topics"]

#: Seconds to wait for a broker at the start, and for a topic that was just made to be known to all.
REACH_S = 15.0
APPEAR_S = 5.0
RETRY_S = 0.1


def check_topics(topics: Iterable[str], settings: Settings) -> dict[str, int]:
    """The partitions of every topic of the cluster; *topics* must be among them.

    A missing one is asked for by name first: brokers with auto.create.topics.enable make it then, as they do for
    stock Faust.

    Raises:
        BrokerError: no broker answers. TopicError: naming the missing topics.
    """
    client = Producer(client_config(settings, allow_auto_create_topics=True))  # the one client that may create
    try:
        known = _known(client)
    except KafkaException as error:
        raise BrokerError(
            f"no Kafka broker answers at {settings.brokers}: {error.args[0].str()}",
            fix="start it (`llmagentos up`), or correct the broker URL or LLMAGENTOS_BROKERS",
        ) from error
    missing = set(topics) - set(known)
    deadline = time.monotonic() + APPEAR_S
    while missing:
        for topic in sorted(missing):
            found = client.list_topics(topic, timeout=REACH_S).topics[topic]
            if found.error is None:
                known[topic] = len(found.partitions)
        missing -= set(known)
        if missing and time.monotonic() > deadline:
            raise TopicError(
                f"the app reads topics that are not there: {', '.join(sorted(missing))}",
                fix="create them, or let Faust declare them: app.topic(..., internal=True)",
            )
        if missing:
            time.sleep(RETRY_S)
    return known


def known_topics(settings: Settings) -> dict[str, int]:
    """The partitions of every topic of the cluster."""
    return _known(AdminClient(client_config(settings)))


def _known(client: Any) -> dict[str, int]:
    topics = client.list_topics(timeout=REACH_S).topics
    return {name: len(topic.partitions) for name, topic in topics.items() if topic.error is None}


def declare(settings: Settings, topic: str, partitions: int, replication: int, config: Mapping[str, Any]) -> None:
    """Create *topic* if it is missing.

    Raises:
        TopicError: it has another number of partitions, or the broker refuses to make it.
        BrokerError: no broker answers.
    """
    admin = AdminClient(client_config(settings))
    try:
        there = admin.list_topics(topic, timeout=REACH_S).topics.get(topic)
        if there is not None and there.error is None:
            found = len(there.partitions)
        else:
            found = partitions if _create(admin, topic, partitions, replication, config) else None
            deadline = time.monotonic() + APPEAR_S
            while found is None or topic not in admin.list_topics(timeout=REACH_S).topics:
                known = admin.list_topics(topic, timeout=REACH_S).topics[topic]
                if known.error is None:
                    found = len(known.partitions)
                    break
                if time.monotonic() > deadline:
                    break
                time.sleep(RETRY_S)
    except KafkaException as error:
        raise BrokerError(f"Kafka was asked for topic {topic}, and: {error.args[0].str()}") from error
    if found is not None and found != partitions:
        raise TopicError(
            f"topic {topic} has {found} partitions, and the program declares {partitions}",
            fix=f"declare {found}, or make the topic anew: the count is fixed at its birth, as keys would move",
            kept="the topic, untouched",
        )


def _create(admin: AdminClient, topic: str, partitions: int, replication: int, config: Mapping[str, Any]) -> bool:
    """Whether it was made here; False: another worker was faster."""
    brokers = len(admin.list_topics(timeout=REACH_S).brokers)
    new = NewTopic(topic, partitions, min(replication, brokers), config={k: str(v) for k, v in config.items()})
    try:
        admin.create_topics([new], request_timeout=REACH_S)[topic].result()
    except KafkaException as error:
        if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return False
        raise TopicError(f"topic {topic} can't be made: {error.args[0].str()}") from error
    return True
