"""The local node: starts, serves, survives, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
from confluent_kafka import Consumer, Producer, TopicPartition

from llmagentos.streams.admin import ensure_topics
from llmagentos.streams.endpoints import client_config, redis_url
from llmagentos.streams.errors import BrokerError, NodeError
from llmagentos.streams.node import Node, Status, ports
from llmagentos.streams.node.doctor import examine
from llmagentos.streams.settings import Settings

#: A started broker answers in 2 to 5 s, on a busy machine in 20.
DEADLINE_S = 60.0


def until(condition: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.02)


def send(settings: Settings, topic: str, count: int, size: int = 10) -> int:
    """Produce *count* records and return how many were acknowledged."""
    acknowledged = 0

    def delivered(error: object, _: object) -> None:
        nonlocal acknowledged
        acknowledged += error is None

    producer = Producer(client_config(settings, enable_idempotence=True) | {"message.timeout.ms": 50_000})
    for number in range(count):
        producer.produce(topic, str(number).rjust(size).encode(), partition=0, on_delivery=delivered)
    producer.flush(60)
    return acknowledged


def end_of(settings: Settings, topic: str) -> int:
    consumer = Consumer(client_config(settings, group_id="reader"))
    try:
        return consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=20)[1]
    finally:
        consumer.close()


def pid_of(node: Node, name: str) -> int:
    (pid,) = [part.pid for part in node.status().parts if part.name.startswith(name)]
    assert pid is not None
    return pid


def processes_of(home: Path) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if any(str(home) in word for word in process.cmdline()) and process.pid != os.getpid():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def part_of(status: Status, name: str) -> str:
    (trouble,) = [part.trouble for part in status.parts if part.name.startswith(name)]
    return trouble


def cli(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmagentos.cli.main", *words]
    env = {**os.environ, "LLMAGENTOS_HOME": str(home), "COLUMNS": "200"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Node]:
    """A node of this test's own, not started."""
    node = Node(Settings(home=tmp_path / "home"))
    try:
        yield node
    finally:
        node.down()
        assert processes_of(tmp_path) == []


def test_an_up_that_runs_already_changes_nothing(node: Node):
    before = node.status()
    began = time.monotonic()
    after = node.up()
    assert time.monotonic() - began < 5
    assert after.state == before.state == "running"
    assert [part.pid for part in after.parts] == [part.pid for part in before.parts]
    assert after.brokers == node.brokers


def test_listens_on_loopback_only(node: Node):
    for part in node.status().parts:
        for connection in psutil.Process(part.pid).net_connections():
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip in ("127.0.0.1", "::ffff:127.0.0.1"), part.name


def test_what_fits_no_running_node_is_refused(node: Node):
    with pytest.raises(NodeError, match="has 1 broker\\(s\\), not 3"):
        node.up(3)
    with pytest.raises(NodeError, match="Kafka runs already, on port"):
        node.up(port=ports.free(1)[0])


def test_starts_only_what_the_settings_do_not_name(node: Node, tmp_path: Path):
    settings = Settings(home=tmp_path / "half", brokers=node.brokers)
    half = Node(settings)
    try:
        status = half.up()
        assert [part.name for part in status.parts] == ["Redis"]
        assert status.state == "running"
        assert client_config(settings)["bootstrap.servers"] == node.brokers
        assert redis_url(settings) == status.redis != node.redis
        checks = {check.name: check.state for check in examine(settings)}
        assert checks["kafka"] == checks["redis"] == "ok"
        assert "java" not in checks
        with pytest.raises(BrokerError, match="LLMAGENTOS_BROKERS is not set"):
            client_config(Settings(home=settings.home))
    finally:
        half.down()
    assert processes_of(tmp_path) == []


def test_a_cluster_out_of_reach_is_a_problem_to_the_doctor(node: Node, tmp_path: Path):
    lost = Settings(home=tmp_path, brokers=f"127.0.0.1:{ports.free(1)[0]}", redis=node.redis)
    checks = {check.name: check for check in examine(lost)}
    assert checks["kafka"].state == "problem"
    assert "out of reach" in checks["kafka"].found
    assert "LLMAGENTOS_BROKERS" in checks["kafka"].fix
    assert checks["redis"].state == "ok"


