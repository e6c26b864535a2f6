"""Workers of the real engine, in the test's own event loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from textwrap import dedent

import pytest

from llmagentos.agents.client import Client
from llmagentos.agents.loading import load
from llmagentos.agents.provision import provision
from llmagentos.agents.worker import Worker
from llmagentos.streams.settings import Settings

Deploy = Callable[..., Awaitable[Worker]]


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[Worker]:
    """*worker*, from when it has joined until it has drained."""
    run = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(30):
            while worker.state != "running" and not run.done():
                await asyncio.sleep(0.02)
        if run.done():
            await run
        yield worker
    finally:
        worker.stop()
        await run


@pytest.fixture
async def deploy(settings: Settings, tmp_path: Path) -> AsyncIterator[Deploy]:
    """`await deploy(source, name)`: a worker of the agents in *source*, running until the test ends."""
    modules: list[str] = []
    async with AsyncExitStack() as stack:

        async def start(source: str, name: str = "users", *, index: int = 0, **changes: object) -> Worker:
            module = f"{name}_{settings.prefix.rstrip('.')}"
            path = tmp_path / f"{module}.py"
            path.write_text(dedent(source))
            sys.modules.pop(module, None)
            modules.append(module)
            loaded = load(str(path))
            changed = settings.model_copy(update=changes)
            await asyncio.to_thread(provision, changed, f"{settings.prefix}{name}", loaded)
            return await stack.enter_async_context(
                running(Worker(changed, f"{settings.prefix}{name}", loaded, index=index))
            )

        yield start
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
async def client(settings: Settings, deploy: Deploy) -> AsyncIterator[Callable[[], Awaitable[Client]]]:
    """`await client()`: a client, once something is deployed."""
    async with AsyncExitStack() as stack:

        async def connect() -> Client:
            return await stack.enter_async_context(Client(settings))

        yield connect
