"""What commands print: tables or JSON on stdout, errors on stderr, and the exit status.

Exit status: 0 done, 1 failed (or some input was refused), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import re
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


#: What a terminal takes as commands, or a part of one: ISO 6429's control characters, but for tab and line end.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def __getattr__(name: str) -> Any:
    """`console` and `errors`, made when first asked for: rich takes longer to import than some commands to run."""
    if name not in ("console", "errors"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = _console(stderr=name == "errors")
    return globals()[name]


def _console(*, stderr: bool) -> Console:
    """A console to which messages and their errors, which anybody may have written, can give no commands."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Calm(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                if segment.control or _COMMANDS.search(segment.text) is None:
                    yield segment
                else:
                    yield Segment(_shown(segment.text), segment.style)

    return Calm(stderr=stderr, highlight=False)


def _shown(text: str) -> str:
    return _COMMANDS.sub("\N{REPLACEMENT CHARACTER}", text)


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
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        number = all(isinstance(row.get(column), int | float) for row in rows)
        whole = wrap is not None and column not in wrap
        table.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=whole)
    for row in rows:
        # As text, not as markup: a conversation may be called [/b].
        cells = ("" if row.get(column) is None else str(row.get(column)) for column in columns)
        table.add_row(*(Text(_shown(cell)) for cell in cells))
    console.print(table)


def print_error(error: LLMAgentOSError) -> None:
    """What happened, what was kept, what to do; on stderr, never as a traceback."""
    from rich.text import Text

    from llmagentos.cli.output import errors

    errors.print(Text.assemble(("error:", "bold red"), " ", error.what), soft_wrap=True)
    if error.kept:
        errors.print(Text.assemble((" kept:", "bold"), " ", error.kept), soft_wrap=True)
    if error.fix:
        errors.print(Text.assemble(("  fix:", "bold"), " ", error.fix), soft_wrap=True)
