"""Cards: what each agent says of itself, in the compacted topic `cards`; the last one for a name counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaException, TopicPartition

from llmagentos.streams.endpoints import client_config
from llmagentos.streams.errors import BrokerError
from llmagentos.streams.producer import librdkafka_log
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec

__all__ = ["Card", "read_cards"]

#: A topic of some hundred records is read within milliseconds; a cluster that needs longer is in trouble.
READ_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Card:
    """One agent's card; the fields are those of card.avsc."""

    name: str
    deployment: str
    description: str
    topic: str
    partitions: int
    module: str
    version: str
    deployed_at: int

    def record(self) -> dict[str, Any]:
        """The fields as the Avro record."""
        return {name: getattr(self, name) for name in self.__slots__}


def read_cards(settings: Settings, codec: Codec | None = None) -> dict[str, Card]:
    """All cards by agent name; none where nothing was ever deployed.

    Raises:
        BrokerError: the cluster does not answer.
    """
    topic = settings.topic("cards")
    consumer = confluent_kafka.Consumer(
        client_config(
            settings,
            group_id=f"{settings.prefix}cards-reader",
            enable_auto_commit=False,
            enable_partition_eof=True,
            fetch_wait_max_ms=10,  # else the broker keeps the news of the end back for half a second
            auto_offset_reset="earliest",
            allow_auto_create_topics=False,
        )
        | {"logger": librdkafka_log}
    )
    try:
        known = consumer.list_topics(topic, timeout=READ_TIMEOUT_S).topics[topic]
        if known.error is not None:
            return {}
        codec = codec or Codec(open_registry(settings))
        consumer.assign([TopicPartition(topic, partition, 0) for partition in known.partitions])
        ended: set[int] = set()
        cards: dict[str, Card] = {}
        while len(ended) < len(known.partitions):
            record = consumer.poll(READ_TIMEOUT_S)
            if record is None:
                raise BrokerError(
                    f"{topic} could not be read within {READ_TIMEOUT_S:.0f} s", fix="see `llmagentos doctor`"
                )
            error = record.error()
            if error is not None:
                if error.code() != confluent_kafka.KafkaError._PARTITION_EOF:
                    raise BrokerError(f"{topic} can't be read: {error.str()}", fix="see `llmagentos doctor`")
                ended.add(record.partition() or 0)
                continue
            name = (record.key() or b"").decode()
            value = record.value()
            if value is None:
                cards.pop(name, None)
            else:
                cards[name] = Card(**codec.decode(value))
        return cards
    except KafkaException as error:
        raise BrokerError(f"{topic} can't be read: {error}", fix="see `llmagentos doctor`") from error
    finally:
        consumer.close()
