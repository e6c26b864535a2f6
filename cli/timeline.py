"""A conversation's timeline for people and programs: rows of a tree, in a terminal, in a pipe, as JSON."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import orjson
from rich.console import Console
from rich.text import Text

from llmagentos.cli.dialogue import lapse
from llmagentos.streams.entries import content, said
from llmagentos.streams.invocations import Invocation, Step
from llmagentos.streams.journal_record import CLEANUP
from llmagentos.streams.masking import masked, masked_text, shortened
from llmagentos.streams.message import BYTES, JSON

__all__ = ["Row", "as_json", "drawn", "line", "rows", "summary"]

#: Told apart on dark and light grounds; red is left to errors, yellow to what waits.
_COLOURS: Final = ("cyan", "green", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")

_STYLES: Final = {
    "waits": "bold yellow",
    "waiting": "bold yellow",
    "begun": "yellow",
    "open": "yellow",
    "new": "dim",
    "held": "yellow",
    "failed": "bold red",
    "parked": "bold red",
    "late": "bold red",
    "cancelled": "red",
    "rejected": "red",
    "expired": "red",
    "approved": "green",
}

#: Columns for the tree at most; a longer name shifts its own line.
_NAME_WIDTH: Final = 44
#: Columns for how a row stands.
_STATE_WIDTH: Final = 36
#: Characters of a value where no terminal gives a width, as in a pipe and in JSON.
PIPED_WIDTH: Final = 200


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the tree.

    Attributes:
        key: the same for the same thing when the tree is put together again.
        guide: what is drawn in front of the name: the branches of the tree.
        depth: how far below the root.
        kind: message; answer; of a step, its kind.
        agent: whose it is.
        at, ended: milliseconds since the epoch; ended is 0 where it goes on.
        state: as in invocations.
        how: the state for people, with tries, time and what is waited for.
        text: the value, on one line; full: the same, whole.
    """

    key: tuple[Any, ...]
    guide: str
    depth: int
    kind: str
    agent: str
    name: str
    at: int
    ended: int
    state: str
    how: str
    text: str
    full: str


def rows(roots: Sequence[Invocation], *, show: bool = False, width: int | None = PIPED_WIDTH) -> list[Row]:
    """The tree, line by line.

    Args:
        show: secrets as they are.
        width: of a value on its line; None: whole.
    """
    found: list[Row] = []
    for root in roots:
        _message_rows(root, "", "", 0, show, width, found)
    return found


def _message_rows(
    each: Invocation, guide: str, below: str, depth: int, show: bool, width: int | None, found: list[Row]
) -> None:
    """The rows of one message: its own, then what is below it."""

    def row(key: tuple[Any, ...], kind: str, name: str, at: int, ended: int, state: str, how: str, full: str) -> Row:
        place = (each.agent, each.partition, each.offset)
        return Row(
            (*place, *key), "", depth + 1, kind, each.agent, name, at, ended, state, how, shortened(full, width), full
        )

    message, answer = each.message, each.answer
    full = "(retention has taken the message)" if message is None else _said(content(message), show)
    name = each.agent if message is None else f"{each.agent} ← {message.sender}"
    own = row((), "message", name, each.at, each.ended, each.state, _how_message(each), full)
    found.append(replace(own, guide=guide, depth=depth))

    parts: list[tuple[Row, Invocation | None]] = []
    for step in each.steps:
        key = (step.kind, step.name, step.number, step.about)
        how = _how_step(step, over=not each.waits)
        said_ = _step_said(step, show)
        parts.append((row(key, step.kind, _name(step), step.at, step.ended, step.state, how, said_), step.child))
    if each.error:
        at = each.ended or max((step.at for step in each.steps), default=each.at)
        parts.append((row(("error",), "error", "error", at, at, "failed", "", _said(each.error, show)), None))
    if answer is not None:
        after = f"after {lapse(max(0, answer.timestamp - each.at))}" + (
            f", {each.tokens} tokens" if each.tokens else ""
        )
        state = "failed" if answer.type == "error" else "done"
        said_ = _said(content(answer), show)
        parts.append(
            (row(("answer",), "answer", "answer", answer.timestamp, answer.timestamp, state, after, said_), None)
        )
    for index, (part, child) in enumerate(parts):
        last = index == len(parts) - 1
        under = below + ("  " if last else "│ ")
        found.append(replace(part, guide=below + ("└ " if last else "├ ")))
        if child is not None:
            _message_rows(child, under, under, depth + 2, show, width, found)


