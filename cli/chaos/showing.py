"""A run with its progress on the terminal."""

from __future__ import annotations

import threading
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from llmagentos.cli.chaos.faults import Fired
from llmagentos.cli.chaos.run import Outcome, Progress, run
from llmagentos.cli.chaos.scenarios import Scenario
from llmagentos.cli.output import errors

__all__ = ["shown"]

#: Between two updates of the bar.
LOOK_S = 0.25


def shown(scenario: Scenario, seed: int, *, chain: Path | None, keep: Path | None) -> Outcome:
    """Run *scenario* with a bar of its effects on stderr, and a line for each fault."""
    progress = Progress()
    columns = (
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("[bold]{task.description}[/] {task.fields[doing]}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    over = threading.Event()
    with Bars(*columns, console=errors) as bars:
        task = bars.add_task(scenario.name, total=None, doing="")

        def told(fired: Fired) -> None:
            bars.print(f"  [dim]{fired.name}: {fired.detail}[/]", soft_wrap=True)

        def follow() -> None:
            while not over.wait(LOOK_S):
                bars.update(task, doing=progress.doing, total=progress.total or None, completed=progress.effects)

        follower = threading.Thread(target=follow, name="progress", daemon=True)
        follower.start()
        try:
            return run(scenario, seed, progress=progress, told=told, chain=chain, keep=keep)
        finally:
            over.set()
            follower.join()
