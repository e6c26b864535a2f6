"""The supervisor, with real processes: the workers are programs that keep the contract, without Kafka."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from llmagentos.agents.deploying import ensure_supervisor
from llmagentos.agents.deployment import Deployment, Deployments, Process, Served, WorkerRecord, running_deployments

PRETEND = [sys.executable, str(Path(__file__).with_name("pretend_worker.py"))]

#: A busy machine starts a Python process within some seconds.
DEADLINE_S = 30.0


class House:
    """A data folder with deployments of pretended workers."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.deployments = Deployments(home)
        self.pids: set[int] = set()

    def want(self, name: str = "pretend", workers: int = 1, generation: int = 1, **behaviour: object) -> Deployment:
        target = self.home / f"{name}-{generation}.json"
        target.write_text(json.dumps(behaviour))
        wanted = Deployment(
            name=name,
            target=str(target),
            cwd=str(self.home),
            workers=workers,
            version=f"v{generation}",
            agents=[Served(name=f"agent-of-{name}", topic=f"agent.{name}")],
            generation=generation,
            issued=generation,
            command=PRETEND,
            drain_timeout_s=0.5,
        )
        self.put(wanted)
        return wanted

    def put(self, wanted: Deployment) -> None:
        with self.deployments.changing():
            self.deployments.write(wanted, dict(os.environ))
        supervisor = ensure_supervisor(self.home)
        self.pids |= {supervisor.pid} if supervisor is not None else set()

    def workers(self, name: str = "pretend") -> list[WorkerRecord]:
        workers = self.deployments.workers(name)
        self.pids |= {worker.process.pid for worker in workers if worker.process}
        return workers

    def until(
        self, true: Callable[[list[WorkerRecord]], object], name: str = "pretend", deadline_s: float = DEADLINE_S
    ) -> list[WorkerRecord]:
        end = time.monotonic() + deadline_s
        while not true(workers := self.workers(name)):
            assert time.monotonic() < end, f"still {workers}\n{self.log()}"
            time.sleep(0.02)
        return workers

    def running(self, count: int, name: str = "pretend") -> list[WorkerRecord]:
        return self.until(lambda ws: [w.state for w in ws] == ["running"] * count, name)

    def supervisor(self) -> Process:
        found = self.deployments.supervisor()
        assert found is not None
        return found

    def log(self) -> str:
        return (self.deployments.folder / "supervisor.log").read_text()

    def gone(self, name: str) -> bool:
        return not self.deployments.run_dir(name).exists()


def wait(true: Callable[[], object], what: str = "") -> None:
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    for name in house.deployments.names():
        wanted = house.deployments.find(name)
        assert wanted is not None
        house.put(wanted.model_copy(update={"removed": True}))
    wait(lambda: not house.deployments.names(), house.log)  # type: ignore[arg-type]
    wait(lambda: house.deployments.supervisor() is None, "the supervisor stayed")
    wait(lambda: not any(Process.of(pid) for pid in house.pids), f"some of {house.pids} are left")


def test_starts_and_removes(house: House) -> None:
    wanted = house.want(workers=2)
    workers = house.running(2)
    assert [w.index for w in workers] == [0, 1]
    assert running_deployments(house.home) == ["pretend"]
    assert house.deployments.report("pretend", workers[1]).assigned == ["agent.pretend:1"]  # type: ignore[union-attr]
    supervisor = house.supervisor()
    house.put(wanted.model_copy(update={"removed": True}))
    wait(lambda: house.gone("pretend"))
    wait(lambda: not supervisor.alive())  # nothing left to do
    assert not any(w.process.alive() for w in workers if w.process)
    assert running_deployments(house.home) == []
    assert sorted(p.name for p in house.deployments.folder.iterdir()) == [".lock", "supervisor.lock", "supervisor.log"]


def test_crashed_worker_comes_back_at_once_when_adopted_or_own(house: House) -> None:
    house.want()
    (before,) = house.running(1)
    assert before.process is not None
    os.kill(before.process.pid, signal.SIGKILL)
    killed_at = time.time()
    (after,) = house.until(lambda ws: ws[0].restarts == 1 and ws[0].state == "running")
    assert "SIGKILL" in after.reason
    assert after.crashes == 1
    assert after.started_at - killed_at < 0.5  # no backoff, and no second until it is looked at; a busy machine is slow

    os.kill(house.supervisor().pid, signal.SIGKILL)
    wait(lambda: house.deployments.supervisor() is None)
    assert after.process is not None
    assert after.process.alive()  # workers don't notice
    ensure_supervisor(house.home)
    wait(lambda: "adopted" in house.log())
    os.kill(after.process.pid, signal.SIGKILL)
    (again,) = house.until(lambda ws: ws[0].restarts == 2 and ws[0].state == "running")
    assert "exit status is unknown" in again.reason


def test_backoff_begins_with_the_second_crash_grows_and_jitters(house: House) -> None:
    house.want(exit=1, starting=True, say="about to fail")
    waits: dict[int, float] = {}

    def crashed(workers: list[WorkerRecord], times: int) -> bool:
        for worker in workers:
            if worker.state == "waiting":
                waits[worker.crashes] = worker.due - worker.since
        return len(waits) >= times

    (worker,) = house.until(lambda ws: crashed(ws, 2))
    assert set(waits) == {2, 3}
    assert 0.25 <= waits[2] <= 0.75
    assert 0.5 <= waits[3] <= 1.5
    assert worker.exit_code == 1
    assert "about to fail\ngiving up" in worker.reason


