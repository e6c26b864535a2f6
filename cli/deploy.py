"""Deployments on this machine: deploy, ps, scale, rollout, undeploy, supervise."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from llmagentos.cli import versions
from llmagentos.cli.output import Output, OutputOption

if TYPE_CHECKING:
    from llmagentos.agents.deploying import Watcher
    from llmagentos.agents.deployment import Deployment, WorkerRecord
    from llmagentos.agents.listing import Listed, ListedWorker
    from llmagentos.streams.settings import Settings

__all__ = ["FaultOption", "environment_with", "register", "watching"]

FaultOption: list[str] = typer.Option(
    (),
    "--fault",
    metavar="KIND=RATE",
    help="Do this to its messages, on purpose: fail=0.01, delay=0.1:250ms, duplicate=0.01, reply-lost=0.01; seed=7.",
)

_COLOUR_OF_STATE = {
    "running": "green",
    "starting": "yellow",
    "draining": "yellow",
    "leaving": "yellow",
    "rolling out": "yellow",
    "waiting": "red",
    "failed": "red",
    "degraded": "red",
    "gone": "red",
}


def register(app: typer.Typer) -> None:
    """Add the commands of deployments."""
    app.command()(deploy)
    app.command()(ps)
    app.command()(scale)
    app.command()(rollout)
    app.command()(undeploy)
    app.command()(supervise)


def deploy(
    target: str = typer.Argument(..., metavar="MODULE_OR_FILE", help="A Python file, or a dotted name."),
    name: str | None = typer.Option(None, "--name", "-n", help="Of the deployment; by default the module's."),
    workers: int | None = typer.Option(
        None, "--workers", "-w", min=1, max=1_000, help="Processes; by default as many as it has, or one."
    ),
    timeout: float = typer.Option(120.0, min=1, help="Seconds without any change after which to give up."),
    fault: list[str] = FaultOption,
    check: bool = versions.CheckOption,
    hold: bool = versions.HoldOption,
    drain: bool = versions.DrainOption,
    force: bool = versions.ForceOption,
    drain_timeout: float = versions.DrainTimeoutOption,
    output: Output = OutputOption,
) -> None:
    """Run the agents of a module, or roll out its present code.

    The module is imported on trial first: one that fails leaves what is deployed as it is. Workers get the environment
    and working directory of this command. Where it is deployed already, its workers are replaced one at a time.

    Messages under way are rehearsed with the new code first: their handlers run with what is recorded, and stop at the
    first step that isn't. Where one takes another way than its record, or raises, or its agent is gone, nothing is
    deployed and the exit status is 1, unless --hold, --drain or --force says what is to become of it.

    Examples:

        llmagentos deploy hello.py

        llmagentos deploy shop.agents --name shop --workers 4

        llmagentos deploy hello.py --fault fail=0.01 --fault delay=0.1:250ms

        llmagentos deploy shop.py --check

        llmagentos deploy shop.py --drain --drain-timeout 600
    """
    from llmagentos.agents import deploying
    from llmagentos.streams.settings import Settings

    asked = versions.Asked(check, hold, drain, force, drain_timeout, output)
    settings = Settings.load()
    environment = environment_with(fault, settings)
    with watching(f"importing {target}", output) as (say, watch):
        how = asked.how(say)
        if check:
            asked.end(deploying.examine(settings, target, name=name, environment=environment, how=how))
        done = deploying.deploy(
            settings,
            target,
            name=name,
            workers=workers,
            environment=environment,
            timeout_s=timeout,
            checked=lambda found: say(f"starting {len(found.agents)} agent{'s' * (len(found.agents) != 1)}"),
            watch=watch,
            how=how,
        )
    _print_deployed(done, output, asked)
    _warn_of_idle(settings, done)


def ps(
    deployment: str | None = typer.Argument(None, help="Only this one."),
    output: Output = OutputOption,
) -> None:
    """List the deployments of this machine and their workers.

    State, process, restarts, time up, CPU (of one core), resident memory, and assigned partitions of each worker.

    Examples:

        llmagentos ps

        llmagentos ps hello --output json
    """
    from dataclasses import asdict

    from llmagentos.agents.deploying import ensure_supervisor
    from llmagentos.agents.deployment import Deployments
    from llmagentos.agents.listing import listing
    from llmagentos.cli.output import errors, print_json
    from llmagentos.streams.settings import Settings

    settings = Settings.load()
    deployments = Deployments(settings.home)
    if deployment is not None:
        deployments.get(deployment)
    if deployments.names() and deployments.supervisor() is None:
        ensure_supervisor(settings.home)
    listed = [one for one in listing(settings.home) if deployment in (None, one.deployment)]
    if output is Output.json:
        print_json([asdict(one) for one in listed])
    elif listed:
        _print_listed(listed)
    else:
        errors.print(f"nothing is deployed in {settings.home}; `llmagentos deploy FILE` deploys a module")


def scale(
    deployment: str = typer.Argument(..., help="Its name."),
    workers: int = typer.Argument(..., min=0, max=1_000, help="How many; 0 pauses, messages wait."),
    timeout: float = typer.Option(120.0, min=1, help="Seconds without any change after which to give up."),
    output: Output = OutputOption,
) -> None:
    """Have more or fewer workers. Those that leave finish what they have in hand.

    Examples:

        llmagentos scale hello 4
    """
    from llmagentos.agents import deploying
    from llmagentos.streams.settings import Settings

    settings = Settings.load()
    with watching(f"scaling {deployment}", output) as (_, watch):
        done = deploying.scale(settings, deployment, workers, timeout_s=timeout, watch=watch)
    _print_deployed(done, output)
    _warn_of_idle(settings, done)


def rollout(
    deployment: str = typer.Argument(..., help="Its name."),
    timeout: float = typer.Option(120.0, min=1, help="Seconds without any change after which to give up."),
    check: bool = versions.CheckOption,
    hold: bool = versions.HoldOption,
    drain: bool = versions.DrainOption,
    force: bool = versions.ForceOption,
    drain_timeout: float = versions.DrainTimeoutOption,
    output: Output = OutputOption,
) -> None:
    """Replace the workers one at a time, with the code as it is now.

    The new one starts before the old one leaves, which finishes what it has in hand. The environment stays that of the
    deployment; `llmagentos deploy` takes the present one. Messages under way are rehearsed first, as by `deploy`.

    Examples:

        llmagentos rollout hello

        llmagentos rollout hello --check --output json
    """
    from llmagentos.agents import deploying
    from llmagentos.streams.settings import Settings

    asked = versions.Asked(check, hold, drain, force, drain_timeout, output)
    settings = Settings.load()
    with watching(f"importing the module of {deployment}", output) as (say, watch):
        how = asked.how(say)
        if check:
            asked.end(deploying.examine_rollout(settings, deployment, how=how))
        done = deploying.rollout(settings, deployment, timeout_s=timeout, watch=watch, how=how)
    _print_deployed(done, output, asked)


def undeploy(
    deployment: str | None = typer.Argument(None, help="Its name."),
    everything: bool = typer.Option(False, "--all", help="All deployments of this machine."),
    output: Output = OutputOption,
) -> None:
    """Drain the workers of a deployment and remove it, with its logs. Its topics stay, with all that is in them.

    Examples:

        llmagentos undeploy hello

        llmagentos undeploy --all
    """
    from llmagentos.agents import deploying
    from llmagentos.agents.deployment import Deployments
    from llmagentos.cli.output import console, errors, print_error, print_json
    from llmagentos.streams.errors import LLMAgentOSError
    from llmagentos.streams.settings import Settings

    if everything == (deployment is not None):
        raise typer.BadParameter("give either the name of a deployment or --all")
    settings = Settings.load()
    names = Deployments(settings.home).names() if deployment is None else [deployment]
    removed: dict[str, list[str]] = {}
    failed: LLMAgentOSError | None = None
    for name in names:
        with watching(f"draining {name}", output) as (_, watch):
            try:
                removed[name] = deploying.undeploy(settings, name, watch=watch)
            except LLMAgentOSError as error:  # the others go all the same
                if failed is not None:
                    print_error(failed)
                failed = error
    if output is Output.json:
        print_json([{"deployment": name, "agents": agents} for name, agents in removed.items()])
    else:
        for name, agents in removed.items():
            console.print(
                f"undeployed [bold]{name}[/]; the topics of {_and(agents)} are kept, with all that is in them"
            )
    if failed is not None:
        raise failed
    if not removed and output is Output.pretty:
        errors.print(f"nothing is deployed in {settings.home}")


def supervise() -> None:
    """Supervise the deployments of this machine in the foreground, until Ctrl-C; the workers stay.

    Other commands start a supervisor in the background when they need one. This is for containers and for systemd.

    Examples:

        llmagentos supervise
    """
    import logging

    from llmagentos.agents.supervisor import Supervisor
    from llmagentos.streams.errors import DeploymentError
    from llmagentos.streams.settings import Settings

    settings = Settings.load()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s")
    if not Supervisor(settings.home, stay=True).run():
        raise DeploymentError(
            f"another supervisor has {settings.home}", fix="nothing: it does the same; or give another LLMAGENTOS_HOME"
        )


# -- what they print ---------------------------------------------------------------------------------------------


@contextmanager
def watching(what: str, output: Output = Output.pretty) -> Generator[tuple[Callable[[str], None], Watcher]]:
    """A line on stderr that says what is waited for, while it is; nothing where nobody looks."""
    from llmagentos.cli.output import errors

    with errors.status(what) if output is Output.pretty else _nothing() as status:

        def say(text: str) -> None:
            if status is not None:
                status.update(text)

        def watch(wanted: Deployment, workers: list[WorkerRecord]) -> None:
            say(_progress(wanted, workers))

        yield say, watch


@contextmanager
def _nothing() -> Generator[None]:
    yield


def _progress(wanted: Deployment, workers: list[WorkerRecord]) -> str:
    """`hello: 1 of 2 new workers running, 1 starting, 1 of the version before serving`"""
    new = [w for w in workers if w.generation == wanted.generation and w.state != "draining"]
    old = sum(w.generation != wanted.generation and w.state != "draining" for w in workers)
    parts = [f"{sum(w.state == 'running' for w in new)} of {wanted.workers} {'new ' * bool(old)}workers running"]
    if wanted.removed:
        parts = []
    for state, words in (("starting", "starting"), ("waiting", "crashed, to start again"), ("failed", "failed")):
        if count := sum(w.state == state for w in new):
            parts.append(f"{count} {words}")
    if old:
        parts.append(f"{old} of the version before serving")
    if count := sum(w.state == "draining" for w in workers):
        parts.append(f"{count} draining")
    return f"{wanted.name}: {', '.join(parts)}"


def environment_with(faults: list[str], settings: Settings) -> Mapping[str, str]:
    """The environment for workers: this process', with the faults that a person switches on, who is told so.

    Raises:
        SettingsError: they are no faults.
    """
    from rich.markup import escape

    from llmagentos.agents.faults import Plan
    from llmagentos.cli.output import errors

    plan = Plan.parse(",".join(faults) or settings.faults)
    if plan:
        errors.print(
            f"[bold red]faults are on[/]: {escape(plan.text)}; to switch them off, deploy again without --fault"
            " and LLMAGENTOS_FAULTS"
        )
    return os.environ | {"LLMAGENTOS_FAULTS": plan.text}


def _print_deployed(deployment: Deployment, output: Output, asked: versions.Asked | None = None) -> None:
    from llmagentos.cli.output import console, print_json, print_rows

    if output is Output.json:
        rehearsed = asked.as_json() if asked is not None else {}
        print_json(deployment.model_dump(exclude={"command", "issued", "removed", "owner"}) | rehearsed)
        return
    workers = deployment.workers
    state = f"runs with {workers} worker{'s' * (workers != 1)}" if workers else "is scaled to 0: its messages wait"
    console.print(f"[bold]{deployment.name}[/] {state}, version {deployment.version}")
    print_rows(
        [
            {
                "agent": agent.name,
                "reads": agent.topic,
                "what it does": agent.description.partition("\n")[0] or None,
            }
            for agent in deployment.agents
        ],
        ("agent", "reads", "what it does") if any(a.description for a in deployment.agents) else ("agent", "reads"),
    )


def _warn_of_idle(settings: Settings, deployment: Deployment) -> None:
    """A partition belongs to one worker, so more workers than partitions are idle."""
    if deployment.workers <= settings.partitions:  # each topic has as many, but foreign ones and those of old
        return
    from llmagentos.cli.output import errors
    from llmagentos.streams.admin import Admin
    from llmagentos.streams.errors import BrokerError

    try:
        topics = Admin(settings).topics()
    except BrokerError:  # it runs; the advice isn't worth an error
        return
    partitions = sum(topics[agent.topic].partitions for agent in deployment.agents if agent.topic in topics)
    if deployment.workers > partitions:
        errors.print(
            f"[yellow]only {partitions} of {deployment.workers} workers can have work:[/] the agents of"
            f" {deployment.name} read {partitions} partitions, and one is read by one worker at a time",
            soft_wrap=True,
        )


def _print_listed(listed: list[Listed]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from llmagentos.agents.listing import partitions
    from llmagentos.cli.output import console
    from llmagentos.streams.settings import Settings

    prefix = Settings.load().prefix
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("deployment", "worker", "state", "pid", "restarts", "up", "cpu", "memory", "assigned"):
        number = column in ("worker", "pid", "restarts", "up", "cpu", "memory")
        table.add_column(column, justify="right" if number else "left", no_wrap=column != "assigned", overflow="fold")
    for one in listed:
        for worker in one.workers:
            table.add_row(
                escape(one.deployment),
                str(worker.worker),
                _coloured(worker.state),
                *_figures(worker),
                escape(partitions(name.removeprefix(f"{prefix}agent.") for name in worker.assigned)),
            )
        if not one.workers:
            table.add_row(escape(one.deployment), "", _coloured(one.state))
    console.print(table)
    for one in listed:
        for worker in one.workers:
            for agent, why in worker.paused.items():
                console.print(
                    f"\n[bold]{escape(one.deployment)}[/] worker {worker.worker}: agent {escape(agent)} is paused, as"
                    f" most of its handlers fail by {escape(why)}; its messages wait"
                )
            if worker.reason:
                console.print(f"\n[bold]{escape(one.deployment)}[/] worker {worker.worker}: {escape(worker.reason)}")
            elif worker.version and worker.version != one.version and worker.state == "running":
                console.print(
                    f"\n[bold]{escape(one.deployment)}[/] worker {worker.worker} runs version {worker.version}, "
                    f"deployed was {one.version}: the source has changed; `llmagentos rollout {one.deployment}`"
                )


def _coloured(state: str) -> str:
    colour = _COLOUR_OF_STATE.get(state)
    return f"[{colour}]{state}[/]" if colour else state


def _figures(worker: ListedWorker) -> tuple[str, ...]:
    return (
        str(worker.pid or ""),
        str(worker.restarts),
        _duration(worker.uptime_s),
        "" if worker.cpu_percent is None else f"{worker.cpu_percent:.0f}%",
        "" if worker.memory_bytes is None else f"{worker.memory_bytes / 1e6:.0f} MB",
    )


def _duration(seconds: float | None) -> str:
    """42s, 3m, 5h, 12d"""
    if seconds is None:
        return ""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "its agents"
