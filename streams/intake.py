"""Messages out of files: lines of NDJSON, CSV or text, sent to one agent in the order of the file.

A line that makes no message is refused with its number and reason, and the others go on. What can't be sent because
Kafka is out of reach ends the intake: the file's order is kept, so that the numbers say where to go on.
"""

from __future__ import annotations

import asyncio
import csv
import difflib
import gzip
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple, cast

import orjson

from llmagentos.streams.admin import Admin
from llmagentos.streams.errors import DeliveryError, InputError, LLMAgentOSError, RecordError, UnknownAgent
from llmagentos.streams.mapping import Build, Unfit
from llmagentos.streams.message import Message
from llmagentos.streams.producer import Delivery, Producer
from llmagentos.streams.settings import Settings

__all__ = ["STDIN", "Format", "Line", "Refusal", "Summary", "feed", "format_of", "inbox_of", "lines"]

Format = Literal["ndjson", "csv", "text"]

#: In place of a path: standard input.
STDIN: Final = Path("-")

#: A longer line is refused unread, so that one missing newline does not fill the memory. Kafka's default limit for a
#: record is a sixteenth of it, and a line may have more in it than the message made of it.
MAX_LINE_BYTES: Final = 16 * 1024 * 1024

#: Refusals that the summary tells one by one.
TOLD: Final = 20
#: Seconds between two calls of the progress function: smooth to the eye.
PROGRESS_S: Final = 0.1


class Line(NamedTuple):
    """One line, or one row of CSV that may span several.

    Attributes:
        number: of its first line, from 1.
        raw: its bytes, newline included.
        value: what it says.
        reason: why it says nothing; empty where it does.
    """

    number: int
    raw: bytes
    value: Any
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A line that was not sent, and why."""

    line: int
    reason: str


@dataclass(slots=True)
class Summary:
    """What an intake did.

    Attributes:
        read: lines that were not blank.
        sent: messages handed to Kafka.
        acknowledged: of these, those that Kafka keeps.
        refused: lines that were not sent, or that Kafka refused for their size.
        body_bytes: of the messages sent.
        position, size: bytes of the file read, and in it; size is 0 where it is not known.
        refusals: the first ones.
    """

    topic: str
    read: int = 0
    sent: int = 0
    acknowledged: int = 0
    refused: int = 0
    body_bytes: int = 0
    seconds: float = 0.0
    position: int = 0
    size: int = 0
    refusals: list[Refusal] = field(default_factory=list[Refusal])

    @property
    def per_second(self) -> float:
        """Acknowledged messages a second."""
        return self.acknowledged / self.seconds if self.seconds > 0 else 0.0


def inbox_of(settings: Settings, agent: str) -> str:
    """The topic of *agent*'s inbox. Blocks.

    Raises:
        UnknownAgent: it has none; names those that have.
        BrokerError: Kafka is out of reach.
    """
    inbox = settings.topic("agent.")
    topics = Admin(settings).topics(inbox)
    if inbox + agent in topics:
        return inbox + agent
    there = sorted(topic.removeprefix(inbox) for topic in topics)
    close = difflib.get_close_matches(agent, there, len(there) or 1, 0.0)  # all, the closest first
    raise UnknownAgent(
        f"there is no agent {agent!r}: no topic {inbox}{agent}; "
        + (f"agents: {', '.join(close)}" if close else "there is none yet"),
        fix="name one of these, or deploy it: `llmagentos deploy FILE`; an agent's inbox is made when it is deployed",
    )


# -- reading --------------------------------------------------------------------------------------------------------


def format_of(path: Path) -> Format:
    """The format that *path*'s name tells; standard input is NDJSON."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    match suffixes[-1] if suffixes else "":
        case ".csv":
            return "csv"
        case ".txt":
            return "text"
        case _:
            return "ndjson"


