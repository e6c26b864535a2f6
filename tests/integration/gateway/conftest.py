"""Gateways as processes of their own, as users run them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

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
        started.append(Gateway("", process))
        line = await asyncio.wait_for(process.stdout.readline(), WAIT_S)
        assert line, "the gateway does not start"
        started[-1].url = line.decode().strip()
        return started[-1]

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
