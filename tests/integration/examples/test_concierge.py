"""The example `concierge` as its README runs it, with some of the dialogues, a worker killed, and its check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmagentos.agents.testing import Agents

CONCIERGE = Path(__file__).parents[3] / "examples" / "concierge"
#: So many that some hundred turns are under way when the worker is killed.
DIALOGUES = 40
#: Seconds; on a busy machine twelve processes take a while to start.
PATIENCE_S = 240


def test_every_word_and_call_is_as_recorded_with_a_worker_killed(agents: Agents) -> None:
    if not os.environ.get("LLMAGENTOS_DATA"):
        pytest.skip(
            "LLMAGENTOS_DATA is not set: the dialogues are not part of the project (examples/concierge/README.md)"
        )
    process = subprocess.Popen(
        [sys.executable, CONCIERGE / "run.py", "--dialogues", str(DIALOGUES), "--at-once", str(DIALOGUES)],
        env=os.environ | {"LLMAGENTOS_PARTITIONS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, said = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.terminate()  # it takes down what it started
        out, said = process.communicate()
    assert process.returncode == 0, said[-5000:]
    figures = json.loads(out.splitlines()[-1])
    assert figures["matched"] == figures["total"] > 10 * DIALOGUES
    assert figures["killed"] is not None


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, CONCIERGE / "run.py"],
        env=os.environ | {"LLMAGENTOS_DATA": str(tmp_path), "LLMAGENTOS_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 1
    assert "there is no sgd_dev.ndjson.gz in it" in done.stderr