@contextmanager
def _opened(path: Path) -> Generator[tuple[BinaryIO, BinaryIO]]:
    """The file's bytes, unpacked; and the file on disk, whose position tells the progress."""
    if path == STDIN:
        yield sys.stdin.buffer, sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    with file:
        if file.peek(3)[:3] == b"\x1f\x8b\x08":  # gzip's magic number and method: the name may say nothing
            with gzip.open(file) as unpacked:
                yield cast(BinaryIO, unpacked), file
        else:
            yield file, file


def lines(path: Path, kind: Format, summary: Summary | None = None) -> Iterator[Line]:
    """Each line of *path* that is not blank, also those that are not of its format.

    Args:
        summary: is told position and size.

    Raises:
        InputError: the file can't be read, or its compression is broken; names the line.
    """
    number = 0
    try:
        with _opened(path) as (file, disk):
            known = summary is not None and path != STDIN and disk.seekable()
            if summary is not None and known:
                summary.size = path.stat().st_size
            for line in _rows(file) if kind == "csv" else _values(file, kind):
                number = line.number
                if summary is not None and known:
                    summary.position = disk.tell()
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path} is damaged behind line {number}: {error}",
            kept=f"the lines up to {number} were sent, but for those refused",
            fix="fetch or pack the file again",
        ) from error
    except OSError as error:
        raise InputError(f"{path} can't be read behind line {number}: {error.strerror or error}") from error


def _raw(file: BinaryIO) -> Iterator[tuple[int, bytes, bool]]:
    """(number, bytes, whether it is all) of each line; of one that is too long its beginning."""
    number = 0
    while raw := file.readline(MAX_LINE_BYTES):
        number += 1
        whole = raw.endswith(b"\n") or len(raw) < MAX_LINE_BYTES
        if not whole:
            while (more := file.readline(MAX_LINE_BYTES)) and not more.endswith(b"\n"):
                pass
        yield number, raw, whole


_TOO_LONG: Final = f"the line is longer than {MAX_LINE_BYTES:,} bytes"


def _values(file: BinaryIO, kind: Format) -> Iterator[Line]:
    for number, raw, whole in _raw(file):
        if not whole:
            yield Line(number, raw, None, _TOO_LONG)
        elif raw.isspace():
            continue
        else:
            try:
                value = orjson.loads(raw) if kind == "ndjson" else {"text": raw.decode().rstrip("\r\n")}
            except orjson.JSONDecodeError as error:
                yield Line(number, raw, None, f"not JSON: {error}")
            except UnicodeDecodeError as error:
                yield Line(number, raw, None, f"not UTF-8: {error}")
            else:
                yield Line(number, raw, value)


def _rows(file: BinaryIO) -> Iterator[Line]:
    """Rows of CSV as objects, by the names in the first line. A row may span lines."""
    taken: list[bytes] = []  # lines of the row that is being read
    trouble = ""
    number = 0

    def text() -> Iterator[str]:
        nonlocal trouble, number
        for number, raw, whole in _raw(file):
            taken.append(raw)
            if not whole:
                trouble = _TOO_LONG
                yield "\n"  # its beginning could open a quote that nothing closes
                continue
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                trouble = f"not UTF-8: {error}"
                yield raw.decode(errors="replace")

    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(text())
    header: list[str] = []
    while True:
        taken.clear()
        trouble, first = "", number + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            row, trouble = [], f"not CSV: {error}"
        raw = b"".join(taken)
        if not header:
            if trouble or not row:
                raise InputError(f"the first line names no columns{': ' if trouble else ''}{trouble}")
            header = row
            yield Line(first, raw, None, _HEADER)
        elif trouble or len(row) != len(header):
            if row or trouble:
                yield Line(first, raw, None, trouble or f"{len(row)} columns, where the first line names {len(header)}")
        else:
            yield Line(first, raw, dict(zip(header, row, strict=True)))


#: Marks the line with a CSV's names: no message, no refusal, but the rejects need it.
_HEADER: Final = "header"


# -- sending --------------------------------------------------------------------------------------------------------


class _Pending(NamedTuple):
    """A message that Kafka has not acknowledged, with the line that it came from."""

    number: int
    raw: bytes
    delivery: Delivery