def _name(step: Step) -> str:
    name = step.name.removeprefix("ctx.")
    number = step.number % CLEANUP
    return ("cleanup: " if step.number >= CLEANUP else "") + (f"{name} ({number + 1})" if number else name)


def _how_message(each: Invocation) -> str:
    took = f" in {lapse(max(0, each.ended - each.at))}" if each.ended and each.at else ""
    return {
        "new": "not handled yet",
        "open": "runs, or will again" if not each.cancelled else "is being cancelled",
        "waiting": "waits, suspended" if not each.cancelled else "to be cancelled",
        "held": "held behind others",
        "parked": "parked",
        "done": f"done{took}",
        "failed": f"failed{took}",
        "cancelled": f"cancelled{took}",
        "dropped": "dropped",
    }[each.state]


def _how_step(step: Step, *, over: bool) -> str:
    if step.state == "waits":
        if over:
            return "left"
        due = f", until {_clock(step.due)}" if step.due else ""
        return f"waits for {lapse(max(0, time.time() * 1000 - step.at))}{due}"
    took = lapse(step.took)
    tries = f", {step.attempts} tries" if step.attempts > 1 else ""
    who = f" by {step.by}" if step.by else ""
    return {
        "done": took + tries,
        "failed": f"failed in {took}{tries}",
        "begun": "begun, not known to end",
        "sent": "sent",
        "approved": f"approved{who} after {took}",
        "rejected": f"rejected{who} after {took}",
        "expired": f"expired after {took}",
        "late": f"no answer in {took}",
        "version": "takes the new way",
    }[step.state]


def _said(value: Any, show: bool) -> str:
    if not show:
        value = masked(value)
    if isinstance(value, str):
        return value
    return "" if value is None else orjson.dumps(value, default=str).decode()


def _step_said(step: Step, show: bool) -> str:
    if step.kind == "approval":
        said_ = step.about if show else masked_text(step.about)
        return f"{said_} — {step.why if show else masked_text(step.why)}" if step.why else said_
    if not step.body:
        return f"(kept outside the journal: {step.blob})" if step.blob else ""
    if step.content_type == BYTES:
        return f"{len(step.body):,} bytes"
    if step.content_type == JSON:
        try:
            value = orjson.loads(step.body)
        except orjson.JSONDecodeError:
            return _said(said(step.body), show)
        if step.state == "failed" and isinstance(value, dict) and {"kind", "text"} == value.keys():
            value = f"{value['kind']}: {value['text']}"
        return "" if value is None else _said(value, show)
    return _said(said(step.body), show)


# -- a terminal and a pipe --------------------------------------------------------------------------------------------


def drawn(
    conversation: str, found: Sequence[Row], roots: Sequence[Invocation], console: Console, *, full: bool
) -> list[Text]:
    """The whole tree, fit to the terminal.

    Args:
        full: values whole, below their lines.
    """
    width = console.width if console.is_terminal else None
    names = min(_NAME_WIDTH, max((len(row.guide) + len(row.name) for row in found), default=0))
    hows = min(_STATE_WIDTH, max((len(row.how) for row in found), default=0))
    lines: list[Text] = [_head(conversation, roots)]
    day = ""
    for row in found:
        date = f"{datetime.fromtimestamp(row.at / 1000):%A, %d %B %Y}"
        if date != day:
            day = date
            lines.append(Text(date, style="dim"))
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"{_clock(row.at, ms=True)}  ", style="dim")
        text.append(row.guide, style="dim")
        text.append(row.name, style=_name_style(row))
        text.append(" " * max(0, names - len(row.guide) - len(row.name)) + "  ")
        text.append(f"{row.how:<{hows}}  ", style=_STYLES.get(row.state, "dim"))
        if not full:
            text.append(row.text)
        if width is not None:
            text.truncate(width, overflow="ellipsis")
        lines.append(text)
        if full and row.full:
            indent = " " * (14 + len(row.guide) + 2)
            lines += [Text(f"{indent}{part}") for part in row.full.splitlines()]
    return lines


