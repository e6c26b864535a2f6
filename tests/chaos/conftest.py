"""One cluster of three brokers for all chaos tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmagentos.cli.chaos.cluster import Cluster


@pytest.fixture(scope="package")
def cluster(_environment: None) -> Iterator[Cluster]:
    """Three brokers and Redis; each run in it has topics and workers of its own."""
    with Cluster() as cluster:
        yield cluster
