"""How the deployments of this machine are: what `llmagentos ps` shows."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from llmagentos.agents.deployment import Deployment, Deployments, WorkerRecord

__all__ = ["Listed", "ListedWorker", "listing", "partitions"]


@dataclass(slots=True)
class ListedWorker:
    """One worker, now.

    Attributes:
        uptime_s: of its process; None without one.
        cpu_percent: of one core, over the time of the look.
        memory_bytes: resident.
        assigned: `topic:partition`.
        version: of the source that it loaded; empty before it did.
        paused: agents that wait for what they depend on, and why.
        reason: why its last process ended.
    """

    worker: int
    state: str
    pid: int | None
    generation: int
    version: str
    restarts: int
    uptime_s: float | None
    cpu_percent: float | None
    memory_bytes: int | None
    assigned: list[str]
    paused: dict[str, str]
    exit_code: int | None
    reason: str


@dataclass(slots=True)
class Listed:
    """One deployment, now.

    Attributes:
        state: running; rolling out; starting; scaled to 0; degraded (some worker is down); failed; leaving.
    """

    deployment: str
    state: str
    target: str
    version: str
    wanted: int
    running: int
    agents: list[str]
    workers: list[ListedWorker] = field(default_factory=list[ListedWorker])


def listing(home: Path, *, look_s: float = 0.2) -> list[Listed]:
    """All deployments of a data folder, with the CPU that their workers used within *look_s* seconds."""
    deployments = Deployments(home)
    found = [(wanted, deployments.workers(name)) for name in deployments.names() if (wanted := deployments.find(name))]
    processes = {
        worker.process.pid: process
        for _, workers in found
        for worker in workers
        if worker.process is not None and (process := _process(worker)) is not None
    }
    for process in processes.values():
        with suppress(psutil.NoSuchProcess):
            process.cpu_percent()
    if processes:
        time.sleep(look_s)
    return [_listed(deployments, wanted, workers, processes) for wanted, workers in found]


def _process(worker: WorkerRecord) -> psutil.Process | None:
    if worker.process is None or not worker.process.alive():
        return None
    try:
        return psutil.Process(worker.process.pid)
    except psutil.NoSuchProcess:
        return None


def _listed(
    deployments: Deployments, wanted: Deployment, workers: list[WorkerRecord], processes: dict[int, psutil.Process]
) -> Listed:
    listed = Listed(
        deployment=wanted.name,
        state=_state(wanted, workers),
        target=wanted.target,
        version=wanted.version,
        wanted=wanted.workers,
        running=sum(worker.state == "running" for worker in workers),
        agents=[agent.name for agent in wanted.agents],
    )
    for worker in workers:
        report = deployments.report(wanted.name, worker)
        pid = worker.process.pid if worker.process is not None else None
        cpu = memory = None
        if pid is not None and pid in processes:
            with suppress(psutil.NoSuchProcess):
                cpu = processes[pid].cpu_percent()
                memory = processes[pid].memory_info().rss
        state = worker.state
        if pid is not None and pid not in processes:
            state = "gone"  # since the supervisor looked
        listed.workers.append(
            ListedWorker(
                worker=worker.index,
                state=state,
                pid=pid,
                generation=worker.generation,
                version=report.version if report is not None else "",
                restarts=worker.restarts,
                uptime_s=round(time.time() - worker.started_at, 1) if pid in processes and worker.started_at else None,
                cpu_percent=cpu,
                memory_bytes=memory,
                assigned=report.assigned if report is not None else [],
                paused=report.paused if report is not None else {},
                exit_code=worker.exit_code,
                reason=worker.reason if worker.state in ("waiting", "failed") else "",
            )
        )
    return listed


def _state(wanted: Deployment, workers: list[WorkerRecord]) -> str:
    if wanted.removed:
        return "leaving"
    states = [worker.state for worker in workers if worker.generation == wanted.generation]
    if any(worker.generation != wanted.generation for worker in workers):
        return "rolling out"
    if "failed" in states:
        return "failed" if "running" not in states else "degraded"
    if "waiting" in states:
        return "degraded"
    if states.count("running") == wanted.workers:
        return "running" if wanted.workers else "scaled to 0"
    return "starting"


def partitions(assigned: Iterable[str]) -> str:
    """`topic:partition` names for people: `orders 0-3,6  refunds 0-3`."""
    by_topic: defaultdict[str, list[int]] = defaultdict(list)
    for name in assigned:
        found = re.fullmatch(r"(.+):(\d+)", name)
        if found is not None:
            by_topic[found[1]].append(int(found[2]))
    return "  ".join(f"{topic} {_ranges(sorted(numbers))}" for topic, numbers in sorted(by_topic.items()))


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as `0-2,5`."""
    parts: list[tuple[int, int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1] = (parts[-1][0], number)
        else:
            parts.append((number, number))
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
