"""Each fault alone, on a real cluster: it happens, it is proven, it is healed, and it leaves nothing.

Scaling and rolling out are faults too; tests of deployments and the short form of `chaos run` have them.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from llmagentos.agents import Message
from llmagentos.cli.chaos import cluster as clusters
from llmagentos.cli.chaos.clock import off_by
from llmagentos.cli.chaos.cluster import SMALL_DISK, Cluster
from llmagentos.cli.chaos.doctor import NEEDS, Need, faketime_library, lacking
from llmagentos.cli.chaos.faults import FAULTS, Fired
from llmagentos.cli.chaos.network import Namespace
from llmagentos.streams.admin import Admin, ensure_topics
from llmagentos.streams.errors import NodeError
from llmagentos.streams.registry import open_registry
from llmagentos.streams.wire import Codec

#: 40 conversations, one message at a time, 0.2 s each: work for two minutes and a half.
MODULE = """
import asyncio
from llmagentos.agents import agent

@agent("slow")
async def slow(message, ctx):
    await asyncio.sleep(0.2)
"""
MESSAGES, CONVERSATIONS = 30_000, 40

#: What a thread of ours, and of librdkafka, waits: until 0.3 s from now by the clock. Prints how long that took.
WAIT = """
import ctypes, time

class Timespec(ctypes.Structure):
    _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]

