"""One cluster of three brokers for the chaos tests of a file: its data folder is the process', so one at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmagentos.cli.chaos.cluster import Cluster


@pytest.fixture(scope="module")
def cluster(_environment: None) -> Iterator[Cluster]:
    """Three brokers and Redis; each run in it has topics and workers of its own."""
    with Cluster() as cluster:
        yield cluster
