"""What commands print: tables or JSON on stdout, errors on stderr, and the exit status.

Exit status: 0 done, 1 failed (or some input was refused), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import orjson
import typer

from llmagentos.streams.errors import LLMAgentOSError

if TYPE_CHECKING:
    from rich.console import Console

    console: Console
    errors: Console

__all__ = ["Output", "OutputOption", "console", "errors", "print_error", "print_json", "print_rows"]


def __getattr__(name: str) -> Any:
    """`console` and `errors`, made when first asked for: rich takes longer to import than some commands to run."""
    if name not in ("console", "errors"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rich.console import Console

    globals()[name] = Console(stderr=name == "errors", highlight=False)
    return globals()[name]


class Output(StrEnum):
    """How a command prints its result."""

    pretty = "pretty"
    json = "json"


OutputOption = typer.Option(Output.pretty, "--output", "-o", help="pretty for people, json for programs.")


def print_json(value: Any) -> None:
    """One JSON document and a newline on stdout."""
    sys.stdout.write(orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2).decode() + "\n")


def print_rows(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    output: Output = Output.pretty,
    empty: str = "",
    wrap: Collection[str] | None = None,
) -> None:
    """Rows as a table (columns in the given order, numbers to the right) or as one JSON array.

    Args:
        empty: what to say on stderr, in place of a table without rows.
        wrap: columns that may go over several lines; None: all.
    """
    from llmagentos.cli.output import console, errors

    rows = list(rows)
    if output is Output.json:
        print_json(rows)
        return
    if not rows:
        if empty:
            errors.print(empty)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        number = all(isinstance(row.get(column), int | float) for row in rows)
        whole = wrap is not None and column not in wrap
        table.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=whole)
    for row in rows:
        table.add_row(*("" if row.get(column) is None else str(row.get(column)) for column in columns))
    console.print(table)


def print_error(error: LLMAgentOSError) -> None:
    """What happened, what was kept, what to do; on stderr, never as a traceback."""
    from llmagentos.cli.output import errors

    errors.print(f"[bold red]error:[/] {_plain(error.what)}", soft_wrap=True)
    if error.kept:
        errors.print(f" [bold]kept:[/] {_plain(error.kept)}", soft_wrap=True)
    if error.fix:
        errors.print(f"  [bold]fix:[/] {_plain(error.fix)}", soft_wrap=True)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
