"""`llmagentos steps`: what every agent did about a conversation, step by step, and what it waits for."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llmagentos.cli.journals import open_journals
from llmagentos.cli.output import Output, OutputOption

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llmagentos.cli.timeline import Row
    from llmagentos.streams.entries import Decoder
    from llmagentos.streams.invocations import Invocation, Timeline
    from llmagentos.streams.settings import Settings
    from llmagentos.streams.tail import Log
    from llmagentos.streams.views import Views

__all__ = ["register"]

#: --follow goes on from a little before it began to read, so that nothing falls between the two.
OVERLAP_MS = 10_000
#: --follow puts the tree together at most so often: smooth to the eye.
REDRAW_S = 0.25


def _complete(incomplete: str) -> list[str]:
    from llmagentos.cli.waiting import complete_conversations

    return complete_conversations(incomplete)


def register(app: typer.Typer) -> None:
    """Add `steps`."""
    app.command(
        epilog="\b\nExamples:\n  llmagentos steps order-17\n  llmagentos steps order-17 --follow\n"
        "  llmagentos steps order-17 --html order-17.html\n  llmagentos steps order-17 --show -o json"
    )(steps)


def steps(
    conversation: str = typer.Argument(..., metavar="CONVERSATION", help="Its id.", autocompletion=_complete),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on with what comes, until Ctrl-C."),
    html: Path | None = typer.Option(None, "--html", metavar="FILE", help="Write one page that needs nothing else."),
    show: bool = typer.Option(False, "--show", help="Values whole, and what looks like a secret too."),
    output: Output = OutputOption,
) -> None:
    """Show what agents did about a conversation: messages and, under each, its handler's steps, as a timeline.

    Each step with its time, tries, how long it took, and its result; questions lead to what the asked agent did. What
    looks like a secret is masked, and what is long is cut. Steps stand in the journal: what is over is shown for as
    long as the journal's retention keeps it.
    """
    if html is not None and follow:
        raise typer.BadParameter("a page is written once, --follow has no end: give one of them")
    with _opened() as (settings, decoder, log, views):
        told = _Told(settings, conversation, decoder, log, views)
        begun_ms = time.time_ns() // 1_000_000
        told.read()
        roots = told.roots()
        if follow:
            _follow(told, roots, begun_ms - OVERLAP_MS, show, output)
            return
        if not roots:
            from llmagentos.streams.errors import InputError

            raise InputError(
                f"no message of conversation {conversation!r} is in any agent's inbox or journal",
                fix="`llmagentos conversations` lists the recent ones, `llmagentos waiting` those that wait",
            )
        _print(conversation, roots, html, show, output)


class _Told:
    """What is known of the conversation."""

    def __init__(self, settings: Settings, conversation: str, decoder: Decoder, log: Log, views: Views) -> None:
        from llmagentos.streams.conversations import Tree, kinds
        from llmagentos.streams.invocations import Timeline

        self.settings = settings
        self.conversation = conversation
        self.decoder = decoder
        self._log = log
        self._views = views
        topics = log.topics()
        self.tree = Tree(settings, conversation, {t: topics[t] for t in kinds(settings, topics, journals=True)})
        self.timeline: Timeline = Timeline(settings, lambda value: decoder.codec.message(value, "", -1, -1, -1))

    def read(self) -> None:
        from llmagentos.streams.position import BEGINNING, END

        for entry in self.tree.read(self._log, self.decoder, BEGINNING, END):
            self.timeline.add(entry)

    def roots(self) -> list[Invocation]:
        roots = self.timeline.roots()
        asked: dict[str, list[tuple[int, int]]] = {}
        for each in (each for root in roots for each in root.walk()):
            if each.state == "new":
                asked.setdefault(each.agent, []).append((each.partition, each.offset))
        if not asked:
            return roots
        done = {(agent, *place) for agent, places in asked.items() for place in self._views.finished(agent, places)}
        return self.timeline.roots(lambda agent, partition, offset: (agent, partition, offset) in done)


@contextmanager
def _opened() -> Generator[tuple[Settings, Decoder, Log, Views]]:
    from llmagentos.streams.views import Views

    with (
        open_journals() as (settings, decoder, log, served),
        closing(Views(settings, decoder.codec, served)) as views,
    ):
        yield settings, decoder, log, views


def _print(conversation: str, roots: list[Invocation], html: Path | None, show: bool, output: Output) -> None:
    from llmagentos.cli.output import console, print_json
    from llmagentos.cli.timeline import as_json, drawn, rows

    if html is not None:
        from llmagentos.cli.page import page
        from llmagentos.streams.errors import InputError

        try:
            html.write_text(page(conversation, roots, show=show), encoding="utf-8")
        except OSError as error:
            raise InputError(f"--html {html} can't be written: {error.strerror}") from error
        if output is Output.pretty:
            console.print(f"{html}: {html.stat().st_size:,} bytes", markup=False, soft_wrap=True)
            return
    if output is Output.json:
        print_json(as_json(roots, show=show))
        return
    for line in drawn(conversation, rows(roots, show=show), roots, console, full=show):
        console.print(line, soft_wrap=True)


# -- following --------------------------------------------------------------------------------------------------------


def _follow(told: _Told, roots: list[Invocation], since_ms: int, show: bool, output: Output) -> None:
    from llmagentos.cli.output import console
    from llmagentos.streams.position import Position
    from llmagentos.streams.tail import Log

    if not roots:
        _note(f"nothing of conversation {told.conversation} yet")
    live = console.is_terminal and output is Output.pretty
    printer = _Live(told, show) if live else _Lines(show, output)
    with Log(told.settings, follow=True, note=_note) as log, printer:
        printer.show(roots)
        known, drawn_s = len(told.timeline), time.monotonic()
        for entry in told.tree.follow(log, told.decoder, Position("time", since_ms), journals=True):
            if entry is not None:
                told.timeline.add(entry)
            elif len(told.timeline) > known and time.monotonic() - drawn_s > REDRAW_S:
                known, drawn_s = len(told.timeline), time.monotonic()
                printer.show(told.roots())


class _Live:
    """The tree in a terminal, drawn anew as it grows; the whole of it is left there at the end."""

    def __init__(self, told: _Told, show: bool) -> None:
        from rich.live import Live

        from llmagentos.cli.output import console

        self._conversation = told.conversation
        self._show = show
        self._roots: list[Invocation] = []
        self._whole = False
        self._live = Live(console=console, get_renderable=self._drawn, refresh_per_second=2)

    def _drawn(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        from llmagentos.cli.output import console
        from llmagentos.cli.timeline import drawn, rows

        lines = drawn(self._conversation, rows(self._roots, show=self._show), self._roots, console, full=self._show)
        room = console.height - 3  # the head may take two
        if len(lines) > room and not self._whole:
            lines = [lines[0], Text(f"… {len(lines) - room:,} lines before these", style="dim"), *lines[1 - room :]]
        return Group(*lines)

    def show(self, roots: list[Invocation]) -> None:
        self._roots = roots
        self._live.refresh()

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._whole = True
        self._live.vertical_overflow = "visible"
        self._live.stop()


class _Lines:
    """A line for each row that is new, or stands otherwise than before; flushed at once."""

    def __init__(self, show: bool, output: Output) -> None:
        self._show = show
        self._output = output
        self._seen: dict[tuple[object, ...], str] = {}

    def show(self, roots: list[Invocation]) -> None:
        from llmagentos.cli.timeline import rows

        for row in rows(roots, show=self._show, width=None if self._show else 200):
            if self._seen.get(row.key) != row.state:
                self._seen[row.key] = row.state
                sys.stdout.write(self._line(row) + "\n")
        sys.stdout.flush()

    def _line(self, row: Row) -> str:
        from llmagentos.cli.timeline import line

        if self._output is Output.pretty:
            return line(row)
        import orjson

        fields = ("kind", "agent", "name", "state", "at", "ended", "text")
        return orjson.dumps({name: getattr(row, name) for name in fields}).decode()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")
