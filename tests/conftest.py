"""What all tests share: one real node a run, and settings that keep tests apart."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llmagentos.streams.node import Node
from llmagentos.streams.settings import Settings

#: In the temporary folder; the number is the test run's process id.
_HOME = "llmagentos-test-"

#: What says where downloads and real data lie; all else would change what is tested.
_KEPT = ("LLMAGENTOS_CACHE", "LLMAGENTOS_DATA", "LLMAGENTOS_KAFKA_JARS")


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """A developer's own settings don't reach the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("LLMAGENTOS_") and name not in _KEPT:
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def node(_environment: None) -> Iterator[Node]:
    """A running Kafka and Redis: `.brokers`, `.redis`, `.home`. One a run, ended with it."""
    _sweep()
    home = Path(tempfile.gettempdir()) / f"{_HOME}{os.getpid()}"
    local = Node(Settings(home=home))
    try:
        local.up()
        yield local
    finally:
        local.down()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def settings(node: Node) -> Settings:
    """Settings for `node` with a topic prefix of this test's own."""
    return Settings(home=node.home, prefix=f"t{uuid.uuid4().hex[:10]}.")


def _sweep() -> None:
    """End the nodes of test runs that were killed before they could."""
    for home in Path(tempfile.gettempdir()).glob(f"{_HOME}*"):
        if not psutil.pid_exists(int(home.name.removeprefix(_HOME))):
            Node(Settings(home=home)).down()
            shutil.rmtree(home, ignore_errors=True)
