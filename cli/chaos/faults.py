"""The faults: what is done to a cluster, and the proof that it happened.

A fault is a generator that does one thing after the other and yields what really fired, with what shows it: the pid
that died, the packets that were lost. It heals what it did at its end, also where it is interrupted or closed; until
then, another fault on the same part of the cluster waits for its turn.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import psutil
import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, OffsetSpec

from llmagentos.agents.deploying import ensure_supervisor
from llmagentos.agents.worker import read_status
from llmagentos.cli.chaos.clock import off_by
from llmagentos.cli.chaos.cluster import BROKERS, SMALL_DISK, Cluster, Interrupted, Running
from llmagentos.cli.chaos.doctor import lacking
from llmagentos.cli.chaos.people import pendings, unfinished
from llmagentos.streams.admin import Admin
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.errors import BrokerError, NodeError
from llmagentos.streams.gate import decode_finished
from llmagentos.streams.producer import librdkafka_log

__all__ = ["FAULTS", "Fault", "Fired"]

Part = Literal["workers", "brokers", "redis", "supervisor"]

Doing = Callable[[Cluster, random.Random, float], Iterator["Fired"]]

D = TypeVar("D", bound=Doing)

#: From one kill to the next: a session that ends (3 s), a rebalance, and the start of the next process.
_KILL_EVERY_S = 5.0

#: A clock that is off by a minute is off by more than any deadline or session of a worker.
_CLOCK_OFF_S = 60

#: Of a broker that is not the one that stays down long: its session (3 s) ends, and others lead its partitions.
_BRIEF_S = 6.0

#: What is done once in the short form is done again for each so many seconds.
_AGAIN_S = 30.0

#: Ten thousand handlers are suspended at some hundred a second.
_SUSPENDED_S = 300.0


@dataclass(frozen=True, slots=True)
class Fired:
    """A fault that really happened.

    Attributes:
        name: the fault's.
        at: seconds since the epoch.
        detail: what was done to what, and what shows it.
    """

    name: str
    at: float
    detail: str


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: as the command takes it.
        about: what it does, in a sentence.
        part: of the cluster; two faults on one part take turns.
        seconds: how long it lasts in the full form of a scenario.
        short_s: and in the short form.
        packages: what it needs of `doctor.NEEDS`.
    """

    name: str
    about: str
    part: Part
    seconds: float
    short_s: float
    packages: tuple[str, ...]
    _do: Doing

    def needs(self) -> list[str]:
        """What is missing for it to run, in words for a person; nothing where it can."""
        return lacking(*self.packages)

    def run(self, cluster: Cluster, rng: random.Random, seconds: float) -> Generator[Fired]:
        """Do it to *cluster*.

        Args:
            seconds: how long the outage lasts (for `kill-workers`: over which the kills are spread). The fault takes
                some more, for what comes back: `self.seconds` in the full form of a scenario, `self.short_s` in the
                short one.

        Ends early where the cluster is interrupted; has healed what it did when it ends or is closed.

        Raises:
            NodeError, DeploymentError, BrokerError: it can't be done, or not be healed.
        """
        with suppress(Interrupted), cluster.turn(self.part):
            yield from self._do(cluster, rng, seconds)


#: By name, in the order of the issue that asked for them.
FAULTS: dict[str, Fault] = {}


def _fault(name: str, part: Part, seconds: float, short_s: float, *packages: str) -> Callable[[D], D]:
    def keep(do: D) -> D:
        about = " ".join((do.__doc__ or "").split())
        FAULTS[name] = Fault(name, about, part, seconds, short_s, packages, do)
        return do

    return keep


def _fired(name: str, detail: str) -> Fired:
    return Fired(name, time.time(), detail)


# -- workers -----------------------------------------------------------------------------------------------------


@_fault("kill-workers", "workers", 30 * _KILL_EVERY_S, 4 * _KILL_EVERY_S)
def _kill_workers(cluster: Cluster, rng: random.Random, seconds: float) -> Iterator[Fired]:
    """Workers are killed (SIGKILL), one every five seconds, each with work in flight."""
    work = _Work(cluster)
    for _ in range(max(1, round(seconds / _KILL_EVERY_S))):
        next_at = time.monotonic() + _KILL_EVERY_S
        cluster.pause(rng.uniform(0, 1))  # not always at the same moment of a worker's life
        victim, left = _kill_busy(cluster, work, rng)
        yield _fired(
            "kill-workers",
            f"worker {victim.index} (pid {victim.pid}) died of SIGKILL and left {left} messages unfinished",
        )
        cluster.pause(max(0.0, next_at - time.monotonic()))


