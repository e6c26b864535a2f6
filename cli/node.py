"""`llmagentos up`, `down`, `status`, `doctor`: the local Kafka and Redis."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llmagentos.cli.output import Output, OutputOption

if TYPE_CHECKING:
    from llmagentos.streams.node import Node
    from llmagentos.streams.node.jars import Progress

_DATA = typer.Option(None, "--data", metavar="DIR", help="Data folder; otherwise LLMAGENTOS_HOME or the user's own.")


def register(app: typer.Typer) -> None:
    """Add the node's commands."""

    @app.command()
    def up(  # pyright: ignore[reportUnusedFunction]
        nodes: int | None = typer.Option(None, "--nodes", help="Brokers: 1 or 3. Fixed at the first start."),
        data: Path | None = _DATA,
        port: int | None = typer.Option(None, "--port", min=1, max=65535, help="Kafka's port; otherwise a free one."),
        output: Output = OutputOption,
    ) -> None:
        """Start a real Kafka and Redis on this machine, or what of them is dead.

        Both listen on 127.0.0.1 only, keep everything in the data folder, and go on until `llmagentos down`.
        The first start fetches Kafka's jars (45 MB). Running it again changes nothing.

        Examples:

            llmagentos up

            llmagentos up --port 9092

            llmagentos up --nodes 3 --data /tmp/three
        """
        node = _node(data)
        with _progress() as progress:
            status = node.up(nodes, port=port, progress=progress)
        from llmagentos.cli.output import errors

        _print(status, output)
        if data is not None:
            errors.print(f"[dim]for other commands:[/] export LLMAGENTOS_HOME={node.home}")

    @app.command()
    def down(data: Path | None = _DATA) -> None:  # pyright: ignore[reportUnusedFunction]
        """Stop the local Kafka and Redis. Their data stays, and workers wait until it is up again.

        Example:

            llmagentos down
        """
        from llmagentos.agents.deployment import running_deployments
        from llmagentos.cli.output import errors

        node = _node(data)
        with _progress() as progress:
            ran = node.down(progress)
        errors.print("stopped; the data stays" if ran else "nothing ran")
        if waiting := running_deployments(node.home):
            errors.print(
                f"workers of {', '.join(waiting)} still run, and go on when the node is up again; "
                "to end them, `llmagentos up` and then `llmagentos undeploy --all`"
            )

    @app.command()
    def status(data: Path | None = _DATA, output: Output = OutputOption) -> None:  # pyright: ignore[reportUnusedFunction]
        """Show what of the local node runs. Exit status 1 unless all of it does.

        Examples:

            llmagentos status

            llmagentos status --output json
        """
        found = _node(data).status()
        _print(found, output)
        raise typer.Exit(0 if found.state == "running" else 1)

    @app.command()
    def doctor(data: Path | None = _DATA, output: Output = OutputOption) -> None:  # pyright: ignore[reportUnusedFunction]
        """Look at everything that is needed to run, and say what to do where something is wrong.

        Exit status 1 where there is a problem.

        Examples:

            llmagentos doctor

            llmagentos doctor --output json
        """
        from dataclasses import asdict

        from llmagentos.cli.output import console, print_json
        from llmagentos.streams.node.doctor import examine
        from llmagentos.streams.settings import Settings

        marks = {"ok": "[green]ok     [/]", "note": "[yellow]note   [/]", "problem": "[bold red]problem[/]"}
        found: list[dict[str, Any]] = []
        for check in examine(Settings.load(home=data)):
            found.append(asdict(check))
            if output is Output.pretty:
                console.print(f"{marks[check.state]} {check.name:12}", end="")
                console.print(check.found, markup=False, soft_wrap=True)
                if check.fix:
                    console.print(f"{'':21}[bold]fix:[/] ", end="")
                    console.print(check.fix, markup=False, soft_wrap=True)
        if output is Output.json:
            print_json(found)
        raise typer.Exit(1 if any(check["state"] == "problem" for check in found) else 0)


def _node(data: Path | None) -> Node:
    from llmagentos.streams.node import Node
    from llmagentos.streams.settings import Settings

    return Node(Settings.load(home=data))


def _print(status: Any, output: Output) -> None:
    from dataclasses import asdict

    from llmagentos.cli.output import console, print_json, print_rows

    if output is Output.json:
        print_json(asdict(status))
        return
    console.print(f"[bold]{status.state}[/], data in {status.home}", soft_wrap=True)
    rows = [
        {
            "part": part.name,
            "state": "runs" if part.answers else part.trouble,
            "address": f"127.0.0.1:{part.port}",
            "pid": part.pid,
            "memory": "" if part.rss_mb is None else f"{part.rss_mb:.0f} MiB",
            "up": "" if part.up_s is None else _duration(part.up_s),
        }
        for part in status.parts
    ]
    print_rows(rows, ["part", "state", "address", "pid", "memory", "up"], empty="never started: `llmagentos up`")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextmanager
def _progress() -> Generator[Progress]:
    """A spinner with the current step, a bar while bytes come; plain lines where stderr is no terminal."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    from llmagentos.cli.output import errors

    if not errors.is_terminal:
        last = ""

        def line(what: str, done: int, total: int) -> None:
            nonlocal last
            if what != last:
                errors.print(what, markup=False, soft_wrap=True)
            last = what

        yield line
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
    with Progress(*columns, console=errors, transient=True) as bars:
        step = bars.add_task("looking", total=None)

        def show(what: str, done: int, total: int) -> None:
            text = f"{what}: {done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else what
            bars.update(step, description=text, total=total or None, completed=done)

        yield show
