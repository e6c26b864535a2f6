"""A reset runs history again past dedup; what waits below the new offset goes on waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from llmagentos.agents.testing.run import running
from llmagentos.agents.worker import Worker
from llmagentos.streams.admin import Admin
from llmagentos.streams.errors import BrokerError, InputError
from llmagentos.streams.registry import open_registry
from llmagentos.streams.reset import Move, Target, apply, plan
from llmagentos.streams.settings import Settings
from llmagentos.streams.tail import Log
from llmagentos.streams.views import Place, Served, Views
from llmagentos.streams.wire import Codec

from .test_parking import Ward, until

Deploy = Callable[..., Awaitable[Worker]]


class House:
    """One partition with a history: a 1, b poison, a 2, b 2, a 3: b waits from its first message on."""

    def __init__(self, worker: Worker, ward: Ward) -> None:
        self.worker, self.ward = worker, ward
        self.settings, self.group = worker.settings, worker.deployment
        self.topic = self.settings.topic("agent.doctor")
        self.codec = Codec(open_registry(self.settings))

    async def empty(self) -> None:
        """Let the worker leave."""
        await until(lambda: Admin(self.settings).committed(self.group, [self.topic]) == {(self.topic, 0): 5})
        self.worker.stop()
        await until(lambda: not Admin(self.settings).members([self.group])[self.group])

    async def plan(self, to: str) -> Move:
        (move,) = await asyncio.to_thread(
            plan, self.settings, self.codec, self.group, {"doctor": self.topic}, Target.parse(to)
        )
        return move

    async def reset(self, to: str) -> Move:
        move = await self.plan(to)
        await apply(self.settings, self.codec, self.group, [move], "test")
        return move

    def waiting(self) -> list[tuple[int, str, str]]:
        """What a next owner, or `dead list`, finds open: offset, state, wish."""
        views = Views(self.settings, self.codec, {"doctor": Served(self.group, self.topic)})
        try:
            with Log(self.settings) as log:
                views.add([Place("doctor", 0)], 0, log)
            views.refresh()
            open_ = views[Place("doctor", 0)].open
            return [(e.offset, e.state, e.wish) for conversation in open_.values() for e in conversation]
        finally:
            views.close()

    def again(self) -> Worker:
        return type(self.worker)(self.settings, self.group, self.worker.loaded, index=1)


@pytest.fixture
async def house(deploy: Deploy, settings: Settings, tmp_path: Path) -> House:
    ward = Ward(settings, tmp_path)
    worker = await deploy(ward.source, partitions=1)
    for conversation, text in (("a", "1"), ("b", "poison"), ("a", "2"), ("b", "2"), ("a", "3")):
        await ward.send(conversation, text)
    house = House(worker, ward)
    await until(lambda: ward.handled("a") == ["1", "2", "3"])
    return house


async def test_history_runs_again_from_the_beginning_and_what_was_parked_with_it(house: House) -> None:
    await house.empty()
    assert [offset for offset, _, _ in house.waiting()] == [1, 3]
    move = await house.reset("beginning")
    assert (move.committed, move.to, move.again, move.parked, move.held, move.left_out) == (5, 0, 3, 1, 1, 0)
    assert house.waiting() == []
    (house.ward.folder / "ill").unlink()
    async with running(house.again()):
        await until(lambda: house.ward.handled("b") == ["poison", "2"])
        await until(lambda: house.ward.handled("a") == ["1", "2", "3"] * 2)


async def test_what_waits_below_the_new_offset_goes_on_waiting_with_what_was_wished_of_it(house: House) -> None:
    await house.empty()
    await house.ward.command("redrive", "b")
    move = await house.reset("0:2")
    assert (move.again, move.parked, move.held, move.waiting) == (2, 0, 1, 1)
    assert house.waiting() == [(1, "parked", "redrive")]
    (house.ward.folder / "ill").unlink()
    async with running(house.again()):
        await until(lambda: house.ward.handled("b") == ["poison", "2"])  # held, or from the inbox: after it
        await until(lambda: house.ward.handled("a") == ["1", "2", "3", "2", "3"])


async def test_forward_leaves_out_and_a_second_time_changes_nothing(house: House) -> None:
    await house.empty()
    await house.ward.send("a", "4")
    move = await house.reset("end")
    assert (move.to, move.again, move.left_out, move.waiting) == (6, 0, 1, 2)
    assert not (await house.plan("end")).changes
    assert [(offset, state) for offset, state, _ in house.waiting()] == [(1, "parked"), (3, "held")]
    async with running(house.again()):
        await house.ward.send("a", "5")
        await until(lambda: house.ward.handled("a") == ["1", "2", "3", "5"])


async def test_a_group_with_members_is_refused_and_places_that_are_not_there(house: House) -> None:
    commits = Admin(house.settings).commits
    with pytest.raises(BrokerError, match="has members"):
        await asyncio.to_thread(Admin(house.settings).commit, house.group, {(house.topic, 0): (0, "")})
    with pytest.raises(InputError, match="partition 7"):
        await house.plan("7:0")
    with pytest.raises(InputError, match="offsets 0 to 5, not 9"):
        await house.plan("0:9")
    await house.empty()
    assert commits(house.group, [house.topic])[house.topic, 0][0] == 5