class _Feed:
    """One intake under way."""

    def __init__(self, producer: Producer, summary: Summary, rejects: BinaryIO | None) -> None:
        self._producer = producer
        self._summary = summary
        self._rejects = rejects
        self._pending: deque[_Pending] = deque()  # in the file's order; the producer's bounds are its own

    async def send(self, line: Line, message: Message) -> None:
        try:
            delivery = await self._producer.send(message)
        except RecordError as error:
            self.refuse(line.number, line.raw, error.what)
            return
        self._pending.append(_Pending(line.number, line.raw if self._rejects else b"", delivery))
        self._summary.sent += 1
        self._summary.body_bytes += len(message.body)

    def refuse(self, number: int, raw: bytes, reason: str) -> None:
        summary = self._summary
        summary.refused += 1
        if len(summary.refusals) < TOLD:
            summary.refusals.append(Refusal(number, reason))
        if self._rejects is not None:
            self._rejects.write(raw if raw.endswith(b"\n") else raw + b"\n")

    async def settle(self, wait: bool = False) -> None:
        """Take in the outcomes that are known, oldest first; with *wait*, all.

        Raises:
            DeliveryError: Kafka did not take one, and would not take the next one either.
        """
        while self._pending and (wait or self._pending[0].delivery.done):
            number, raw, delivery = self._pending.popleft()
            try:
                await delivery
            except RecordError as error:  # over the topic's own limit, which only the broker knows
                self.refuse(number, raw, error.what)
            except LLMAgentOSError as error:
                await self._give_up(number, raw, error)
            else:
                self._summary.acknowledged += 1

    async def _give_up(self, number: int, raw: bytes, error: LLMAgentOSError) -> None:
        """Count what else was acknowledged, keep the other lines in the rejects, and end."""
        self.refuse(number, raw, error.what)
        for other in self._pending:
            try:
                await other.delivery
            except LLMAgentOSError as failure:
                self.refuse(other.number, other.raw, failure.what)
            else:
                self._summary.acknowledged += 1
        self._pending.clear()
        kept = f"{self._summary.acknowledged:,} messages are acknowledged"
        kept += "; the lines that are not are in the rejects" if self._rejects else ""
        raise DeliveryError(f"line {number}: {error.what}", kept=kept, fix=error.fix) from error


async def feed(
    producer: Producer,
    source: Iterator[Line],
    build: Build,
    summary: Summary,
    *,
    rate: float | None = None,
    rejects: BinaryIO | None = None,
    progress: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Send a message for every line of *source*, in order, and wait until Kafka has acknowledged all.

    Args:
        build: makes the message of a line's value.
        summary: is filled, also where this raises.
        rate: messages a second at most.
        rejects: gets the refused lines as they were, after a CSV's first line.
        progress: is called some ten times a second.

    Raises:
        DeliveryError: Kafka is out of reach or refuses; says what was kept.
        InputError: as :func:`lines`.
    """
    state = _Feed(producer, summary, rejects)
    begun = told = time.monotonic()
    try:
        for line in source:
            if line.reason is _HEADER:
                if rejects is not None:
                    rejects.write(line.raw)
                continue
            if rate is not None:
                due = begun + summary.sent / rate
                while (early := due - time.monotonic()) > 0:
                    await asyncio.sleep(min(early, PROGRESS_S))
                    await state.settle()
            summary.read += 1
            if line.reason:
                state.refuse(line.number, line.raw, line.reason)
            else:
                try:
                    message = build(line.value, summary.sent)
                except (Unfit, RecordError) as error:
                    state.refuse(line.number, line.raw, str(error))
                else:
                    await state.send(line, message)
            if not summary.read & 63:
                await state.settle()
                now = time.monotonic()
                summary.seconds = now - begun
                if now - told >= PROGRESS_S:
                    told = now
                    progress(summary)
                    await asyncio.sleep(0)
    finally:
        try:
            await state.settle(wait=True)
        finally:
            summary.seconds = time.monotonic() - begun
            progress(summary)
    return summary
