"""The registry under test: each test here runs over every implementation."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmagentos.streams.registry import Registry, open_registry
from llmagentos.streams.settings import Settings
from tests.integration.registry import apicurio


@dataclass(frozen=True)
class Place:
    """A registry that several clients open; it travels to other processes."""

    url: str
    home: Path
    prefix: str

    def open(self) -> Registry:
        return open_registry(Settings(home=self.home, prefix=self.prefix, registry=self.url))


@pytest.fixture(scope="session")
def apicurio_url() -> Iterator[str]:
    with apicurio.running(Settings().cache) as url:
        yield url


@pytest.fixture(params=["log", "http"])
def place(request: pytest.FixtureRequest) -> Place:
    prefix = f"t{uuid.uuid4().hex[:10]}."
    if request.param == "http":
        return Place(request.getfixturevalue("apicurio_url"), Path("unused"), prefix)
    return Place("", request.getfixturevalue("node").home, prefix)


@pytest.fixture
def registry(place: Place) -> Iterator[Registry]:
    client = place.open()
    yield client
    client.close()


@pytest.fixture
def subject() -> str:
    """One that no other test uses."""
    return f"test.Subject{uuid.uuid4().hex[:10]}"
