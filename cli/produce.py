"""`llmagentos produce`: a message, or a file of them, to an agent."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llmagentos.cli.output import Output, OutputOption

if TYPE_CHECKING:
    from llmagentos.streams.intake import Summary
    from llmagentos.streams.mapping import Build
    from llmagentos.streams.settings import Settings

__all__ = ["register"]

_EXAMPLES = """\b
Examples:
  llmagentos produce --to greeter "good morning"
  llmagentos produce --to greeter --conversation order-17 "where is it?"
  llmagentos produce --to greeter --file messages.ndjson.gz
  llmagentos produce --to greeter --file dialogues.ndjson --map conversation_id=.conversation --map text=.text
  llmagentos produce --to greeter --file orders.csv --map conversation_id=.customer --map message_id={.customer}/{.no}
  my-export | llmagentos produce --to greeter --rate 100 --rejects bad.ndjson -
"""


class Format(StrEnum):
    """Of a file's lines."""

    ndjson = "ndjson"
    csv = "csv"
    text = "text"


def register(app: typer.Typer) -> None:
    """Add `produce`."""

    @app.command(epilog=_EXAMPLES)
    def produce(  # pyright: ignore[reportUnusedFunction]
        text: str | None = typer.Argument(
            None, metavar="[TEXT|-]", help="One message; - reads lines from standard input."
        ),
        to: str = typer.Option(..., "--to", "-t", metavar="AGENT", help="Whose inbox."),
        conversation: str | None = typer.Option(
            None, "--conversation", "-c", help="Of the message, or of lines that name none. Default: a new one each."
        ),
        file: Path | None = typer.Option(
            None, "--file", "-f", help="NDJSON, CSV or text, also gzipped. Sent in its order."
        ),
        kind: Format | None = typer.Option(None, "--format", help="Default: by the file's name, else ndjson."),
        pairs: list[str] = typer.Option(
            [],
            "--map",
            "-m",
            metavar="FIELD=SOURCE",
            help="Where in a line a field is: conversation_id=.conversation, attributes.team=.meta.team,"
            " message_id={.conversation}/{.turn}, tenant=acme. Without text and body, the line is the body.",
        ),
        rate: float | None = typer.Option(None, "--rate", min=0.001, help="Messages a second at most."),
        rejects: Path | None = typer.Option(
            None, "--rejects", help="File for the lines that are refused, as they were; written anew."
        ),
        output: Output = OutputOption,
    ) -> None:
        """Send a message to an agent, or one for each line of a file.

        A line that makes no message is refused with its number and the reason; the others are sent, and the exit
        status is 1.
        """
        from llmagentos.streams.intake import STDIN
        from llmagentos.streams.settings import Settings

        if (text is None) == (file is None):
            raise typer.BadParameter("give TEXT, --file FILE or -, one of them")
        settings = Settings.load()
        if text is not None and text != "-":
            wrong = [name for name, given in (("--map", pairs), ("--rate", rate), ("--rejects", rejects)) if given]
            if wrong:
                raise typer.BadParameter(f"{wrong[0]} goes with a file")
            _one(settings, to, text, conversation, output)
        else:
            path = STDIN if file is None else file
            _many(settings, to, path, kind and kind.value, pairs, conversation, rate, rejects, output)


def _one(settings: Settings, to: str, text: str, conversation: str | None, output: Output) -> None:
    from llmagentos.cli.output import console, print_json
    from llmagentos.streams.intake import inbox_of
    from llmagentos.streams.message import Message

    inbox_of(settings, to)
    message = Message.create(text, to=to, conversation=conversation)

    async def send() -> dict[str, Any]:
        async with _producer(settings) as producer:
            place = await (await producer.send(message))
        ids = {"message_id": message.message_id, "conversation_id": message.conversation_id}
        return ids | {"topic": place.topic, "partition": place.partition, "offset": place.offset}

    sent = _run(send())
    if output is Output.json:
        print_json(sent)
    else:
        console.print(
            f"sent to {sent['topic']}, partition {sent['partition']}, offset {sent['offset']};"
            f" conversation {sent['conversation_id']}"
        )


