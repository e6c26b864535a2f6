"""`llmagentos knowledge`: documents taken in, searched, listed and forgotten."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llmagentos.cli.output import Output, OutputOption

if TYPE_CHECKING:
    from llmagentos.agents.knowledge import Added, Knowledge, Passage

__all__ = ["register"]

_STORE = typer.Option(None, "--store", help="The store's file; default: the settings'.", show_default=False)


def register(app: typer.Typer) -> None:
    """Add the group `knowledge`."""
    group = typer.Typer(no_args_is_help=True)
    group.command(
        epilog="\b\nExamples:\n  llmagentos knowledge add docs/ notes.md\n"
        "  llmagentos knowledge add ~/papers --store papers.db\n  llmagentos knowledge add docs/ -o json"
    )(add)
    group.command(
        epilog='\b\nExamples:\n  llmagentos knowledge search "how do we deploy?"\n'
        '  llmagentos knowledge search "ERR_4711" --by words -k 3\n  llmagentos knowledge search "refunds" -o json'
    )(search)
    group.command(
        "list", epilog="\b\nExamples:\n  llmagentos knowledge list\n  llmagentos knowledge list --output json"
    )(list_)
    group.command(epilog="\b\nExamples:\n  llmagentos knowledge remove notes.md\n  llmagentos knowledge remove docs/")(
        remove
    )
    app.add_typer(group, name="knowledge", help="Documents that agents and you can ask.")


def add(
    places: list[Path] = typer.Argument(..., metavar="PATH...", help="Files, and folders with all below them."),
    store: Path | None = _STORE,
    output: Output = OutputOption,
) -> None:
    """Take in documents: text, Markdown, HTML, PDF, code. Only what is new or changed is read in.

    What is no longer in a folder is forgotten. A document that isn't what it says is named and skipped, and the
    others go on; the exit status is then 1.
    """
    from llmagentos.cli.output import errors

    with _open(store) as knowledge:
        if output is Output.json or not errors.is_terminal:
            added = knowledge.add(*places)
        else:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            with Progress(*columns, console=errors, transient=True) as bar:
                task = bar.add_task("", total=None)

                def show(done: int, total: int, source: str) -> None:
                    bar.update(task, completed=done, total=total, description=_short(source).replace("[", r"\["))

                added = knowledge.add(*places, progress=show)
    _print_added(added, output)
    if added.problems:
        raise typer.Exit(1)


def _print_added(added: Added, output: Output) -> None:
    if output is Output.json:
        from llmagentos.cli.output import print_json

        print_json(added._asdict() | {"problems": [each._asdict() for each in added.problems]})
        return
    from llmagentos.cli.output import console, errors

    for problem in added.problems:
        errors.print(f"skipped: {problem._replace(source=_short(problem.source))}", markup=False, soft_wrap=True)
    console.print(
        f"{added.new:,} new, {added.changed:,} changed, {added.unchanged:,} unchanged, {added.removed:,} removed,"
        f" {len(added.problems):,} skipped; {added.chunks:,} passages read in"
        + (f"; {added.ignored:,} other files are no documents" if added.ignored else ""),
        soft_wrap=True,
    )


def search(
    query: str = typer.Argument(..., help="A question, or words."),
    k: int = typer.Option(5, "--number", "-k", min=1, max=50, help="Passages."),
    by: str = typer.Option("both", "--by", help="words (BM25), meaning (vectors), or both, fused."),
    store: Path | None = _STORE,
    output: Output = OutputOption,
) -> None:
    """Find the passages that answer a question, each with where it stands."""
    from llmagentos.streams.errors import InputError

    if by not in ("both", "words", "meaning"):
        raise InputError(f"--by is {by!r}", fix="give both, words or meaning")
    with _open(store) as knowledge:
        found = knowledge.search(query, k, by=by)
        empty = not found and not knowledge.documents()
    if output is Output.json:
        from llmagentos.cli.output import print_json

        print_json([each._asdict() for each in found])
        return
    from llmagentos.cli.output import console, errors

    if not found:
        hint = "the store is empty: llmagentos knowledge add PATH" if empty else "nothing was found"
        errors.print(hint, markup=False)
    for number, passage in enumerate(found, 1):
        _print_passage(console, number, passage)


def _print_passage(console: Any, number: int, passage: Passage) -> None:
    title = f"  {passage.title}" if passage.title else ""
    where = f"{_short(passage.source)}, {passage.location}"
    console.print(f"[{number}] {where}{title}", style="bold", markup=False, soft_wrap=True)
    for line in passage.text.splitlines():
        console.print(f"    {line}", markup=False, soft_wrap=True)


def list_(store: Path | None = _STORE, output: Output = OutputOption) -> None:
    """Every document that is stored."""
    from llmagentos.cli.output import print_rows

    with _open(store) as knowledge:
        rows = [
            {
                "source": _short(each.source) if output is Output.pretty else each.source,
                "passages": each.chunks,
                "bytes": each.bytes,
                "added": datetime.fromtimestamp(each.added_at / 1_000, UTC).isoformat(timespec="seconds"),
            }
            for each in knowledge.documents()
        ]
    columns = ("source", "passages", "bytes", "added")
    print_rows(rows, columns, output=output, empty="the store is empty: llmagentos knowledge add PATH")


def remove(
    sources: list[str] = typer.Argument(..., metavar="SOURCE...", help="As `knowledge list` names them, or folders."),
    store: Path | None = _STORE,
    output: Output = OutputOption,
) -> None:
    """Forget documents; files themselves stay as they are."""
    from llmagentos.streams.errors import InputError

    with _open(store) as knowledge:
        gone = knowledge.remove(*sources)
    if output is Output.json:
        from llmagentos.cli.output import print_json

        print_json({"removed": gone})
    elif gone:
        from llmagentos.cli.output import console

        console.print(f"{gone:,} {'document' if gone == 1 else 'documents'} forgotten")
    if not gone:
        raise InputError(f"nothing is stored of {', '.join(sources)}", fix="llmagentos knowledge list")


def _open(store: Path | None) -> Knowledge:
    from llmagentos.agents.knowledge import Knowledge

    return Knowledge(store)


def _short(source: str) -> str:
    """*source*, from here where it is below."""
    try:
        return str(Path(source).relative_to(Path.cwd()))
    except ValueError:
        return source
