"""Gateways as processes of their own, as users run them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from llmagentos.agents.testing import Agents

#: Far above what a busy machine needs.
WAIT_S = 60.0


@dataclass
class Gateway:
    """A running gateway process."""

    url: str
    process: asyncio.subprocess.Process

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


Start = Callable[..., Awaitable[Gateway]]


@pytest.fixture
async def gateway(agents: Agents) -> AsyncIterator[Start]:
    """`await gateway(*options, **environment)`: one more, which ends with the test."""
    started: list[Gateway] = []

    async def start(*options: str, **environment: str) -> Gateway:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "llmagentos.cli.main", "gateway", "--port", "0", *options,
            stdout=asyncio.subprocess.PIPE, env={**os.environ, **environment},
        )  # fmt: skip
        assert process.stdout is not None
        one = Gateway("", process)
        started.append(one)
        line = await asyncio.wait_for(process.stdout.readline(), WAIT_S)
        assert line, "the gateway does not start"
        one.url = line.decode().strip()
        return one

    yield start
    for each in started:
        if each.process.returncode is None:
            each.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(each.process.wait(), WAIT_S)
            except TimeoutError:
                await each.kill()
                raise
        transport = each.process._transport  # type: ignore[attr-defined] - else its pipe is closed by the collector
        transport.close()


async def curl(*arguments: str) -> str:
    """What the real curl prints."""
    process = await asyncio.create_subprocess_exec("curl", "-sS", *arguments, stdout=asyncio.subprocess.PIPE)
    out, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 0, out
    return out.decode()


def events_of(text: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(event, id, data) of each server-sent event in *text*."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line and not line.startswith(":"))
        if "data" in lines:
            found.append((lines.get("event", ""), lines.get("id", ""), json.loads(lines["data"])))
    return found


Event = tuple[str, str, dict[str, Any]]


async def streamed(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    """The events in *lines* as they come, up to an answer or an error."""
    block: list[str] = []
    async for line in lines:
        block.append(line)
        if not line:
            for event in events_of("\n".join(block) + "\n"):
                yield event
                if event[0] in ("answer", "error"):
                    return
            block.clear()


async def followed(url: str, conversation: str, last: str) -> AsyncIterator[Event]:
    """What a gateway tells of *conversation* behind the event *last*, up to an answer or an error."""
    async with (
        httpx.AsyncClient(timeout=WAIT_S) as http,
        http.stream("GET", f"{url}/v1/conversations/{conversation}/events", headers={"Last-Event-ID": last}) as answer,
    ):
        assert answer.status_code == 200
        async for event in streamed(answer.aiter_lines()):
            yield event
