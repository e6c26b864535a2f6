"""Defining agents, and loading the modules that define them: what is wrong is said with its place and its mend."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import llmagentos.agents
from llmagentos.agents import Message, agent
from llmagentos.agents.loading import load
from llmagentos.streams.errors import AgentError, DeploymentError


def test_the_public_names_are_these() -> None:
    assert llmagentos.agents.__all__ == [
        "Agent", "Approval", "Client", "Context", "Message", "StepFailed", "StepUnknown", "agent", "result_type",
    ]  # fmt: skip


async def test_an_agent_can_be_called_as_its_function() -> None:
    @agent()
    async def shouter(message: Message, ctx: object) -> str:
        """Shouts."""
        return message.text.upper()

    assert shouter.name == "shouter"
    assert shouter.description == "Shouts."
    assert await shouter(Message.create("hello", to="shouter"), None) == "HELLO"  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a b", "a.b", "-a", "ä", "a" * 101])
def test_a_name_that_is_no_topic_is_refused(name: str) -> None:
    with pytest.raises(AgentError, match="can't be part of a topic's name"):

        @agent(name)
        async def handler(message, ctx):
            pass


def test_a_handler_that_is_not_async_is_refused_with_its_place() -> None:
    with pytest.raises(AgentError, match=r"'plain' at .*test_agent\.py:\d+ is not async") as caught:

        @agent("plain")
        def handler(message, ctx):
            pass

    assert "async def handler" in caught.value.fix


def test_a_handler_with_other_parameters_is_refused() -> None:
    with pytest.raises(AgentError, match=r"can't be called with \(message, ctx\)"):

        @agent("short")
        async def handler(message):
            pass


def test_missing_parentheses_are_said() -> None:
    with pytest.raises(AgentError, match="missing its parentheses"):

        @agent
        async def handler(message, ctx):
            pass


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("retries", -1, "a whole number, 0 or more"),
        ("retries", 1.5, "a whole number, 0 or more"),
        ("backoff", float("inf"), "a number of seconds, 0 or more"),
        ("timeout", 0, "a number of seconds, above 0"),
        ("timeout", float("nan"), "a number of seconds, above 0"),
        ("timeout", "5", "a number of seconds, above 0"),
        ("max_in_flight", 0, "a whole number, above 0"),
    ],
)
def test_a_limit_that_is_none_is_refused(name: str, value: Any, fix: str) -> None:
    with pytest.raises(AgentError, match=rf"{name} = {value!r}") as caught:

        @agent("x", **{name: value})
        async def handler(message, ctx):
            pass

    assert caught.value.fix == f"give {fix}"


@pytest.fixture
def module(tmp_path: Path, request: pytest.FixtureRequest):
    names: list[str] = []

    def write(source: str, name: str = f"users_{request.node.name.split('[')[0]}") -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(dedent(source))
        names.append(name) if name != "json" else None
        return str(path)

    before = list(sys.path)
    yield write
    sys.path[:] = before
    for name in names:
        sys.modules.pop(name, None)


GREETER = """
    from llmagentos.agents import agent

    @agent("greeter")
    async def greeter(message, ctx):
        return "hello"
"""


def test_a_file_is_loaded_with_its_version(module) -> None:
    loaded = load(module(GREETER))
    assert list(loaded.agents) == ["greeter"]
    assert len(loaded.version) == 12
    assert loaded.app is None


def test_a_faust_app_in_the_module_is_found(module) -> None:
    loaded = load(module(GREETER + "\n    import faust\n    app = faust.App('mine', broker='llmagentos://')\n"))
    assert loaded.app is not None


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ("def f(:\n  pass", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x = 1", "defines no agent"),
        (GREETER + GREETER.replace("def greeter", "def other"), "two agents named 'greeter'"),
        (GREETER.replace("async def", "def"), "is not async"),
    ],
)
def test_what_can_not_be_loaded_says_why(module, source: str, says: str) -> None:
    with pytest.raises(DeploymentError) as caught:
        load(module(source))
    assert says in str(caught.value)
    assert caught.value.fix


def test_a_traceback_begins_at_the_users_line(module) -> None:
    with pytest.raises(DeploymentError) as caught:
        load(module("1 / 0"))
    frames = [line for line in caught.value.what.splitlines() if line.startswith("  File")]
    assert len(frames) == 1
    assert "users_" in frames[0]


@pytest.mark.parametrize("target", ["missing.py", "no.such.module", "no_such_module"])
def test_a_missing_module_is_said(target: str) -> None:
    with pytest.raises(DeploymentError, match="there is no"):
        load(target)


def test_a_file_does_not_hide_an_imported_module(module) -> None:
    with pytest.raises(DeploymentError, match="would hide the module 'json'"):
        load(module(GREETER, name="json"))
    import json

    assert hasattr(json, "dumps")
