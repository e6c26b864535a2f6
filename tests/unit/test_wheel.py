"""What is built is what is in the tree: every module and every data file is in the wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "streams", "agents", "jobs", "cli")
#: Beside modules, what the code reads at run time.
DATA = {".avsc", ".txt", ".properties", ".html"}


@pytest.mark.timeout(180)
def test_the_wheel_holds_every_module_of_the_tree(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    built = set(zipfile.ZipFile(wheel).namelist())
    tree = {
        f"llmagentos/{path.relative_to(ROOT).as_posix()}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".py", *DATA} or path.name == "py.typed"
    }
    assert tree - built == set()
    assert {name for name in built if name.endswith(".py")} - tree == set()
