"""The pytest plugin costs those who don't use it next to nothing."""

from __future__ import annotations

import subprocess
import sys


def test_the_plugin_imports_nothing_heavy() -> None:
    heavy = "confluent_kafka", "faust", "fastavro", "pydantic", "psutil", "httpx"
    done = subprocess.run(
        [sys.executable, "-c", f"import llmagentos.agents.testing, sys; print(sys.modules.keys() & {set(heavy)!r})"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"
