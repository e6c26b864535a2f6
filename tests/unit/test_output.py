"""What commands print: what messages and errors say is text, neither markup nor commands to the terminal."""

from __future__ import annotations

import pytest

from llmagentos.cli import output
from llmagentos.streams.errors import InputError

NASTY = "x[/b] [red]y[/] \\[/z] \x1b]0;title\x07"
SHOWN = "x[/b] [red]y[/] \\[/z] \N{REPLACEMENT CHARACTER}]0;title"


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("console", "errors"):
        monkeypatch.delitem(vars(output), name, raising=False)


def test_a_table_shows_what_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_rows([{"conversation": NASTY, "held": 3}], ["conversation", "held"])
    assert SHOWN in capsys.readouterr().out


def test_an_error_shows_what_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_error(InputError(NASTY, kept=NASTY, fix=NASTY))
    assert capsys.readouterr().err.count(SHOWN) == 3