def _kill_busy(cluster: Cluster, work: _Work, rng: random.Random) -> tuple[Running, int]:
    """Kill a worker, and return it with the number of messages that it left unfinished, which is not 0."""
    while True:
        victim = work.find_busy(rng)
        with suppress(ProcessLookupError, BrokerError):  # it ended, or a broker did: another fault was quicker
            # It stands still while we look, for less than a session, so that it can't finish meanwhile.
            os.kill(victim.pid, signal.SIGSTOP)
            try:
                if left := work.unfinished(victim):
                    cluster.kill(victim.process, f"worker {victim.index}")
                    return victim, left
            finally:
                with suppress(ProcessLookupError):
                    os.kill(victim.pid, signal.SIGCONT)
        cluster.pause(rng.uniform(0, 0.1))


@_fault("freeze-worker", "workers", 20, 6)
def _freeze_worker(cluster: Cluster, rng: random.Random, seconds: float) -> Iterator[Fired]:
    """A worker is stopped (SIGSTOP) until others have its partitions, and then wakes up (SIGCONT)."""
    victim = _Work(cluster).find_busy(rng)
    process = psutil.Process(victim.pid)
    began = time.monotonic()
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        cluster.until(lambda: process.status() == psutil.STATUS_STOPPED, f"worker {victim.index} stopped")
        yield _fired(
            "freeze-worker",
            f"worker {victim.index} (pid {victim.pid}) is stopped with {len(victim.assigned)} partitions",
        )
        cluster.until(lambda: _others_have(cluster, victim), f"others have the partitions of worker {victim.index}")
        cluster.pause(max(0.0, seconds - (time.monotonic() - began)))
    finally:
        with suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGCONT)
    asleep_s = time.monotonic() - began
    yield _fired(
        "freeze-worker",
        f"worker {victim.index} (pid {victim.pid}) woke after {asleep_s:.1f} s; others had all its partitions by then",
    )


@_fault("partition", "workers", 60, 8, "root", "iproute2", "iptables", "util-linux")
def _partition(cluster: Cluster, rng: random.Random, seconds: float) -> Iterator[Fired]:
    """The network between one worker and all brokers loses every packet, and then works again."""
    namespace = cluster.namespace
    assert namespace is not None, "the fault's needs were not asked for"
    index = cluster.any_worker(rng).index
    outside = cluster.node.brokers_outside
    try:
        victim = cluster.restart(index, f"nsenter --net={namespace.path} env LLMAGENTOS_BROKERS={outside}")
        if Path(f"/proc/{victim.pid}/ns/net").stat().st_ino != Path(namespace.path).stat().st_ino:
            raise NodeError(f"worker {index} (pid {victim.pid}) is not in network namespace {namespace.name}")
        cluster.until(lambda: _assigned(cluster, index), f"worker {index} has partitions in {namespace.name}")
        victim = next(worker for worker in cluster.workers() if worker.index == index)
        began = time.monotonic()
        try:
            namespace.cut()
            yield _fired(
                "partition",
                f"worker {index} (pid {victim.pid}, in network namespace {namespace.name}) is cut off from all "
                f"brokers with {len(victim.assigned)} partitions",
            )
            cluster.pause(seconds)
        finally:
            lost = namespace.mend()
        if not lost:
            raise NodeError(f"{namespace.name} was cut off for {seconds:g} s, but not one packet was lost")
        yield _fired(
            "partition",
            f"worker {index} (pid {victim.pid}) is reached again after {time.monotonic() - began:.1f} s, "
            f"in which {lost} packets were lost",
        )
    finally:
        cluster.place(index, "")  # its process stays there until its end: it reaches everything


