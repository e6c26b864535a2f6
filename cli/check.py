"""`llmagentos check FILE`: what a handler does outside of its steps, told before it is deployed."""

from __future__ import annotations

import os
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llmagentos.cli.output import Output, OutputOption

if TYPE_CHECKING:
    from llmagentos.agents.effects import Report

__all__ = ["register"]

#: Folders below the one that is named that hold what others wrote, or what was built.
_PASSED_OVER = frozenset({"__pycache__", "build", "dist", "node_modules", "site-packages"})

#: From so many files on a person wonders whether it still goes on: they take about 10 ms each.
_MANY = 200


def register(app: typer.Typer) -> None:
    """Add `check`."""
    app.command(
        epilog="\b\nExamples:\n  llmagentos check hello.py\n  llmagentos check agents/ shop.py\n"
        "  llmagentos check shop.agents --output json"
    )(check)


def check(
    targets: list[str] = typer.Argument(
        ..., metavar="FILE...", help="Python files, folders (all files below), or dotted names."
    ),
    output: Output = OutputOption,
) -> None:
    """Find what a handler may do twice, or otherwise, when it runs again; with advice what to write.

    A handler runs again after a crash, a wait or a new deployment. What its steps did is taken from the journal; a
    clock that it reads, a file that it writes, a page that it fetches outside of a step is read, written, fetched once
    more. Handlers are followed into the functions and methods of their file. Nothing is imported or run.

    Exit status 1 where something was found. `# llmagentos: ignore[E101]` in a line says that it is meant so.
    """
    from llmagentos.agents.effects import read
    from llmagentos.cli.output import print_json

    reports: dict[str, Report] = {}
    for path in _shown(list(dict.fromkeys(_files(targets)))):
        reports[_short(path)] = read(_text(path))
    if output is Output.json:
        print_json(
            [
                {
                    "file": file,
                    "line": finding.line,
                    "column": finding.column,
                    "code": finding.code,
                    "what": finding.what,
                    "advice": finding.advice,
                    "agent": finding.agent,
                    "via": list(finding.via),
                }
                for file, report in reports.items()
                for finding in report.findings
            ]
        )
    else:
        _print(reports)
    raise typer.Exit(1 if any(report.findings for report in reports.values()) else 0)


def _print(reports: dict[str, Report]) -> None:
    from rich.markup import escape

    from llmagentos.cli.output import console, errors

    found = 0
    for file, report in reports.items():
        for finding in report.findings:
            found += 1
            by = f" [dim]({' > '.join((finding.agent, *finding.via))})[/]" if finding.agent else ""
            place = f"{escape(file)}:{finding.line}:{finding.column}"
            console.print(f"[bold]{place}[/]: [red]{finding.code}[/] {escape(finding.what)}{by}", soft_wrap=True)
            console.print(f"    {finding.advice}", markup=False, soft_wrap=True)
    agents = sum(len(report.agents) for report in reports.values())
    ignored = sum(report.ignored for report in reports.values())
    silenced = f", {ignored} ignored by comments" if ignored else ""
    said = _count(found, "finding") if found else "nothing found"
    errors.print(f"[dim]{said} in {_count(agents, 'agent')} of {_count(len(reports), 'file')}{silenced}[/]")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _files(targets: Iterable[str]) -> Iterator[Path]:
    for target in targets:
        path = Path(target)
        if path.is_dir():
            yield from _below(path)
        elif path.is_file():
            yield path
        else:
            yield _module(target)


def _below(folder: Path) -> Iterator[Path]:
    for at, folders, names in os.walk(folder):
        here = Path(at)
        folders[:] = sorted(
            name
            for name in folders
            if name not in _PASSED_OVER and name[0] != "." and not (here / name / "pyvenv.cfg").exists()
        )
        yield from (here / name for name in sorted(names) if name.endswith(".py"))


def _module(target: str) -> Path:
    """The file of a dotted name, below the working directory, without importing its parents."""
    base = Path(*target.split(".")) if all(part.isidentifier() for part in target.split(".")) else None
    for path in (base.with_suffix(".py"), base / "__init__.py") if base else ():
        if path.is_file():
            return path
    raise typer.BadParameter(f"there is no file, folder or module {target!r} in {Path.cwd()}")


def _text(path: Path) -> str:
    """The source, in the encoding that it names; what can't be decoded stays readable enough to be refused."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise typer.BadParameter(f"{path} can't be read: {error.strerror}") from error


def _short(path: Path) -> str:
    """As a person would type it from here."""
    inside = path.resolve().is_relative_to(Path.cwd())
    return os.path.relpath(path) if inside else str(path)


def _shown(paths: list[Path]) -> Iterable[Path]:
    if len(paths) < _MANY or not sys.stderr.isatty():
        return paths
    from rich.progress import track

    from llmagentos.cli.output import errors

    return track(paths, "reading", console=errors, transient=True)