def test_survives_down_and_kill_of_each_part(own: Node):
    first = own.up()
    settings = Settings(home=own.home)
    topic = settings.topic("kept")
    ensure_topics(settings, [(topic, 1, {})])
    assert send(settings, topic, 100) == 100
    view = redis.Redis.from_url(redis_url(settings))
    view.set("view", "kept")

    os.kill(pid_of(own, "Kafka"), signal.SIGKILL)
    until(lambda: own.status().state == "degraded", "degraded")
    dead = own.status()
    assert "ended" in part_of(dead, "Kafka")
    assert part_of(dead, "Redis") == ""
    shown = cli("status", home=own.home)
    assert shown.returncode == 1
    assert "degraded" in shown.stdout
    problems = {check.name: check for check in examine(settings) if check.state == "problem"}
    assert problems.keys() == {"node", "kafka"}
    assert "llmagentos up" in problems["node"].fix
    resumed = own.up()
    assert resumed.brokers == first.brokers
    assert resumed.cluster_id == first.cluster_id
    assert end_of(settings, topic) == 100

    os.kill(pid_of(own, "Redis"), signal.SIGKILL)
    until(lambda: own.status().state == "degraded", "degraded")
    assert part_of(own.status(), "Redis") == "it does not run"
    kafka = pid_of(own, "Kafka")
    own.up()
    assert pid_of(own, "Kafka") == kafka
    assert view.get("view") == b"kept"
    view.close()

    stopped = pid_of(own, "Kafka")
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert part_of(own.status(), "Kafka") == "it does not answer"
    finally:
        os.kill(stopped, signal.SIGCONT)
    until(lambda: own.status().state == "running", "running again")

    assert own.down()
    assert processes_of(own.home) == []
    assert {path.name for path in own.home.iterdir()} == {"kafka", "redis", "logs", "node.json", "lock"}
    assert own.status().state == "stopped"
    assert all(ports.is_free(part.port) for part in own.status().parts if part.port)
    with pytest.raises(BrokerError, match="no local node runs"):
        client_config(settings)
    assert not own.down()

    again = cli("up", "--output", "json", home=own.home)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["brokers"] == first.brokers
    assert end_of(settings, topic) == 100
    assert cli("status", home=own.home).returncode == 0
    looked = cli("doctor", "--output", "json", home=own.home)
    assert looked.returncode == 0, looked.stdout
    assert {"java", "jars", "ports", "disk", "cluster id", "kafka", "redis", "clock"} <= {
        check["name"] for check in json.loads(looked.stdout) if check["state"] == "ok"
    }
    assert cli("down", home=own.home).returncode == 0


