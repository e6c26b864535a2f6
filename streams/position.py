"""Where in a topic to begin or end reading: `-10m`, `beginning`, a timestamp, an offset."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime

from llmagentos.streams.errors import InputError

__all__ = ["BEGINNING", "END", "Position", "milliseconds"]

_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_SPAN = re.compile(rf"(?:{_PART.pattern})+")

_FIX = (
    "give a time ago (-10m, -1h30m, -2d), `beginning`, `end`, a timestamp (2026-11-21T08:30, 08:30 today, with Z or"
    " +01:00 where it is not local time), or an offset (1200; -100 is the last hundred of each partition)"
)


def milliseconds(text: str) -> int | None:
    """`10m`, `1h30m`, `500ms` as milliseconds; None where *text* is no such span."""
    if not _SPAN.fullmatch(text):
        return None
    return round(sum(float(number) * _UNIT_MS[unit] for number, unit in _PART.findall(text)))


@dataclass(frozen=True, slots=True)
class Position:
    """A place in every partition: an offset or a time; build it with :meth:`parse`.

    Attributes:
        kind: `offset` (negative: that many before the end), `time`, `beginning` or `end`.
        value: an offset, or milliseconds since the epoch.
    """

    kind: str
    value: int = 0

    @classmethod
    def parse(cls, text: str, option: str = "--from", now_ms: int | None = None) -> Position:
        """Read what a person wrote.

        Args:
            option: named by the error.
            now_ms: what a time ago counts from; None: now.

        Raises:
            InputError: it is none of the forms; the message lists them.
        """
        given, text = text, text.strip()
        now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        if text in ("beginning", "earliest"):
            return BEGINNING
        if text in ("end", "latest", "now"):
            return END
        if re.fullmatch(r"-?\d+", text):
            return cls("offset", int(text))
        if text.startswith("-") and (ago := milliseconds(text[1:])) is not None:
            return cls("time", now_ms - ago)
        if (clock := re.fullmatch(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?", text)) is not None:
            text = f"{datetime.fromtimestamp(now_ms / 1000):%Y-%m-%d}T{clock[0]:0>5}"
        try:
            when = datetime.fromisoformat(text)  # without a zone it is local time, as people mean it
        except ValueError:
            raise InputError(f"{option} {given!r} is no place in a topic", fix=_FIX) from None
        return cls("time", round(when.timestamp() * 1000))


BEGINNING = Position("beginning")
END = Position("end")
