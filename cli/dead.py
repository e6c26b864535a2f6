"""`llmagentos dead`: what agents could not handle, and putting it back, changed or not, or giving it up."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llmagentos.cli.journals import open_journals
from llmagentos.cli.output import Output, OutputOption

if TYPE_CHECKING:
    from llmagentos.streams.letters import Letter, Letters, Selection
    from llmagentos.streams.redrive import Edited, Outcome, Wish
    from llmagentos.streams.settings import Settings

__all__ = ["register", "who"]

_LETTERS = typer.Argument(
    None, metavar="LETTER", help="AGENT/PARTITION/OFFSET, as `dead list --each` says.", show_default=False
)
_LETTER = typer.Argument(None, metavar="LETTER", help="As `dead list --each` says.", show_default=False)
_AGENT = typer.Option([], "--agent", "-a", help="Of this agent; may be given again.", show_default=False)
_CAUSE = typer.Option(
    [], "--cause", help="failed, timeout, undecodable, invalid, expired ...; may be given again.", show_default=False
)
_CONVERSATION = typer.Option(None, "--conversation", "-c", help="Of one conversation.")
_WHERE = typer.Option(
    None,
    "--where",
    "-w",
    help="Only where this is true of a letter's fields: cause, error, body.total, attributes.team.",
)
_SINCE = typer.Option(None, "--since", help="That died since: 2h, 08:30, 2026-11-21T08:00.")
_ALL = typer.Option(False, "--all", help="All that wait, of all agents.")
_DRY_RUN = typer.Option(False, "--dry-run", help="Only say what would be done.")
_RATE = typer.Option(None, "--rate", metavar="N/s", help="Dead letters a second at most; also N/m, N/h.")
_YES = typer.Option(False, "--yes", "-y", help="Don't ask.")
_WAIT = typer.Option(False, "--wait", help="Until what was asked for is done, also what was held behind.")
_TIMEOUT = typer.Option(600.0, "--timeout", min=0.1, help="Seconds that --wait waits at most.")

#: How often --wait looks: smooth to the eye, and a few requests.
LOOK_S = 0.25

#: Letters of a dry run that are named one by one.
TOLD = 20


def register(app: typer.Typer) -> None:
    """Add the group `dead`."""
    group = typer.Typer(no_args_is_help=True)
    _reading(group)
    _changing(group)
    app.add_typer(group, name="dead", help="Show what agents could not handle; put it back, or give it up.")


def _reading(group: typer.Typer) -> None:
    @group.command(
        "list",
        epilog="\b\nExamples:\n  llmagentos dead list\n  llmagentos dead list --agent prices --since 2h --full\n"
        "  llmagentos dead list --each --cause failed --where \"'KeyError' in error\"\n"
        "  llmagentos dead list --all -o json",
    )
    def list_(  # pyright: ignore[reportUnusedFunction]
        agent: list[str] = _AGENT,
        cause: list[str] = _CAUSE,
        conversation: str | None = _CONVERSATION,
        where: str | None = _WHERE,
        since: str | None = _SINCE,
        each: bool = typer.Option(False, "--each", help="One by one, in place of by cause."),
        settled: bool = typer.Option(False, "--all", help="Settled ones too: redriven and handled, or dropped."),
        full: bool = typer.Option(False, "--full", help="Tracebacks whole."),
        output: Output = OutputOption,
    ) -> None:
        """Show dead letters by cause: how many, how many messages wait behind them, and the first traceback.

        parked: the conversation waits, later messages of it are held. passed: it goes on without the message.
        redriving, dropping: asked for, and not done yet.
        """
        from llmagentos.cli.letters import print_each, print_groups
        from llmagentos.streams.letters import groups

        selection = _selection((), agent, cause, conversation, where, since)
        with _opened() as (settings, letters):
            found = _read(letters, selection)
            shown = found if settled else [letter for letter in found if letter.state != "settled"]
            if each:
                print_each(settings, shown, output=output)
            else:
                print_groups(letters, groups(shown), full=full, output=output)
        _say_hidden(len(found) - len(shown))
        _say_untold(selection)

    @group.command(
        epilog="\b\nExamples:\n  llmagentos dead show prices/3/17\n  llmagentos dead show --conversation bob -o json"
    )
    def show(  # pyright: ignore[reportUnusedFunction]
        letter: str | None = _LETTER,
        agent: list[str] = _AGENT,
        conversation: str | None = _CONVERSATION,
        output: Output = OutputOption,
    ) -> None:
        """Show one dead letter whole: where and why, its message, the traceback, and how it stands."""
        from llmagentos.cli.letters import print_letter

        with _opened() as (settings, letters):
            one = _one(letters, letter, agent, conversation)
            print_letter(settings, one, letters.entry(one), output=output)


def _changing(group: typer.Typer) -> None:
    @group.command(
        epilog="\b\nExamples:\n  llmagentos dead redrive prices/3/17\n"
        "  llmagentos dead redrive --conversation bob --wait\n"
        "  llmagentos dead redrive --agent prices --cause failed --dry-run\n"
        "  llmagentos dead redrive --agent prices --since 2h --where \"'cake' in body\" --rate 50/s --yes"
    )
    def redrive(  # pyright: ignore[reportUnusedFunction]
        letter: list[str] = _LETTERS,
        agent: list[str] = _AGENT,
        cause: list[str] = _CAUSE,
        conversation: str | None = _CONVERSATION,
        where: str | None = _WHERE,
        since: str | None = _SINCE,
        everything: bool = _ALL,
        dry_run: bool = _DRY_RUN,
        rate: str | None = _RATE,
        yes: bool = _YES,
        wait: bool = _WAIT,
        timeout: float = _TIMEOUT,
        output: Output = OutputOption,
    ) -> None:
        """Have dead messages handled again, and then those that are held behind them, in order.

        Interrupted, or said twice, it does no harm: a message that is redriven already is left alone. Exit status 1
        where a message is gone, or, with --wait, where one died again or not all was done in time.
        """
        selection = _selection(letter, agent, cause, conversation, where, since, everything=everything)
        _change("redrive", selection, dry_run, _rate(rate), yes, timeout if wait else None, output)

    @group.command(
        epilog="\b\nExamples:\n  llmagentos dead drop prices/3/17\n"
        "  llmagentos dead drop --agent prices --cause undecodable --since 1d --dry-run"
    )
    def drop(  # pyright: ignore[reportUnusedFunction]
        letter: list[str] = _LETTERS,
        agent: list[str] = _AGENT,
        cause: list[str] = _CAUSE,
        conversation: str | None = _CONVERSATION,
        where: str | None = _WHERE,
        since: str | None = _SINCE,
        everything: bool = _ALL,
        dry_run: bool = _DRY_RUN,
        rate: str | None = _RATE,
        yes: bool = _YES,
        wait: bool = _WAIT,
        timeout: float = _TIMEOUT,
        output: Output = OutputOption,
    ) -> None:
        """Give dead messages up: they are never handled, and what is held behind them goes on without them.

        The letters themselves stay in `dead.AGENT` until its retention ends.
        """
        selection = _selection(letter, agent, cause, conversation, where, since, everything=everything)
        _change("discard", selection, dry_run, _rate(rate), yes, timeout if wait else None, output)

    @group.command(
        epilog="\b\nExamples:\n  llmagentos dead edit prices/3/17\n"
        "  llmagentos dead edit --conversation bob --body cookie --wait\n"
        "  llmagentos dead edit prices/3/17 --body-file right.json --content-type application/json"
    )
    def edit(  # pyright: ignore[reportUnusedFunction]
        letter: str | None = _LETTER,
        agent: list[str] = _AGENT,
        conversation: str | None = _CONVERSATION,
        body: str | None = typer.Option(None, "--body", help="The new body."),
        body_file: Path | None = typer.Option(None, "--body-file", help="A file that holds it."),
        content_type: str | None = typer.Option(None, "--content-type", help="Default: as it was."),
        wait: bool = _WAIT,
        timeout: float = _TIMEOUT,
        output: Output = OutputOption,
    ) -> None:
        """Redrive one dead message with another body, under a new id.

        Without --body and --body-file, $EDITOR opens the present one.
        """
        if body is not None and body_file is not None:
            raise typer.BadParameter("give --body or --body-file, one of them")
        with _opened() as (settings, letters):
            one = _one(letters, letter, agent, conversation)
            edited = _edited(settings, letters, one, body, body_file, content_type)
            _ask(settings, letters, "redrive", [one], None, timeout if wait else None, output, edited=edited)


# -- what is selected -------------------------------------------------------------------------------------------------


def _selection(
    ids: Sequence[str],
    agents: Sequence[str],
    causes: Sequence[str],
    conversation: str | None,
    where: str | None,
    since: str | None,
    *,
    everything: bool | None = None,
) -> Selection:
    """What the options say.

    Args:
        everything: whether --all was given, where something must be selected.
    """
    from llmagentos.streams.errors import InputError
    from llmagentos.streams.letters import Selection, parse_id
    from llmagentos.streams.position import Position, milliseconds
    from llmagentos.streams.where import Where

    since_ms = None
    if since is not None:
        position = Position.parse(f"-{since}" if milliseconds(since) is not None else since, "--since")
        if position.kind != "time":
            raise InputError(f"--since {since!r} is no time", fix="give a time ago (2h, 1d) or a timestamp")
        since_ms = position.value
    selection = Selection(
        agents=tuple(agents),
        causes=tuple(causes),
        conversation=conversation,
        ids=tuple(parse_id(text) for text in ids or ()),
        since_ms=since_ms,
        where=None if where is None else Where(where),
    )
    if everything is not None and selection.everything != everything:
        raise typer.BadParameter(
            "--all goes with no other filter"
            if everything
            else "say which: LETTERs, --conversation, --agent, --cause, --where, --since, or --all"
        )
    return selection


def _rate(text: str | None) -> float | None:
    """`50`, `50/s`, `3000/m`, `10/h` as letters a second."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/(s|m|h))?", text.strip())
    if found is None or not float(found[1]):
        raise typer.BadParameter(f"{text!r} is no rate: 50/s, 600/m, 10/h", param_hint="--rate")
    return float(found[1]) / {"s": 1, "m": 60, "h": 3600}[found[2] or "s"]


