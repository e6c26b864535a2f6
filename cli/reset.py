"""`llmagentos reset`: run a deployment's history again, on purpose."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from llmagentos.cli.output import Output, OutputOption

if TYPE_CHECKING:
    from llmagentos.agents.resetting import Reset
    from llmagentos.streams.reset import Move

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(reset)


def reset(
    deployment: str = typer.Argument(..., help="Its name."),
    to: str = typer.Option(
        ..., help="-1h, 2026-11-21T08:30, beginning, end, an offset for all partitions, or 0:1200,3:980."
    ),
    agent: list[str] = typer.Option([], "--agent", "-a", help="Only this one of it; may be repeated."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would happen, and change nothing."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Don't ask."),
    timeout: float = typer.Option(120.0, min=1, help="Seconds without any change after which to give up."),
    output: Output = OutputOption,
) -> None:
    """Run history again from an earlier place, or leave messages out up to a later one.

    Handlers run again for messages that they have handled, past dedup. Workers of this machine leave first, and as many
    start afterwards; on other machines there must be none. Without --yes it says what will happen, and asks.

    Examples:

        llmagentos reset hello --to -1h --dry-run

        llmagentos reset hello --to 2026-11-21T08:30

        llmagentos reset shop --agent refunds --to 0:1200,3:980 --yes
    """
    from llmagentos.agents.resetting import Reset
    from llmagentos.cli.deploy import watching
    from llmagentos.cli.output import console, errors, print_json
    from llmagentos.streams.errors import InputError
    from llmagentos.streams.settings import Settings

    settings = Settings.load()
    with watching(f"looking at what {deployment} has handled", output):
        planned = Reset(settings, deployment, to, agent)
    asked = output is Output.pretty and not yes and not dry_run
    if not dry_run and not yes and (not asked or not sys.stdin.isatty()):
        raise InputError("nobody is here to confirm a reset", fix="see what it does with --dry-run, then give --yes")
    if output is Output.pretty:
        _print(planned)
    changes = any(move.changes for move in planned.moves)
    if dry_run or not changes:
        if output is Output.json:
            print_json(_record(planned, done=False))
        elif not changes:
            errors.print("nothing to do: it is there already")
        return
    if asked and not typer.confirm(f"reset {deployment}?", err=True):
        errors.print("nothing was changed")
        raise typer.Exit(1)
    with watching(f"resetting {deployment}", output) as (_, watch):
        planned.run(timeout_s=timeout, watch=watch)
    if output is Output.json:
        print_json(_record(planned, done=True))
    else:
        state = (
            f"{planned.workers} worker{'s' * (planned.workers != 1)} run" if planned.workers else "no worker runs yet"
        )
        console.print(f"reset [bold]{deployment}[/]; {state}")


def _record(planned: Reset, *, done: bool) -> dict[str, Any]:
    return {
        "deployment": planned.deployment,
        "done": done,
        "workers": planned.workers,
        "partitions": [asdict(move) for move in planned.moves],
    }


def _print(planned: Reset) -> None:
    """What will happen, as things stand."""
    from llmagentos.cli.output import console, print_rows

    print_rows(
        [
            {
                "agent": move.agent,
                "partition": move.partition,
                "committed": move.committed,
                "to": move.to,
                "run again": move.again or None,
                "left out": move.left_out or None,
                "parked": move.parked or None,
                "held": move.held or None,
            }
            for move in planned.moves
            if move.changes
        ],
        ("agent", "partition", "committed", "to", "run again", "left out", "parked", "held"),
    )
    for line in _consequences(planned.moves, planned.workers):
        console.print(line, soft_wrap=True)


def _consequences(moves: Iterable[Move], workers: int) -> list[str]:
    moves = list(moves)
    again, left_out = sum(move.again for move in moves), sum(move.left_out for move in moves)
    parked, held = sum(move.parked for move in moves), sum(move.held for move in moves)
    waiting = sum(move.waiting for move in moves)
    said: list[str] = []
    if workers:
        said.append(
            f"{workers} worker{'s' * (workers != 1)} of this machine leave first and start again afterwards. What they"
            " finish until then runs again too, where it lies behind the new offset."
        )
    if again:
        said.append(
            f"Handlers run again for {again:,} messages that they have handled: what these do outside of Kafka is done"
            " twice, and replies are sent again. What they send has the same ids as before, so that agents drop what"
            " they remember of it. A message whose deadline has passed becomes a dead letter."
        )
    if left_out:
        said.append(f"[bold]{left_out:,} messages that nobody has handled will not be.[/] They stay in their topics.")
    if parked or held:
        said.append(
            f"{parked:,} parked and {held:,} held messages wait no more: they come from the inbox again, in order."
        )
    if waiting:
        said.append(f"{waiting:,} parked or held messages before the new offsets go on waiting.")
    return said
