"""The example `concierge`: its checker sees what is lost, doubled or changed, and its model answers nothing else."""

from __future__ import annotations

import gzip
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
import pytest

from llmagentos.agents import Message

CONCIERGE = Path(__file__).parents[2] / "examples" / "concierge"
CALL = {"service": "Weather_1", "method": "GetWeather", "parameters": {"city": "Oslo"}, "results": [{"rain": "yes"}]}
TURNS: list[dict[str, Any]] = [
    {"speaker": "user", "text": "Hello"},
    {"speaker": "system", "text": "What can I do?"},
    {"speaker": "user", "text": "The weather in Oslo?"},
    {"speaker": "system", "text": "Rain.", "calls": [CALL]},
]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, ModuleType]]:
    """Its modules, with one dialogue."""
    with gzip.open(tmp_path / "sgd_dev.ndjson.gz", "wb") as file:
        for number, turn in enumerate(TURNS):
            file.write(orjson.dumps({"conversation": "1_1", "turn": number, **turn}) + b"\n")
    monkeypatch.setenv("LLMAGENTOS_DATA", str(tmp_path))
    monkeypatch.syspath_prepend(str(CONCIERGE))
    names = ("catalogue", "dialogues", "check", "model")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        del sys.modules[name]


class Heard:
    """What the topics would hold, were all as recorded."""

    def __init__(self, example: dict[str, ModuleType]) -> None:
        self._example = example
        said = [turn["text"] for turn in TURNS if turn["speaker"] == "user"]
        self.asked = {"1_1": [Message.create(text, to="assistant", conversation="1_1") for text in said]}
        first, second = (message.message_id for message in self.asked["1_1"])
        self.replies = {first: ["What can I do?"], second: ["Rain."]}
        self.call = example["dialogues"].Call(**CALL)
        self.calls = {second: [self.call]}
        self.first, self.second = first, second

    def matched(self) -> tuple[int, int]:
        found = self._example["check"]._compare(self.asked, self.replies, self.calls)
        return found.matched, found.total


def test_what_is_as_recorded_matches(example: dict[str, ModuleType]) -> None:
    assert Heard(example).matched() == (5, 5)


@pytest.mark.parametrize(
    "change",
    [
        lambda heard: heard.asked["1_1"].pop(),
        lambda heard: heard.asked["1_1"].append(heard.asked["1_1"][0]),
        lambda heard: heard.asked.update({"1_2": heard.asked["1_1"]}),
        lambda heard: heard.asked["1_1"].reverse(),
        lambda heard: heard.replies.pop(heard.first),
        lambda heard: heard.replies[heard.first].append("What can I do?"),
        lambda heard: heard.replies.update({heard.first: ["Rain."]}),
        lambda heard: heard.replies.update({"nobody": ["Rain."]}),
        lambda heard: heard.calls.clear(),
        lambda heard: heard.calls[heard.second].append(heard.call),
        lambda heard: heard.calls.update({heard.first: [heard.call]}),
        lambda heard: heard.calls.update({heard.second: [heard.call._replace(results=[])]}),
        lambda heard: heard.calls.update({heard.second: [heard.call._replace(parameters={"city": "Rome"})]}),
        lambda heard: heard.calls.update({heard.second: [heard.call._replace(method="GetSun")]}),
    ],
)
def test_what_is_lost_doubled_or_changed_does_not(example: dict[str, ModuleType], change: Any) -> None:
    heard = Heard(example)
    change(heard)
    matched, total = heard.matched()
    assert matched < total


def test_the_model_calls_then_says_and_refuses_what_was_not_recorded(example: dict[str, ModuleType]) -> None:
    module = example["model"]
    model = module.Model(example["dialogues"].read())
    system = {"role": "system", "content": "You are a concierge, in conversation 1_1."}
    said = [{"role": "user" if turn["speaker"] == "user" else "assistant", "content": turn["text"]} for turn in TURNS]
    assert model.answer([system, said[0]])["content"] == "What can I do?"
    call = model.answer([system, *said[:3]])
    function = call["tool_calls"][0]["function"]
    assert function["name"] == "home"
    assert orjson.loads(function["arguments"]) == {name: CALL[name] for name in ("service", "method", "parameters")}
    result = {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": '[{"rain":"yes"}]'}
    assert model.answer([system, *said[:3], call, result])["content"] == "Rain."
    for wrong in (
        [said[0]],
        [system],
        [system, said[2]],
        [system, said[0], said[0]],
        [system, *said],
        [system, *said[:3], call, result | {"content": "[]"}],
        [system, *said[:3], call, result | {"content": "error: no"}],
        [system, *said[:3], call, result, result],
    ):
        with pytest.raises(module.Refused):
            model.answer(wrong)
    assert (model.repeated, model.texts) == (0, 2)
