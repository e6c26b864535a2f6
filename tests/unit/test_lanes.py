"""Order inside a lane, parallelism across lanes, bounds, cancellation, and no leak of context between items."""

from __future__ import annotations

import asyncio
import contextvars

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmagentos.streams.lanes import Lanes


def fail(error: BaseException) -> None:
    raise AssertionError(error)


async def until(condition, deadline: float = 5.0) -> None:
    async with asyncio.timeout(deadline):
        while not condition():
            await asyncio.sleep(0)


@given(
    work=st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d"]), st.integers(0, 3)), max_size=60),
    limit=st.one_of(st.none(), st.integers(1, 4)),
)
@settings(max_examples=60, deadline=None)
def test_each_lane_runs_in_order_one_at_a_time(work, limit) -> None:
    async def scenario() -> None:
        started: list[tuple[str, int]] = []
        busy: set[str] = set()
        most = 0

        async def run(item: tuple[str, int, int]) -> None:
            nonlocal most
            lane, number, yields = item
            assert lane not in busy
            busy.add(lane)
            most = max(most, len(busy))
            started.append((lane, number))
            for _ in range(yields):
                await asyncio.sleep(0)
            busy.discard(lane)

        lanes: Lanes[tuple[str, int, int]] = Lanes(run, limit=limit, broken=fail)
        for number, (lane, yields) in enumerate(work):
            lanes.put(lane.encode(), (lane, number, yields))
        await until(lambda: lanes.lanes == 0)
        assert sorted(started, key=lambda s: s[1]) == [(lane, n) for n, (lane, _) in enumerate(work)]
        for lane in "abcd":
            numbers = [n for at, n in started if at == lane]
            assert numbers == sorted(numbers)
        if limit is not None:
            assert most <= limit
        await lanes.stop()

    asyncio.run(scenario())


async def test_a_waiting_lane_does_not_hold_up_others() -> None:
    gate = asyncio.Event()
    done: list[str] = []

    async def run(item: str) -> None:
        if item == "slow":
            await gate.wait()
        done.append(item)

    lanes: Lanes[str] = Lanes(run, broken=fail)
    lanes.put(b"1", "slow")
    lanes.put(b"1", "behind")
    for number in range(500):
        lanes.put(b"x%d" % number, f"quick{number}")
    await until(lambda: len(done) == 500)
    assert "behind" not in done
    gate.set()
    await until(lambda: lanes.lanes == 0)
    assert done[-2:] == ["slow", "behind"]
    await lanes.stop()


async def test_thousands_wait_at_once_and_slots_do_not_pile_up() -> None:
    gate = asyncio.Event()

    async def run(item: int) -> None:
        await gate.wait()

    lanes: Lanes[int] = Lanes(run, broken=fail)
    for number in range(5_000):
        lanes.put(b"%d" % number, number)
    await until(lambda: lanes.running == 5_000)
    gate.set()
    await until(lambda: lanes.lanes == 0)
    await until(lambda: len(lanes._slots) <= 64)
    await lanes.stop()
    assert not lanes._slots


async def test_discard_takes_only_what_waits_and_settle_cancels_what_is_late() -> None:
    gate = asyncio.Event()
    cancelled: list[str] = []
    done: list[str] = []

    async def run(item: str) -> None:
        try:
            if item.startswith("stuck"):
                await gate.wait()
            done.append(item)
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    lanes: Lanes[str] = Lanes(run, broken=fail)
    lanes.put(b"a", "stuck-p0")
    lanes.put(b"a", "next-p0")
    lanes.put(b"b", "stuck-p1")
    lanes.put(b"b", "next-p1")
    await until(lambda: lanes.running == 2)
    assert lanes.discard(lambda item: item.endswith("p0")) == ["next-p0"]
    assert not await lanes.settle(lambda item: item.endswith("p0"), timeout=0.01)
    assert cancelled == ["stuck-p0"]
    gate.set()
    assert await lanes.settle(lambda item: item.endswith("p1"), timeout=5)
    await until(lambda: lanes.lanes == 0)
    assert done == ["stuck-p1", "next-p1"]
    await lanes.stop()


async def test_a_lane_freed_by_discard_runs_on() -> None:
    gate = asyncio.Event()
    done: list[str] = []

    async def run(item: str) -> None:
        await gate.wait()
        done.append(item)

    lanes: Lanes[str] = Lanes(run, limit=1, broken=fail)
    lanes.put(b"a", "running")
    await until(lambda: lanes.running == 1)
    lanes.put(b"b", "unwanted")
    lanes.put(b"b", "wanted")
    assert lanes.discard(lambda item: item == "unwanted") == ["unwanted"]
    gate.set()
    await until(lambda: lanes.lanes == 0)
    assert done == ["running", "wanted"]
    await lanes.stop()


async def test_a_lane_goes_on_after_its_running_item_was_cancelled() -> None:
    done: list[str] = []

    async def run(item: str) -> None:
        if item == "stuck":
            await asyncio.Event().wait()
        done.append(item)

    lanes: Lanes[str] = Lanes(run, limit=1, broken=fail)
    lanes.put(b"a", "stuck")
    lanes.put(b"a", "next")
    await until(lambda: lanes.running == 1)
    assert not await lanes.settle(lambda item: item == "stuck", timeout=0.01)
    await until(lambda: lanes.lanes == 0)
    assert done == ["next"]
    await lanes.stop()


tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


@pytest.mark.parametrize("waits", [False, True])
async def test_a_context_variable_of_one_item_is_not_seen_by_the_next(waits: bool) -> None:
    seen: list[str] = []

    async def run(item: str) -> None:
        seen.append(tenant.get())
        tenant.set(item)
        if waits:
            await asyncio.sleep(0)

    lanes: Lanes[str] = Lanes(run, broken=fail)
    for item in ("a", "b", "c"):
        lanes.put(b"same", item)
    lanes.put(b"other", "d")
    await until(lambda: lanes.lanes == 0)
    assert seen == ["none"] * 4
    await lanes.stop()


async def test_what_escapes_from_run_is_told() -> None:
    told: list[BaseException] = []

    async def run(item: str) -> None:
        raise ValueError(item)

    lanes: Lanes[str] = Lanes(run, broken=told.append)
    lanes.put(b"a", "boom")
    await until(lambda: bool(told))
    assert str(told[0]) == "boom"
    for slot in list(lanes._slots):
        with pytest.raises(ValueError, match="boom"):
            await slot
    await lanes.stop()
