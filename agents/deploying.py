"""What the commands do to deployments: deploy, scale, roll out, undeploy, and wait until it is so.

A command writes down what is wanted, wakes the supervisor (or starts one), and watches. It may be interrupted at any
point: what it wrote down goes on being brought about.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llmagentos.agents import versions
from llmagentos.agents.checking import Checked
from llmagentos.agents.deployment import Deployment, Deployments, Process, WorkerRecord, check_name, worker_command
from llmagentos.agents.logs import last_lines
from llmagentos.agents.rehearsing import Rehearsal
from llmagentos.agents.supervisor import LOG_BYTES
from llmagentos.streams.errors import BrokerError, DeploymentError
from llmagentos.streams.settings import Settings

if TYPE_CHECKING:
    from llmagentos.agents.cards import Card

__all__ = ["Watcher", "deploy", "ensure_supervisor", "examine", "examine_rollout", "rollout", "scale", "undeploy"]

#: Called again and again while a command waits, with what is wanted and what is.
Watcher = Callable[[Deployment, list[WorkerRecord]], None]

#: Until a worker must have joined its group: import, start of Faust, and a rebalance in which another worker drains.
START_S = 120.0

#: A new worker that ended so many times in a row before it ever ran is not going to.
CRASHES = 3

#: Nobody looks what is under way.
_FORCE = versions.Replacing()

#: A supervisor is a Python process without Faust: seconds even on a busy machine.
_SUPERVISOR_S = 30.0

#: How often a waiting command looks.
_LOOK_S = 0.05

#: Of the shell and terminal that a deployment is made from, and nothing to its workers.
_NOT_INHERITED = ("_", "COLUMNS", "LINES", "OLDPWD", "PS1", "PWD", "SHLVL", "STY", "TERM", "TMUX", "TMUX_PANE")


def ensure_supervisor(home: Path) -> Process | None:
    """The supervisor of a data folder, woken up; started in the background where none runs.

    Returns:
        None where it found nothing to do, and left again.

    Raises:
        DeploymentError: it does not start; with what it said.
    """
    deployments = Deployments(home)
    running = deployments.supervisor()
    if running is not None:
        with suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGHUP)
        return running
    deployments.folder.mkdir(parents=True, exist_ok=True)
    path = deployments.folder / "supervisor.log"
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_name(path.name + ".1"))
    with path.open("ab") as output:
        starter = subprocess.Popen(
            [sys.executable, "-m", "llmagentos.agents.supervisor", "--home", str(deployments.home), "--detach"],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + _SUPERVISOR_S
    starter.wait()
    while time.monotonic() < deadline and starter.returncode == 0:
        running = deployments.supervisor()
        if running is not None or not deployments.names():
            return running
        time.sleep(_LOOK_S)
    said = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-10:]
    raise DeploymentError(
        f"the supervisor of {deployments.home} did not start; it said:\n" + "\n".join(said),
        fix=f"see {path}",
        kept="running workers go on, and what is wanted is written down: the next command tries again",
    )


def deploy(
    settings: Settings,
    target: str,
    *,
    name: str | None = None,
    workers: int | None = None,
    owner: Process | None = None,
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] | None = None,
    timeout_s: float = START_S,
    checked: Callable[[Checked], None] | None = None,
    watch: Watcher | None = None,
    how: versions.Replacing = _FORCE,
) -> Deployment:
    """Deploy a module, or roll out its present code where it is deployed already; waits until it serves.

    Args:
        target: a Python file, or a dotted name that imports from the working directory.
        name: None: the file's or module's.
        workers: None: as many as it has, or one.
        owner: the deployment ends with this process.
        environment: of the workers; None: this process'.
        command: what starts a worker, before its arguments; None: this Python.
        checked: called when the module has been imported and its topics exist.
        watch: called while workers start and leave.
        how: what is to become of messages under way that the new code would not go on with.

    Raises:
        DeploymentError: the module does not import, what is under way would not go on with it, another deployment
            serves one of its agents, or its workers don't start. What was deployed before keeps running, and where
            there was nothing, nothing is left.
    """
    name, target, cwd, environment = _meant(target, name, environment)
    deployments = Deployments(settings.home)
    with ExitStack() as standing:
        found = versions.checked(settings, name, target, cwd=cwd, environment=environment, how=how, standing=standing)
        if checked is not None:
            checked(found)
        with deployments.changing():
            before = deployments.find(name)
            environment_before = deployments.environment(name)
            if before is not None and before.removed:
                before = None
            generation = 1 + (before.issued if before is not None else _last_generation(deployments, name))
            wanted = Deployment(
                name=name,
                target=target,
                cwd=cwd,
                workers=workers if workers is not None else max(before.workers, 1) if before is not None else 1,
                version=found.version,
                agents=found.agents,
                generation=generation,
                issued=generation,
                command=list(command or worker_command()),
                drain_timeout_s=settings.drain_timeout_s,
                owner=owner,
                created_at=before.created_at if before is not None else time.time(),
            )
            if before is not None and before.owner != owner and (before.owner is None or before.owner.alive()):
                by = f"by a `dev` session (process {before.owner.pid})" if before.owner is not None else "already"
                raise DeploymentError(
                    f"{name} is deployed {by}, from {before.target}",
                    fix=f"`llmagentos undeploy {name}` first, or give this one another --name",
                    kept=f"{name} goes on as it is",
                )
            conflict = deployments.conflict(wanted)
            if conflict is not None:
                raise conflict
            deployments.write(wanted, environment)
        try:
            _settle(deployments, wanted, timeout_s, watch)
        except DeploymentError as error:
            raise _take_back(settings, wanted, before, environment_before, found.cards_before, error) from None
    return wanted


def examine(
    settings: Settings,
    target: str,
    *,
    name: str | None = None,
    environment: Mapping[str, str] | None = None,
    how: versions.Replacing = _FORCE,
) -> Rehearsal:
    """What :func:`deploy` would find under way, and what would become of that; nothing is changed.

    Raises:
        DeploymentError: the module does not import.
    """
    name, target, cwd, environment = _meant(target, name, environment)
    return versions.examined(name, target, cwd=cwd, environment=environment, how=how)


def examine_rollout(settings: Settings, name: str, *, how: versions.Replacing = _FORCE) -> Rehearsal:
    """What :func:`rollout` would find under way; see :func:`examine`.

    Raises:
        DeploymentError: there is none of that name, or its module does not import.
    """
    deployments = Deployments(settings.home)
    wanted = deployments.get(name)
    return versions.examined(name, wanted.target, cwd=wanted.cwd, environment=deployments.environment(name), how=how)


def _meant(
    target: str, name: str | None, environment: Mapping[str, str] | None
) -> tuple[str, str, str, dict[str, str]]:
    """Name, target, working directory and environment of a deployment that is made from here."""
    if target.endswith(".py"):
        target = str(Path(target).expanduser().absolute())
    name = check_name(name or (Path(target).stem if target.endswith(".py") else target.rpartition(".")[2]))
    inherited = os.environ if environment is None else environment
    return name, target, str(Path.cwd()), {k: v for k, v in inherited.items() if k not in _NOT_INHERITED}


def rollout(
    settings: Settings,
    name: str,
    *,
    command: Sequence[str] | None = None,
    timeout_s: float = START_S,
    watch: Watcher | None = None,
    how: versions.Replacing = _FORCE,
) -> Deployment:
    """Replace the workers of a deployment one at a time, with the code as it is now, in the environment it has.

    Args:
        command, how: as for :func:`deploy`.

    Raises:
        DeploymentError: there is none of that name, its module no longer imports, what is under way
            would not go on with it, or new workers don't start; the
            old ones keep running.
    """
    deployments = Deployments(settings.home)
    before = deployments.get(name)
    environment = deployments.environment(name)
    with ExitStack() as standing:
        found = versions.checked(
            settings, name, before.target, cwd=before.cwd, environment=environment, how=how, standing=standing
        )
        with deployments.changing():
            before = deployments.get(name)
            wanted = before.model_copy(
                update={
                    "version": found.version,
                    "agents": found.agents,
                    "generation": before.issued + 1,
                    "issued": before.issued + 1,
                    "command": list(command or worker_command()),
                    "drain_timeout_s": settings.drain_timeout_s,
                }
            )
            conflict = deployments.conflict(wanted)
            if conflict is not None:
                raise conflict
            deployments.write(wanted)
        try:
            _settle(deployments, wanted, timeout_s, watch)
        except DeploymentError as error:
            raise _take_back(settings, wanted, before, environment, found.cards_before, error) from None
    return wanted


def scale(
    settings: Settings, name: str, workers: int, *, timeout_s: float = START_S, watch: Watcher | None = None
) -> Deployment:
    """Have *workers* workers; 0 pauses the deployment, its messages wait.

    Raises:
        DeploymentError: there is none of that name, or new workers don't start.
    """
    deployments = Deployments(settings.home)
    with deployments.changing():
        wanted = deployments.get(name).model_copy(update={"workers": workers})
        deployments.write(wanted)
    _settle(deployments, wanted, timeout_s, watch)
    return wanted


def undeploy(settings: Settings, name: str, *, watch: Watcher | None = None) -> list[str]:
    """Drain the workers of a deployment, remove it from this machine, and take back its agents' cards; topics stay.

    Where this machine has no deployment of that name, only cards that one left behind are taken back: it may have
    ended while the cluster did not answer.

    Returns:
        The names of its agents.

    Raises:
        DeploymentError: there is none of that name, or its workers don't go.
        BrokerError: it is removed from this machine, but the cluster does not answer.
    """
    deployments = Deployments(settings.home)
    wanted: Deployment | None = None
    if name in deployments.names():
        with deployments.changing():
            wanted = deployments.get(name).model_copy(update={"removed": True})
            deployments.write(wanted)
        _await_removal(deployments, wanted, watch)
    try:
        retired = _retire(settings, name)
    except BrokerError as error:
        if wanted is None:
            deployments.get(name)
            raise
        raise BrokerError(
            f"{name} is removed from this machine, but its agents' cards can't be taken back: {error.what}",
            kept="its topics, with all that is in them; and the cards, which keep the agents' names taken",
            fix=f"`llmagentos undeploy {name}` again, when the cluster answers",
        ) from error
    if wanted is None:
        if not retired:
            deployments.get(name)
        return retired
    return [agent.name for agent in wanted.agents]


def _retire(settings: Settings, name: str) -> list[str]:
    from llmagentos.agents.provision import retire  # brings Kafka's client, which waiting needs not

    return retire(settings, name)


def _last_generation(deployments: Deployments, name: str) -> int:
    """Of workers that are still leaving while their deployment is made anew."""
    return max((worker.generation for worker in deployments.workers(name)), default=0)


def _settle(deployments: Deployments, wanted: Deployment, timeout_s: float, watch: Watcher | None) -> None:
    """Wait until just the workers that are wanted run.

    Raises:
        DeploymentError: one of them can't start, or the time is over.
    """
    ensure_supervisor(deployments.home)
    progress_at = time.monotonic()
    shape: object = None
    while True:
        now_wanted = deployments.find(wanted.name)
        if now_wanted is None or now_wanted.removed or now_wanted.generation != wanted.generation:
            raise DeploymentError(
                f"{wanted.name} was deployed or undeployed by another command meanwhile", fix="see `llmagentos ps`"
            )
        workers = deployments.workers(wanted.name)
        if watch is not None:
            watch(now_wanted, workers)
        new = [worker for worker in workers if worker.generation == wanted.generation]
        for worker in new:
            if worker.state == "failed" or (worker.state == "waiting" and worker.crashes >= CRASHES):
                raise DeploymentError(
                    f"worker {worker.index} of {wanted.name} can't start: {worker.reason}",
                    fix="mend the cause and deploy again",
                    kept=_kept(workers, wanted),
                )
        running = sum(worker.state == "running" for worker in new)
        if running == len(workers) == now_wanted.workers:
            return
        if (seen := [(worker.index, worker.generation, worker.state) for worker in workers]) != shape:
            shape, progress_at = seen, time.monotonic()
        if time.monotonic() - progress_at > timeout_s:
            raise DeploymentError(
                f"{wanted.name}: nothing changed for {timeout_s:g} s, with {running} of {now_wanted.workers} "
                f"workers running" + _last_words(deployments, wanted, workers),
                fix="see `llmagentos doctor` for the cluster, or give a longer --timeout",
                kept=_kept(workers, wanted),
            )
        time.sleep(_LOOK_S)
        if deployments.supervisor() is None:
            ensure_supervisor(deployments.home)


def _kept(workers: list[WorkerRecord], wanted: Deployment) -> str:
    old = sum(w.process is not None and w.generation != wanted.generation for w in workers)
    if old:
        return f"{old} worker{'s' if old > 1 else ''} of the version before keep{'' if old > 1 else 's'} running"
    return "its messages wait in their topics"


def _last_words(deployments: Deployments, wanted: Deployment, workers: list[WorkerRecord]) -> str:
    """What the first worker that holds things up said last."""
    for worker in workers:
        if worker.state != "running" or worker.generation != wanted.generation:
            said = "\n".join(line.text for line in last_lines(deployments, [wanted.name], 10, worker.index))
            return f"; worker {worker.index} is {worker.state}, and said last:\n{said}"
    return ""


def _take_back(
    settings: Settings,
    wanted: Deployment,
    before: Deployment | None,
    environment: Mapping[str, str],
    cards: Sequence[Card],
    error: DeploymentError,
) -> DeploymentError:
    """Want again what was wanted before a deployment that failed; returns the error to raise."""
    deployments = Deployments(settings.home)
    with deployments.changing():
        now = deployments.find(wanted.name)
        if now is None or now.removed or now.generation != wanted.generation:
            return error  # another command has it
        back = before or wanted.model_copy(update={"removed": True})
        deployments.write(back.model_copy(update={"issued": wanted.issued}), environment if before else None)
    if before is None:
        _await_removal(deployments, wanted, None)
    else:
        ensure_supervisor(deployments.home)
    from llmagentos.agents.provision import put_back  # brings Kafka's client, which waiting needs not

    with suppress(BrokerError):  # the error that is on its way says more
        put_back(settings, wanted.name, cards if before is not None else ())
    return error


def _await_removal(deployments: Deployments, wanted: Deployment, watch: Watcher | None) -> None:
    ensure_supervisor(deployments.home)
    # The supervisor kills a worker that has not drained by then; the rest is the machine's slowness.
    deadline = time.monotonic() + wanted.drain_timeout_s + START_S
    while (now := deployments.find(wanted.name)) is not None and now.removed:
        if watch is not None:
            watch(now, deployments.workers(wanted.name))
        if time.monotonic() > deadline:
            raise DeploymentError(
                f"the workers of {wanted.name} did not leave",
                fix=f"see {deployments.folder / 'supervisor.log'}",
                kept="they are still told to",
            )
        time.sleep(_LOOK_S)
        if deployments.supervisor() is None and deployments.find(wanted.name) is not None:
            ensure_supervisor(deployments.home)
