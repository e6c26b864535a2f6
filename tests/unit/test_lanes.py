"""Order inside a lane, parallelism across lanes, bounds, cancellation, and no leak of context between items."""

from __future__ import annotations

import asyncio
import contextvars

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmagentos.streams.lanes import FirstCome, Lanes, Order, Turns


def fail(error: BaseException) -> None:
    raise AssertionError(error)


async def until(condition, deadline: float = 5.0) -> None:
    async with asyncio.timeout(deadline):
        while not condition():
            await asyncio.sleep(0)


@given(
    work=st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d"]), st.integers(0, 3)), max_size=60),
    limit=st.one_of(st.none(), st.integers(1, 4)),
    order=st.sampled_from([FirstCome, lambda: Turns(lambda item: item[0] in "ab")]),
)
@settings(max_examples=60, deadline=None)
def test_each_lane_runs_in_order_one_at_a_time(work, limit, order) -> None:
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

        lanes: Lanes[tuple[str, int, int]] = Lanes(run, limit=limit, broken=fail, order=order())
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


@pytest.mark.parametrize("order", [FirstCome(), Turns(lambda item: item % 3)], ids=["first-come", "turns"])
def test_an_order_gives_each_entry_once_and_removes_what_is_unwanted(order: Order[int]) -> None:
    for number in range(12):
        order.push((b"%d" % number, number))
    assert len(order) == 12
    assert sorted(number for _, number in order.remove(lambda number: number < 6)) == [0, 1, 2, 3, 4, 5]
    order.push((b"0", 0))
    came = [order.pop() for _ in range(len(order))]
    assert sorted(came) == sorted((b"%d" % number, number) for number in (0, 6, 7, 8, 9, 10, 11))
    assert not order
    for group in range(3):  # within a group, as they came
        numbers = [number for _, number in came if number % 3 == group]
        assert numbers == [*(n for n in range(6, 12) if n % 3 == group), *([0] if group == 0 else [])]


def test_groups_take_turns() -> None:
    order: Turns[str] = Turns(lambda item: item[0])
    for item in ("a1", "a2", "a3", "a4", "b1", "c1", "c2"):
        order.push((item.encode(), item))
    assert [order.pop()[1] for _ in range(3)] == ["a1", "b1", "c1"]
    order.push((b"b2", "b2"))
    assert [order.pop()[1] for _ in range(len(order))] == ["a2", "c2", "b2", "a3", "a4"]


@pytest.mark.parametrize(("order", "place"), [(FirstCome(), 100), (Turns(lambda item: item[0]), 2)])
async def test_a_crowded_partition_holds_no_other_up_where_turns_are_taken(order: Order[str], place: int) -> None:
    gate = asyncio.Event()
    started: list[str] = []

    async def run(item: str) -> None:
        started.append(item)
        await gate.wait()

    lanes: Lanes[str] = Lanes(run, limit=1, broken=fail, order=order)
    lanes.put(b"first", "a-first")
    await until(lambda: lanes.running == 1)
    for number in range(99):
        lanes.put(b"a%d" % number, f"a{number}")
    lanes.put(b"b", "b")
    gate.set()
    await until(lambda: lanes.lanes == 0)
    assert started.index("b") == place
    await lanes.stop()


async def test_a_lane_goes_on_without_a_slot_that_does_not_end() -> None:
    gate = asyncio.Event()
    seen: list[str] = []
    told: list[bool] = []

    async def run(item: str) -> None:
        while item == "stuck" and not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                seen.append("swallowed")
        told.append(lanes.told_to_end())
        seen.append(item)

    lanes: Lanes[str] = Lanes(run, limit=1, broken=fail)
    for item in ("stuck", "next"):
        lanes.put(b"same", item)
    await until(lambda: lanes.running == 1)
    found = lanes.find(lambda item: item == "stuck")
    assert found is not None
    assert lanes.items() == [found]
    found[0].cancel()
    await until(lambda: seen == ["swallowed"])
    lanes.abandon(found[0])
    await until(lambda: seen == ["swallowed", "next"])
    gate.set()
    await found[0]
    assert seen == ["swallowed", "next", "stuck"]
    assert told == [False, True]  # what it still does counts for nothing
    lanes.put(b"same", "last")
    await until(lambda: seen[-1] == "last")
    await lanes.stop()
