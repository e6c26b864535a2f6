"""The clock that a test moves: what waits for it ends when it is moved past, and not before."""

from __future__ import annotations

import asyncio
import time

import pytest

from llmagentos.agents.testing import MovableClock


async def test_it_goes_as_time_does_until_it_is_moved() -> None:
    clock = MovableClock()
    assert clock.time() == pytest.approx(time.time(), abs=1)
    await clock.move(3600)
    assert clock.time() == pytest.approx(time.time() + 3600, abs=1)
    with pytest.raises(ValueError, match="ahead only"):
        await clock.move(-1)


async def test_a_limit_ends_what_runs_when_the_clock_is_moved_past_it() -> None:
    clock = MovableClock()

    async def limited(seconds: float) -> str:
        try:
            async with clock.timeout(seconds) as limit:
                await asyncio.Event().wait()
        except TimeoutError:
            assert limit.expired()
        return "over"

    short, long = (asyncio.create_task(limited(seconds)) for seconds in (60, 600))
    await clock.waited_for(2)
    await clock.move(59)
    await asyncio.sleep(0.01)
    assert not short.done()
    await clock.move(2)
    assert await short == "over"
    assert not long.done()
    await clock.move(600)
    assert await long == "over"


async def test_a_limit_that_is_kept_leaves_nothing_behind() -> None:
    clock = MovableClock()
    async with clock.timeout(60):
        await clock.move(30)
    await clock.move(60)
    assert await asyncio.sleep(0, "goes on") == "goes on"
    with pytest.raises(pytest.fail.Exception, match="fewer than 1 waits"):
        await clock.waited_for(timeout=0.01)


async def test_a_limit_counts_in_real_time_too() -> None:
    with pytest.raises(TimeoutError):
        async with MovableClock().timeout(0.01):
            await asyncio.Event().wait()


async def test_skipping_goes_to_the_end_of_the_first_pause() -> None:
    clock = MovableClock()

    async def limited() -> None:  # is no pause, so it is not skipped to
        async with clock.timeout(10_000):
            await asyncio.Event().wait()

    others = [asyncio.create_task(limited()), asyncio.create_task(clock.sleep(1_000))]
    first = asyncio.create_task(clock.sleep(50))
    await clock.waited_for(3)
    assert await clock.skip() == pytest.approx(50, abs=1)
    await first
    assert not any(task.done() for task in others)
    assert await clock.skip() == pytest.approx(950, abs=1)
    await others[1]
    others[0].cancel()


async def test_skipping_waits_for_a_pause_and_says_so_where_none_comes() -> None:
    clock = MovableClock()
    skipping = asyncio.create_task(clock.skip())
    await asyncio.sleep(0)
    pause = asyncio.create_task(clock.sleep(50))
    assert await skipping == pytest.approx(50, abs=1)
    await pause
    with pytest.raises(pytest.fail.Exception, match="no pause"):
        await clock.skip(timeout=0.01)


async def test_a_pause_that_is_cancelled_is_cancelled() -> None:
    clock = MovableClock()
    pause = asyncio.create_task(clock.sleep(50))
    await clock.waited_for()
    pause.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pause
