"""`--where`: what it can say, and that what is wrong with it is said with its place."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmagentos.streams.errors import InputError
from llmagentos.streams.where import Where

RECORD: dict[str, Any] = {
    "topic": "agent.greeter",
    "offset": 7,
    "type": "error",
    "sender": "client",
    "body": {"amount": 120, "lines": ["a", "b"], "nested": {"deep": True}},
    "attributes": {"team": "a"},
    "usage": None,
}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("type == 'error'", True),
        ("type == 'error' and body.amount > 100", True),
        ("body.amount > 1000 or attributes.team == 'a'", True),
        ("body['amount'] < 100", False),
        ("body.nested.deep", True),
        ("'b' in body.lines and len(body.lines) == 2", True),
        ("topic.startswith('agent.')", True),
        ("usage is None", True),
        ("not (offset >= 7)", False),
        ("sender in ('client', 'poet')", True),
        ("min(body.amount, 5) == 5", True),
    ],
)
def test_an_expression_is_true_or_false_of_a_record(expression: str, expected: bool) -> None:
    where = Where(expression)
    assert where.matches(RECORD) is expected
    assert where.failed == 0


@pytest.mark.parametrize(
    ("expression", "at", "why"),
    [
        ("type == ", 8, "syntax"),
        ("(type == 'a'", 1, "never closed"),
        ("type = 'a'", 1, ""),
        ("typ == 'a'", 1, "did you mean 'type'"),
        ("offset > 1 and bdy.x", 16, "no field 'bdy'"),
        ("length(body) > 1", 1, "did you mean 'len'"),
        ("body.__class__", 6, "'__class__'"),
        ("lambda: 1", 1, "lambda"),
        ("import os", 1, ""),
        ("", 1, ""),
    ],
)
def test_a_wrong_expression_is_refused_with_its_place(expression: str, at: int, why: str) -> None:
    with pytest.raises(InputError) as caught:
        Where(expression)
    said = caught.value.what
    assert why in said
    assert expression.strip() in said
    if why:
        assert f"character {at}" in said
        assert said.splitlines()[-1].index("^") == at + 1  # under it, two columns in
    assert "fields:" in caught.value.fix


def test_a_record_without_the_field_is_no_match_and_is_counted() -> None:
    where = Where("body.price > 3")
    assert not where.matches(RECORD)
    assert not where.matches({**RECORD, "body": "text"})
    assert where.failed == 2
    assert "price" in where.reason


def test_it_is_compiled_once() -> None:
    where = Where("offset % 2 == 0")
    assert [offset for offset in range(6) if where.matches({"offset": offset})] == [0, 2, 4]


@pytest.mark.parametrize("expression", ["9 ** 9 ** 9", "'a' * 10000000000 == body", "[x for x in range(10)] == body"])
def test_what_would_take_for_ever_does_not(expression: str) -> None:
    with suppress(InputError):  # refused at once is as good
        assert not Where(expression).matches(RECORD)


@given(st.text(max_size=40))
def test_any_text_is_an_expression_or_an_input_error(text: str) -> None:
    with suppress(InputError):
        assert isinstance(Where(text).matches(RECORD), bool)
