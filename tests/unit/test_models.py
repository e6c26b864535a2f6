"""What of the model service needs no server: the window, forms of answers, scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from llmagentos.agents.models import Request, Scripted, Turn
from llmagentos.agents.models.answers import parsed
from llmagentos.agents.models.window import estimate, fit
from llmagentos.streams.errors import BadAnswer, ContextTooLong, SettingsError
from llmagentos.streams.settings import Settings


def words(request: Request) -> int:
    """A vocabulary whose tokens are words."""
    return sum(1 + len(message["content"].split()) for message in request.messages)


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


async def nobody(request: Request) -> str:
    raise AssertionError(f"nothing is to be summarised, and this was: {request}")


LONG = [
    said("system", "rule"),
    *(said(role, f"{role} {n} " + "word " * 10) for n in range(20) for role in ("user", "assistant")),
    said("user", "and now?"),
    {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
    {"role": "tool", "content": "rain", "tool_call_id": "1"},
]


async def test_what_fits_stays_as_it_is() -> None:
    request = Request(LONG)
    assert await fit(request, 10_000, name="m", count=words, summarise=nobody) is request
    assert await fit(request, 0, name="m", count=words, summarise=nobody) is request


async def test_what_was_said_long_ago_is_summarised() -> None:
    asked: list[Request] = []

    async def summarise(request: Request) -> str:
        asked.append(request)
        return f"summary {len(asked)}, " + "which is much longer than it was to be " * 5

    fitted = await fit(Request(LONG), 200, name="m", count=words, summarise=summarise)
    assert words(fitted) <= 150  # a quarter is the answer's
    assert fitted.messages[0] == said("system", "rule")
    assert fitted.messages[-3:] == LONG[-3:]
    summary = fitted.messages[1]["content"]
    assert summary.startswith(f"What was said before, in short: summary {len(asked)}")
    kept = fitted.messages[2:-3]
    assert kept == LONG[-3 - len(kept) : -3]
    assert kept[0]["role"] == "user"
    gone = "\n\n".join(request.messages[1]["content"] for request in asked)
    assert all(message["content"].strip() in gone for message in LONG[1 : -3 - len(kept)])
    assert all(words(request) <= 200 for request in asked)
    assert "summary 1" in asked[1].messages[1]["content"]


async def test_what_can_not_be_left_out_and_does_not_fit_is_told() -> None:
    for messages in ([said("user", "word " * 200)], [*LONG[:-3], said("system", "late"), said("user", "w " * 160)]):
        with pytest.raises(ContextTooLong, match=r"of model 'm' are free"):
            await fit(Request(messages), 200, name="m", count=words, summarise=nobody)
    with pytest.raises(ContextTooLong, match="for the answer"):
        await fit(Request([said("user", "w " * 50)], max_tokens=190), 200, name="m", count=words, summarise=nobody)


def test_an_estimate_is_rather_too_high() -> None:
    assert estimate(Request([said("user", "Hello, how are you?")])) >= 6
    assert estimate(Request([said("user", "世界" * 10)])) >= 20
    with_tool = Request([said("user", "x")], [{"name": "weather", "description": "d", "parameters": {}}])
    assert estimate(with_tool) > estimate(Request([said("user", "x")])) + 5


class Place(BaseModel):
    city: str
    people: int


@pytest.mark.parametrize(
    "text",
    ['{"city": "Oslo", "people": 3}', ' \n```json\n{"city": "Oslo", "people": 3}\n```\n', '{"people":3,"city":"Oslo"}'],
)
def test_an_answer_of_the_form_is_read(text: str) -> None:
    assert parsed(Place, Turn(text)) == Place(city="Oslo", people=3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Oslo", "Invalid JSON"),
        ('{"city": "Oslo"}', "people: Field required"),
        ('{"city": 1, "people": "x"}', "city: .*; people: "),
    ],
)
def test_another_answer_is_told_with_each_mistake(text: str, says: str) -> None:
    with pytest.raises(BadAnswer, match=says):
        parsed(Place, Turn(text))
    with pytest.raises(BadAnswer, match="limit of tokens"):
        parsed(Place, Turn(text, finish="length"))


def test_a_script_that_is_none_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    with pytest.raises(SettingsError, match=r"models\.m\.script"):
        Scripted.read(script, "m")
    script.write_text('"no list"')
    with pytest.raises(SettingsError, match="is no list"):
        Scripted.read(script, "m")


def test_models_in_the_settings_are_checked() -> None:
    with pytest.raises(SettingsError, match="names 'b', which is no model"):
        Settings.load(models={"a": {"fallback": ["b"]}})
    with pytest.raises(SettingsError, match="there is no models.b"):
        Settings.load(models={"a": {}}, model="b")
    with pytest.raises(SettingsError, match="window"):
        Settings.load(models={"a": {"window": -1}})