def _one(letters: Letters, letter: str | None, agents: Sequence[str], conversation: str | None) -> Letter:
    """The one letter that is meant: of several, the only one that waits."""
    from llmagentos.streams.errors import InputError
    from llmagentos.streams.letters import OPEN

    if (letter is None) == (conversation is None):
        raise typer.BadParameter("give a LETTER or --conversation, one of them")
    selection = _selection([] if letter is None else [letter], agents, (), conversation, None, None)
    found = letters.read(selection)
    open_ = [one for one in found if one.state in OPEN]
    if len(open_) > 1:
        raise InputError(
            f"conversation {conversation} has {len(open_)} dead letters that wait:"
            f" {', '.join(one.id for one in open_)}",
            fix="name one of them, or narrow it down with --agent",
        )
    if not found:
        raise InputError(
            f"there is no dead letter of conversation {conversation}", fix="`llmagentos dead list --each` lists them"
        )
    return open_[0] if open_ else found[-1]


def _read(letters: Letters, selection: Selection) -> list[Letter]:
    with _bar("reading") as show:
        return letters.read(selection, show)


@contextmanager
def _opened() -> Generator[tuple[Settings, Letters]]:
    from llmagentos.streams.letters import Letters
    from llmagentos.streams.views import Views

    with (
        open_journals() as (settings, decoder, log, served),
        closing(Views(settings, decoder.codec, served)) as views,
    ):
        yield settings, Letters(settings, decoder, views, log)


