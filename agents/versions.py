"""Other code for messages that are under way: look before it is deployed, and what is to become of those it breaks.

What is open is rehearsed with the new code first (:mod:`llmagentos.agents.rehearsing`). Where some of it would not go
on, a person has chosen: nothing is deployed; or they are parked by the new code (hold); or the code before finishes
them first, while new messages wait (drain); or nobody looks (force).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Literal

from llmagentos.agents.checking import Checked, check
from llmagentos.agents.deployment import Deployments, WorkerRecord
from llmagentos.agents.rehearsing import Rehearsal, rehearse_all
from llmagentos.agents.standing import stand_still
from llmagentos.streams.errors import DeploymentError
from llmagentos.streams.settings import Settings

__all__ = ["DRAIN_S", "Choice", "Replacing", "checked", "examined"]

Choice = Literal["refuse", "hold", "drain", "force"]

#: What the code before has to finish what is open: clients wait some minutes for an answer, and people for a command.
DRAIN_S: Final = 300.0
#: It is looked again whether that is so: each look imports the module.
LOOK_S: Final = 1.0
#: Workers look for what they are told twice a second.
STAND_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Replacing:
    """How code is replaced while messages are under way.

    Attributes:
        drain_s: with drain, how long the code before has.
        told: what the first look saw, where there was anything to see.
        progress: what is done meanwhile, for people.
    """

    choice: Choice = "force"
    drain_s: float = DRAIN_S
    told: Callable[[Rehearsal], None] = lambda rehearsal: None
    progress: Callable[[str], None] = lambda text: None


def checked(
    settings: Settings,
    name: str,
    target: str,
    *,
    cwd: str,
    environment: Mapping[str, str],
    how: Replacing,
    standing: ExitStack,
) -> Checked:
    """Import *target* and make its topics and cards, once what is under way may have its code.

    Args:
        standing: is to be closed when workers with the new code have taken over: until then, those before may be
            standing still.

    Raises:
        DeploymentError: as :func:`check`; or what is under way would not go on, or was not finished in time.
    """
    found = check(name, target, cwd=cwd, environment=environment, unless_open=how.choice != "force")
    if not found.open:
        return found
    rehearsal = _rehearsed(name, target, cwd, environment, how)
    how.told(rehearsal)
    if rehearsal.stopped and how.choice == "refuse":
        count, of = rehearsal.stopped, sum(work.open + work.inbox for work in rehearsal.agents)
        raise DeploymentError(
            f"{count:,} of {of:,} messages under way would not go on with the code as it is now",
            kept=f"nothing was deployed: {name} is as it was",
            fix=f"{_mended(rehearsal)}; or choose: --drain has the version before finish them first, --hold deploys,"
            " and they wait for mended code, --force deploys without a look",
        )
    if rehearsal.stopped and how.choice == "drain":
        _drain(Deployments(settings.home), name, how, rehearsal, standing, target, cwd, environment)
    return check(name, target, cwd=cwd, environment=environment)


def examined(name: str, target: str, *, cwd: str, environment: Mapping[str, str], how: Replacing) -> Rehearsal:
    """What would become of what is under way; nothing is changed.

    Raises:
        DeploymentError: the module does not import.
    """
    found = check(name, target, cwd=cwd, environment=environment, provision=False, unless_open=True)
    return _rehearsed(name, target, cwd, environment, how) if found.open else Rehearsal([])


def _rehearsed(name: str, target: str, cwd: str, environment: Mapping[str, str], how: Replacing) -> Rehearsal:
    def progress(done: int, total: int) -> None:
        how.progress(f"rehearsing what is under way: {done:,} of {total:,}")

    return rehearse_all(name, target, cwd=cwd, environment=environment, progress=progress)


def _drain(
    deployments: Deployments,
    name: str,
    how: Replacing,
    rehearsal: Rehearsal,
    standing: ExitStack,
    target: str,
    cwd: str,
    environment: Mapping[str, str],
) -> None:
    """Have the workers of the code before finish what the new code would not go on with."""
    if not _serving(deployments, name):
        raise DeploymentError(
            f"{name} has no running worker that could finish {rehearsal.stopped:,} messages first",
            kept=f"nothing was deployed: {name} is as it was",
            fix="have workers with the code before, or --hold in place of --drain",
        )
    standing.enter_context(stand_still(deployments.run_dir(name), [w.agent for w in rehearsal.agents if w.gone]))
    until = time.monotonic() + how.drain_s
    told_by = time.monotonic() + STAND_S
    while time.monotonic() < told_by and not all(
        report is None or report.standing
        for report in (deployments.report(name, worker) for worker in _serving(deployments, name))
    ):
        time.sleep(0.05)
    silent = Replacing()
    rehearsal = _rehearsed(name, target, cwd, environment, silent)
    while rehearsal.stopped:
        left = until - time.monotonic()
        where = ", ".join(f"{work.agent} {work.stopped:,}" for work in rehearsal.agents if work.stopped)
        if left <= 0:
            raise DeploymentError(
                f"{rehearsal.stopped:,} messages that the new code would not go on with are not finished after"
                f" {how.drain_s:g} s: {where}",
                kept=f"nothing was deployed: {name} goes on, with new messages too",
                fix=f"see what they wait for: `llmagentos waiting --agent {_worst(rehearsal)}`; then a longer"
                " --drain-timeout, or --hold",
            )
        how.progress(f"draining {name}: {where} to be finished, new messages wait, {left:.0f} s left")
        time.sleep(min(LOOK_S, left))
        rehearsal = _rehearsed(name, target, cwd, environment, silent)


def _mended(rehearsal: Rehearsal) -> str:
    """What would make the code fit what is under way."""
    ways = (
        (any(work.breaks for work in rehearsal.agents), "mark the change with ctx.version(name)"),
        (any(work.fails for work in rehearsal.agents), "mend what raises"),
        (any(work.gone for work in rehearsal.agents), "leave agents in the code until their work is done"),
    )
    return ", ".join(how for needed, how in ways if needed)


def _serving(deployments: Deployments, name: str) -> list[WorkerRecord]:
    return [
        worker
        for worker in deployments.workers(name)
        if worker.state == "running" and worker.process is not None and worker.process.alive()
    ]


def _worst(rehearsal: Rehearsal) -> str:
    return max(rehearsal.agents, key=lambda work: work.stopped).agent
