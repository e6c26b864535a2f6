"""A deployment on this machine: what is wanted of it, and what is, as files below the data folder.

    deployments/
      .lock                  held by a command while it changes what is wanted
      supervisor.lock        held by the supervisor for its life; says who it is
      supervisor.log
      NAME/deployment.json   what is wanted: written by commands only
      NAME/environment.json  the environment that its workers get; mode 0600, as it may hold keys
      NAME/workers.json      what is: written by the supervisor only
      NAME/worker-I.json     what worker I says of itself: written by that worker only
      NAME/worker-I.log      what it prints

Every file has one writer and is replaced whole, so that a reader never sees half of one, and anybody may be killed
at any point.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeVar

import psutil
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from llmagentos.streams.errors import DeploymentError

__all__ = [
    "Deployment",
    "Deployments",
    "Process",
    "Served",
    "WorkerRecord",
    "WorkerReport",
    "WorkerState",
    "running_deployments",
    "worker_command",
]

#: A deployment's name is its Faust app id and consumer group: what Kafka takes in a topic's name
#: (org.apache.kafka.common.internals.Topic), short enough for Faust's changelog names to fit into 249 characters.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

WorkerState = Literal["starting", "running", "draining", "waiting", "failed"]

M = TypeVar("M", bound=BaseModel)


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore")  # what a newer version adds, an older one skips


class Process(_Record):
    """One process for certain: a pid alone comes back after some time."""

    pid: int
    born: str = Field(description="When it started, so that a clock that is set changes nothing.")

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The living process *pid*; None where there is none, or just its corpse."""
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            return cls(pid=pid, born=_born(process))
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            return None

    @classmethod
    def this(cls) -> Process:
        """The process that asks."""
        return cls(pid=os.getpid(), born=_born(psutil.Process()))

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return Process.of(self.pid) == self


def _born(process: psutil.Process) -> str:
    """On Linux the boot's id and field 22 of /proc/PID/stat, clock ticks since boot (proc_pid_stat(5)), because
    psutil's create_time moves when the clock is set; elsewhere that time in seconds."""
    if not sys.platform.startswith("linux"):
        return f"{process.create_time():.0f}"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    # The second field is the program's name in parentheses, which may hold spaces and parentheses.
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    return f"{boot}:{fields.split()[19]}"


class Served(_Record):
    """One agent of a deployment."""

    name: str
    topic: str = Field(description="Full name of the topic that it reads.")
    description: str = ""


class Deployment(_Record):
    """What is wanted. A new generation is a roll-out: workers of another one are replaced."""

    name: str
    target: str = Field(description="Absolute path of a Python file, or a dotted name.")
    cwd: str
    workers: int = Field(ge=0)
    version: str = Field(description="Of the source, when it was deployed.")
    agents: list[Served] = []
    generation: int = 1
    issued: int = Field(1, description="The highest generation ever given; one that failed is not given twice.")
    command: list[str] = Field(description="What starts a worker, before its arguments.")
    drain_timeout_s: float = 10.0
    owner: Process | None = Field(None, description="Ends with this process: a `dev` session.")
    removed: bool = False
    created_at: float = Field(default_factory=time.time, description="Seconds since the epoch.")
    updated_at: float = Field(default_factory=time.time)


class WorkerRecord(_Record):
    """What the supervisor knows of one worker.

    Attributes:
        index: names its files. The lowest that is free, so that a roll-out of N workers needs N + 1 of them.
        state: waiting (for its next start, after a crash) and failed (it can't start as it is) have no process.
        restarts: since it was first started.
        crashes: in a row; sets the wait before the next start.
        since: when it entered its state, seconds since the epoch.
        due: when one without a process starts again, and a draining one is killed; 0: not.
        reason: why it ended the last time, with what it printed.
    """

    index: int
    generation: int
    process: Process | None = None
    state: WorkerState = "starting"
    restarts: int = 0
    crashes: int = 0
    started_at: float = 0.0
    since: float = 0.0
    due: float = 0.0
    log_start: int = 0
    exit_code: int | None = None
    reason: str = ""


class WorkerReport(_Record):
    """What a worker says of itself."""

    pid: int
    state: Literal["starting", "running", "draining", "stopped"]
    version: str = ""
    assigned: list[str] = []
    paused: dict[str, str] = {}
    standing: bool = False
    started_at: float = 0.0
    updated_at: float = 0.0


_WORKERS: TypeAdapter[list[WorkerRecord]] = TypeAdapter(list[WorkerRecord])
_ENVIRONMENT: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


def worker_command() -> list[str]:
    """What starts a worker: this Python, so that the virtual environment that deploys is the one that runs."""
    return [sys.executable, "-m", "llmagentos.agents.worker"]


