"""The command `llmagentos demo`."""

from __future__ import annotations

from pathlib import Path

import typer

from llmagentos.cli.output import Output, OutputOption

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def demo(
        folder: Path = typer.Argument(None, help="Python source to survey; default: this Python's standard library."),
        workers: int = typer.Option(2, min=2, max=16, help="Workers; one of them is killed."),
        out: Path = typer.Option(Path("out/demo"), help="Folder for the report of the Spark job."),
        report: bool = typer.Option(True, help="Run the Spark job at the end."),
        keep: bool = typer.Option(False, help="Leave node, topics and ledger as they are, and say where."),
        output: Output = OutputOption,
    ) -> None:
        """Survey a folder of source code with three agents, kill a worker meanwhile, and count what came of it.

        Starts a Kafka and a Redis of its own (or uses LLMAGENTOS_BROKERS), and removes them at the end. Exits with 1
        where a message was lost, handled out of order or the survey differs from one made by a single loop, and
        where the kill redelivered nothing.

        Examples:

            llmagentos demo

            llmagentos demo ~/src/project --workers 3 --no-report
        """
        from llmagentos.cli.demo.run import run

        if not run(folder, workers=workers, out=out if report else None, keep=keep, output=output):
            raise typer.Exit(1)