# -- what is done -----------------------------------------------------------------------------------------------------


def _change(
    wish: Wish,
    selection: Selection,
    dry_run: bool,
    rate: float | None,
    yes: bool,
    wait_s: float | None,
    output: Output,
) -> None:
    from llmagentos.cli.letters import print_outcome, print_plan
    from llmagentos.streams.letters import OPEN

    with _opened() as (settings, letters):
        found = _read(letters, selection)
        _say_untold(selection)
        chosen = [letter for letter in found if letter.state in OPEN]
        if dry_run:
            print_plan(settings, wish, chosen, told=TOLD, output=output)
            return
        if not chosen:
            print_outcome(wish, [], None, None, 0.0, len(found), output=output)
            return
        if not yes and (wish == "discard" or len(chosen) > 1):
            _confirm(settings, wish, chosen)
        _ask(settings, letters, wish, chosen, rate, wait_s, output, already=len(found) - len(chosen))


def _confirm(settings: Settings, wish: Wish, chosen: Sequence[Letter]) -> None:
    """Say what will be done, and go on only where a person says yes."""
    import sys

    from llmagentos.cli.letters import plan
    from llmagentos.cli.output import errors
    from llmagentos.streams.errors import InputError

    errors.print(plan(settings, wish, chosen), markup=False, soft_wrap=True)
    if not sys.stdin.isatty():
        raise InputError(
            "nothing was done: it wants a yes", kept="everything", fix="give --yes, or run it in a terminal"
        )
    typer.confirm("Go on?", abort=True, err=True)


