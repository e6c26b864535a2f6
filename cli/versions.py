"""What `deploy` and `rollout` ask and say of messages that are under way when code is replaced."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from llmagentos.cli.output import Output

if TYPE_CHECKING:
    from llmagentos.agents.rehearsing import AgentWork, Example, Rehearsal
    from llmagentos.agents.versions import Choice, Replacing

__all__ = ["Asked", "CheckOption", "DrainOption", "DrainTimeoutOption", "ForceOption", "HoldOption"]

CheckOption: bool = typer.Option(
    False, "--check", help="Only say what would become of messages under way; 1 where some would not go on."
)
HoldOption: bool = typer.Option(
    False, "--hold", help="Deploy; those that would break are parked as changed-code, and wait for mended code."
)
DrainOption: bool = typer.Option(
    False, "--drain", help="The version before finishes those that would break first; new messages wait meanwhile."
)
ForceOption: bool = typer.Option(False, "--force", help="Deploy without looking what is under way.")
#: As agents.versions.DRAIN_S, which brings more than a command's help needs.
DrainTimeoutOption: float = typer.Option(
    300.0, "--drain-timeout", min=1, help="Seconds that --drain waits before it gives up, and nothing is deployed."
)

#: Reasons why messages could not be rehearsed that are shown; the JSON has all.
_REASONS = 3


class Asked:
    """What a person wants of messages under way, and what was seen of them.

    Raises:
        BadParameter: the options contradict each other.
    """

    def __init__(
        self, check: bool, hold: bool, drain: bool, force: bool, drain_timeout_s: float, output: Output
    ) -> None:
        if check + hold + drain + force > 1:
            raise typer.BadParameter("give one of --check, --hold, --drain and --force")
        self._check = check
        self._choice: Choice = "hold" if hold else "drain" if drain else "force" if force else "refuse"
        self._drain_timeout_s = drain_timeout_s
        self._output = output
        self._seen: Rehearsal | None = None

    def how(self, say: Callable[[str], None]) -> Replacing:
        """The same for the engine.

        Args:
            say: shows what is done meanwhile.
        """
        from llmagentos.agents.versions import Replacing

        return Replacing(self._choice, self._drain_timeout_s, told=self._told, progress=say)

    def end(self, seen: Rehearsal) -> NoReturn:
        """The end of a command that was to look only."""
        from llmagentos.cli.output import errors, print_json

        if self._output is Output.json:
            print_json(_as_json(seen))
        elif seen.agents:
            _print(seen)
        else:
            errors.print("nothing is under way")
        raise typer.Exit(1 if seen.stopped else 0)

    def as_json(self) -> dict[str, Any]:
        """What was seen, beside the rest of a command's output; empty: nothing is under way."""
        return {} if self._seen is None else {"rehearsal": _as_json(self._seen)}

    def _told(self, seen: Rehearsal) -> None:
        self._seen = seen
        if self._output is Output.pretty:
            _print(seen)
        elif seen.stopped and self._choice == "refuse":
            from llmagentos.cli.output import print_json

            print_json(_as_json(seen))


def _as_json(seen: Rehearsal) -> dict[str, Any]:
    return {"stopped": seen.stopped, "agents": [asdict(work) for work in seen.agents]}


def _print(seen: Rehearsal) -> None:
    from llmagentos.cli.output import console, errors, print_rows

    rows = [
        {
            "agent": work.agent,
            "under way": work.open,
            "would go on": work.goes_on,
            "would break": work.breaks,
            "would fail": work.fails,
            "not rehearsed": sum(work.unknown.values()) + work.left,
        }
        for work in seen.agents
        if not work.gone
    ]
    if rows:
        print_rows(rows, list(rows[0]))
    for work in seen.agents:
        for line in _lines(work):
            console.print(line, markup=False, soft_wrap=True)
    if any(work.breaks for work in seen.agents):
        errors.print(
            "mark the change, so that messages that are past it take the old way:"
            ' if await ctx.version("NAME"): (new) else: (old)',
            markup=False,
            soft_wrap=True,
        )


def _lines(work: AgentWork) -> list[str]:
    agent = work.agent
    if work.gone:
        return [
            f"{agent} is not in the new code, and has {work.inbox:,} messages in its inbox and {work.open:,} open in"
            f" its journal{f', and {work.parked:,} dead letters' * bool(work.parked)}: they wait in their topics until"
            " it is deployed again"
        ]
    lines: list[str] = []
    if work.example is not None:
        lines.append(f"{agent}: {_example(work.example)}")
    for why, count in sorted(work.unknown.items(), key=lambda item: -item[1])[:_REASONS]:
        lines.append(f"{agent}: {count:,} could not be rehearsed: {why}")
    if work.left:
        lines.append(f"{agent}: {work.left:,} more were not looked at")
    if work.parked:
        lines.append(
            f"{agent}: of {work.parked:,} dead letters with recorded steps, {work.parked_breaks:,} would not go on if"
            " they were redriven"
        )
    return lines


def _example(example: Example) -> str:
    """`conversation c, message 0192…: comes to step 'cost' (shop.py:9) where step 'price' is recorded`"""
    file, _, line = example.where.rpartition(":")
    where = f" ({os.path.relpath(file)}:{line})" if file else ""
    if example.kind == "breaks" and example.recorded:
        to = f"comes to {example.instead!r}" if example.instead else "ends"
        what = f"{to}{where} where {example.recorded!r} is recorded" + (f": {example.why}" if example.why else "")
    else:
        what = f"{example.why}{where}"
    return f"conversation {example.conversation}, message {example.message_id}: {what}"
