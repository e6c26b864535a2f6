"""Records for people: a line each, in local time, a colour for each agent, token streams folded into one line."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from datetime import datetime

import orjson
from rich.console import Console
from rich.text import Text

from llmagentos.streams.entries import Entry, content, text
from llmagentos.streams.message import Message

__all__ = ["Dialogue", "lapse"]

#: Told apart on dark and light grounds; red is left to errors.
_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green", "bright_magenta")

_TYPES = {"error": "bold red", "dead": "bold red", "result": "bold", "token": "dim"}

#: Characters of a body on its line where no terminal gives a width, as in a pipe.
_PIPED_WIDTH = 200

#: Columns for sender and recipient at most; a longer pair shifts its own line.
_NAMES_WIDTH = 30

#: The same for the name of a conversation that came of the one shown.
_CHILD_WIDTH = 12

#: Causes whose time is remembered, and token streams that are open at once; older ones are let go.
_REMEMBERED = 10_000
_STREAMS = 100

#: Characters of a folded token stream that are held.
_STREAM_TEXT = 100_000


def lapse(ms: float) -> str:
    """A stretch of time in the unit that suits it: `12 ms`, `1.4 s`, `3.0 min`, `2.5 h`, `1.5 d`."""
    for unit, size, digits in (("d", 86_400_000, 1), ("h", 3_600_000, 1), ("min", 60_000, 1), ("s", 1_000, 1)):
        if ms >= size:
            return f"{ms / size:.{digits}f} {unit}"
    return f"{ms:.0f} ms"


@dataclass(slots=True)
class _Stream:
    """Tokens of one agent in answer to one message."""

    first_ms: int
    last: Entry
    count: int = 0
    parts: list[str] = field(default_factory=list[str])
    size: int = 0


class Dialogue:
    """Prints entries, in time order, as they come.

    Args:
        one: they are one conversation: its name leads, each line says how long after its cause it came, and
            :meth:`close` sums up.
        full: long bodies whole, on lines of their own.
    """

    def __init__(self, console: Console, *, one: str | None = None, full: bool = False) -> None:
        self._console = console
        self._one = one
        self._full = full
        self._width = console.width if console.is_terminal else _PIPED_WIDTH
        self._day = ""
        self._child_width = 0
        self._names_width = 0  # of the longest yet, so that what follows stands in columns
        self._when: dict[str, int] = {}  # message id -> timestamp
        self._previous = -1
        self._first = -1
        self._shown = 0
        self._agents: dict[str, None] = {}
        self._tokens_in = self._tokens_out = 0
        self._cost = 0.0
        self._streams: dict[tuple[str, str, str | None], _Stream] = {}

    def show(self, entry: Entry) -> None:
        """Print *entry*, or fold it into the token stream that it belongs to."""
        message = entry.message
        if message is not None and message.type == "token" and not entry.is_dead_letter:
            self._fold(entry, message)
            return
        if message is not None and message.type in ("result", "error"):  # what the tokens were ahead of
            key = (message.conversation_id, message.sender, message.caused_by)
            if key in self._streams:
                self._unfold(key)
        self._print(entry)

    def idle(self) -> None:
        """Nothing comes for now: print the token streams as far as they are."""
        for key in list(self._streams):
            self._unfold(key)

    def close(self) -> None:
        """The end: print what is open, and sum up where it was one conversation."""
        self.idle()
        if self._one is None or not self._shown:
            return
        parts = [f"{self._shown:,} record{'s' * (self._shown != 1)}"]
        if self._agents:
            parts.append(f"of {', '.join(self._agents)}")
        parts.append(f"in {lapse(self._previous - self._first)}")
        if self._tokens_in or self._tokens_out:
            parts.append(f"; {self._tokens_in:,} tokens in, {self._tokens_out:,} out, ${self._cost:.4f}")
        self._console.print(Text(" ".join(parts).replace(" ;", ";"), style="dim"), soft_wrap=True)

    # -- token streams

    def _fold(self, entry: Entry, message: Message) -> None:
        key = (message.conversation_id, message.sender, message.caused_by)
        stream = self._streams.get(key)
        if stream is None:
            if len(self._streams) >= _STREAMS:
                self._unfold(next(iter(self._streams)))
            stream = self._streams[key] = _Stream(entry.timestamp, entry)
        stream.count += 1
        stream.last = entry
        part = _said(message)
        stream.size += len(part)
        if stream.size <= _STREAM_TEXT:
            stream.parts.append(part)

    def _unfold(self, key: tuple[str, str, str | None]) -> None:
        stream = self._streams.pop(key)
        took = f" in {lapse(stream.last.timestamp - stream.first_ms)}" if stream.count > 1 else ""
        note = f"({stream.count} token{'s' * (stream.count != 1)}{took})"
        self._print(stream.last, "".join(stream.parts), note, stream.count)

    # -- lines

    def _print(self, entry: Entry, body: str | None = None, note: str = "", count: int = 1) -> None:
        self._date(entry)
        line = self._lead(entry)
        said = self._body(entry) if body is None else body
        if entry.error:
            line.append(entry.error.removeprefix(f"record {entry.place}: "), style="red")
        elif not self._full:
            room = max(20, self._width - line.cell_len - len(note) - 1)
            flat = Text(said.replace("\r", "").replace("\n", " ⏎ ").replace("\t", " "))
            flat.truncate(room, overflow="ellipsis")
            line.append_text(flat)
        if note:
            line.append(f" {note}", style="dim")
        self._console.print(line, soft_wrap=True)
        if self._full and said and not entry.error:
            self._console.print(Text("\n".join(f"    {row}" for row in said.splitlines())), soft_wrap=True)
        self._count(entry, count)

    def _lead(self, entry: Entry) -> Text:
        """When, how long after what, which conversation, and who to whom."""
        line = Text(no_wrap=True)
        line.append(_clock(entry.timestamp), style="dim")
        name = entry.conversation
        if self._one is None:
            line.append(f"  {_short(name):<14.14}  ", style=_colour(name) if name else "dim")
        else:
            line.append(f"{self._delta(entry):>10}  ", style="dim")
            child = "" if name == self._one else name.removeprefix(self._one) + " "
            self._child_width = max(self._child_width, min(len(child), _CHILD_WIDTH))
            line.append(f"{child:<{self._child_width}}", style="dim")
        self._who(line, entry)
        return line

    def _date(self, entry: Entry) -> None:
        day = f"{datetime.fromtimestamp(max(0, entry.timestamp) / 1000).astimezone():%A, %d %B %Y, UTC%z}"
        if day != self._day:
            self._day = day
            lead = f"conversation {self._one}  " if self._one is not None and not self._shown else ""
            self._console.print(Text(f"{lead}{day}", style="bold"), soft_wrap=True)

    def _delta(self, entry: Entry) -> str:
        """Since the message that caused it, where that was shown; else since the line before."""
        caused_by = entry.message.caused_by if entry.message is not None else None
        before = self._when.get(caused_by, self._previous) if caused_by is not None else self._previous
        return "" if before < 0 else f"+{lapse(max(0, entry.timestamp - before))}"

    def _who(self, line: Text, entry: Entry) -> None:
        message = entry.message
        if message is None and not entry.is_dead_letter:
            line.append(f"{entry.place}  ", style="bold red" if entry.error else "bold")
            return
        names, kind = Text(), "dead"
        if entry.is_dead_letter and entry.record is not None:
            names.append(entry.record["agent"], style=_colour(entry.record["agent"]))
        elif message is not None:
            kind, recipient = message.type, message.recipient or "client"
            names.append(message.sender, style=_colour(message.sender))
            names.append(" → ", style="dim")
            names.append(recipient, style=_colour(recipient))
        self._names_width = max(self._names_width, min(names.cell_len, _NAMES_WIDTH))
        names.pad_right(max(0, self._names_width - names.cell_len))
        line.append_text(names)
        line.append(f"  {kind:<7}  ", style=_TYPES.get(kind, "dim"))

    def _body(self, entry: Entry) -> str:
        if entry.is_dead_letter and entry.record is not None:
            record = entry.record
            where = f"{record['topic']}[{record['partition']}]@{record['offset']}"
            said = f"{record['cause']}: {record['error']} ({where})"
            return f"{said}\n{record['traceback']}".rstrip() if self._full else said
        if entry.message is not None:
            return _said(entry.message)
        if entry.record is not None:
            return orjson.dumps(entry.fields(), default=str).decode()
        return text(entry.raw or b"")

    def _count(self, entry: Entry, count: int) -> None:
        message = entry.message
        self._shown += count
        self._first = entry.timestamp if self._first < 0 else self._first
        self._previous = max(self._previous, entry.timestamp)
        if message is None:
            return
        if len(self._when) >= _REMEMBERED:
            del self._when[next(iter(self._when))]
        self._when[message.message_id] = entry.timestamp
        for name in (message.sender, message.recipient):
            if name:
                self._agents[name] = None
        if message.usage is not None and not entry.is_dead_letter:
            self._tokens_in += message.usage["tokens_in"]
            self._tokens_out += message.usage["tokens_out"]
            self._cost += message.usage["cost"]


def _said(message: Message) -> str:
    value = content(message)
    if isinstance(value, str):
        return value
    return "" if value is None else orjson.dumps(value).decode()


def _colour(name: str) -> str:
    return "default" if name == "client" else _COLOURS[zlib.crc32(name.encode()) % len(_COLOURS)]


def _short(conversation: str) -> str:
    """The end of a long name: ids that begin with the time differ there."""
    return conversation if len(conversation) <= 14 else f"…{conversation[-13:]}"


def _clock(timestamp: int) -> str:
    when = datetime.fromtimestamp(max(0, timestamp) / 1000).astimezone()
    return f"{when:%H:%M:%S}.{timestamp % 1000:03d}"