def _ask(
    settings: Settings,
    letters: Letters,
    wish: Wish,
    chosen: Sequence[Letter],
    rate: float | None,
    wait_s: float | None,
    output: Output,
    *,
    edited: Edited | None = None,
    already: int = 0,
) -> None:
    """Say it, wait where that is wanted, and print what became of it."""
    import asyncio

    from llmagentos.cli.letters import print_outcome
    from llmagentos.streams.producer import Producer
    from llmagentos.streams.redrive import Redrive

    codec = letters.codec
    begun = time.monotonic()

    async def say(show: Callable[[int, int], None]) -> Outcome:
        async with Producer(settings, codec) as producer:
            redrive = Redrive(producer, codec, letters, writer=who())
            return await redrive.ask(
                wish, chosen, edited=edited, rate=rate, progress=lambda done: show(done, len(chosen))
            )

    with _bar("asking") as show:
        outcome = asyncio.run(say(show))
    left, again = 0, []
    if wait_s is not None:
        left = _wait(letters, chosen, outcome, wait_s)
        again = letters.died_again(chosen)
    waited = None if wait_s is None else (left, again)
    print_outcome(wish, chosen, outcome, waited, time.monotonic() - begun, already, output=output)
    if outcome.gone or left or again:
        raise typer.Exit(1)


def _wait(letters: Letters, chosen: Sequence[Letter], outcome: Outcome, wait_s: float) -> int:
    """How many messages are still to be handled when that is over."""
    from llmagentos.streams.redrive import outstanding

    until = time.monotonic() + wait_s
    total = left = 0
    with _bar("handling") as show:
        for left in outstanding(letters, chosen, outcome):
            total = max(total, left)
            show(total - left, total)
            if not left or time.monotonic() > until:
                break
            time.sleep(LOOK_S)
    return left


def _edited(
    settings: Settings,
    letters: Letters,
    letter: Letter,
    body: str | None,
    body_file: Path | None,
    content_type: str | None,
) -> Edited:
    from llmagentos.streams.errors import InputError
    from llmagentos.streams.letters import OPEN
    from llmagentos.streams.redrive import body_of, edit

    if letter.state not in OPEN:
        raise InputError(
            f"{letter.id} does not wait any more: it is {letter.state}", fix="`llmagentos dead list` shows what waits"
        )
    entry = letters.entry(letter)
    present, media = body_of(settings, letter, entry)
    if body is not None:
        new = body.encode(errors="surrogateescape")
    elif body_file is not None:
        try:
            new = body_file.read_bytes()
        except OSError as error:
            raise InputError(f"--body-file {body_file} can't be read: {error.strerror}") from error
    else:
        new = _by_hand(present, content_type or media)
    return edit(settings, letters.codec, letter, entry, new, content_type)


def _by_hand(present: bytes, media: str) -> bytes:
    """*present*, as a person changed it in $EDITOR; JSON is spread over lines for that, and joined again."""
    import click
    import orjson

    from llmagentos.streams.errors import InputError
    from llmagentos.streams.message import JSON

    try:
        text = present.decode()
        value = orjson.loads(text) if media == JSON else None
    except ValueError:
        raise InputError(
            "the body is not text that an editor could show", fix="give the new one with --body-file"
        ) from None
    json = media == JSON
    shown = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n" if json else text
    try:
        changed = click.edit(shown, extension=".json" if json else ".txt", require_save=False)
    except click.ClickException as error:
        raise InputError(
            f"no editor: {error.message}", fix="set EDITOR, or give the new body with --body or --body-file"
        ) from error
    if not json:  # editors put a line end at the end of a file
        new = (changed or shown) if text.endswith("\n") else (changed or shown).removesuffix("\n")
    else:
        try:
            new = orjson.dumps(orjson.loads(changed or shown)).decode()
        except orjson.JSONDecodeError as error:
            raise InputError(
                f"the new body is not JSON: {error}", kept=f"what you wrote:\n{changed}", fix="edit it again"
            ) from error
    if new == (orjson.dumps(value).decode() if json else text):
        raise InputError(
            "the body was not changed, and nothing was done", fix="`llmagentos dead redrive` runs it as it is"
        )
    return new.encode()


def who() -> str:
    """Who gives a command, for the journal."""
    import getpass
    import socket

    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without an entry for the user
        name = "somebody"
    return f"{name}@{socket.gethostname()}"


# -- what is said -----------------------------------------------------------------------------------------------------


def _say_hidden(settled: int) -> None:
    from llmagentos.cli.output import errors

    if settled:
        errors.print(f"{settled:,} more that {'is' if settled == 1 else 'are'} settled; --all shows them")


def _say_untold(selection: Selection) -> None:
    from llmagentos.cli.output import errors

    where = selection.where
    if where is not None and where.failed:
        errors.print(
            f"--where can't be told of {where.failed:,} letters, which are left out; of the first: {where.reason}",
            markup=False,
            soft_wrap=True,
        )


@contextmanager
def _bar(what: str) -> Generator[Callable[[int, int], None]]:
    """A progress bar on standard error, where that is a terminal."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    from llmagentos.cli.output import errors

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bars:
        task = bars.add_task(what, total=1)
        yield lambda done, total: bars.update(task, completed=done, total=max(total, 1))