@_fault("clock", "workers", 30, 5, "libfaketime", "gcc")
def _clock(cluster: Cluster, rng: random.Random, seconds: float) -> Iterator[Fired]:
    """One worker's clock is a minute ahead or behind."""
    off_s = rng.choice((-_CLOCK_OFF_S, _CLOCK_OFF_S))
    index = cluster.any_worker(rng).index
    try:
        victim = cluster.restart(index, off_by(off_s, cluster.home))
        says = read_status(cluster.run_dir, index)
        found_s = says.started_at - time.time() if says else 0.0
        if abs(found_s - off_s) > _CLOCK_OFF_S / 2:
            raise NodeError(f"the clock of worker {index} (pid {victim.pid}) is off by {found_s:.0f}, not {off_s} s")
        yield _fired(
            "clock", f"worker {index} (pid {victim.pid}) is {abs(off_s)} s {'ahead' if off_s > 0 else 'behind'}"
        )
        cluster.pause(seconds)
    finally:
        cluster.place(index, "")
    cluster.restart(index, "")


@_fault("scale", "workers", 60, 6)
def _scale(cluster: Cluster, rng: random.Random, seconds: float) -> Iterator[Fired]:
    """The deployment is scaled from 3 workers to 6, to 2, and back."""
    before = cluster.wanted
    try:
        for workers in (6, 2):
            cluster.scale(workers)
            pids = ", ".join(str(worker.pid) for worker in cluster.workers())
            yield _fired("scale", f"{workers} workers serve: pids {pids}")
            cluster.pause(seconds / 2)
    finally:
        if not cluster.interrupted:
            cluster.scale(before)


@_fault("deploy", "workers", 60, 6)
def _deploy(cluster: Cluster, rng: random.Random, seconds: float) -> Iterator[Fired]:
    """Changed code is deployed, twice in the full form: agents with one more step each time, behind a mark."""
    for _ in range(max(1, round(seconds / _AGAIN_S))):
        cluster.pause(seconds / 2)
        text = cluster.module.read_text(encoding="utf-8")
        code = int(text.partition("\nCODE = ")[2].partition("\n")[0])
        cluster.module.write_text(text.replace(f"\nCODE = {code}\n", f"\nCODE = {code + 1}\n"), encoding="utf-8")
        before = {worker.pid for worker in cluster.workers()}
        cluster.deploy_again()
        after = {worker.pid for worker in cluster.workers()}
        if before & after:
            raise NodeError(f"the deployment left old workers: pids {sorted(before & after)}")
        yield _fired("deploy", f"workers {sorted(before)} gave way to {sorted(after)}, whose code is number {code + 1}")


@_fault("rollout", "workers", 0, 0)
def _rollout(cluster: Cluster, rng: random.Random, seconds: float) -> Iterator[Fired]:
    """All workers are replaced, one at a time."""
    before = {worker.pid for worker in cluster.workers()}
    cluster.rollout()
    after = {worker.pid for worker in cluster.workers()}
    if before & after:
        raise NodeError(f"the rollout left old workers: pids {sorted(before & after)}")
    yield _fired("rollout", f"workers {sorted(before)} gave way to {sorted(after)}")


# -- the supervisor ----------------------------------------------------------------------------------------------


@_fault("kill-supervisor", "supervisor", 20, 3)
def _kill_supervisor(cluster: Cluster, rng: random.Random, seconds: float) -> Iterator[Fired]:
    """The supervisor is killed (SIGKILL), then a worker; the next command starts another one, which finds out."""
    running = cluster.supervisor()
    if running is None:
        raise NodeError(f"no supervisor runs in {cluster.home}")
    try:
        cluster.kill(running, "the supervisor")
        yield _fired("kill-supervisor", f"the supervisor (pid {running.pid}) died of SIGKILL")
        cluster.pause(seconds / 2)
        victim = cluster.any_worker(rng)
        cluster.kill(victim.process, f"worker {victim.index}")
        yield _fired("kill-supervisor", f"worker {victim.index} (pid {victim.pid}) died of SIGKILL, unsupervised")
        cluster.pause(seconds / 2)
    finally:
        successor = ensure_supervisor(cluster.home)
    assert successor is not None, "there is a deployment to supervise"
    cluster.until(lambda: _again(cluster, victim), f"the next supervisor has started worker {victim.index} again")
    yield _fired(
        "kill-supervisor", f"the next one (pid {successor.pid}) supervises and has started worker {victim.index} again"
    )


# -- brokers and Redis -------------------------------------------------------------------------------------------


