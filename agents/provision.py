"""Provisioning: the topics and cards of a deployment, made before its workers start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from llmagentos.agents.agent import Agent
from llmagentos.agents.cards import Card, read_cards
from llmagentos.agents.deployment import Deployments
from llmagentos.agents.loading import LoadedModule
from llmagentos.streams.admin import Admin, ensure_topics, partitions_of
from llmagentos.streams.endpoints import redis_url
from llmagentos.streams.errors import DeploymentError, TopicError
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.topology import named
from llmagentos.streams.wire import Codec

__all__ = ["SHARED", "provision", "put_back", "retire"]

#: Topics that every deployment uses, whatever its agents.
SHARED: tuple[str, ...] = ("replies", "events", "cards")


def provision(
    settings: Settings, deployment: str, loaded: LoadedModule, *, before: list[Card] | None = None
) -> list[Card]:
    """Create what is missing of the topics of *loaded*'s agents, and write their cards.

    A name is free where its card is of a deployment that is gone: a machine that was switched off, or a `dev` session
    that was killed, can't take its cards back.

    Args:
        before: takes the deployment's cards as they were, for :func:`put_back`.

    Returns:
        The cards, in the module's order.

    Raises:
        DeploymentError: another deployment serves an agent of one of the names.
        TopicError: a topic has another number of partitions than it must, or an agent's own topic is missing.
        BrokerError: the cluster does not answer; or no Redis is known, and an agent has a memory.
    """
    if any(agent.memory is not None for agent in loaded.agents.values()):
        redis_url(settings)  # which memory is read through: better said now than by each worker
    ensure_topics(settings, [named(name) for name in SHARED])
    codec = Codec(open_registry(settings))
    codec.prepare()
    known = read_cards(settings, codec)
    for name, agent in loaded.agents.items():
        card = known.get(name)
        if card is not None and card.deployment != deployment and not _gone(settings, card):
            raise DeploymentError(
                f"agent {name!r} ({agent.source}) is served by deployment {card.deployment!r} already ({card.module})",
                fix=f"rename the agent, or `llmagentos undeploy {card.deployment}` first",
            )
    cards: list[Card] = []
    for name, agent in loaded.agents.items():
        inbox, partitions = _agent_topics(settings, agent)
        cards.append(
            Card(
                name=name,
                deployment=deployment,
                description=agent.description,
                topic=inbox,
                partitions=partitions,
                module=str(loaded.path),
                version=loaded.version,
                deployed_at=time.time_ns() // 1_000_000,
            )
        )
    mine = [card for card in known.values() if card.deployment == deployment]
    if before is not None:
        before += mine
    gone = [card.name for card in mine if card.name not in loaded.agents]
    asyncio.run(_write(settings, codec, cards, gone))
    return cards


def retire(settings: Settings, deployment: str) -> list[str]:
    """Take back the cards of a deployment; its topics stay, with all that is in them.

    Returns:
        The names of its agents.
    """
    codec = Codec(open_registry(settings))
    names = [name for name, card in read_cards(settings, codec).items() if card.deployment == deployment]
    asyncio.run(_write(settings, codec, (), names))
    return names


def put_back(settings: Settings, deployment: str, cards: Sequence[Card]) -> None:
    """Have just these cards for a deployment: those from before one that failed."""
    codec = Codec(open_registry(settings))
    names = {card.name for card in cards}
    known = read_cards(settings, codec).values()
    gone = [card.name for card in known if card.deployment == deployment and card.name not in names]
    asyncio.run(_write(settings, codec, cards, gone))


def _gone(settings: Settings, card: Card) -> bool:
    """Whether the deployment of *card* is neither on this machine nor has workers anywhere."""
    if card.deployment in Deployments(settings.home).names():
        return False
    return not Admin(settings).members([card.deployment])[card.deployment]


def _agent_topics(settings: Settings, agent: Agent) -> tuple[str, int]:
    """Make the topics of one agent; return its inbox and the number of partitions."""
    name, foreign = agent.name, agent.topic
    kinds = ("answers", "dead", "journal") if agent.memory is None else ("answers", "dead", "journal", "memory")
    own = [named(f"{kind}.NAME").of(name) for kind in kinds]
    if foreign is None:
        inbox = named("agent.NAME").of(name)
        ensure_topics(settings, [inbox, *own])
        return settings.topic(inbox.name), partitions_of(settings, settings.topic(inbox.name))
    try:
        partitions = partitions_of(settings, foreign)
    except TopicError as error:
        raise TopicError(
            f"agent {name!r} reads topic {foreign!r}, which does not exist",
            fix="create the topic first, or correct @agent(topic=...): the full name, without our prefix",
        ) from error
    # An answer goes to the partition that its asker owns, so both have the same count.
    ensure_topics(settings, [replace(topic, partitions=partitions) for topic in own])
    return foreign, partitions


async def _write(settings: Settings, codec: Codec, cards: Sequence[Card], gone: Sequence[str]) -> None:
    topic = settings.topic("cards")
    encode = await asyncio.to_thread(codec.writer, "llmagentos.Card", "card")
    async with Producer(settings) as producer:
        for card in cards:
            producer.produce(topic, encode(card.record()), card.name.encode())
        for name in gone:
            producer.produce(topic, None, name.encode())
        await producer.delivered()
