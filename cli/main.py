"""The `llmagentos` command: every subcommand, in the order of its help."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from llmagentos.streams.errors import LLMAgentOSError

__all__ = ["COMMANDS", "app", "main"]

#: Modules of this package, each with a `register(app)` that adds its commands; the order of `--help`.
#: A module that is named as its command (`tail`) is found without importing the others.
COMMANDS: tuple[str, ...] = (
    "node",
    "produce",
    "tail",
    "topics",
    "dead",
    "waiting",
    "steps",
    "cancel",
    "memory",
    "model",
    "knowledge",
    "schema",
    "deploy",
    "logs",
    "reset",
    "dev",
    "check",
    "chat",
    "gateway",
    "key",
    "demo",
    "chaos",
    "job",
)


class Commands(TyperGroup):
    """Imports only the module of the command that is called; all of them for `--help` and for a typing error."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        for module in sorted(COMMANDS, key=lambda module: module != cmd_name):
            if cmd_name in self.commands:
                break
            self._load(module)
        return self.commands.get(cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        self.commands = {name: command for module in COMMANDS for name, command in self._load(module).items()}
        return list(self.commands)

    def _load(self, module: str) -> dict[str, Any]:
        part = typer.Typer(add_completion=False)
        import_module(f"llmagentos.cli.{module}").register(part)
        commands = dict(typer.main.get_group(part).commands)
        self.commands |= commands
        return commands


app = typer.Typer(
    name="llmagentos",
    cls=Commands,
    help="The operating system for LLM agents on Apache Kafka.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:  # pyright: ignore[reportUnusedFunction] - makes a group of an app without commands of its own
    """The operating system for LLM agents on Apache Kafka."""


def main() -> None:
    """Entry point: runs the command, prints errors for people, and exits with their status."""
    # Python's default of 700 walks everything that is imported, again and again, while it is imported: a tenth of
    # the CPU time of a `tail`. What is garbage in cycles is still found, later.
    gc.set_threshold(50_000, 20, 20)
    try:
        app()
    except LLMAgentOSError as error:
        from llmagentos.cli.output import print_error

        print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
