"""The test kit as its users have it: a project of their own, outside of ours, whose pytest runs by itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HOWTO = Path(__file__).parents[2] / "docs" / "howto" / "testing.md"
BLOCK = re.compile(r"```(\w+)([^\n]*)\n(.*?)```", re.DOTALL)


@pytest.mark.timeout(240)
def test_the_howto_works_as_typed(tmp_path: Path) -> None:
    commands: list[str] = []
    for kind, rest, text in BLOCK.findall(HOWTO.read_text(encoding="utf-8")):
        if name := re.search(r"file=(\S+)", rest):
            (tmp_path / name[1]).write_text(text, encoding="utf-8")
        elif kind == "sh":
            commands.append(text)
    assert commands == ["pytest\n"]
    # What a developer has in the shell and in the folder must not lead the tests to another cluster.
    (tmp_path / "llmagentos.toml").write_text('brokers = "127.0.0.1:1"\n', encoding="utf-8")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [*commands[0].split(), "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "LLMAGENTOS_BROKERS": "127.0.0.1:2", "LLMAGENTOS_PARTITIONS": "3"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert re.search(r"=+ 6 passed in ", done.stdout), done.stdout + done.stderr
