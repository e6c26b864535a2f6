"""Models are asked by agents, which the test kit runs."""

from ..agents.conftest import client, deploy

__all__ = ["client", "deploy"]
