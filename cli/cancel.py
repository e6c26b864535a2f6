"""`llmagentos cancel`: end all that a conversation has caused and that is not finished."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import typer

from llmagentos.cli.journals import open_journals
from llmagentos.cli.output import Output, OutputOption

if TYPE_CHECKING:
    from llmagentos.streams.cancellation import Cancellation, Outcome, Unfinished
    from llmagentos.streams.settings import Settings

__all__ = ["register"]

#: How often the journals are looked at: smooth to the eye, and a few requests.
LOOK_S = 0.25
#: A handler that was told to end may have asked a moment before: so often what it caused is looked for again.
ROUNDS = 10

_STATES = {
    "new": "in its inbox",
    "open": "begun",
    "waiting": "suspended",
    "held": "held behind others",
    "parked": "a dead letter",
}
_OUTCOMES = {
    "cancelled": "cancelled",
    "completed": "was done before",
    "parked": "failed before: a dead letter",
    "ended": "ended before",
}


def _complete(incomplete: str) -> list[str]:
    from llmagentos.cli.waiting import complete_conversations

    return complete_conversations(incomplete)


def register(app: typer.Typer) -> None:
    """Add `cancel`."""
    app.command(
        epilog="\b\nExamples:\n  llmagentos cancel order-17\n"
        '  llmagentos cancel order-17 --why "ordered twice" --yes\n  llmagentos cancel order-17 --by ada --yes -o json'
    )(cancel)


def cancel(
    conversation: str = typer.Argument(..., metavar="CONVERSATION", help="Its id.", autocompletion=_complete),
    why: str = typer.Option("", "--why", metavar="TEXT", help="Kept with it, and told to whoever asked."),
    by: str | None = typer.Option(None, "--by", metavar="NAME", help="Who cancels. Default: the user of this machine."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Don't ask."),
    timeout: float = typer.Option(60.0, "--timeout", min=0.1, help="Seconds to wait for the handlers at most."),
    output: Output = OutputOption,
) -> None:
    """Cancel all unfinished work of a conversation's whole cause tree, over all agents, wherever it is.

    A handler that runs, or was suspended, gets a CancelledError where it waits, and cleans up; what had not begun is
    not run. Whoever asked is told by an error. Dead letters stay, for `llmagentos dead drop`. Messages that come later
    are handled as ever. Exit status 1 where something has not ended within --timeout; it is cancelled all the same, as
    soon as a worker runs its agent.
    """
    import asyncio

    from llmagentos.cli.dead import who
    from llmagentos.cli.output import errors
    from llmagentos.streams.cancellation import Cancellation
    from llmagentos.streams.errors import InputError

    name = who() if by is None else by.strip()
    if not name:
        raise InputError("--by is empty", fix="say who cancels, or leave it out")
    with (
        open_journals() as (settings, decoder, log, served),
        closing(Cancellation(settings, decoder, served, log, conversation)) as cancellation,
    ):
        found = cancellation.found
        parked = [each for each in found if each.state == "parked"]
        wanted = [each for each in found if each.state != "parked"]
        if wanted and not yes:
            _confirm(cancellation.root, found)
        outcomes = asyncio.run(_carry_out(settings, cancellation, wanted, name, why, timeout))
    _print(conversation, cancellation.root, outcomes, parked, output)
    if any(outcome is None for outcome in outcomes.values()):
        errors.print(
            "what has not ended is to be cancelled all the same: its handler still cleans up, or no worker runs its"
            " agent (`llmagentos ps`)",
            soft_wrap=True,
        )
        raise typer.Exit(1)


async def _carry_out(
    settings: Settings, cancellation: Cancellation, found: Sequence[Unfinished], by: str, why: str, timeout_s: float
) -> dict[Unfinished, Outcome | None]:
    """Say it to all, and wait until they have ended; and again to what they caused meanwhile."""
    import asyncio

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from llmagentos.cli.output import errors
    from llmagentos.streams.producer import Producer

    until = time.monotonic() + timeout_s
    outcomes: dict[Unfinished, Outcome | None] = {}
    columns = (TextColumn("cancelling"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bars:
        bar = bars.add_task("cancelling", total=len(found))
        async with Producer(settings, cancellation.codec) as producer:
            for _ in range(ROUNDS):
                for each in found:
                    await cancellation.cancel(producer, each, by=by, why=why)
                    outcomes[each] = None
                bars.update(bar, total=len(outcomes))
                while left := [each for each, outcome in outcomes.items() if outcome is None]:
                    outcomes |= await asyncio.to_thread(cancellation.outcomes, left)
                    bars.update(bar, completed=sum(outcome is not None for outcome in outcomes.values()))
                    if None not in outcomes.values() or time.monotonic() > until:
                        break
                    await asyncio.sleep(LOOK_S)
                known = {(each.place, each.offset) for each in outcomes}
                now = await asyncio.to_thread(cancellation.unfinished)
                found = [e for e in now if e.state != "parked" and (e.place, e.offset) not in known]
                if not found:
                    break
    return outcomes


def _confirm(root: str, found: Sequence[Unfinished]) -> None:
    """Say what will be cancelled, and go on only where a person says yes."""
    import sys

    from llmagentos.cli.output import errors
    from llmagentos.streams.errors import InputError

    for each in found:
        errors.print(f"  {_line(each)}", markup=False, soft_wrap=True)
    if not sys.stdin.isatty():
        raise InputError(
            "nothing was cancelled: it wants a yes", kept="everything", fix="give --yes, or run it in a terminal"
        )
    count = sum(each.state != "parked" for each in found)
    typer.confirm(f"Cancel {count:,} message{'' if count == 1 else 's'} of conversation {root}?", abort=True, err=True)


def _line(each: Unfinished) -> str:
    from llmagentos.cli.dialogue import lapse

    ago = lapse(max(0, time.time() * 1000 - each.since))
    left = "; it stays: `llmagentos dead drop` is for it" if each.state == "parked" else ""
    return (
        f"{each.agent}, conversation {each.conversation_id}, message {each.message_id}:"
        f" {_STATES[each.state]}, since {ago}{left}"
    )


def _print(
    conversation: str,
    root: str,
    outcomes: dict[Unfinished, Outcome | None],
    parked: Sequence[Unfinished],
    output: Output,
) -> None:
    from llmagentos.cli.output import console, errors, print_json, print_rows

    if output is Output.json:
        print_json(
            {
                "conversation": conversation,
                "root": root,
                "messages": [_row(each) | {"outcome": outcome} for each, outcome in outcomes.items()],
                "parked": [_row(each) for each in parked],
            }
        )
        return
    if not outcomes:
        console.print(f"nothing of conversation {root} is unfinished", markup=False, soft_wrap=True)
    else:
        rows = [
            {
                "agent": each.agent,
                "conversation": each.conversation_id,
                "message": each.message_id,
                "was": _STATES[each.state],
                "is": "not ended yet" if outcome is None else _OUTCOMES[outcome],
            }
            for each, outcome in outcomes.items()
        ]
        print_rows(rows, ("agent", "conversation", "message", "was", "is"), wrap=["conversation"])
    for each in parked:
        errors.print(_line(each), markup=False, soft_wrap=True)


def _row(each: Unfinished) -> dict[str, object]:
    return {
        "agent": each.agent,
        "conversation": each.conversation_id,
        "message_id": each.message_id,
        "state": each.state,
        "since": each.since,
        "partition": each.partition,
        "offset": each.offset,
    }
