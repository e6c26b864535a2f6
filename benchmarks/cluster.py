"""The cluster that a benchmark runs on: the one of LLMAGENTOS_BROKERS, or a node of its own that is gone afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from llmagentos.streams.node import Node
from llmagentos.streams.settings import Settings

__all__ = ["cluster"]


@contextmanager
def cluster(**changes: object) -> Generator[Settings]:
    """Settings that name it, with a temporary data folder and a prefix of this run's own.

    Args:
        changes: of other settings.
    """
    home = Path(tempfile.mkdtemp(prefix="llmagentos-bench-"))
    settings = Settings.load(home=home, prefix=f"bench{os.getpid()}.", **changes)
    node = None if settings.brokers else Node(settings)
    try:
        if node is not None:
            node.up()
            settings = settings.model_copy(update={"brokers": node.brokers})
        yield settings
    finally:
        if node is not None:
            node.down()
        shutil.rmtree(home, ignore_errors=True)
