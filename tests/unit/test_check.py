"""`llmagentos check`: what the command prints, its exit status, and that what people copy is clean."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmagentos.agents.effects import read
from llmagentos.cli.main import app

ROOT = Path(__file__).parents[2]

HEAD = "from llmagentos.agents import agent, Context\n"


def test_the_command_prints_places_and_advice(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "clerk.py").write_text(
        HEAD + "import time\n@agent('clerk')\nasync def clerk(message, ctx):\n    return time.time()\n"
    )
    (tmp_path / "shop" / ".venv").mkdir()
    (tmp_path / "shop" / ".venv" / "not.py").write_text("def (")
    done = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert done.exit_code == 1
    assert f"{tmp_path}/shop/clerk.py:5:12: E101 `time.time()` reads the clock (clerk)" in done.output
    assert "write `ctx.now()`" in done.output
    assert "1 finding in 1 agent of 1 file" in done.output


def test_the_command_speaks_json_and_takes_dotted_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "clerk.py").write_text(
        HEAD
        + "import time\ndef now():\n    return time.time()\n@agent()\nasync def clerk(message, ctx): return now()\n"
        "raise SystemExit('imported')\n"
    )
    done = CliRunner().invoke(app, ["check", "shop.clerk", "shop/clerk.py", "--output", "json"])
    assert done.exit_code == 1
    [finding] = json.loads(done.stdout)
    assert finding.pop("advice")
    assert finding.pop("what")
    assert finding == {
        "file": "shop/clerk.py",
        "line": 4,
        "column": 12,
        "code": "E101",
        "agent": "clerk",
        "via": ["now"],
    }


def test_the_command_is_content_with_a_clean_file_and_refuses_what_is_not_there(tmp_path: Path) -> None:
    clean = tmp_path / "hello.py"
    clean.write_bytes(
        b"# -*- coding: latin-1 -*-\n"
        + (HEAD + "@agent('a')\nasync def a(message, ctx): return 'Grüße'\n").encode("latin-1")
    )
    done = CliRunner().invoke(app, ["check", str(clean)])
    assert done.exit_code == 0
    assert "nothing found in 1 agent of 1 file" in done.output
    assert CliRunner().invoke(app, ["check", str(tmp_path / "nowhere.py")]).exit_code == 2
    (tmp_path / "broken.py").write_bytes(b"x = '\xff'\n\0")
    assert CliRunner().invoke(app, ["check", str(tmp_path / "broken.py")]).exit_code == 1


def test_the_examples_and_documents_are_clean() -> None:
    """What people copy must be right: every Python file of the examples, and every handler in the how-tos."""
    for file in sorted((ROOT / "examples").rglob("*.py")):
        assert read(file.read_text()).findings == (), file
    seen = 0
    for file in (ROOT / "README.md", ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))):
        if file.name == "check.md":  # has an agent that is wrong on purpose
            continue
        for block in re.findall(r"```python[^\n]*\n(.*?)```", file.read_text(), re.DOTALL):
            if "def test_" in block:
                continue  # the handlers of a test may tell it what they did
            text = block if "import agent" in block else HEAD + block
            report = read(text)
            seen += len(report.agents)
            assert report.findings == (), f"{file}: {report.findings}"
    assert seen >= 5


def test_checking_imports_nothing_of_the_users(tmp_path: Path) -> None:
    """Nor Kafka's client, which takes longer to import than all that is done here."""
    (tmp_path / "a.py").write_text("raise SystemExit('imported')")
    code = (
        "import sys; sys.argv = ['llmagentos', 'check', 'a.py', '-o', 'json'];"
        "from llmagentos.cli import main;"
        "import contextlib\n"
        "with contextlib.suppress(SystemExit): main.app()\n"
        "print(*(name for name in ('a', 'confluent_kafka', 'faust', 'rich') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]