class Deployments:
    """The deployments of one data folder, on disk."""

    def __init__(self, home: Path) -> None:
        self.home = home.expanduser().absolute()
        self.folder = self.home / "deployments"

    @contextmanager
    def changing(self) -> Generator[None]:
        """Held while what is wanted is read, changed and written; one command at a time, for milliseconds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def names(self) -> list[str]:
        """Of all deployments, in order, those that are being removed included."""
        try:
            return sorted(path.parent.name for path in self.folder.glob("*/deployment.json"))
        except FileNotFoundError:
            return []

    def run_dir(self, name: str) -> Path:
        """The folder of one deployment."""
        return self.folder / name

    def find(self, name: str) -> Deployment | None:
        """The deployment *name*, if there is one.

        Raises:
            DeploymentError: its file is not what we write.
        """
        raw = _read(self.run_dir(name) / "deployment.json")
        if raw is None:
            return None
        try:
            return Deployment.model_validate_json(raw)
        except ValidationError as error:
            raise DeploymentError(
                f"{self.run_dir(name) / 'deployment.json'} is not a deployment: {error}",
                fix=f"deploy {name} again, or delete its folder",
                kept="its running workers go on",
            ) from error

    def get(self, name: str) -> Deployment:
        """The deployment *name*.

        Raises:
            DeploymentError: there is none; says which there are.
        """
        found = self.find(name) if _NAME.fullmatch(name) else None
        if found is None or found.removed:
            there = ", ".join(self.names())
            raise DeploymentError(
                f"there is no deployment {name!r} in {self.home}" + (f"; there are: {there}" if there else ""),
                fix="`llmagentos ps` lists them" if there else "`llmagentos deploy FILE` makes one",
            )
        return found

    def write(self, deployment: Deployment, environment: Mapping[str, str] | None = None) -> None:
        """Make *deployment* what is wanted; *environment* None keeps the one that it has."""
        check_name(deployment.name)
        folder = self.run_dir(deployment.name)
        folder.mkdir(parents=True, exist_ok=True)
        if environment is not None:
            _replace(folder / "environment.json", _ENVIRONMENT.dump_json(dict(environment), indent=1))
        deployment = deployment.model_copy(update={"updated_at": time.time()})
        _replace(folder / "deployment.json", deployment.model_dump_json(indent=1).encode())

    def environment(self, name: str) -> dict[str, str]:
        """What the workers of *name* get as environment."""
        raw = _read(self.run_dir(name) / "environment.json")
        return {} if raw is None else _ENVIRONMENT.validate_json(raw)

    def workers(self, name: str) -> list[WorkerRecord]:
        """What the supervisor knows of the workers of *name*, by index."""
        raw = _read(self.run_dir(name) / "workers.json")
        return [] if raw is None else sorted(_WORKERS.validate_json(raw), key=lambda worker: worker.index)

    def write_workers(self, name: str, workers: list[WorkerRecord]) -> None:
        """The supervisor's only: what `workers` reads."""
        _replace(self.run_dir(name) / "workers.json", _WORKERS.dump_json(workers, indent=1))

    def report(self, name: str, worker: WorkerRecord) -> WorkerReport | None:
        """What *worker* says of itself; None where that is from an earlier process, or nothing yet."""
        if worker.process is None:
            return None
        raw = _read(self.report_file(name, worker.index))
        try:
            report = None if raw is None else WorkerReport.model_validate_json(raw)
        except ValidationError:  # by a worker of another version; the process itself is watched all the same
            return None
        return report if report is not None and report.pid == worker.process.pid else None

    def report_file(self, name: str, index: int) -> Path:
        """Where worker *index* says how it is."""
        return self.run_dir(name) / f"worker-{index}.json"

    def log_file(self, name: str, index: int) -> Path:
        """Where worker *index* prints."""
        return self.run_dir(name) / f"worker-{index}.log"

    def delete(self, name: str) -> None:
        """Remove all files of *name*; whole or not at all for a reader, and finished later where this is killed."""
        gone = Path(tempfile.mkdtemp(prefix=".removed-", dir=self.folder))
        with suppress(FileNotFoundError):
            self.run_dir(name).rename(gone / name)
        shutil.rmtree(gone, ignore_errors=True)

    def sweep(self) -> None:
        """Finish deletions that were cut short."""
        for path in self.folder.glob(".removed-*"):
            shutil.rmtree(path, ignore_errors=True)

    def supervisor(self) -> Process | None:
        """The running supervisor of this data folder, if one has said who it is."""
        try:
            with (self.folder / "supervisor.lock").open("r") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    process = Process.model_validate_json(file.read())
                    return process if process.alive() else None
        except (FileNotFoundError, ValidationError):
            return None
        return None  # the lock was free: whoever is named there is gone

    def conflict(self, deployment: Deployment) -> DeploymentError | None:
        """The error where another deployment here serves an agent of the same name."""
        mine = {agent.name for agent in deployment.agents}
        for name in self.names():
            other = self.find(name) if name != deployment.name else None
            for agent in other.agents if other is not None else ():
                if agent.name in mine:
                    return DeploymentError(
                        f"agent {agent.name!r} of deployment {deployment.name!r} is already served by "
                        f"deployment {name!r} ({other.target if other else ''})",
                        fix=f"`llmagentos undeploy {name}` first, deploy with `--name {name}`, or rename the agent",
                        kept=f"{name} goes on as it is",
                    )
        return None


def check_name(name: str) -> str:
    """*name*, if it can be a deployment's.

    Raises:
        DeploymentError: it can't.
    """
    if not _NAME.fullmatch(name):
        raise DeploymentError(
            f"{name!r} can't name a deployment",
            fix="use letters, digits, '.', '-' and '_' (at most 100, beginning with a letter or digit)",
        )
    return name


def running_deployments(home: Path) -> list[str]:
    """Names of the deployments of a data folder that have a living worker."""
    deployments = Deployments(home)
    return [
        name
        for name in deployments.names()
        if any(worker.process is not None and worker.process.alive() for worker in deployments.workers(name))
    ]


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole: a crash leaves the old one or the new one. Readable by its owner only (mkstemp)."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
