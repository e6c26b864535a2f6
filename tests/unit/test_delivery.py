"""What is told of a send that Kafka has."""

from __future__ import annotations

import asyncio

import confluent_kafka
import pytest

from llmagentos.streams.delivery import Delivery, Epoch
from llmagentos.streams.errors import DeliveryError


@pytest.mark.parametrize(("said", "offset"), [(7, 7), (None, -1)])
async def test_a_record_that_kafka_has_counts_though_it_does_not_say_where(said: int | None, offset: int) -> None:
    async def never(futures: list[asyncio.Future[None]]) -> None:
        raise AssertionError("the outcome is known")

    epoch = Epoch(0, lambda error, topic, key, size: DeliveryError("failed"))
    delivery = Delivery(epoch, "t", never)
    assert not delivery.done
    where = {} if said is None else {"offset": said}
    delivery(None, confluent_kafka.Message(topic="t", partition=3, value=b"x", **where))
    assert delivery.done
    assert delivery.acknowledged
    assert tuple(await delivery) == ("t", 3, offset)
    assert epoch.acked == 1
