"""An agent whose failures can be mended, and `llmagentos dead` as a user types it, in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmagentos.agents.testing import Agents, Run
from llmagentos.streams.entries import Decoder
from llmagentos.streams.errors import LLMAgentOSError
from llmagentos.streams.letters import Letters
from llmagentos.streams.settings import Settings
from llmagentos.streams.tail import Log
from llmagentos.streams.views import Served, Views

#: Fails on cake, pie and flan while the file `ill` is there; writes what it handles into the file `handled`.
SOURCE = """
import pathlib

from llmagentos.agents import agent

HERE = pathlib.Path({folder!r})


@agent("till", retries=0)
async def till(message, ctx):
    ill = (HERE / "ill").exists()
    if ill and "pie" in message.text:
        raise ValueError("no pie")
    if ill and "cake" in message.text:
        raise KeyError(message.text)
    if ill and "flan" in message.text:  # each for a reason of its own, so that the circuit breaker parks them all
        raise type(f"No{{message.conversation_id}}", (Exception,), {{}})
    with (HERE / "handled").open("a") as file:
        file.write(f"{{message.conversation_id}} {{message.message_id}} {{message.text}}\\n")
    return message.text
"""


@dataclass
class Result:
    """What a command printed, and how it ended."""

    status: int
    out: str
    said: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Till:
    """The agent at work, and the folder that says whether it fails and what it handled."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run = run
        self.settings: Settings = run.settings
        self.folder = folder
        self.served = {"till": Served(run.deployment, self.settings.topic("agent.till"))}

    async def send(self, conversation: str, *texts: str, **fields: Any) -> None:
        for text in texts:
            await self.run.send("till", text, conversation=conversation, **fields)

    def mend(self) -> None:
        (self.folder / "ill").unlink()

    def handled(self) -> dict[str, list[str]]:
        """Texts by conversation, in order."""
        found: dict[str, list[str]] = {}
        for conversation, _, text in self._lines():
            found.setdefault(conversation, []).append(text)
        return found

    def ids(self) -> list[str]:
        return [message_id for _, message_id, _ in self._lines()]

    def _lines(self) -> list[tuple[str, str, str]]:
        try:
            lines = (self.folder / "handled").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [(a, b, c) for a, b, c in (line.split(" ", 2) for line in lines)]

    @contextmanager
    def letters(self) -> Iterator[Letters]:
        """As the command reads them. Blocks."""
        decoder = Decoder(self.settings)
        with Log(self.settings) as log:
            views = Views(self.settings, decoder.codec, self.served)
            try:
                yield Letters(self.settings, decoder, views, log)
            finally:
                views.close()


@pytest.fixture
async def till(agents: Agents, tmp_path: Path) -> AsyncIterator[Till]:
    """The agent, ill."""
    (tmp_path / "ill").touch()
    source = tmp_path / f"till_{agents.settings.prefix.rstrip('.')}.py"
    source.write_text(SOURCE.format(folder=str(tmp_path)))
    async with agents.run(source) as run:
        yield Till(run, tmp_path)


Dead = Callable[..., Any]


@pytest.fixture
def dead(agents: Agents) -> Dead:
    """`await dead("list", ...)`: the command's result, its exit status checked."""

    def call(arguments: tuple[str, ...]) -> Result:
        from llmagentos.cli.main import app

        done = CliRunner().invoke(app, ["dead", *arguments])
        if isinstance(done.exception, LLMAgentOSError):  # as main() prints it
            return Result(done.exception.exit_code, done.stdout, str(done.exception))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Result(done.exit_code, done.stdout, done.stderr)

    async def run(*arguments: str, status: int = 0) -> Result:
        result = await asyncio.to_thread(call, arguments)
        assert result.status == status, result
        return result

    return run