libc, began = ctypes.CDLL(None), time.monotonic()
cond, mutex, until = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64), time.time_ns() + 300_000_000
libc.mtx_init(mutex, 1)
libc.cnd_init(cond)
libc.mtx_lock(mutex)
libc.cnd_timedwait(cond, mutex, ctypes.byref(Timespec(until // 10**9, until % 10**9)))
print(time.time(), time.monotonic() - began)
"""


def needing(*packages: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(bool(lacking(*packages)), reason="; ".join(lacking(*packages)))


@pytest.fixture(scope="module")
def cluster(_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    module = tmp_path_factory.mktemp("agents") / "sleepers.py"
    module.write_text(MODULE)
    with Cluster(partitions=6) as made:
        made.deploy(module, 3)
        _fill(made)
        yield made
        home, namespace = made.home, made.namespace
    assert not home.exists()
    assert not [process for process in psutil.process_iter() if str(home) in " ".join(_command(process))]
    if namespace is not None:
        assert not Path(namespace.path).exists()
    assert str(home) not in Path("/proc/mounts").read_text()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _fill(cluster: Cluster) -> None:
    encode = Codec(open_registry(cluster.settings)).writer("llmagentos.Message", "message")
    producer = Producer({"bootstrap.servers": cluster.settings.brokers, "queue.buffering.max.messages": MESSAGES})
    for number in range(MESSAGES):
        conversation = str(number % CONVERSATIONS)
        message = Message.create(None, to="slow", conversation=conversation)
        producer.produce(cluster.settings.topic("agent.slow"), encode(message.record), conversation)
    assert producer.flush(60) == 0


def do(cluster: Cluster, name: str, seconds: float, seed: int = 1) -> list[Fired]:
    cluster.until(cluster.whole, "all workers serve")
    fired = list(FAULTS[name].run(cluster, random.Random(seed), seconds))
    assert [one.name for one in fired] == [name] * len(fired)
    return fired


# -- against the cluster -------------------------------------------------------------------------------------------


def test_killed_workers_had_work_in_flight(cluster: Cluster) -> None:
    cluster.until(cluster.whole, "all workers serve")
    before = {worker.pid for worker in cluster.workers()}
    fired = do(cluster, "kill-workers", 5)
    assert len(fired) == 1
    (killed,) = (pid for pid in before if f"(pid {pid}) died of SIGKILL" in fired[0].detail)
    assert not psutil.pid_exists(killed)
    assert "left 0 messages" not in fired[0].detail


def test_a_frozen_worker_wakes_when_others_have_its_partitions(cluster: Cluster) -> None:
    slept, woke = do(cluster, "freeze-worker", 2)
    assert "is stopped" in slept.detail
    assert woke.at - slept.at >= 1.5


def test_a_fault_that_is_closed_heals(cluster: Cluster) -> None:
    cluster.until(cluster.whole, "all workers serve")
    running = FAULTS["freeze-worker"].run(cluster, random.Random(1), 60)
    next(running)
    stopped = [w for w in cluster.workers() if psutil.Process(w.pid).status() == psutil.STATUS_STOPPED]
    assert len(stopped) == 1
    running.close()
    assert psutil.Process(stopped[0].pid).status() != psutil.STATUS_STOPPED


def test_a_fault_that_is_interrupted_heals(cluster: Cluster) -> None:
    running = FAULTS["redis"].run(cluster, random.Random(1), 600)
    assert "died of SIGKILL" in next(running).detail
    threading.Timer(0.2, cluster.interrupt).start()
    assert "serves again" in "".join(one.detail for one in running) or cluster.node.valkey().trouble() is None
    cluster._interrupted.clear()


def test_redis_is_killed_and_emptied(cluster: Cluster) -> None:
    killed, back, emptied = do(cluster, "redis", 0.2)
    assert "died of SIGKILL" in killed.detail
    assert "serves again" in back.detail
    assert "lost all its" in emptied.detail


def test_a_supervisor_takes_over_from_a_killed_one(cluster: Cluster) -> None:
    before = cluster.supervisor()
    died, worker, taken = do(cluster, "kill-supervisor", 0.5)
    after = cluster.supervisor()
    assert before is not None
    assert after is not None
    assert before.pid != after.pid
    assert str(before.pid) in died.detail
    assert str(after.pid) in taken.detail
    assert "unsupervised" in worker.detail


def test_a_killed_broker_comes_back_alone(cluster: Cluster) -> None:
    running = FAULTS["kill-brokers"].run(cluster, random.Random(1), 1)
    died, back = next(running), next(running)
    number = int(died.detail.split()[1])
    assert f"broker {number} serves again" in back.detail
    running.close()
    assert cluster.node.status().state == "running"


@needing("root", "mount")
def test_a_broker_ends_when_its_disk_is_full(cluster: Cluster) -> None:
    full, ended, back = do(cluster, "disk-full", 1)
    assert full.detail.startswith("0 bytes are free")
    assert "is full" in ended.detail
    assert f"broker {SMALL_DISK} serves again" in back.detail


@needing("root", "iproute2", "iptables", "util-linux")
def test_a_worker_is_cut_off_from_the_brokers(cluster: Cluster) -> None:
    cut, mended = do(cluster, "partition", 2)
    assert "is cut off" in cut.detail
    assert "packets were lost" in mended.detail


@needing("root", "iproute2", "iptables", "util-linux")
def test_a_network_that_was_not_cut_does_not_pass_for_a_fault(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Namespace, "cut", lambda self: None)
    with pytest.raises(NodeError, match="not one packet was lost"):
        do(cluster, "partition", 0.1)


@needing("root", "iproute2", "iptables", "util-linux")
def test_brokers_answer_at_the_address_outside(cluster: Cluster) -> None:
    settings = cluster.settings.model_copy(update={"brokers": cluster.node.brokers_outside})
    places = Admin(settings).cluster().brokers.values()
    assert sorted(places) == sorted(cluster.node.brokers_outside.split(","))


@needing("libfaketime", "gcc")
def test_a_clock_that_was_not_set_does_not_pass_for_a_fault(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmagentos.cli.chaos.faults.off_by", lambda seconds, folder: "env")
    with pytest.raises(NodeError, match=r"is off by -?\d, not -60"):
        do(cluster, "clock", 0)


def test_a_new_topic_is_known_to_every_broker(cluster: Cluster) -> None:
    names = [cluster.settings.topic(f"new-{number}") for number in range(3)]
    for name in names:
        ensure_topics(cluster.settings, [(name, 8, {})])
        for place in cluster.settings.brokers.split(","):
            client = AdminClient({"bootstrap.servers": place})
            assert client.list_topics(timeout=10).topics.get(name) is not None


def test_a_broker_that_is_not_there(cluster: Cluster) -> None:
    with pytest.raises(NodeError, match="has brokers 1 to 3, not 4"):
        cluster.node.broker(4)


# -- what they are made of -----------------------------------------------------------------------------------------


@needing("root", "iproute2", "iptables", "util-linux")
def test_a_namespace_falls_silent_and_loses_nothing() -> None:
    namespace = Namespace(os.getpid() + 1)
    namespace.make()
    try:
        with socket.create_server((namespace.outside, 0)) as server:
            port = server.getsockname()[1]
            client = subprocess.Popen(
                ["nsenter", f"--net={namespace.path}", sys.executable, "-c", _CLIENT, namespace.outside, str(port)],
                stdin=subprocess.PIPE,
            )
            assert client.stdin is not None
            connection, _ = server.accept()
            connection.settimeout(0.3)
            client.stdin.write(b"1")
            client.stdin.flush()
            assert connection.recv(1) == b"1"
            namespace.cut()
            client.stdin.write(b"2")
            client.stdin.flush()
            with pytest.raises(TimeoutError):
                connection.recv(1)
            assert namespace.mend() > 0
            connection.settimeout(10)
            assert connection.recv(1) == b"2"
            client.stdin.close()
            assert client.wait(10) == 0
            connection.close()
    finally:
        namespace.remove()
    assert not Path(namespace.path).exists()


_CLIENT = """
import os, socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
    while byte := os.read(0, 1):
        connection.sendall(byte)
"""


@needing("libfaketime", "gcc")
@pytest.mark.parametrize("off_s", [-60, 60])
def test_a_clock_is_off_and_waits_are_right(off_s: int, tmp_path: Path) -> None:
    now, waited_s = _wait(off_by(off_s, tmp_path))
    assert 50 < abs(now - _now()) < 70
    assert 0.25 < waited_s < 5


@needing("libfaketime")
def test_libfaketime_alone_breaks_waits() -> None:
    """The reason of the small library. With a clock ahead, the wait would take a minute."""
    _, waited_s = _wait(f"env FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME=-60s LD_PRELOAD={faketime_library()}")
    assert waited_s < 0.25


def _wait(words: str) -> tuple[float, float]:
    command = ["/bin/sh", "-c", f'{words} {sys.executable} -c "$0"', WAIT]
    now, waited_s = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    return float(now), float(waited_s)


def _now() -> float:
    return psutil.boot_time() + float(Path("/proc/uptime").read_text().split()[0])


@needing("root", "iproute2", "iptables", "util-linux", "mount")
def test_what_a_killed_run_left_is_swept_away() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    home = clusters.home_of(ended.pid)
    disk = home / "kafka" / str(SMALL_DISK) / "data"
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], check=True)
    namespace = Namespace(ended.pid)
    namespace.make()
    clusters.sweep()
    assert not home.exists()
    assert not Path(namespace.path).exists()


def test_a_need_that_is_not_met_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NEEDS, "libfaketime", Need("libfaketime", "a clock", lambda: False, "`apt-get install it`"))
    assert FAULTS["clock"].needs() == ["libfaketime: `apt-get install it`", *lacking("gcc")]
    assert FAULTS["kill-workers"].needs() == []