def _many(
    settings: Settings,
    to: str,
    path: Path,
    kind: Any,
    pairs: list[str],
    conversation: str | None,
    rate: float | None,
    rejects: Path | None,
    output: Output,
) -> None:
    from llmagentos.streams.errors import InputError
    from llmagentos.streams.intake import STDIN, Summary, feed, format_of, inbox_of, lines
    from llmagentos.streams.mapping import compile_mapping

    if path != STDIN and not path.is_file():
        raise InputError(f"there is no file {path}", fix="--file takes a file; - reads standard input")
    if rejects is not None and path != STDIN and rejects.exists() and rejects.samefile(path):
        raise InputError(f"--rejects {rejects} is the file that is read", fix="name another file")
    build: Build = compile_mapping(pairs, to=to, conversation=conversation)
    summary = Summary(inbox_of(settings, to))
    with ExitStack() as stack:
        sink = None
        if rejects is not None:
            try:
                sink = stack.enter_context(rejects.open("wb"))
            except OSError as error:
                raise InputError(f"--rejects {rejects} can't be written: {error.strerror}") from error
        show = stack.enter_context(_Bar(path))

        async def send() -> None:
            source = lines(path, kind or format_of(path), summary)
            async with _producer(settings) as producer:
                await feed(producer, source, build, summary, rate=rate, rejects=sink, progress=show)

        try:
            _run(send())
        finally:
            stack.close()
            _print(summary, rejects, output)
    if summary.refused:
        raise typer.Exit(1)


class _Bar:
    """A progress bar on standard error, where that is a terminal."""

    def __init__(self, path: Path) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

        from llmagentos.cli.output import errors

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[sent]:,} messages, {task.fields[rate]:,.0f}/s"),
            TextColumn("[red]{task.fields[refused]}[/]"),
            TimeRemainingColumn(),
            console=errors,
            transient=True,
            disable=not errors.is_terminal,
        )
        self._task = self._progress.add_task(path.name, total=None, sent=0, rate=0.0, refused="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, summary: Summary) -> None:
        self._progress.update(
            self._task,
            completed=summary.position,
            total=summary.size or None,
            sent=summary.acknowledged,
            rate=summary.per_second,
            refused=f"{summary.refused:,} refused" if summary.refused else "",
        )


def _print(summary: Summary, rejects: Path | None, output: Output) -> None:
    """The summary; the refused lines on standard error, so that standard output stays data."""
    from llmagentos.cli.output import console, errors, print_json

    if output is Output.json:
        print_json(
            {
                "topic": summary.topic,
                "read": summary.read,
                "acknowledged": summary.acknowledged,
                "refused": summary.refused,
                "body_bytes": summary.body_bytes,
                "seconds": round(summary.seconds, 3),
                "per_second": round(summary.per_second, 1),
                "refusals": [{"line": refusal.line, "reason": refusal.reason} for refusal in summary.refusals],
                "rejects": None if rejects is None else str(rejects),
            }
        )
        return
    for refusal in summary.refusals:
        errors.print(f"line {refusal.line}: {refusal.reason}", markup=False, soft_wrap=True)
    if summary.refused > len(summary.refusals):
        errors.print(f"and {summary.refused - len(summary.refusals):,} more lines")
    console.print(
        f"{summary.acknowledged:,} messages to {summary.topic} in {summary.seconds:.1f} s"
        f" ({summary.per_second:,.0f}/s, {summary.body_bytes / 1e6:,.1f} MB of bodies)"
        + (f"; {summary.refused:,} lines refused" if summary.refused else "")
        + (f", kept in {rejects}" if summary.refused and rejects is not None else ""),
        soft_wrap=True,
    )


def _producer(settings: Settings) -> Any:
    from llmagentos.streams.producer import Producer
    from llmagentos.streams.registry import open_registry
    from llmagentos.streams.wire import Codec

    return Producer(settings, Codec(open_registry(settings)))


def _run(coroutine: Any) -> Any:
    """On uvloop where there is one."""
    import asyncio

    try:
        import uvloop
    except ImportError:
        return asyncio.run(coroutine)
    return uvloop.run(coroutine)
