"""The cluster that faults are done to: three brokers, Redis, a supervisor and workers, all real and all of this run.

Nothing in it is special but where its parts run: with root and the Debian packages that `chaos doctor` names, one
broker's data lies on a small disk of its own, brokers listen for a network namespace too, and each worker is started
through a line of shell that can put it into that namespace, or under another clock.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from llmagentos.agents import deploying
from llmagentos.agents.deploying import ensure_supervisor
from llmagentos.agents.deployment import Deployments, Process
from llmagentos.agents.worker import read_status
from llmagentos.cli.chaos.doctor import lacking
from llmagentos.cli.chaos.network import Namespace
from llmagentos.streams.errors import NodeError
from llmagentos.streams.node import Node
from llmagentos.streams.settings import Settings

__all__ = ["SMALL_DISK", "Cluster", "Interrupted", "Running", "home_of", "sweep"]

BROKERS = 3

#: The broker whose data lies on a disk of its own, where this user may mount one.
SMALL_DISK = 3

#: Its size at first: tmpfs takes of memory only what is used, and a full scenario's records take a tenth of it.
_DISK_MB = 2_048

#: In the temporary folder; the number is the id of the process whose run it is.
_HOME = "llmagentos-chaos-"

_WORKER_SH_NAME = "worker.sh"

#: What starts a worker: the file named as its index, where there is one, holds words to put before the command.
_WORKER_SH = """\
place=
index=
for word; do
    if [ "$index" = next ]; then index=$word; fi
    if [ "$word" = --index ]; then index=next; fi
