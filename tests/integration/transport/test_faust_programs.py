"""Faust's documentation examples, as real processes, and tables that come back after a kill."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Producer

from llmagentos.streams.node import Node

from .fleet import Fleet, wait_for

KEYS = [f"page{n}" for n in range(40)]


@pytest.fixture
def fleet(node: Node, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(node.brokers, tmp_path, "examples.py")
    yield fleet
    fleet.close()


@pytest.fixture
def run(fleet: Fleet) -> Callable[[str], object]:
    return lambda which: fleet.start(which, f"llmagentos://{fleet.brokers}", fleet.name)


def send(fleet: Fleet, records: list[tuple[str | None, object]]) -> None:
    producer = Producer({"bootstrap.servers": fleet.brokers, "partitioner": "murmur2_random"})
    for key, value in records:
        producer.produce(fleet.source, orjson.dumps(value), key)
    assert producer.flush(30) == 0


def highest(fleet: Fleet) -> dict[str, int]:
    """The highest count that was told of each key."""
    found: dict[str, int] = {}
    for record in fleet.read(fleet.target):
        key = record.key().decode()
        found[key] = max(found.get(key, 0), orjson.loads(record.value()))
    return found


def told(fleet: Fleet, key: str) -> list[str]:
    return [orjson.loads(r.value()) for r in fleet.read(fleet.target) if r.key() == key.encode()]


def test_word_count(fleet: Fleet, run) -> None:
    worker = run("word_count")
    posts = [" ".join(KEYS[n % 7 :: 3]) for n in range(30)]
    send(fleet, [(None, post) for post in posts])
    expected = Counter(word for post in posts for word in post.split())
    wait_for(lambda: fleet.count(fleet.target) >= expected.total(), "all words to be counted")
    assert highest(fleet) == dict(expected)
    fleet.stop(worker)
    assert worker.returncode == 0
    assert "0.0.0.0" not in fleet.log(worker)


def test_group_by_with_a_table_and_several_topics_of_one_partition_count(fleet: Fleet, run) -> None:
    workers = [run("group_by"), run("group_by")]
    fleet.joined(*workers)
    send(fleet, [(None, {"account": KEYS[n % 20], "amount": 1}) for n in range(400)])
    wait_for(lambda: fleet.count(fleet.target) >= 400, "all to be added up")
    assert highest(fleet) == dict.fromkeys(KEYS[:20], 20)


def test_tumbling_window(fleet: Fleet, run) -> None:
    run("windowed")
    send(fleet, [(key, "view") for key in KEYS for _ in range(3)])
    wait_for(lambda: fleet.count(fleet.target) >= 120, "all views to be counted")
    counts = highest(fleet)
    # The window may turn over while they arrive; most pages are counted within one.
    assert set(counts) == set(KEYS)
    assert sum(counts.values()) > 100


def test_ask_map_and_join(fleet: Fleet, run) -> None:
    run("ask")
    wait_for(lambda: fleet.count(fleet.target) >= 5, "five answers")
    assert told(fleet, "ask") == ["42"]
    assert sorted(told(fleet, "map")) == ["3", "4", "5"]
    assert told(fleet, "join") == ["[12, 22]"]


def test_timers_tasks_crontab_leader_sinks_and_batches(fleet: Fleet, run) -> None:
    worker = run("timers")
    fleet.joined(worker)
    send(fleet, [(None, n) for n in range(20)])
    wait_for(lambda: sum(int(total) for total in told(fleet, "sink")) == sum(range(20)), "batches in the sink")
    wait_for(lambda: len(told(fleet, "timer")) > 3, "the timer")
    wait_for(lambda: told(fleet, "leader"), "the leader's timer")
    assert told(fleet, "task") == [fleet.name]
    wait_for(lambda: told(fleet, "crontab"), "the minute to turn", deadline_s=70)


def counted(fleet: Fleet, times: int) -> None:
    """Send each key *times* more, and wait until they are counted and committed."""
    before = fleet.count(fleet.source)
    send(fleet, [(key, "x") for _ in range(times) for key in KEYS])
    fleet.settle(before + times * len(KEYS))


def test_a_table_comes_back_after_a_kill_with_one_worker(fleet: Fleet, run) -> None:
    fleet.missed_soon()
    first = run("table")
    counted(fleet, 50)
    first.kill()
    first.wait()
    run("table")
    counted(fleet, 50)
    assert highest(fleet) == dict.fromkeys(KEYS, 100)


def test_a_table_comes_back_after_a_kill_with_two_workers(fleet: Fleet, run) -> None:
    fleet.missed_soon()
    one, two = run("table"), run("table")
    fleet.joined(one, two)
    counted(fleet, 50)
    two.kill()
    two.wait()
    counted(fleet, 50)
    three = run("table")
    fleet.joined(three)
    counted(fleet, 50)
    assert highest(fleet) == dict.fromkeys(KEYS, 150)
    assert re.search(r"recovered \d+ changelog partitions: [1-9]", fleet.log(three))


@pytest.mark.parametrize(("which", "reason"), [("standby", "keeps no standbys"), ("global", "global tables")])
def test_tables_that_can_not_be_kept_are_refused(fleet: Fleet, run, which: str, reason: str) -> None:
    worker = run(which)
    assert worker.wait(60) != 0
    assert reason in fleet.log(worker)
    assert "fix:" in fleet.log(worker)
