"""The test kit: a pytest plugin that runs agents by the real engine, on a real Kafka and Redis.

    async def test_greeter(agents):
        async with agents.run("hello.py") as run:
            assert (await run.ask("greeter", "Ada")).text == "Hello, Ada!"

It is there wherever this package and pytest are installed, and costs a test run that doesn't use it nothing but this
module's import. `agents` needs no plugin for async tests, and minds none: see :func:`pytest_pyfunc_call`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Generator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from llmagentos.agents.testing.clock import MovableClock
    from llmagentos.agents.testing.letters import DeadLetter
    from llmagentos.agents.testing.reading import Record
    from llmagentos.agents.testing.run import Agents, Run
    from llmagentos.streams.node import Node

__all__ = ["Agents", "DeadLetter", "MovableClock", "Record", "Run"]

#: For annotations in tests; imported when first asked for.
_LATER = {
    "Agents": "llmagentos.agents.testing.run",
    "DeadLetter": "llmagentos.agents.testing.letters",
    "MovableClock": "llmagentos.agents.testing.clock",
    "Record": "llmagentos.agents.testing.reading",
    "Run": "llmagentos.agents.testing.run",
}

#: In the temporary folder; the number is the test run's process id.
_HOME = "llmagentos-test-"

#: What says where downloads and real data lie; all else would change what is tested.
_KEPT = ("LLMAGENTOS_CACHE", "LLMAGENTOS_DATA", "LLMAGENTOS_KAFKA_JARS")


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


@pytest.fixture(scope="session")
def bare_environment(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """A developer's own settings (LLMAGENTOS_*, llmagentos.toml) don't reach the tests, nor the tests their cluster."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("LLMAGENTOS_") and name not in _KEPT:
                patch.delenv(name)
        if Path("llmagentos.toml").is_file():
            nothing = tmp_path_factory.mktemp("llmagentos") / "settings.toml"
            nothing.touch()
            patch.setenv("LLMAGENTOS_SETTINGS", str(nothing))
        yield


@pytest.fixture(scope="session")
def node(bare_environment: None, request: pytest.FixtureRequest) -> Generator[Node]:
    """A running Kafka and Redis: `.brokers`, `.redis`, `.home`. One a test run, ended with it."""
    from llmagentos.streams.errors import LLMAgentOSError
    from llmagentos.streams.node import Node
    from llmagentos.streams.settings import Settings

    _sweep()
    home = Path(tempfile.gettempdir()) / f"{_HOME}{os.getpid()}"
    local = Node(Settings.load(home=home))
    try:
        try:
            local.up(progress=_announcer(request.config))
        except LLMAgentOSError as error:  # no Java, no way to the jars: its text says all, a traceback nothing
            pytest.fail(f"the node for the tests does not start: {error}", pytrace=False)
        yield local
    finally:
        local.down()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def agents(node: Node, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Generator[Agents]:
    """Runs agents: `async with agents.run("hello.py") as run`. Topics and groups are this test's, and go with it."""
    from llmagentos.agents.testing.run import Agents
    from llmagentos.streams.admin import Admin
    from llmagentos.streams.errors import BrokerError
    from llmagentos.streams.settings import Settings

    prefix = f"t{uuid.uuid4().hex[:10]}."
    # Whatever reads settings by itself during the test, a handler's own Client or a command, gets the same.
    monkeypatch.setenv("LLMAGENTOS_HOME", str(node.home))
    monkeypatch.setenv("LLMAGENTOS_PREFIX", prefix)
    settings = Settings.load()
    yield Agents(node, settings, beside=request.path.parent)
    # A small broker with the partitions of hundreds of tests is busy with itself.
    try:
        admin = Admin(settings)
        admin.delete(list(admin.topics(prefix)))
    except BrokerError as error:  # the test has ended the broker, say; with the node all goes
        logging.getLogger(__name__).warning("topics of a test were left: %s", error)


@pytest.hookimpl
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test that takes `agents`, in a loop of its own.

    pytest-asyncio (for what it marks, or all in its mode `auto`) and anyio (for what it marks) have wrapped or run
    theirs before this is asked, so a test runs in their loop where they want it.
    """
    test = pyfuncitem.obj
    if "agents" not in pyfuncitem.fixturenames or not inspect.iscoroutinefunction(test):
        return None
    names = inspect.signature(test).parameters
    with asyncio.Runner() as runner:
        runner.run(test(**{name: value for name, value in pyfuncitem.funcargs.items() if name in names}))
    return True


def _announcer(config: pytest.Config) -> Callable[[str, int, int], None]:
    """Says once that something is being fetched: the first start takes a minute, in which pytest looks dead."""
    said: set[str] = set()

    def announce(what: str, done: int, total: int) -> None:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if total and what not in said and reporter is not None:
            said.add(what)
            reporter.write_line(f"llmagentos: {what} for the local Kafka, {total / 1e6:.0f} MB, once")

    return announce


def _sweep() -> None:
    """End the nodes of test runs that were killed before they could."""
    import psutil

    from llmagentos.streams.node import Node
    from llmagentos.streams.settings import Settings

    for home in Path(tempfile.gettempdir()).glob(f"{_HOME}*"):
        if not psutil.pid_exists(int(home.name.removeprefix(_HOME))):
            Node(Settings.load(home=home)).down()
            shutil.rmtree(home, ignore_errors=True)