@_fault("kill-brokers", "brokers", 70, 8)
def _kill_brokers(cluster: Cluster, rng: random.Random, seconds: float) -> Iterator[Fired]:
    """Each broker in turn is killed (SIGKILL) and started again; one of them stays down long."""
    order = rng.sample(range(1, BROKERS + 1), BROKERS)
    longest = rng.choice(order)
    for number in order:
        broker = cluster.node.broker(number)
        began = time.monotonic()
        pid = broker.daemon.kill()
        try:
            yield _fired("kill-brokers", f"broker {number} (pid {pid}) died of SIGKILL")
            cluster.pause(seconds if number == longest else min(seconds, _BRIEF_S))
        finally:
            cluster.node.start(broker)
        yield _fired("kill-brokers", f"broker {number} serves again after {time.monotonic() - began:.1f} s")
        _await_in_sync(cluster)  # two brokers down at once would be another fault: nobody could write


@_fault("kill-leaders", "brokers", 60, 12)
def _kill_leaders(cluster: Cluster, rng: random.Random, seconds: float) -> Iterator[Fired]:
    """The broker that leads a journal partition is killed (SIGKILL) and started again, twice in the full form."""
    journals = sorted(Admin(cluster.settings).topics(cluster.settings.topic("journal.")))
    for _ in range(max(1, round(seconds / _AGAIN_S))):
        yield from _kill_leader(cluster, rng.choice(journals), rng.randrange(cluster.settings.partitions), seconds / 2)


def _kill_leader(cluster: Cluster, topic: str, partition: int, seconds: float) -> Iterator[Fired]:
    cluster.until(lambda: _leader(cluster, topic, partition) >= 0, f"a leader of {topic}[{partition}]")
    number = _leader(cluster, topic, partition)
    broker = cluster.node.broker(number)
    pid = broker.daemon.kill()
    try:
        yield _fired("kill-leaders", f"broker {number} (pid {pid}), which led {topic}[{partition}], died of SIGKILL")
        cluster.until(lambda: _leader(cluster, topic, partition) not in (number, -1), f"another leader of {topic}")
        cluster.pause(seconds)
    finally:
        cluster.node.start(broker)
    yield _fired("kill-leaders", f"broker {number} serves again; {topic}[{partition}] had another leader meanwhile")
    _await_in_sync(cluster)


@_fault("full-stop", "brokers", 5, 1)
def _full_stop(cluster: Cluster, rng: random.Random, seconds: float) -> Iterator[Fired]:
    """When all that is unfinished is suspended, everything is killed, and started again: workers, brokers, Redis."""
    with cluster.turn("workers"), cluster.turn("supervisor"), cluster.turn("redis"), pendings(cluster) as pending:
        work = _Work(cluster)

        def suspended() -> bool:
            return cluster.whole() and not any(work.unfinished(worker) for worker in cluster.workers())

        cluster.until(suspended, "everything that is unfinished is suspended", _SUSPENDED_S)
        count = Counter(entry.state for _, entry in unfinished(pending))
        if not count["waiting"]:
            raise NodeError("nothing was suspended any more when everything was to be stopped")
        began = time.monotonic()
        try:
            died = cluster.stop_all()
            yield _fired(
                "full-stop",
                f"{count['waiting']:,} handlers were suspended when pids {died} died of SIGKILL: that is all",
            )
            cluster.pause(seconds)
        finally:
            cluster.start_all()
        _await_in_sync(cluster)
        yield _fired("full-stop", f"everything serves again after {time.monotonic() - began:.1f} s")


@_fault("disk-full", "brokers", 30, 6, "root", "mount")
def _disk_full(cluster: Cluster, rng: random.Random, seconds: float) -> Iterator[Fired]:
    """One broker's disk is full until it ends, then has room again, and the broker is started anew."""
    disk, broker = cluster.disk, cluster.node.broker(SMALL_DISK)
    assert disk is not None, "the fault's needs were not asked for"
    began = time.monotonic()
    try:
        cluster.fill_disk()
        free = shutil.disk_usage(disk).free
        yield _fired("disk-full", f"{free} bytes are free on the disk of broker {SMALL_DISK}")
        cluster.until(lambda: broker.daemon.exited(), f"the end of broker {SMALL_DISK}, whose disk is full")
        yield _fired("disk-full", f"broker {SMALL_DISK}: {broker.ended_because()}")
        cluster.pause(max(0.0, seconds - (time.monotonic() - began)))
    finally:
        cluster.free_disk()
        cluster.node.start(broker)
    yield _fired("disk-full", f"broker {SMALL_DISK} serves again after {time.monotonic() - began:.1f} s")
    _await_in_sync(cluster)


