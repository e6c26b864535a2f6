"""`llmagentos tail`: the records of topics, agents and conversations, decoded and in time order."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

import typer

if TYPE_CHECKING:
    from llmagentos.streams.entries import Entry

__all__ = ["complete_names", "register"]

_EXAMPLES = """\b
Examples:
  llmagentos tail                              all agents, the last 10 minutes
  llmagentos tail --follow                     and what comes, until Ctrl-C
  llmagentos tail -c order-17                  one conversation, all agents
  llmagentos tail dead.greeter --from 08:00 --to 09:30 --full
  llmagentos tail greeter --from -2h --where "type == 'error'"
  llmagentos tail replies --from beginning --where "body.total > 9" -o json
"""


class Form(StrEnum):
    """How records are printed."""

    pretty = "pretty"
    json = "json"
    raw = "raw"


class _Printer(Protocol):
    def show(self, entry: Entry) -> None: ...
    def idle(self) -> None: ...
    def close(self) -> None: ...


def complete_names(incomplete: str) -> list[str]:
    """Topics and agents, for the shell; none where the cluster does not answer at once."""
    from llmagentos.streams.errors import LLMAgentOSError
    from llmagentos.streams.selection import agents
    from llmagentos.streams.settings import Settings
    from llmagentos.streams.tail import Log

    try:
        settings = Settings.load()
        with Log(settings) as log:
            topics = log.topics(timeout_s=1.0)
    except LLMAgentOSError:
        return []  # a shell's completion has nowhere to say why
    names = [*agents(settings, topics), *(topic.removeprefix(settings.prefix) for topic in topics)]
    return [name for name in names if name.startswith(incomplete)]


def register(app: typer.Typer) -> None:
    """Add `tail`."""

    @app.command(epilog=_EXAMPLES)
    def tail(  # pyright: ignore[reportUnusedFunction]
        names: list[str] = typer.Argument(
            None,
            metavar="[TOPIC|AGENT]...",
            help="None: all agents.",
            autocompletion=complete_names,
            show_default=False,
        ),
        conversation: str | None = typer.Option(
            None, "--conversation", "-c", help="One conversation, with what came of it; in TOPICs just itself."
        ),
        start: str | None = typer.Option(
            None,
            "--from",
            help="-10m, beginning, 2026-11-21T08:00, 08:00, an offset, -100 for the last 100 of each partition."
            " Default: -10m; of a conversation the beginning.",
        ),
        stop: str | None = typer.Option(None, "--to", help="As --from; up to there, without it. Default: now."),
        where: str | None = typer.Option(None, "--where", "-w", help="Only where this is true of a record's fields."),
        follow: bool = typer.Option(False, "--follow", "-f", help="Go on with what comes, until Ctrl-C."),
        limit: int | None = typer.Option(None, "--limit", "-n", min=1, help="End after so many."),
        output: Form = typer.Option(
            Form.pretty,
            "--output",
            "-o",
            help="pretty; json: one object a line; raw: the bodies, a line end after each.",
        ),
        full: bool = typer.Option(False, "--full", help="Long bodies and tracebacks whole."),
    ) -> None:
        """Show the records of topics, agents and conversations, decoded and in time order."""
        from llmagentos.streams.entries import Decoder
        from llmagentos.streams.errors import InputError
        from llmagentos.streams.position import BEGINNING, END, Position
        from llmagentos.streams.selection import select
        from llmagentos.streams.settings import Settings
        from llmagentos.streams.tail import Log

        if follow and stop is not None:
            raise InputError("--follow has no end, --to names one", fix="give one of them")
        if conversation == "":
            raise InputError("--conversation is empty", fix="`llmagentos conversations` lists the recent ones")
        if start is not None:
            begin = Position.parse(start, "--from")
        elif conversation is not None:
            begin = BEGINNING
        else:
            begin = Position.parse("-10m")
            _note("the last 10 minutes; --from says otherwise")
        end = END if stop is None else Position.parse(stop, "--to")
        test = None
        if where is not None:
            from llmagentos.streams.where import Where

            test = Where(where)
        settings = Settings.load()
        decoder = Decoder(settings)
        printer = _printer(output, None if names else conversation, full)
        shown = 0
        with Log(settings, follow=follow, note=_note) as log:
            try:
                for entry in select(
                    log,
                    decoder,
                    names or (),
                    conversation=conversation,
                    start=begin,
                    stop=end,
                    follow=follow,
                    note=_note,
                ):
                    if entry is None:
                        printer.idle()
                    elif test is None or test.matches(entry.fields()):
                        printer.show(entry)
                        shown += 1
                        if shown == limit:
                            break
            finally:
                printer.close()
        if test is not None and test.failed:
            _note(f"--where can't be told of {test.failed:,} records, which are not shown; of the first: {test.reason}")
        if not shown:
            _note(_nothing(names or (), conversation, start, where))


def _printer(output: Form, conversation: str | None, full: bool) -> _Printer:
    if output is Form.pretty:
        from llmagentos.cli.dialogue import Dialogue
        from llmagentos.cli.output import console

        return Dialogue(console, one=conversation, full=full)
    return _Lines(output)


class _Lines:
    """For programs: a line a record, flushed whenever nothing more comes at once."""

    def __init__(self, output: Form) -> None:
        self._out = sys.stdout.buffer
        self._raw = output is Form.raw

    def show(self, entry: Entry) -> None:
        if self._raw:
            inner = entry.message.body if entry.message is not None else entry.raw
            self._out.write((inner or b"") + b"\n")
        else:
            self._out.write(_json(entry.fields()))

    def idle(self) -> None:
        self._out.flush()

    def close(self) -> None:
        self._out.flush()


def _json(fields: dict[str, Any]) -> bytes:
    import orjson

    return orjson.dumps(fields, default=_other, option=orjson.OPT_APPEND_NEWLINE)


def _other(value: Any) -> Any:
    from llmagentos.streams.entries import said

    return said(value) if isinstance(value, bytes) else str(value)


def _nothing(names: Iterable[str], conversation: str | None, start: str | None, where: str | None) -> str:
    parts = ["nothing" if conversation is None else f"nothing of conversation {conversation}"]
    parts.append(f"in {', '.join(names) or 'the topics of any agent'}")
    if start is not None:
        parts.append(f"from {start} on")
    if where is not None:
        parts.append(f"where {where}")
    return " ".join(parts) + ("" if conversation or start else "; --from beginning looks further back")


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")