def line(row: Row) -> str:
    """One row by itself: for a pipe, as it comes or changes."""
    name = row.name if row.kind == "message" else f"{row.agent} · {row.name}"
    return f"{_clock(row.at, ms=True)}  {name}  {row.how}  {row.text}".rstrip()


def summary(roots: Sequence[Invocation]) -> str:
    """How it stands, in words."""
    all_ = [each for root in roots for each in root.walk()]
    agents = list(dict.fromkeys(each.agent for each in all_))
    messages = f"{len(all_):,} message{'' if len(all_) == 1 else 's'} to {', '.join(agents)}"
    waits = [f"{each.agent} waits for {_waited(step)}" for each in all_ for step in each.waits]
    failed = [f"{each.agent} failed" for each in all_ if each.state in ("failed", "parked")]
    open_ = [f"{each.agent} is at it" for each in all_ if each.state in ("open", "new") and not each.waits]
    return "; ".join(
        [messages, *dict.fromkeys([*failed, *waits, *open_])] + ([] if failed + waits + open_ else ["over"])
    )


def _waited(step: Step) -> str:
    until = f" until {_clock(step.due)}" if step.due else ""
    if step.kind == "approval":
        return f'approval "{shortened(masked_text(step.about), 60)}"{until}'
    return f"an answer of {step.asked}{until}" if step.kind == "question" else f"a timer{until}"


def _head(conversation: str, roots: Sequence[Invocation]) -> Text:
    return Text.assemble((f"conversation {conversation}", "bold"), f"  {summary(roots)}", no_wrap=False)


def _name_style(row: Row) -> str:
    if row.kind == "message":
        return f"bold {_COLOURS[zlib.crc32(row.agent.encode()) % len(_COLOURS)]}"
    return {"error": "bold red", "answer": "bold"}.get(row.kind, "")


def _clock(timestamp_ms: int, *, ms: bool = False) -> str:
    when = datetime.fromtimestamp(max(0, timestamp_ms) / 1000)
    if ms:
        return f"{when:%H:%M:%S}.{timestamp_ms % 1000:03d}"
    far = abs(timestamp_ms / 1000 - time.time()) > 43_200
    return f"{when:%Y-%m-%d %H:%M}" if far else f"{when:%H:%M:%S}"


# -- programs ---------------------------------------------------------------------------------------------------------


def as_json(roots: Iterable[Invocation], *, show: bool) -> list[dict[str, Any]]:
    """The tree for programs: messages with their steps, which have the messages that they sent."""
    return [_message_json(each, show) for each in roots]


def _message_json(each: Invocation, show: bool) -> dict[str, Any]:
    return {
        "agent": each.agent,
        "partition": each.partition,
        "offset": each.offset,
        "conversation": each.conversation_id,
        "message_id": each.message_id,
        "sender": None if each.message is None else each.message.sender,
        "content": None if each.message is None else _value(content(each.message), show),
        "state": each.state,
        "at": each.at,
        "ended": each.ended or None,
        "error": (each.error if show else masked_text(each.error)) or None,
        "waits": [
            {
                "for": _KINDS.get(step.kind, step.kind),
                "step": step.number + 1,
                "about": step.about,
                "due": step.due or None,
            }
            for step in each.waits
        ],
        "steps": [_step_json(step, show) for step in each.steps],
        "answer": None if each.answer is None else _value(content(each.answer), show),
    }


_KINDS: Final = {"question": "answer"}


def _step_json(step: Step, show: bool) -> dict[str, Any]:
    return {
        "kind": step.kind,
        "name": step.name,
        "number": step.number + 1,
        "state": step.state,
        "at": step.at,
        "ended": step.ended or None,
        "took_ms": step.took if step.ended else None,
        "attempts": step.attempts,
        "about": (step.about if show else masked_text(step.about)) or None,
        "due": step.due or None,
        "result": _step_said(step, show) if step.kind != "approval" else None,
        "by": step.by or None,
        "why": (step.why if show else masked_text(step.why)) or None,
        "message": None if step.child is None else _message_json(step.child, show),
    }


def _value(value: Any, show: bool) -> Any:
    return value if show else masked(value)
