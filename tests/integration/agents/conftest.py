"""Workers of the real engine, in the test's own event loop: the test kit's, where they run until the test ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from textwrap import dedent

import pytest

from llmagentos.agents.client import Client
from llmagentos.agents.testing import Agents
from llmagentos.agents.worker import Worker
from llmagentos.streams.settings import Settings

Deploy = Callable[..., Awaitable[Worker]]


@pytest.fixture
async def deploy(agents: Agents, tmp_path: Path) -> AsyncIterator[Deploy]:
    """`await deploy(source, name)`: a worker of the agents in *source*, running until the test ends."""
    async with AsyncExitStack() as stack:

        async def start(source: str, name: str = "users", **settings: object) -> Worker:
            path = tmp_path / f"{name}_{agents.settings.prefix.rstrip('.')}.py"
            path.write_text(dedent(source))
            run = await stack.enter_async_context(agents.run(path, name=name, **settings))
            return run.workers[0]

        yield start


@pytest.fixture
async def client(settings: Settings, deploy: Deploy) -> AsyncIterator[Callable[[], Awaitable[Client]]]:
    """`await client()`: a client, once something is deployed."""
    async with AsyncExitStack() as stack:

        async def connect() -> Client:
            return await stack.enter_async_context(Client(settings))

        yield connect
