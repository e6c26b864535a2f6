"""What agents remember of a conversation, read for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmagentos.streams.errors import InputError
from llmagentos.streams.mirror import look
from llmagentos.streams.partition import murmur2_partition
from llmagentos.streams.settings import Settings
from llmagentos.streams.spans import Spans
from llmagentos.streams.tail import Log
from llmagentos.streams.wire import Codec

__all__ = ["Remembered", "remembered"]

_MEMORY = "memory."
_INBOX = "agent."


@dataclass(frozen=True, slots=True)
class Remembered:
    """What one agent remembers of one conversation.

    Attributes:
        record: as in memory.avsc.
        topic, partition: where it is kept.
        reflects: the offset there up to which that is all.
        mirrored: how far of that Redis had it; -1: not at all.
    """

    agent: str
    record: dict[str, Any]
    topic: str
    partition: int
    reflects: int
    mirrored: int


def remembered(settings: Settings, codec: Codec, log: Log, conversation: str, agent: str = "") -> list[Remembered]:
    """What agents remember of *conversation*, by agent.

    Args:
        agent: only that one; empty: all.

    Raises:
        InputError: *agent* has no memory.
        BrokerError, SchemaError: the cluster, or the registry, does not answer.
    """
    topics = log.topics()
    prefix = settings.topic(_MEMORY)
    agents = sorted(topic.removeprefix(prefix) for topic in topics if topic.startswith(prefix))
    if agent and agent not in agents:
        raise InputError(
            f"agent {agent!r} has no memory: there is no topic {prefix}{agent}",
            fix="these have: " + ", ".join(agents)
            if agents
            else "declare one: @agent(..., memory=dict), and deploy it",
        )
    key = conversation.encode(errors="surrogatepass")
    found: list[Remembered] = []
    spans = Spans(settings, name="memory")
    try:
        for name in [agent] if agent else agents:
            topic = prefix + name
            count = topics[topic]
            own = (
                settings.topic(_INBOX + name) in topics
            )  # else its conversations lie where its topic's producer put them
            for partition in (murmur2_partition(key, count),) if own else range(count):
                seen = look(settings, spans, topic, partition, key)
                if seen.value is not None:
                    record = codec.decode(seen.value)
                    found.append(Remembered(name, record, topic, partition, seen.reflects, seen.mirrored))
    finally:
        spans.close()
    return found
