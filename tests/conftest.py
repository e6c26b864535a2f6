"""What all tests share: the project's own test kit (llmagentos.agents.testing), and nothing beside it."""

from __future__ import annotations

import pytest

from llmagentos.agents.testing import Agents
from llmagentos.streams.settings import Settings


@pytest.fixture(scope="session", autouse=True)
def _environment(bare_environment: None) -> None:  # pyright: ignore[reportUnusedFunction]
    """A developer's own settings don't reach the unit tests either."""


@pytest.fixture
def settings(agents: Agents) -> Settings:
    """Settings for `node` with a topic prefix of this test's own."""
    return agents.settings
