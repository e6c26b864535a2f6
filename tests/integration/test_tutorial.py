"""The tutorial works as typed: its files are made, and its commands run, one after the other, in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r"```(\w+)([^\n]*)\n(.*?)```", re.DOTALL)

#: What a block's output must hold, by a part of its text.
EXPECTED = {
    "ask greeter": ["Hello, Ada!"],
    "ask desk tea": ["One tea is 3 euro.", "prices"],
    "produce --to desk": ["4"],
    "--conversation ada": ["One coffee is 4 euro."],
    "dead.prices": ["KeyError", "cake"],
    "job run analytics": ["report"],
}


@pytest.fixture
def shell() -> Iterator[dict[str, str]]:
    """The environment of a new user, and a node of its own that is gone afterwards."""
    home = tempfile.mkdtemp(prefix="llmagentos-tutorial-")
    folder = Path(sys.executable).parent
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LLMAGENTOS_") or k == "LLMAGENTOS_CACHE"}
    environment = kept | {"LLMAGENTOS_HOME": home, "PATH": f"{folder}:{os.environ['PATH']}", "COLUMNS": "200"}
    try:
        yield environment
    finally:
        for command in (["undeploy", "--all"], ["down"]):
            subprocess.run(["llmagentos", *command], env=environment, capture_output=True, check=False)
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.spark
@pytest.mark.timeout(600)
def test_the_tutorial_runs_as_typed(shell: dict[str, str], tmp_path: Path) -> None:
    ran = 0
    for kind, rest, text in BLOCK.findall(TUTORIAL.read_text(encoding="utf-8")):
        if name := re.search(r"file=(\S+)", rest):
            (tmp_path / name[1]).write_text(text, encoding="utf-8")
        elif kind == "sh":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text],
                cwd=tmp_path,
                env=shell,
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            said = done.stdout + done.stderr
            assert done.returncode == 0, f"{text}\nended with {done.returncode}:\n{said}"
            for part, words in EXPECTED.items():
                if part in text:
                    assert all(word in said for word in words), f"{text}\nsaid:\n{said}"
                    ran += 1
    assert ran == len(EXPECTED)
    assert list((tmp_path / "report").rglob("*.html"))
