"""`llmagentos logs`: what the workers of this machine print."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from llmagentos.cli.output import Output, OutputOption

if TYPE_CHECKING:
    from llmagentos.agents.logs import Line, Places

__all__ = ["register"]

#: Told apart at a glance, on dark and light backgrounds; a worker keeps its colour while its index stays.
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


def register(app: typer.Typer) -> None:
    """Add `logs`."""
    app.command()(logs)


def logs(
    deployment: str | None = typer.Argument(None, help="By default all."),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on with what is printed, until Ctrl-C."),
    worker: int | None = typer.Option(None, "--worker", "-w", min=0, help="Only this one."),
    lines: int = typer.Option(50, "--lines", "-l", min=0, help="Of each worker, from the end."),
    output: Output = OutputOption,
) -> None:
    """Show what workers print, merged by time.

    Examples:

        llmagentos logs hello --lines 200

        llmagentos logs -f

        llmagentos logs hello --worker 1 --output json
    """
    from llmagentos.agents.deployment import Deployments
    from llmagentos.agents.logs import follow as follow_logs
    from llmagentos.agents.logs import last_lines
    from llmagentos.cli.output import errors
    from llmagentos.streams.settings import Settings

    deployments = Deployments(Settings.load().home)
    if deployment is not None:
        deployments.get(deployment)

    def names() -> list[str]:
        return [name for name in deployments.names() if deployment in (None, name)]

    if not names():
        errors.print(f"nothing is deployed in {deployments.home}")
        return
    show = _print_line_json if output is Output.json else _log_printer()
    places: Places | None = {} if follow else None
    for line in last_lines(deployments, names(), lines, worker, places=places):
        show(line)
    if not follow:
        return
    for line in follow_logs(deployments, names, worker, places=places):
        if line is not None:
            show(line)
        else:
            sys.stdout.flush()
    errors.print(f"{deployment or 'everything'} is undeployed")


def _log_printer() -> Callable[[Line], Any]:
    """Prints lines behind `deployment/worker |`, the workers told apart by colour."""
    from rich.text import Text

    from llmagentos.cli.output import console

    width = 0

    def show(line: Line) -> None:
        nonlocal width
        label = f"{line.deployment}/{line.worker}"
        width = max(width, len(label))
        text = Text.assemble(
            (f"{label:<{width}} │ ", _COLOURS[line.worker % len(_COLOURS)]),
            line.text,
        )
        console.print(text, soft_wrap=True)

    return show


def _print_line_json(line: Line) -> None:
    import orjson

    record = {"deployment": line.deployment, "worker": line.worker, "text": line.text}
    sys.stdout.write(orjson.dumps(record).decode() + "\n")