done
if [ -f {places}/"$index" ]; then place=$(cat {places}/"$index"); fi
eval "exec $place "'{python} -m llmagentos.agents.worker "$@"'
"""

#: A worker joins, a broker answers, a supervisor starts: seconds; this is for a machine that does much else.
WAIT_S = 120.0

#: A killed process ends at once, unless the machine is very busy.
_KILLED_S = 10.0

_LOOK_S = 0.02


class Interrupted(Exception):
    """The run ends: a fault heals what it did and returns."""


@dataclass(frozen=True, slots=True)
class Running:
    """A worker that serves.

    Attributes:
        index: its number in the deployment.
        process: for certain.
        assigned: its partitions when it last said so, (topic, partition).
    """

    index: int
    process: Process
    assigned: tuple[tuple[str, int], ...]

    @property
    def pid(self) -> int:
        """Of its process."""
        return self.process.pid


class Cluster:
    """`with Cluster() as cluster:` a cluster of its own in a temporary folder, gone afterwards without a trace.

    Args:
        say: told what goes on, a line at a time.
        changes: of settings, for workers and for `settings` both.

    Attributes:
        home: its data folder.
        node: its brokers and Redis.
        settings: name them; for clients outside, as those of the workload.
        name: of the deployment; empty before :meth:`deploy`.
        namespace: None where this user may not make one.
        disk: the folder that is SMALL_DISK's own disk; None where this user may not mount one.
    """

    def __init__(self, *, say: Callable[[str], None] | None = None, **changes: object) -> None:
        self._say = say or (lambda text: None)
        self._changes = changes
        self._interrupted = threading.Event()
        self._turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self.name = ""
        self._deployed: tuple[Path, Mapping[str, str] | None] = Path(), None
        self.home = home_of(os.getpid())
        self.namespace: Namespace | None = None
        self.disk: Path | None = None

    # -- life

    def __enter__(self) -> Cluster:
        sweep()
        self.home.mkdir()
        try:
            self._start()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def _start(self) -> None:
        here = Settings.load()
        if not lacking("root", "iproute2", "iptables", "util-linux"):
            namespace = Namespace(os.getpid())
            namespace.make()
            self.namespace = namespace
        if not lacking("root", "mount"):
            disk = self.home / "kafka" / str(SMALL_DISK) / "data"
            disk.mkdir(parents=True)
            _mount(disk, _DISK_MB * 2**20)
            self.disk = disk
        outside = self.namespace.outside if self.namespace else ""
        local = Settings.load(home=self.home, brokers="", redis="", security_protocol="PLAINTEXT")
        self.node = Node(local, outside=outside)
        self._say(f"starting {BROKERS} brokers and Redis")
        self.node.up(BROKERS)
        (self.home / "settings.toml").touch()  # nobody's llmagentos.toml has a say here
        (self.home / "places").mkdir()
        self._worker_sh = self.home / _WORKER_SH_NAME
        self._worker_sh.write_text(
            _WORKER_SH.format(places=shlex.quote(str(self._places)), python=shlex.quote(sys.executable)),
            encoding="utf-8",
        )
        named: dict[str, object] = {"brokers": self.node.brokers, "redis": self.node.redis, "prefix": "chaos."}
        self._named = named | {"home": self.home, "cache": here.cache} | self._changes
        self.settings = Settings.load(registry="", **self._named)

    @property
    def run_dir(self) -> Path:
        """Where its workers say how they are."""
        return Deployments(self.home).run_dir(self.name)

    @property
    def _places(self) -> Path:
        return self.home / "places"

    @property
    def _command(self) -> list[str]:
        return ["/bin/sh", str(self._worker_sh)]

    def interrupt(self) -> None:
        """Have a fault that runs in another thread heal what it did, and end."""
        self._interrupted.set()

    @property
    def interrupted(self) -> bool:
        """Whether :meth:`interrupt` was called."""
        return self._interrupted.is_set()

    @contextmanager
    def turn(self, part: str) -> Generator[None]:
        """Wait until no other fault has *part*, and have it; raises Interrupted."""
        lock = self._turns[part]
        while not lock.acquire(timeout=_LOOK_S):
            if self.interrupted:
                raise Interrupted
        try:
            yield
        finally:
            lock.release()

    def pause(self, seconds: float) -> None:
        """Wait; raises Interrupted once :meth:`interrupt` was called."""
        if self._interrupted.wait(seconds):
            raise Interrupted

    def until(self, done: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
        """Wait until *done*.

        Raises:
            NodeError: it is not within *timeout_s*; says *what*.
            Interrupted: the run ends.
        """
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                raise NodeError(f"{what}: not within {timeout_s:g} s", kept=f"the cluster's files, in {self.home}")
            self.pause(_LOOK_S)

    def down(self) -> None:
        """End everything, however it is, and leave nothing: no process, mount, namespace or file."""
        self._interrupted.set()
        _remove(self.home)

    # -- the deployment

    def deploy(self, module: Path, workers: int = 3, environment: Mapping[str, str] | None = None) -> None:
        """Deploy a module's agents, and wait until all workers serve.

        Args:
            module: a Python file.
            environment: of the workers, beside what names this cluster.

        Raises:
            DeploymentError: it does not start.
        """
        self._deployed = module, environment
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("LLMAGENTOS_")}
        named = {f"LLMAGENTOS_{name.upper()}": str(value) for name, value in self._named.items()}
        named["LLMAGENTOS_SETTINGS"] = str(self.home / "settings.toml")
        self._say(f"starting {workers} workers")
        wanted = deploying.deploy(
            self.settings,
            str(module),
            workers=workers,
            environment=inherited | named | dict(environment or {}),
            command=self._command,
        )
        self.name = wanted.name

    @property
    def module(self) -> Path:
        """What is deployed."""
        return self._deployed[0]

    def deploy_again(self) -> None:
        """Deploy the module as it is now, in the place of what runs; returns when all workers are new."""
        self._rest()
        module, environment = self._deployed
        self.deploy(module, self.wanted, environment)

    def renew(self, prefix: str) -> None:
        """End the deployment, if there is one; the next one has topics of its own, behind *prefix*."""
        self._interrupted.clear()
        if self.name:
            deploying.undeploy(self.settings, self.name)
            self.name = ""
        for path in self._places.iterdir():
            path.unlink()
        self._named["prefix"] = prefix
        self.settings = self.settings.model_copy(update={"prefix": prefix})

    def workers(self) -> list[Running]:
        """The workers that serve now, by index."""
        deployments = Deployments(self.home)
        found: list[Running] = []
        for record in deployments.workers(self.name) if self.name else ():
            status = read_status(deployments.run_dir(self.name), record.index)
            if record.state != "running" or record.process is None or not record.process.alive() or status is None:
                continue
            if status.pid == record.process.pid and status.state == "running":
                places = (place.rpartition(":") for place in status.assigned)
                assigned = tuple((topic, int(partition)) for topic, _, partition in places)
                found.append(Running(record.index, record.process, assigned))
        return found

    def any_worker(self, rng: random.Random) -> Running:
        """One of the workers that serve, as soon as one does."""
        serving: list[Running] = []
        self.until(lambda: serving.extend(self.workers()) or serving, "a worker that serves")
        return serving[int(rng.random() * len(serving))]  # one draw, however many there are

    @property
    def wanted(self) -> int:
        """How many workers the deployment shall have."""
        return Deployments(self.home).get(self.name).workers

    def whole(self) -> bool:
        """Whether just the workers that are wanted serve."""
        return len(self.workers()) == self.wanted == len(Deployments(self.home).workers(self.name))

    def scale(self, workers: int) -> None:
        """Have *workers* workers; returns when they serve."""
        self._rest()
        deploying.scale(self.settings, self.name, workers)

    def rollout(self) -> None:
        """Replace the workers one at a time; returns when the new ones serve."""
        self._rest()
        deploying.rollout(self.settings, self.name, command=self._command)

    def _rest(self) -> None:
        """Wait for workers that were killed so often that they start again only after a while: a change of the
        deployment would take them for such as can't start."""
        self.until(self.whole, "the workers serve again")

    def supervisor(self) -> Process | None:
        """The supervisor, if one runs."""
        return Deployments(self.home).supervisor()

    def restart(self, index: int, words: str) -> Running:
        """Restart worker *index* in peace, with *words* before its command; returns when it serves again."""
        before = next(worker for worker in self.workers() if worker.index == index)
        self.place(index, words)
        with suppress(ProcessLookupError):
            os.kill(before.pid, signal.SIGTERM)

        def again() -> list[Running]:
            return [worker for worker in self.workers() if worker.index == index and worker.pid != before.pid]

        self.until(again, f"worker {index} serves again after its restart")
        return again()[0]

    def kill(self, process: Process, what: str) -> None:
        """End *process* by SIGKILL; returns when it is dead."""
        os.kill(process.pid, signal.SIGKILL)
        self.until(lambda: not process.alive(), f"the end of {what} (pid {process.pid}) by SIGKILL")

    def place(self, index: int, words: str) -> None:
        """Let the next processes of worker *index* begin with *words* before their command; "" as usual."""
        path = self._places / str(index)
        if words:
            path.write_text(words, encoding="utf-8")
        else:
            path.unlink(missing_ok=True)

    def stop_all(self) -> list[int]:
        """Kill supervisor, workers, brokers and Redis, all at once; the pids that died."""
        processes = [worker.process for worker in self.workers()]
        if (supervisor := self.supervisor()) is not None:
            processes.insert(0, supervisor)  # first, else it starts workers again
        parts = (*map(self.node.broker, range(1, BROKERS + 1)), self.node.valkey())
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
        died = [pid for part in parts if (pid := part.daemon.kill()) is not None]
        self.until(lambda: not any(process.alive() for process in processes), "the end of all by SIGKILL")
        return [process.pid for process in processes] + died

    def start_all(self) -> None:
        """Start what :meth:`stop_all` ended; returns when all workers serve."""
        self.node.up(BROKERS)
        ensure_supervisor(self.home)
        self.until(self.whole, "all workers serve after everything was stopped")

    # -- its small disk

    def fill_disk(self) -> None:
        """Make SMALL_DISK's disk as small as what is on it: nothing more can be written, and no memory is used up."""
        assert self.disk is not None
        _mount(self.disk, shutil.disk_usage(self.disk).used, again=True)

    def free_disk(self) -> None:
        """Give SMALL_DISK's disk its room again."""
        assert self.disk is not None
        _mount(self.disk, _DISK_MB * 2**20, again=True)


