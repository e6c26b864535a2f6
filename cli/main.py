"""The `llmagentos` command: every subcommand, in the order of its help."""

from __future__ import annotations

import sys
from importlib import import_module

import typer

from llmagentos.cli.output import errors, print_error
from llmagentos.streams.errors import LLMAgentOSError

__all__ = ["app", "main"]

app = typer.Typer(
    name="llmagentos",
    help="The operating system for LLM agents on Apache Kafka.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: Modules of this package, each with a `register(app)` that adds its commands; the order of `--help`.
COMMANDS: tuple[str, ...] = ("node",)

for _module in COMMANDS:
    import_module(f"llmagentos.cli.{_module}").register(app)


def main() -> None:
    """Entry point: runs the command, prints errors for people, and exits with their status."""
    try:
        app()
    except LLMAgentOSError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
