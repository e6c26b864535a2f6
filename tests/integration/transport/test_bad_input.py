"""What can be wrong from outside: records, topics, brokers, offsets. A worker never dies of a record."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import psutil
import pytest
from confluent_kafka import Producer, TopicPartition

from llmagentos.streams.node import Node

from .fleet import PARTITIONS, Fleet, wait_for


@pytest.fixture
def fleet(node: Node, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(node.brokers, tmp_path, "plain.py")
    yield fleet
    fleet.close()


@pytest.fixture
def run(fleet: Fleet) -> Callable[..., object]:
    def start(topic: str = "", *more: str, url: str = ""):
        return fleet.start(url or f"llmagentos://{fleet.brokers}", fleet.name, topic or fleet.source, *more)

    return start


def send(fleet: Fleet, values: list[bytes | None], **more) -> None:
    producer = Producer({"bootstrap.servers": fleet.brokers})
    for number, value in enumerate(values):
        producer.produce(fleet.source, value, partition=number % PARTITIONS, **more)
    assert producer.flush(30) == 0


def test_undecodable_values_are_told_with_their_place_and_passed(fleet: Fleet, run) -> None:
    worker = run()
    good = [orjson.dumps({"value": n}) for n in range(40)]
    # More than a hundred in a second: Faust's supervisor would give up.
    bad = [b"\x00\xff", b"{", b'{"other": 1}', None] * 60
    send(fleet, bad + good)
    fleet.settle(len(bad) + len(good))
    assert fleet.count(fleet.target) == len(good)
    assert worker.poll() is None
    log = fleet.log(worker)
    assert f"undecodable value at {fleet.source}[0] offset 0" in log
    assert "kept:" in log
    assert "fix:" in log


def test_headers_and_timestamps_go_both_ways(fleet: Fleet, run) -> None:
    run()
    send(fleet, [orjson.dumps({"value": 21})], headers={"name": b"n"}, timestamp=1_700_000_000_123)
    wait_for(lambda: fleet.count(fleet.target), "the output")
    (record,) = fleet.read(fleet.target)
    assert (record.key(), record.value()) == (b"n", b"42")
    assert record.headers() == [("partition", b"0")]
    assert record.timestamp()[1] == 1_700_000_000_123


def test_a_missing_topic_ends_the_worker_and_says_so(fleet: Fleet, run) -> None:
    worker = run("no-such-topic")
    assert worker.wait(60) != 0
    log = fleet.log(worker)
    assert "topics that are not there: no-such-topic" in log
    assert "fix:" in log


def test_a_declared_topic_with_other_partitions_ends_the_worker(fleet: Fleet, run) -> None:
    worker = run(fleet.source, "16")
    assert worker.wait(60) != 0
    log = fleet.log(worker)
    assert f"topic {fleet.source} has {PARTITIONS} partitions" in log
    assert "fix:" in log


def test_an_unreachable_broker_at_the_start_ends_the_worker(fleet: Fleet, run) -> None:
    worker = run(url="llmagentos://127.0.0.1:1")
    assert worker.wait(60) != 0
    log = fleet.log(worker)
    assert "no Kafka broker answers at 127.0.0.1:1" in log
    assert "fix:" in log


def broker_process(node: Node) -> psutil.Process:
    port = int(node.brokers.rsplit(":", 1)[1])
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "java" and any(
            c.status == "LISTEN" and c.laddr.port == port for c in process.net_connections("tcp")
        ):
            return process
    raise AssertionError(f"no process listens at {node.brokers}")


def test_a_broker_that_hangs_for_longer_than_the_session_loses_nothing(fleet: Fleet, run, node: Node) -> None:
    worker = run()
    send(fleet, [orjson.dumps({"value": n}) for n in range(100)])
    fleet.settle(100)
    broker = broker_process(node)
    broker.send_signal(signal.SIGSTOP)
    try:
        time.sleep(3)  # three session timeouts: the length of the fault, not a wait for something
    finally:
        broker.send_signal(signal.SIGCONT)
    send(fleet, [orjson.dumps({"value": n}) for n in range(100)])
    fleet.settle(200)
    assert worker.poll() is None
    assert fleet.count(fleet.target) >= 200


def test_offsets_that_retention_has_taken_end_the_worker_and_name_the_range(fleet: Fleet, run) -> None:
    first = run()
    send(fleet, [orjson.dumps({"value": n}) for n in range(80)])
    fleet.settle(80)
    fleet.stop(first)
    send(fleet, [orjson.dumps({"value": n}) for n in range(80)])
    fleet.admin.delete_records([TopicPartition(fleet.source, 3, 15)])[TopicPartition(fleet.source, 3)].result(30)
    second = run()
    assert second.wait(60) != 0
    log = fleet.log(second)
    assert f"{fleet.source}[3]: offsets 10 to 14 were deleted" in log
    assert "fix:" in log, log
    # Nothing was skipped:
    (part,) = fleet.reader.committed([TopicPartition(fleet.source, 3)], 10)
    assert part.offset == 10


def test_finished_offsets_above_the_committed_one_are_not_run_again(fleet: Fleet, run) -> None:
    """As another worker would leave them in the commit's metadata."""
    send(fleet, [orjson.dumps({"value": n}) for n in range(80)])
    fleet.reader.commit(offsets=[TopicPartition(fleet.source, 0, 2, "f1:1+2")], asynchronous=False)  # 3, 4 and 5
    run()
    fleet.settle(80)
    # Partition 0: 2, 6, 7, 8, 9 of its ten; of the others all.
    assert fleet.count(fleet.target) == 5 + 70