def _mount(folder: Path, size: int, *, again: bool = False) -> None:
    """A disk in memory of *size* bytes at *folder*; *again*: of another size with the same files."""
    options = f"{'remount,' if again else ''}size={size}"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NodeError(f"no disk can be mounted at {folder}: {done.stderr.strip()}")


def home_of(pid: int) -> Path:
    """The data folder of the cluster of process *pid*."""
    return Path(tempfile.gettempdir()) / f"{_HOME}{pid}"


def sweep() -> None:
    """End the clusters of runs that were killed before they could."""
    for home in Path(tempfile.gettempdir()).glob(f"{_HOME}*"):
        number = home.name.removeprefix(_HOME)
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            _remove(home)


def _remove(home: Path) -> None:
    number = int(home.name.removeprefix(_HOME))
    supervisor = Deployments(home).supervisor()
    if supervisor is not None:  # first, else it starts workers again
        _kill([psutil.Process(supervisor.pid)])
    _kill([process for process in psutil.process_iter() if _is_of(process, home)])
    node = Node(Settings.load(home=home, brokers="", redis=""))
    with suppress(NodeError):  # it may have got no further than this folder
        for part in (*map(node.broker, range(1, BROKERS + 1)), node.valkey()):
            part.daemon.kill()  # in peace, three brokers take ten seconds, and nobody needs their data any more
    node.down()
    disk = home / "kafka" / str(SMALL_DISK) / "data"
    if disk.is_mount():  # lazily, as a broker that was just killed may have files open for a moment yet
        subprocess.run(["umount", "--lazy", str(disk)], check=True, capture_output=True)
    namespace = Namespace(number)
    if Path(namespace.path).exists():
        namespace.remove()
    shutil.rmtree(home, ignore_errors=True)


def _is_of(process: psutil.Process, home: Path) -> bool:
    """Whether it is one of our programs (a worker, the ledger) with files below *home*."""
    try:
        words = process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    ours = any(word.startswith("llmagentos.") or word.endswith(f"/{_WORKER_SH_NAME}") for word in words)
    return ours and any(word == str(home) or word.startswith(f"{home}/") for word in words)


def _kill(processes: list[psutil.Process]) -> None:
    """And wait until they are dead; whether their parent, or init, has taken notice is no matter."""
    there = [one for process in processes if (one := Process.of(process.pid)) is not None]
    for process in there:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + _KILLED_S
    while any(process.alive() for process in there) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
