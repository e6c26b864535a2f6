"""What a chaos run prints: for each scenario its faults as they happened, every check, and the verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from llmagentos.cli.chaos.run import Outcome
from llmagentos.cli.output import console, print_json

__all__ = ["as_json", "print_outcome", "print_summary"]

#: Lines of faults that are printed of one kind; all are in the JSON.
FAULTS_SHOWN = 40


def print_outcome(outcome: Outcome) -> None:
    """One scenario."""
    scenario = outcome.scenario
    console.print(f"\n[bold]{scenario.name}[/]: {scenario.about} (seed {outcome.seed})", soft_wrap=True)
    for fired in outcome.fired[:FAULTS_SHOWN]:
        console.print(f"  [dim]+{fired.at - outcome.started_at:6.1f} s[/] {fired.name}: {fired.detail}", soft_wrap=True)
    if len(outcome.fired) > FAULTS_SHOWN:
        console.print(f"  [dim]and {len(outcome.fired) - FAULTS_SHOWN} more (--output json has all)[/]")
    if outcome.verdict is not None:
        counts = ", ".join(f"{name} {count:,}" for name, count in outcome.verdict.counts.items())
        console.print(f"  [dim]{counts}[/]", soft_wrap=True)
        table = Table(box=None, pad_edge=False, show_header=False)
        for check in outcome.verdict.checks:
            mark = "[green]✓[/]" if check.holds else "[bold red]✗[/]"
            must = "above 0" if check.wanted is None else str(check.wanted)
            table.add_row("", mark, check.name, f"{check.found:,}", f"[dim]must be {must}[/]")
        console.print(table)
        for check in outcome.verdict.checks:
            if not check.holds and check.detail:
                console.print(f"  [bold red]{check.name}:[/] {check.detail}", soft_wrap=True)
    if outcome.trouble:
        console.print(f"  [bold red]{outcome.trouble}[/]", soft_wrap=True)


def print_summary(outcomes: Sequence[Outcome]) -> None:
    """A line for each scenario."""
    table = Table(title="chaos", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in (
        "scenario",
        "verdict",
        "faults",
        "messages",
        "redelivered",
        "lost",
        "doubled",
        "disorder",
        "recorded again",
        "seconds",
    ):
        table.add_column(column, justify="left" if column in ("scenario", "verdict") else "right")
    for outcome in outcomes:
        verdict = outcome.verdict
        found = {check.name: check.found for check in verdict.checks} if verdict else {}
        disorder = sum(count for name, count in found.items() if name.startswith("out of order"))
        word = (
            "[green]held[/]"
            if outcome.holds
            else "[bold red]could not run[/]"
            if outcome.trouble
            else "[bold red]OFF[/]"
        )
        table.add_row(
            outcome.scenario.name,
            word,
            str(len(outcome.fired)),
            f"{verdict.counts['messages']:,}" if verdict else "",
            f"{verdict.counts['redelivered']:,}" if verdict else "",
            str(found.get("lost", "")),
            str(found.get("doubled in the ledger", "")),
            str(disorder) if verdict else "",
            str(found.get("recorded steps executed again", "")),
            f"{outcome.whole_s:.0f}",
        )
    console.print()
    console.print(table)


def as_json(outcomes: Sequence[Outcome]) -> None:
    """All of it."""
    print_json([_record(outcome) for outcome in outcomes])


def _record(outcome: Outcome) -> dict[str, Any]:
    verdict = outcome.verdict
    return {
        "scenario": outcome.scenario.name,
        "seed": outcome.seed,
        "holds": outcome.holds,
        "trouble": outcome.trouble,
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(outcome.started_at)),
        "seconds": round(outcome.seconds, 1),
        "whole_s": round(outcome.whole_s, 1),
        "messages": outcome.scenario.messages,
        "conversations": outcome.scenario.conversations,
        "faults": [
            {"name": fired.name, "after_s": round(fired.at - outcome.started_at, 2), "detail": fired.detail}
            for fired in outcome.fired
        ],
        "checks": [
            {"name": c.name, "found": c.found, "wanted": c.wanted, "holds": c.holds, "detail": c.detail}
            for c in (verdict.checks if verdict else ())
        ],
        "counts": verdict.counts if verdict else {},
    }
