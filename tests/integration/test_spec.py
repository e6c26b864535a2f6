"""TLC over the models of delivery and of steps: the protocol holds, and each seeded bug is found."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

SPEC = Path(__file__).parents[2] / "docs" / "spec"


@pytest.fixture(scope="module")
def spec() -> ModuleType:
    """docs/spec/check.py, which is no part of the package."""
    found = importlib.util.spec_from_file_location("spec_check", SPEC / "check.py")
    assert found is not None
    assert found.loader is not None
    module = sys.modules[found.name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("java") is None, reason="TLC needs Java")
def test_the_protocol_holds_and_each_seeded_bug_is_found(spec: ModuleType) -> None:
    command, jar = spec.tools()
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda run: spec.check(run, command, jar).broken, spec.RUNS))
    wrong = {
        run.name: broken or "no error"
        for run, broken in zip(spec.RUNS, said, strict=True)
        if (broken not in run.red if run.red else broken)
    }
    assert wrong == {}


def test_the_page_names_every_run(spec: ModuleType) -> None:
    text = (SPEC / "README.md").read_text(encoding="utf-8")
    assert [run.name for run in spec.RUNS if f"| `{run.name}` |" not in text] == []
