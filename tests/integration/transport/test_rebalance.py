"""Workers that join, leave and are killed under load, judged from outside.

The oracle is shown to work: with a bug planted in the worker, it must go red.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmagentos.streams.node import Node

from .fleet import Fleet, Load, Result, wait_for

#: Records a second: two workers on a busy machine keep up with it.
RATE = 400


@pytest.fixture
def fleet(node: Node, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(node.brokers, tmp_path)
    yield fleet
    fleet.close()


def finish(fleet: Fleet, load: Load, *, deadline_s: float = 60.0) -> Result:
    sent = load.stop()
    fleet.settle(sent, deadline_s)
    for process in fleet.processes:
        if process.poll() is None:
            fleet.stop(process)
            assert process.returncode == 0, fleet.log(process)[-3000:]
    return fleet.judge(sent)


def under_load(fleet: Fleet, first: int = 200) -> Load:
    """Start the load, and wait until it is being worked on."""
    load = Load(fleet.brokers, fleet.source, RATE)
    load.start()
    wait_for(lambda: fleet.count(fleet.target) > first, "the first copies")
    return load


def joining_and_leaving(fleet: Fleet, mode: str, seed: str = "", work_ms: float = 1.0) -> Load:
    one = fleet.copier(mode, seed, work_ms)
    fleet.joined(one)
    load = under_load(fleet)
    two = fleet.copier(mode, seed, work_ms)
    fleet.joined(two)
    before = fleet.count(fleet.target)
    wait_for(lambda: fleet.count(fleet.target) > before + RATE, "work by both")
    fleet.stop(two)
    before = fleet.count(fleet.target)
    wait_for(lambda: fleet.count(fleet.target) > before + RATE, "work by the one that is left")
    return load


def killing(fleet: Fleet, mode: str, seed: str = "", work_ms: float = 1.0) -> Load:
    fleet.missed_soon()
    one, two = fleet.copier(mode, seed, work_ms), fleet.copier(mode, seed, work_ms)
    fleet.joined(one, two)
    load = under_load(fleet)
    two.kill()
    two.wait()
    before = fleet.count(fleet.target)
    wait_for(lambda: fleet.count(fleet.target) > before + 2 * RATE, "work after the fail-over")
    return load


@pytest.mark.parametrize("mode", ["stream", "sink"])
def test_joining_and_leaving_workers_lose_repeat_and_reorder_nothing(fleet: Fleet, mode: str) -> None:
    result = finish(fleet, joining_and_leaving(fleet, mode))
    assert (result.lost, result.redelivered, result.reordered, result.uncommitted) == (0, 0, 0, 0), result
    assert len(result.by_worker) == 2


@pytest.mark.parametrize("mode", ["stream", "sink"])
def test_a_killed_worker_loses_and_reorders_nothing(fleet: Fleet, mode: str) -> None:
    result = finish(fleet, killing(fleet, mode))
    assert (result.lost, result.reordered, result.uncommitted) == (0, 0, 0), result
    assert result.redelivered <= RATE  # what is handled in a second; commits are 0.2 s apart
    assert len(result.by_worker) == 2


def test_a_gate_that_passes_work_in_flight_is_seen(fleet: Fleet) -> None:
    load = killing(fleet, "sink", "gate", work_ms=200)
    assert finish(fleet, load).lost > 0


def test_partitions_given_up_without_draining_are_seen(fleet: Fleet) -> None:
    load = joining_and_leaving(fleet, "sink", "drain", work_ms=100)
    assert finish(fleet, load).redelivered > 0


def test_records_out_of_order_are_seen(fleet: Fleet) -> None:
    one = fleet.copier("stream", "order")
    fleet.joined(one)
    assert finish(fleet, under_load(fleet)).reordered > 0


def test_a_frozen_worker_that_wakes_up_breaks_nothing(fleet: Fleet) -> None:
    """It wakes as a zombie: its partitions are another's, and its commits are void."""
    fleet.missed_soon()
    one, two = fleet.copier("sink"), fleet.copier("sink")
    fleet.joined(one, two)
    load = under_load(fleet)
    two.send_signal(signal.SIGSTOP)
    try:
        before = fleet.committed()
        wait_for(lambda: fleet.committed() > before + 3 * RATE, "the other to take over and go on")
    finally:
        two.send_signal(signal.SIGCONT)
    before = fleet.committed()
    wait_for(lambda: fleet.committed() > before + 2 * RATE, "both to go on")
    result = finish(fleet, load)
    assert (result.lost, result.reordered, result.uncommitted) == (0, 0, 0), result
    assert result.redelivered <= RATE
    assert "lost" in fleet.log(two)
