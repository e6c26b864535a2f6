"""Ids and contents of messages."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmagentos.streams.errors import RecordError
from llmagentos.streams.message import Message, child_id, new_id

NAMESPACE = uuid.UUID("6f1a1f0e-6b57-5c5e-9c7e-4c4c4d41474f")


@given(st.text(), st.text(), st.integers())
def test_a_childs_id_is_the_uuid5_of_parent_agent_and_step(parent: str, agent: str, step: int) -> None:
    assert child_id(parent, agent, step) == str(uuid.uuid5(NAMESPACE, f"{parent}\x00{agent}\x00{step}"))


def test_a_new_id_is_a_uuid7_and_they_sort_by_time() -> None:
    ids = [new_id() for _ in range(100)]
    assert {uuid.UUID(text).version for text in ids} == {7}
    assert {uuid.UUID(text).variant for text in ids} == {uuid.RFC_4122}
    assert [text[:13] for text in ids] == sorted(text[:13] for text in ids)
    assert len(set(ids)) == 100


@pytest.mark.parametrize("content", ["text", {"a": 1}, [1, 2], b"\x00\xff", 3, True])
def test_content_comes_back_as_it_was(content: object) -> None:
    assert Message.create(content, to="x").content == content


def test_no_content_is_none() -> None:
    assert Message.create(None, to="x").content is None


def test_content_that_json_can_not_say_is_refused() -> None:
    with pytest.raises(RecordError, match="content of type object can't be sent"):
        Message.create(object(), to="x")


def test_a_body_that_is_not_text_or_json_says_which_message() -> None:
    message = Message.create(b"\xff\xfe", to="x", message_id="m-1")
    with pytest.raises(RecordError, match="m-1 is not UTF-8"):
        _ = message.text
    with pytest.raises(RecordError, match="m-1 is not JSON"):
        message.json()