@_fault("redis", "redis", 20, 3)
def _redis(cluster: Cluster, rng: random.Random, seconds: float) -> Iterator[Fired]:
    """Redis is killed (SIGKILL) and started again, and later everything in it is deleted."""
    valkey = cluster.node.valkey()
    began = time.monotonic()
    pid = valkey.daemon.kill()
    try:
        yield _fired("redis", f"Redis (pid {pid}) died of SIGKILL")
        cluster.pause(seconds / 2)
    finally:
        cluster.node.start(valkey)
    yield _fired("redis", f"Redis serves again after {time.monotonic() - began:.1f} s")
    cluster.pause(seconds / 2)
    with redis.Redis.from_url(cluster.node.redis) as client:
        client.set("chaos", "here")  # so that there is something to lose, whatever agents keep there
        before = client.dbsize()
        client.flushall()
        if client.exists("chaos"):
            raise NodeError("Redis kept a key through FLUSHALL")
    yield _fired("redis", f"Redis lost all its {before} keys")


# -- what they look at -------------------------------------------------------------------------------------------


class _Work:
    """What workers have not finished, by the cluster's own offsets."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._admin = Admin(cluster.settings, timeout_s=10)

    def find_busy(self, rng: random.Random) -> Running:
        """A worker with unfinished messages.

        Raises:
            NodeError: none has any.
        """
        found: Running | None = None
        order = rng.random()  # drawn once, so that the same seed goes on in the same way however often we look

        def look() -> bool:
            nonlocal found
            workers = self.cluster.workers()
            for worker in random.Random(order).sample(workers, len(workers)):
                with suppress(BrokerError):  # a broker may be down at this moment, by another fault
                    if self.unfinished(worker) and worker.process.alive():
                        found = worker
                        return True
            return False

        self.cluster.until(look, "a worker with work in flight")
        assert found is not None
        return found

    def unfinished(self, worker: Running) -> int:
        """How many messages in *worker*'s partitions are not finished, by what is committed now."""
        topics = sorted({topic for topic, _ in worker.assigned})
        latest = OffsetSpec.latest()
        assert latest is not None
        ends = {topic: self._admin.offsets(topic, latest) for topic in topics}
        commits = self._admin.commits(self.cluster.name, topics)
        count = 0
        for topic, partition in worker.assigned:
            end = ends[topic][partition]
            committed, metadata = commits.get((topic, partition), (0, ""))
            above = sum(
                min(last + 1, end) - first for first, last in decode_finished(committed, metadata) if first < end
            )
            count += max(0, end - committed - above)
        return count


def _leader(cluster: Cluster, topic: str, partition: int) -> int:
    """The broker that leads a partition; -1: none, or nobody says so now."""
    client = AdminClient(client_config(cluster.settings), logger=librdkafka_log)
    try:
        return client.list_topics(topic, timeout=_KILL_EVERY_S).topics[topic].partitions[partition].leader
    except KafkaException:
        return -1


def _assigned(cluster: Cluster, index: int) -> bool:
    return any(worker.index == index and worker.assigned for worker in cluster.workers())


def _again(cluster: Cluster, victim: Running) -> bool:
    return any(worker.index == victim.index and worker.pid != victim.pid for worker in cluster.workers())


def _others_have(cluster: Cluster, victim: Running) -> bool:
    others = [set(worker.assigned) for worker in cluster.workers() if worker.index != victim.index]
    return set(victim.assigned) <= set[tuple[str, int]]().union(*others)


def _await_in_sync(cluster: Cluster) -> None:
    """Until every partition has all its replicas in sync."""
    admin = Admin(cluster.settings, timeout_s=10)

    def whole() -> bool:
        with suppress(BrokerError):
            topics = [*admin.topics().values(), admin.describe("__consumer_offsets")]
            return all(topic.in_sync == topic.replicas for topic in topics)
        return False

    cluster.until(whole, "all replicas in sync")
