"""The command line as a whole: every command is listed, and only the one that is called is imported."""

from __future__ import annotations

import subprocess
import sys

from typer.testing import CliRunner

from llmagentos.cli.main import COMMANDS, app


def test_help_lists_the_commands_of_every_module() -> None:
    done = CliRunner().invoke(app, ["--help"])
    assert done.exit_code == 0
    for name in ("up", "tail", "topics", "agents", "lag", "conversations"):
        assert f" {name} " in done.output
    assert COMMANDS[0] == "node"


def test_a_command_is_found_whatever_its_module_is_called() -> None:
    for name in ("up", "tail", "lag"):
        done = CliRunner().invoke(app, [name, "--help"])
        assert done.exit_code == 0
        assert "Usage:" in done.output


def test_an_unknown_command_is_a_usage_error_with_the_closest() -> None:
    done = CliRunner().invoke(app, ["tial"])
    assert done.exit_code == 2
    assert "tail" in done.output


def test_tail_starts_without_what_it_does_not_need() -> None:
    """Rich alone takes as long to import as all of Kafka's client; programs read JSON."""
    code = (
        "import sys; sys.argv = ['llmagentos', 'tail', '--from', 'nowhere', '-o', 'json'];"
        "from llmagentos.cli import main;"
        "import contextlib\n"
        "with contextlib.suppress(Exception): main.app()\n"
        "print(*(name for name in ('rich', 'faust', 'httpx', 'llmagentos.cli.node', 'psutil') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
