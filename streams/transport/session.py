"""The session timeout that a broker insists on, where ours is too short for it.

The shorter a session, the sooner a killed worker's partitions go on elsewhere; a broker with stock settings permits
6 s and more, the local node 0.5 s.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from llmagentos.streams.errors import BrokerError

__all__ = ["longer_session"]

log = logging.getLogger(__name__)

#: The lowest session timeout of a broker with stock settings (group.min.session.timeout.ms), milliseconds.
STOCK_MS = 6_000
#: A session may not be longer than the time between two polls (librdkafka's max.poll.interval.ms).
LONGEST_MS = 300_000
#: Heartbeats in a session: as many as by default (Kafka's advice: at least 3).
HEARTBEATS = 5
#: Seconds for each of the two questions.
ASK_S = 10.0
#: What a consumer's configuration has and an administrator's client warns of.
_CONSUMERS = (
    "group.", "session.", "heartbeat.", "partition.assignment", "enable.auto", "auto.offset", "isolation", "fetch.",
    "queued.", "max.poll", "allow.auto",
)  # fmt: skip


def longer_session(config: Mapping[str, Any]) -> dict[str, Any]:
    """*config*, a consumer's, whose session timeout was refused, with the lowest that the broker permits.

    Raises:
        BrokerError: there is no use in asking for more.
    """
    refused = int(config.get("session.timeout.ms", STOCK_MS))
    permitted = _least_ms(config)
    if permitted is None or permitted <= refused:  # it does not say; or the group's broker wants more than the asked
        permitted = STOCK_MS if refused < STOCK_MS else refused * 2
    if permitted > LONGEST_MS:
        raise BrokerError(
            f"the brokers refuse a session timeout of {refused} ms",
            fix="set LLMAGENTOS_SESSION_TIMEOUT_MS between their group.min.session.timeout.ms and"
            " group.max.session.timeout.ms",
        )
    log.warning(
        "the brokers permit no session timeout of %s ms: it is %s ms now, and a killed worker's partitions go on only"
        " after that; to permit less, set group.min.session.timeout.ms on the brokers",
        refused,
        permitted,
    )
    return {**config, "session.timeout.ms": permitted, "heartbeat.interval.ms": permitted // HEARTBEATS}


def _least_ms(config: Mapping[str, Any]) -> int | None:
    """What a broker says that it permits; None where it does not say."""
    client = AdminClient({name: value for name, value in config.items() if not name.startswith(_CONSUMERS)})
    try:
        broker = ConfigResource(ResourceType.BROKER, str(min(client.list_topics(timeout=ASK_S).brokers)))
        said = client.describe_configs([broker], request_timeout=ASK_S)[broker].result(ASK_S)
        return int(said["group.min.session.timeout.ms"].value or 0)
    except (KafkaException, TimeoutError, KeyError, ValueError) as error:  # an ACL denies it, or it isn't Kafka's own
        log.info("the broker does not say how short a session it permits: %r", error)
        return None
