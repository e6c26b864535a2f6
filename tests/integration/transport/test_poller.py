"""The poll thread by itself, on a real broker: what is void is not committed, and a broker's minimum is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import KafkaException, Message, TopicPartition
from faust.types import TP

from llmagentos.streams.admin import Admin, ensure_topics
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.errors import LLMAgentOSError
from llmagentos.streams.settings import Settings
from llmagentos.streams.transport.poller import Offsets, Poller, Start

DEADLINE_S = 30.0


class Owner:
    """Holds partitions; when they go, it first asks for a commit of its own."""

    def __init__(self, drained: int, late: int) -> None:
        self.poller: Poller
        self.drained, self.late = drained, late
        self.owned = asyncio.Event()
        self.tried: asyncio.Task[bool] | None = None

    def received(self, groups: Mapping[tuple[str, int], list[Message]], positions: Mapping[TP, int]) -> None:
        pass

    def assigned(self, starts: Mapping[TP, Start]) -> None:
        if starts:
            self.owned.set()

    async def revoked(self, tps: set[TP]) -> Offsets:
        """As a commit that the timer begins in the middle of a drain, and what is committed at its end."""
        if self.tried is not None:  # the test ends
            return {}
        generation = self.poller.generation
        self.tried = asyncio.create_task(self.poller.commit(dict.fromkeys(tps, (self.late, "")), generation))
        await asyncio.sleep(0)
        return dict.fromkeys(tps, (self.drained, ""))

    def lost(self, tps: set[TP]) -> None:
        pass

    def failed(self, error: LLMAgentOSError) -> None:
        raise error


class NewGenerationBeforeTheDrain(Poller):
    """The bug: what is asked for during the drain counts as asked for after it."""

    def _on_revoke(self, consumer: confluent_kafka.Consumer, partitions: list[TopicPartition]) -> None:
        self.generation += 1
        super()._on_revoke(consumer, partitions)

    def _let_go(self, consumer: confluent_kafka.Consumer, partitions: list[TopicPartition], tps: set[TP]) -> None:
        super()._let_go(consumer, partitions, tps)
        self.generation -= 1


def member_of(settings: Settings) -> dict[str, Any]:
    return client_config(
        settings,
        group_id=settings.topic("group"),
        enable_auto_commit=False,
        session_timeout_ms=1_000,
        heartbeat_interval_ms=200,
        partition_assignment_strategy="cooperative-sticky",
    )


@asynccontextmanager
async def reading(settings: Settings, kind: type[Poller], owner: Owner, **changes: Any) -> AsyncGenerator[Poller]:
    """A member of a group that owns the two partitions of the topic `in`."""
    await asyncio.to_thread(ensure_topics, settings, [(settings.topic("in"), 2, {})])
    poller = owner.poller = kind(member_of(settings) | changes, owner, asyncio.get_running_loop())
    try:
        poller.subscribe([settings.topic("in")])
        async with asyncio.timeout(DEADLINE_S):
            await owner.owned.wait()
        yield poller
    finally:
        poller.request_stop()
        await asyncio.to_thread(poller.join)


@pytest.mark.parametrize("kind", [Poller, NewGenerationBeforeTheDrain])
async def test_a_commit_asked_for_during_a_drain_is_void(settings: Settings, kind: type[Poller]) -> None:
    owner = Owner(drained=7, late=3)
    async with reading(settings, kind, owner):
        other = confluent_kafka.Consumer(member_of(settings))
        other.subscribe([settings.topic("in")])  # so that one of the two partitions goes
        try:
            async with asyncio.timeout(DEADLINE_S):
                while owner.tried is None:
                    await asyncio.to_thread(other.poll, 0.05)
                try:
                    tried = await owner.tried
                except KafkaException:  # the broker refused it, amid the rebalance
                    tried = True
        finally:
            await asyncio.to_thread(other.close)
        assert tried is (kind is not Poller)
        if kind is Poller:
            found = await asyncio.to_thread(Admin(settings).committed, settings.topic("group"), [settings.topic("in")])
            assert list(found.values()) == [7]


async def test_the_lowest_session_timeout_that_the_broker_permits_is_taken(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """The node permits 500 ms."""
    too_short = {"session.timeout.ms": 100, "heartbeat.interval.ms": 30}
    async with reading(settings, Poller, Owner(0, 0), **too_short):
        assert "permit no session timeout of 100 ms: it is 500 ms now" in caplog.text
