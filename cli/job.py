"""`llmagentos job`: Spark jobs over the topics."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llmagentos.cli.output import Output, OutputOption

if TYPE_CHECKING:
    from llmagentos.jobs.runs import Run
    from llmagentos.jobs.spark import Progress

__all__ = ["register"]

_COLOUR_OF_STATUS = {"done": "green", "running": "yellow", "failed": "red", "died": "red"}


def register(app: typer.Typer) -> None:
    """Add `job` and its commands."""
    job = typer.Typer(help="Run Spark jobs over the topics, and see what they did.", no_args_is_help=True)
    run = typer.Typer(help="Run a job.", no_args_is_help=True)
    run.command()(analytics)
    job.add_typer(run, name="run")
    job.command("list")(list_jobs)
    job.command()(status)
    app.add_typer(job, name="job")


def analytics(
    since: str | None = typer.Option(None, "--since", help="Only from here: -2h, 2026-11-20, 2026-11-20T08:30Z."),
    until: str | None = typer.Option(None, "--until", help="Only up to here, in the same forms."),
    out: Path | None = typer.Option(None, "--out", metavar="DIR", help="For results; otherwise in the data folder."),
    master: str = typer.Option("local[*]", "--master", help="A Spark master: local[2], spark://HOST:7077, yarn."),
    allow_loss: bool = typer.Option(False, "--allow-loss", help="Go on where offsets were deleted before being read."),
    output: Output = OutputOption,
) -> None:
    """What the agents did: traffic, latency, tokens and cost, errors, slowest conversations.

    Leaves Parquet tables and one HTML report. Each run reads only what is new, and counts over all that was read so
    far; with --since or --until it reads just that window, by the timestamps of the Kafka records.

    Examples:

        llmagentos job run analytics

        llmagentos job run analytics --since -24h --out /tmp/yesterday

        llmagentos job run analytics --output json
    """
    from llmagentos.jobs import analytics as job
    from llmagentos.streams.settings import Settings

    settings = Settings.load()
    since_ms, until_ms = _time(since, "--since"), _time(until, "--until")
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        raise typer.BadParameter("the window ends before it begins", param_hint="--until")
    with _progress(output) as progress:
        run = job.run(
            settings,
            since_ms=since_ms,
            until_ms=until_ms,
            out=out,
            master=master,
            allow_loss=allow_loss,
            progress=progress,
        )
    _print_run(run, output)


def list_jobs(output: Output = OutputOption) -> None:
    """The jobs there are.

    Example:

        llmagentos job list
    """
    from llmagentos.cli.output import print_rows
    from llmagentos.jobs.runs import JOBS

    print_rows([{"job": name, "does": does} for name, does in JOBS.items()], ("job", "does"), output=output)


def status(
    limit: int = typer.Option(20, "--limit", "-n", min=1, max=10_000, help="How many runs, newest first."),
    output: Output = OutputOption,
) -> None:
    """The last runs of jobs: how each ended, how much it read, how long it took.

    Examples:

        llmagentos job status

        llmagentos job status -n 1 --output json
    """
    from llmagentos.cli.output import console, print_json, print_rows
    from llmagentos.jobs.runs import runs
    from llmagentos.streams.settings import Settings

    found = runs(Settings.load(), limit)
    if output is Output.json:
        print_json([run.model_dump(mode="json") for run in found])
        return
    rows = [
        {
            "started": f"{run.started_at.astimezone():%Y-%m-%d %H:%M:%S}",
            "job": run.job,
            "status": f"[{_COLOUR_OF_STATUS[run.status]}]{run.status}[/]",
            "rows": run.rows,
            "undecodable": run.undecodable,
            "seconds": round(run.seconds, 1),
            "error": run.error.replace("[", r"\["),
        }
        for run in found
    ]
    columns = ("started", "job", "status", "rows", "undecodable", "seconds", "error")
    print_rows(rows, columns, empty="no job has run yet: `llmagentos job run analytics`")
    newest = next((run.report for run in found if run.report), "")
    if newest:
        console.print("newest report ", end="")
        console.print(newest, markup=False, soft_wrap=True)


def _time(text: str | None, option: str) -> int | None:
    """Milliseconds since the epoch; None for no bound."""
    import time

    from llmagentos.streams.errors import InputError
    from llmagentos.streams.position import Position

    if text is None:
        return None
    position = Position.parse(text, option)
    if position.kind == "offset":
        raise InputError(
            f"{option} {text!r} is an offset, and a window goes over many partitions",
            fix="give a time: -2h, 2026-11-20, 2026-11-20T08:30Z",
        )
    if position.kind == "time":
        return position.value
    return None if (position.kind == "beginning") == (option == "--since") else time.time_ns() // 1_000_000


def _print_run(run: Run, output: Output) -> None:
    from llmagentos.cli.output import console, errors, print_json
    from llmagentos.jobs.report import duration, size

    if output is Output.json:
        print_json(run.model_dump(mode="json"))
        return
    found = run.summary
    if not found["messages"]:
        errors.print("no messages" + (" in this window" if run.parameters["since"] or run.parameters["until"] else ""))
    rows: list[tuple[str, str]] = [
        ("read in this run", f"{run.rows:,} records in {duration(run.seconds * 1000)}"),
        ("messages", f"{found['messages']:,} ({size(found['bytes'])})"),
        ("conversations", f"{found['conversations']:,}"),
        ("sent more than once", f"{found['repeated']:,}"),
        ("undecodable", f"{run.undecodable:,}" + (", kept aside in the job's store" if run.undecodable else "")),
    ]
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="left")
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    if run.lost:
        errors.print("[yellow]gone before they were read:[/] offsets in " + ", ".join(run.lost), soft_wrap=True)
    console.print("report ", end="")
    console.print(run.report, markup=False, soft_wrap=True)


@contextmanager
def _progress(output: Output) -> Generator[Progress | None]:
    """A bar on stderr while jars load and Spark works; none where nobody looks."""
    from llmagentos.cli.output import errors

    if output is Output.json or not errors.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns: list[Any] = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
    with Bars(*columns, console=errors, transient=True) as bars:
        task = bars.add_task("starting Spark", total=None)

        def report(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total or None)

        yield report
