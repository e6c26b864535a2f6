"""Where reading begins, as people write it."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmagentos.streams.errors import InputError
from llmagentos.streams.position import BEGINNING, END, Position, milliseconds

NOW_MS = 1_800_000_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("beginning", BEGINNING),
        ("end", END),
        ("now", END),
        ("0", Position("offset", 0)),
        ("1200", Position("offset", 1200)),
        ("-100", Position("offset", -100)),
        ("-10m", Position("time", NOW_MS - 600_000)),
        ("-1h30m", Position("time", NOW_MS - 5_400_000)),
        ("-1.5s", Position("time", NOW_MS - 1_500)),
        ("-500ms", Position("time", NOW_MS - 500)),
        ("2027-01-15T08:00:00Z", Position("time", NOW_MS)),
        ("2027-01-15T09:00+01:00", Position("time", NOW_MS)),
        (" 2027-01-15 08:00:00.250Z ", Position("time", NOW_MS + 250)),
    ],
)
def test_every_form_is_understood(text: str, expected: Position) -> None:
    assert Position.parse(text, now_ms=NOW_MS) == expected


def test_a_time_without_a_zone_is_local() -> None:
    local = datetime(2027, 1, 15, 8, 0).timestamp() * 1000
    assert Position.parse("2027-01-15T08:00") == Position("time", round(local))


def test_a_clock_is_of_today() -> None:
    today = datetime.fromtimestamp(NOW_MS / 1000).replace(hour=8, minute=30, second=0, microsecond=0)
    for text in ("8:30", "08:30", "08:30:00"):
        assert Position.parse(text, now_ms=NOW_MS) == Position("time", round(today.timestamp() * 1000))


@pytest.mark.parametrize("text", ["yesterday", "", "-", "10m", "-10x", "25:00", "2027-13-01", "1.5", "--3"])
def test_what_is_none_of_them_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(InputError, match="--since") as caught:
        Position.parse(text, "--since")
    assert repr(text) in caught.value.what
    assert "-10m" in caught.value.fix


@given(st.integers(0, 10**6), st.sampled_from(("ms", "s", "m", "h", "d", "w")))
def test_a_span_is_its_number_times_its_unit(number: int, unit: str) -> None:
    factor = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}[unit]
    assert milliseconds(f"{number}{unit}") == number * factor


@given(st.text(max_size=20))
def test_any_text_is_a_position_or_an_input_error(text: str) -> None:
    with suppress(InputError):
        assert isinstance(Position.parse(text), Position)