@pytest.mark.parametrize("status", [3, 4])
def test_what_can_not_start_is_kept_and_reported(house: House, status: int) -> None:
    house.want(exit=status, starting=True)
    (worker,) = house.until(lambda ws: ws and ws[0].state == "failed")
    assert worker.restarts == 0
    assert worker.exit_code == status
    assert "giving up" in worker.reason
    house.want(generation=2)  # a new deployment replaces it
    (worker,) = house.running(1)
    assert worker.generation == 2


def test_supervisor_killed_while_it_starts_a_worker(house: House) -> None:
    """The successor finds a worker that was started but not yet written down."""
    house.want(workers=2)
    workers = house.running(2)
    os.kill(house.supervisor().pid, signal.SIGKILL)
    wait(lambda: house.deployments.supervisor() is None)
    house.deployments.write_workers(
        "pretend", [workers[0], workers[1].model_copy(update={"process": None, "state": "starting"})]
    )
    ensure_supervisor(house.home)
    wait(lambda: house.log().count("adopted") == 2)
    after = house.running(2)
    assert [w.process for w in after] == [w.process for w in workers]


def test_supervisor_killed_while_workers_are_down(house: House) -> None:
    house.want(workers=2)
    workers = house.running(2)
    os.kill(house.supervisor().pid, signal.SIGKILL)
    wait(lambda: house.deployments.supervisor() is None)
    assert workers[0].process is not None
    os.kill(workers[0].process.pid, signal.SIGKILL)
    ensure_supervisor(house.home)
    after = house.until(lambda ws: [w.state for w in ws] == ["running", "running"] and ws[0].restarts == 1)
    assert after[1].process == workers[1].process


def test_supervisor_told_to_stop_leaves_the_workers(house: House) -> None:
    house.want()
    (worker,) = house.running(1)
    supervisor = house.supervisor()
    os.kill(supervisor.pid, signal.SIGTERM)
    wait(lambda: not supervisor.alive())
    assert worker.process is not None
    assert worker.process.alive()


def test_only_one_supervisor(house: House) -> None:
    house.want()
    first = house.supervisor()
    second = psutil.Popen([sys.executable, "-m", "llmagentos.agents.supervisor", "--home", str(house.home)])
    assert second.wait(DEADLINE_S) == 1
    assert house.supervisor() == first


def test_scale(house: House) -> None:
    wanted = house.want(workers=1)
    (first,) = house.running(1)
    house.put(wanted.model_copy(update={"workers": 3}))
    workers = house.running(3)
    assert workers[0].process == first.process
    house.put(wanted.model_copy(update={"workers": 2}))
    assert house.running(2) == workers[:2]
    house.put(wanted.model_copy(update={"workers": 0}))
    assert house.until(lambda ws: not ws) == []
    assert not house.gone("pretend")
    house.put(wanted.model_copy(update={"workers": 1}))
    house.running(1)


def test_rollout_keeps_as_many_serving(house: House) -> None:
    house.want(workers=2)
    house.running(2)
    least, most = 2, 2

    def done(workers: list[WorkerRecord]) -> bool:
        nonlocal least, most
        least = min(least, sum(w.state == "running" for w in workers))
        most = max(most, sum(w.process is not None for w in workers))
        return [(w.generation, w.state) for w in workers] == [(2, "running"), (2, "running")]

    house.want(workers=2, generation=2, version="v2")
    workers = house.until(done)
    assert (least, most) == (2, 3)
    assert {house.deployments.report("pretend", w).version for w in workers} == {"v2"}  # type: ignore[union-attr]


def test_rollout_that_fails_leaves_the_old_ones(house: House) -> None:
    house.want(workers=2)
    old = house.running(2)
    house.want(workers=2, generation=2, exit=3, starting=True)
    workers = house.until(lambda ws: any(w.state == "failed" for w in ws))
    assert [w for w in workers if w.generation == 1] == old
    house.want(workers=2, generation=1)  # taken back
    assert house.running(2) == old


def test_deaf_worker_is_killed_after_its_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = house.want(deaf=True)
    (worker,) = house.running(1)
    started = time.monotonic()
    house.put(wanted.model_copy(update={"removed": True}))
    wait(lambda: house.gone("pretend"))
    assert time.monotonic() - started > wanted.drain_timeout_s
    assert worker.process is not None
    assert not worker.process.alive()
    assert "did not leave in time" in house.log()


def test_ends_with_its_owner(house: House) -> None:
    owner = psutil.Popen([sys.executable, "-c", "input()"], stdin=-1)
    wanted = house.want()
    house.put(wanted.model_copy(update={"owner": Process.of(owner.pid)}))
    house.running(1)
    owner.kill()
    owner.communicate()
    wait(lambda: house.gone("pretend"))


def test_deleted_folder_ends_the_workers(house: House) -> None:
    house.want()
    (worker,) = house.running(1)
    house.deployments.delete("pretend")
    assert worker.process is not None
    wait(lambda: not worker.process.alive())  # type: ignore[union-attr]


def test_unreadable_deployment_is_left_alone(house: House) -> None:
    wanted = house.want()
    (worker,) = house.running(1)
    (house.deployments.run_dir("pretend") / "deployment.json").write_text("{")
    os.kill(house.supervisor().pid, signal.SIGHUP)
    wait(lambda: "is not a deployment" in house.log())
    assert worker.process is not None
    assert worker.process.alive()
    house.put(wanted)


def test_at_rest_the_supervisor_uses_next_to_nothing(house: House) -> None:
    house.want()
    house.running(1)
    process = psutil.Process(house.supervisor().pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(3)  # what is measured is the time
    assert (sum(process.cpu_times()[:2]) - before) / 3 < 0.01
    assert process.memory_info().rss < 100e6
