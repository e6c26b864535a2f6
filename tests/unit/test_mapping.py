"""Mappings: from a line of someone's data to a message."""

from __future__ import annotations

from typing import Any

import pytest

from llmagentos.streams.errors import InputError
from llmagentos.streams.mapping import Unfit, compile_mapping

LINE: dict[str, Any] = {
    "conversation": "1_00000",
    "turn": 3,
    "speaker": "user",
    "text": "A table for two.",
    "calls": [{"service": "Restaurants", "method": "Reserve"}],
    "odd key": {"a.b": "x"},
    "none": None,
}


def build(*pairs: str, line: Any = None, number: int = 0, **more: Any) -> dict[str, Any]:
    return compile_mapping(pairs, to="greeter", **more)(LINE if line is None else line, number).record


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (".speaker", "user"),
        (".calls[0].method", "Reserve"),
        ('."odd key"."a.b"', "x"),
        ('.["odd key"]["a.b"]', "x"),
        ("{.conversation}/{.turn}", "1_00000/3"),
        ("acme", "acme"),
    ],
)
def test_sources(source: str, expected: str) -> None:
    assert build(f"attributes.x={source}")["attributes"] == {"x": expected}


def test_a_mapping_takes_only_what_it_names() -> None:
    record = build("conversation_id=.conversation", "text=.text", "message_id={.conversation}/{.turn}", number=5)
    assert record["conversation_id"] == "1_00000"
    assert record["message_id"] == "1_00000/3"
    assert record["body"] == b"A table for two."
    assert record["content_type"] == "text/plain"
    assert record["sequence"] == 5
    assert record["recipient"] == "greeter"
    assert record["attributes"] == {}


def test_without_text_and_body_the_line_is_the_body() -> None:
    record = build("conversation_id=.conversation")
    assert record["content_type"] == "application/json"
    assert b'"speaker":"user"' in record["body"]


def test_a_part_can_be_the_body() -> None:
    assert build("body=.calls")["body"] == b'[{"service":"Restaurants","method":"Reserve"}]'


def test_without_a_mapping_the_names_are_ours() -> None:
    line = {"text": "hi", "conversation_id": "c", "priority": 9, "attributes": {"a": 1}, "type": "command", "else": 1}
    line |= {"created_at": "2026-11-21T08:00:00Z", "deadline": 1_800_000_000_000, "tenant": "acme", "message_id": 17}
    record = build(line=line)
    assert record["attributes"] == {"a": "1"}
    assert record["created_at"] == 1_795_248_000_000
    assert record["deadline"] == 1_800_000_000_000
    assert (record["tenant"], record["priority"], record["type"]) == ("acme", 9, "command")
    assert record["message_id"] == "17"


def test_a_conversation_for_those_that_name_none() -> None:
    line = {"text": "hi"}
    assert build(line=line, conversation="c")["conversation_id"] == "c"
    assert build(line=line | {"conversation_id": 7}, conversation="c")["conversation_id"] == "7"
    own = build(line=line)
    assert own["conversation_id"] == own["message_id"]


@pytest.mark.parametrize(
    ("pairs", "line", "says"),
    [
        ((), [1], "must be an object, not a list"),
        ((), "hi", "must be an object, not a string"),
        ((), {"conversation_id": "c"}, "it has no text and no body"),
        ((), {"text": 5}, "text must be a string, not the number 5"),
        ((), {"text": None}, "it has no text and no body"),
        ((), {"text": "x", "conversation_id": ["a"]}, "conversation_id must be a string or a whole number, not a list"),
        (
            (),
            {"text": "x", "conversation_id": True},
            "must be a string or a whole number, not a boolean",
        ),
        ((), {"text": "x", "conversation_id": ""}, "conversation_id is empty"),
        ((), {"text": "x", "type": "shout"}, "type is 'shout', which is none of command"),
        ((), {"text": "x", "type": ["task"]}, "type is ['task'], which is none of command"),
        ((), {"text": "x", "priority": 10}, "priority is 10; it goes from 0"),
        ((), {"text": "x", "priority": "high"}, "priority must be a whole number, not 'high'"),
        ((), {"text": "x", "sequence": 2**63}, "sequence must be a whole number of 64 bits"),
        ((), {"text": "x", "created_at": "soon"}, "created_at is 'soon', neither ISO 8601 nor milliseconds"),
        ((), {"text": "x", "attributes": "a"}, "attributes must be an object, not a string"),
        ((), {"text": "x", "attributes": {"a": []}}, "attributes.a must be a string or a number, not a list"),
        (("conversation_id=.c",), {"d": 1}, "it has no conversation_id where the mapping says"),
        (("message_id={.c}/{.d}",), {"c": 1}, "it has no message_id where the mapping says"),
        (("text=.t",), {"c": 1}, "it has no text"),
    ],
)
def test_unfit_lines_say_why(pairs: tuple[str, ...], line: Any, says: str) -> None:
    with pytest.raises(Unfit) as raised:
        build(*pairs, line=line)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("nope=.a", "there is no field 'nope'"),
        ("attributes.=.a", "there is no field 'attributes.'"),
        ("text", "there is no ="),
        ("text=.a[", "'.a[' is no path, from '[' on"),
        ("text=.a..b", "'.a..b' is no path"),
        ("text={.a[x]}", "is no path"),
    ],
)
def test_wrong_mappings_say_where(pair: str, says: str) -> None:
    with pytest.raises(InputError) as raised:
        build(pair)
    assert says in str(raised.value)
    assert "conversation_id" in raised.value.fix
