"""`llmagentos memory`: what agents remember of a conversation."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

from llmagentos.cli.output import Output, OutputOption

if TYPE_CHECKING:
    from llmagentos.streams.remembered import Remembered

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `memory`."""
    app.command(
        epilog="\b\nExamples:\n  llmagentos memory order-17\n  llmagentos memory order-17 --agent till --show\n"
        "  llmagentos memory order-17 -o json"
    )(memory)


def memory(
    conversation: str = typer.Argument(..., metavar="CONVERSATION", help="Its id."),
    agent: str = typer.Option("", "--agent", "-a", help="Only of this agent.", show_default=False),
    show: bool = typer.Option(False, "--show", help="What looks like a secret, too."),
    output: Output = OutputOption,
) -> None:
    """Show what agents remember of a conversation: as the last message left it that is completed.

    Read from Redis as far as that is, and from Kafka for the rest; from Kafka alone where Redis is away. What looks
    like a secret is masked.
    """
    from llmagentos.streams.entries import Decoder
    from llmagentos.streams.remembered import remembered
    from llmagentos.streams.settings import Settings
    from llmagentos.streams.tail import Log

    settings = Settings.load()
    decoder = Decoder(settings)
    with Log(settings) as log:
        log.topics()  # the shortest way to a clear error where Kafka is out of reach
        found = remembered(settings, decoder.codec, log, conversation, agent)
    if output is Output.json:
        from llmagentos.cli.output import print_json

        print_json([_fields(each, show) for each in found])
        return
    from llmagentos.cli.output import console, errors

    if not found:
        errors.print(f"no agent remembers anything of conversation {conversation}", markup=False)
    for each in found:
        _print(console, each, show)


def _content(each: Remembered, show: bool) -> Any:
    import orjson

    from llmagentos.streams.entries import said
    from llmagentos.streams.masking import masked

    try:
        content = orjson.loads(each.record["body"])
    except orjson.JSONDecodeError:
        content = said(each.record["body"])
    return content if show else masked(content)


def _fields(each: Remembered, show: bool) -> dict[str, Any]:
    return {
        "agent": each.agent,
        "conversation": each.record["conversation_id"],
        "memory": _content(each, show),
        "bytes": len(each.record["body"]),
        "message_id": each.record["message_id"],
        "offset": each.record["offset"],
        "at": each.record["at"],
        "topic": each.topic,
        "partition": each.partition,
        "reflects": each.reflects,
        "redis": each.mirrored if each.mirrored >= 0 else None,
    }


def _print(console: Any, each: Remembered, show: bool) -> None:
    import orjson

    at = datetime.fromtimestamp(each.record["at"] / 1_000, UTC).astimezone()
    if each.mirrored < 0:
        source = "from Kafka alone: Redis has no mirror of it, or is out of reach"
    else:
        source = f"Redis is at {each.mirrored:,}"
    console.print(f"{each.agent}", style="bold", markup=False, end="")
    console.print(
        f"  {len(each.record['body']):,} bytes, left by message {each.record['message_id']} (offset"
        f" {each.record['offset']:,}) at {at:%Y-%m-%d %H:%M:%S}",
        markup=False,
        soft_wrap=True,
    )
    console.print(
        f"  {each.topic}[{each.partition}] up to offset {each.reflects:,}; {source}",
        style="dim",
        markup=False,
        soft_wrap=True,
    )
    text = orjson.dumps(_content(each, show), option=orjson.OPT_INDENT_2).decode()
    console.print(text, markup=False, soft_wrap=True)