def test_two_ups_at_once_start_one(own: Node):
    command = [sys.executable, "-m", "llmagentos.cli.main", "up", "--output", "json", "--data", str(own.home)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert len({json.dumps([part["pid"] for part in json.loads(out)["parts"]]) for out, _ in answers}) == 1
    assert len([process for process in processes_of(own.home) if process.name() == "java"]) == 1


def test_a_taken_port_that_was_asked_for_names_its_holder(own: Node):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(NodeError, match=rf"port {port} is taken by .*pid {os.getpid()}") as caught:
            own.up(port=port)
    assert "--port" in caught.value.fix
    assert processes_of(own.home) == []


def test_a_taken_port_that_was_chosen_gets_another(own: Node):
    first = own.up()
    own.down()
    assert first.brokers is not None
    old = int(first.brokers.rpartition(":")[2])
    told: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", old))
        taken.listen()
        second = own.up(progress=lambda what, *_: told.append(what))
    assert second.state == "running"
    assert second.brokers != first.brokers
    assert any(f"port {old} is taken" in what for what in told)


def test_the_data_of_another_cluster_is_refused(own: Node):
    own.up()
    state = own.home / "node.json"
    state.rename(own.home / "lost")  # even then all that runs is found and stopped
    assert own.down()
    assert processes_of(own.home) == []
    (own.home / "lost").rename(state)
    meta = own.home / "kafka" / "1" / "data" / "meta.properties"
    cluster_id = own.status().cluster_id
    assert cluster_id is not None
    meta.write_text(meta.read_text().replace(cluster_id, "AnotherClustersIdAbcde"))
    with pytest.raises(NodeError, match=rf"another cluster.*AnotherClustersIdAbcde.*{cluster_id}") as caught:
        own.up()
    assert "untouched" in caught.value.kept
    assert processes_of(own.home) == []
    (check,) = [check for check in examine(own.settings) if check.name == "cluster id"]
    assert check.state == "problem"


def test_a_start_that_fails_leaves_nothing_and_says_why(tmp_path: Path):
    broken = Node(Settings(home=tmp_path / "home"), broker_properties={"log.retention.ms": "soon"})
    with pytest.raises(NodeError, match="soon") as caught:
        broken.up()
    assert "could not be started" in caught.value.what or "can't be formatted" in caught.value.what
    assert processes_of(tmp_path) == []
    assert broken.status().state == "stopped"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 MiB; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(folder)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system can't be mounted here (needs root): {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_loses_nothing_acknowledged(small_disk: Path):
    settings = Settings(home=small_disk / "home")
    node = Node(settings, broker_properties={"log.segment.bytes": "10485760"})
    try:
        node.up()
        topic = settings.topic("full")
        ensure_topics(settings, [(topic, 1, {})])
        acknowledged = 0
        while node.status().parts[0].running:
            producer_acknowledged = send_until_dead(settings, topic, node)
            acknowledged += producer_acknowledged
        status = node.status()
        assert status.state == "degraded"
        assert "is full" in part_of(status, "Kafka")
        problems = {check.name: check for check in examine(settings) if check.state == "problem"}
        assert "the disk is full" in problems["disk"].found
        with pytest.raises(NodeError, match="the disk of .* is full") as caught:
            node.up()
        assert "acknowledged" in caught.value.kept

        subprocess.run(["mount", "-o", "remount,size=600m", str(small_disk)], check=True)
        assert node.up().state == "running"
        assert acknowledged > 0
        assert end_of(settings, topic) >= acknowledged
    finally:
        node.down()


def send_until_dead(settings: Settings, topic: str, node: Node) -> int:
    """Produce 100 kB records until the broker has ended; return how many were acknowledged."""
    acknowledged = 0

    def delivered(error: object, _: object) -> None:
        nonlocal acknowledged
        acknowledged += error is None

    producer = Producer(client_config(settings, enable_idempotence=True) | {"log_level": 0})
    record = os.urandom(100_000)
    deadline = time.monotonic() + DEADLINE_S
    while node.status().parts[0].running:
        assert time.monotonic() < deadline, "the broker should have ended"
        for _ in range(50):
            producer.produce(topic, record, partition=0, on_delivery=delivered)
        producer.flush(0.5)
        if len(producer) > 500:
            producer.purge()
    producer.purge()
    producer.flush(5)
    return acknowledged


def test_three_brokers_go_on_when_one_is_killed(tmp_path: Path):
    settings = Settings(home=tmp_path / "home")
    node = Node(settings)
    try:
        assert node.up(3).state == "running"
        topic = settings.topic("three")
        ensure_topics(settings, [(topic, 1, {})])
        assert send(settings, topic, 50) == 50
        os.kill(pid_of(node, "Kafka broker 2"), signal.SIGKILL)
        assert send(settings, topic, 50) == 50
        status = node.status()
        assert status.state == "degraded"
        assert [part.answers for part in status.parts] == [True, False, True, True]
        assert node.up().state == "running"
        assert end_of(settings, topic) == 100
    finally:
        node.down()
    assert processes_of(tmp_path) == []
