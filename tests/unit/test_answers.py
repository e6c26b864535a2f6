"""Answers that nobody waits for yet: what there is no room for counts as not read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmagentos.agents.answers import Answers
from llmagentos.streams.message import Message, question_id
from llmagentos.streams.settings import Settings

PLACE = ("answers.asker", 0)


def record(offset: int) -> Any:
    answer = Message.create(f"answer {offset}", to="asker", sender="oracle", type="result")
    answer.record["caused_by"] = question(offset)
    return SimpleNamespace(topic=lambda: PLACE[0], partition=lambda: PLACE[1], offset=lambda: offset, message=answer)


def question(offset: int) -> str:
    return question_id("m", "asker", f"ctx.ask oracle#{offset}", 7)


class Blind(dict[Any, int]):
    """Remembers nothing."""

    def __setitem__(self, key: Any, value: int) -> None: ...


@pytest.mark.parametrize("seeded", [False, True])
async def test_the_position_does_not_pass_an_early_answer_that_was_not_kept(
    seeded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = cast(Any, SimpleNamespace(read=lambda record: record.message))
    answers = Answers(Settings.load(brokers="localhost:1", max_waiting=2), codec, name="test")
    try:
        answers._positions[PLACE] = 0
        if seeded:  # the bug: it is dropped, and counts as read
            monkeypatch.setattr(answers, "_passed_over", Blind())
        answers._deliver([record(offset) for offset in range(2)])
        assert answers.position(*PLACE) == 2
        future = await answers.expect(question(1), *PLACE, "oracle")
        assert future.result().text == "answer 1"
        answers._deliver([record(offset) for offset in range(2, 5)])
        assert (answers.position(*PLACE) == 0) is not seeded  # 0 and 2 were not kept
        answers.unfollow(PLACE[0], {PLACE[1]})
        assert answers.position(*PLACE) == -1
    finally:
        await answers.stop()
