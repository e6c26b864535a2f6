"""What a reader of tokens is shown, over runs that repeat, go on, differ, or come too late."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmagentos.agents.gateway.shown import Piece, Shown
from llmagentos.streams.message import Message

TEXT = "once upon a time"


def token(text: str, at: int, run: str = "1.0") -> Message:
    return Message.create(text, to="", type="token", attributes={"run": run, "at": str(at)})


def run_of(text: str, cuts: list[int], run: str, upto: int) -> list[Message]:
    """The tokens of a run that emits *text* cut at *cuts*, and ends behind *upto* characters."""
    places = sorted({0, *(cut % len(text) for cut in cuts), len(text)})
    return [token(text[a:b], a, run) for a, b in itertools.pairwise(places) if b <= upto]


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 99), max_size=6), st.integers(0, len(TEXT))), max_size=4),
    st.lists(st.integers(0, 99), max_size=6),
)
def test_however_often_it_runs_each_character_is_shown_once(
    before: list[tuple[list[int], int]], cuts: list[int]
) -> None:
    shown, text = Shown(), ""
    for number, (pieces, upto) in enumerate([*before, (cuts, len(TEXT))]):
        for each in run_of(TEXT, pieces, f"{number}.0", upto):
            piece = shown.take(each)
            assert piece is None or not piece.anew
            text += piece.text if piece else ""
    assert text == TEXT
    assert shown.rest(TEXT) == ""


def test_a_run_that_says_something_else_takes_the_place_of_what_was_shown() -> None:
    shown = Shown()
    assert shown.take(token("so it is", 0)) == Piece("so it is")
    assert shown.take(token("so ", 0, "2.0")) is None
    assert shown.take(token("it was ", 3, "2.0")) == Piece("so it was ", anew=True)
    assert shown.take(token("!", 8, "1.0")) is None  # of the run that is over
    assert shown.take(token("not", 10, "2.0")) == Piece("not")


def test_who_comes_in_the_middle_is_shown_nothing_twice_either() -> None:
    shown = Shown()
    assert shown.take(token("upon ", 5)) == Piece("upon ")
    assert shown.take(token("once ", 0, "2.0")) is None
    assert shown.take(token("upon a ", 5, "2.0")) == Piece("a ")


@pytest.mark.parametrize(
    ("told", "answer", "rest"),
    [("", "yes", "yes"), ("ye", "yes", "s"), ("let me see. yes", "yes", ""), ("let me see", "yes", "\n\nyes")],
)
def test_what_the_answer_adds(told: str, answer: str, rest: str) -> None:
    shown = Shown()
    if told:
        shown.take(token(told, 0))
    assert shown.rest(answer) == rest


def test_partial_results_go_by_their_number() -> None:
    shown = Shown()
    assert [shown.partial(token("", 0, run)) for run in ("1.0", "1.0", "2.0", "2.0", "2.0", "1.0")] == [
        True, True, False, False, True, False,
    ]  # fmt: skip
