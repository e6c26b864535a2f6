"""The page of guarantees is made from the figures that were taken, and names tests that exist."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "guarantees.py"


@pytest.fixture
def guarantees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which is no part of the package; its figures lie in a folder of this test's."""
    found = importlib.util.spec_from_file_location("guarantees_page", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, found.name, module)
    found.loader.exec_module(module)
    monkeypatch.setattr(module, "FIGURES", tmp_path / "figures")
    return module


def test_the_page_is_what_the_figures_say_and_its_tests_exist() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_test_that_does_not_exist_is_named(guarantees: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guarantees.missing() == []
    first = guarantees.GUARANTEES[0]
    gone = ("tests/unit/test_gate.py::test_that_is_gone", "tests/unit/test_gone.py")
    changed = type(first)(*(getattr(first, name) for name in ("number", "name", "promise", "limits", "how")), gone)
    monkeypatch.setattr(guarantees, "GUARANTEES", (changed,))
    assert guarantees.missing() == list(gone)


def test_outputs_of_the_suite_come_into_the_page(guarantees: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    check = {"found": 3, "wanted": 0, "holds": False, "detail": ""}
    run = {
        "scenario": "kill-workers", "seed": 7, "holds": False, "trouble": "", "started_at": "2026-11-21T10:00:00Z",
        "seconds": 9.0, "messages": 1000, "conversations": 50, "counts": {"redelivered": 12},
        "faults": [{"name": "kill-workers", "after_s": 1.0, "detail": ""}] * 2,
        "checks": [{"name": "lost", **check}, {"name": "out of order at first", **check, "found": 0, "holds": True}],
    }  # fmt: skip
    (out / "chaos.json").write_text(json.dumps([run]))
    (out / "failover.json").write_text('noise\n{"p50_s": 1.1, "worst_s": 2.5}\n')
    (out / "tests.xml").write_text(
        '<testsuite><testcase classname="tests.unit.test_gate.TestGate" name="runTest"/>'
        '<testcase classname="tests.unit.test_gate" name="test_x[1]"><failure/></testcase></testsuite>'
    )
    assert guarantees.take(out) == ["chaos.json", "tests.xml", "failover.json"]
    text = guarantees.page()
    assert "| kill-workers | 2026-11-21 10:00:00 | 7 | 1,000 | 2 | 12 | 3 |  | 0 | no |" in text
    assert "- lost (must be 0): 1 scenarios, off in kill-workers: 3" in text
    assert "`make bench NAME=failover`: p50_s 1.1, worst_s 2.5" in text
    assert "- `tests/unit/test_gate.py`: 1 failed, 1 passed" in text
