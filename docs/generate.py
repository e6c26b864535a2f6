"""Writes docs/reference from the code: commands, settings, topics, the API. `make docs` runs it.

A test runs it with `--check`, which writes nothing and exits with 1 where a page is not what the code says.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

import typer

REFERENCE = Path(__file__).parent / "reference"


def commands() -> str:
    """Every command with its help, as Typer knows it."""
    from llmagentos.cli.main import app

    lines = ["# Commands", "", "Made from the code by `make docs`.", ""]
    root = typer.main.get_command(app)

    def visit(command: Any, path: str, parent: Any) -> None:
        ctx = command.context_class(command, info_name=path.rsplit(" ", 1)[-1], parent=parent)
        if hasattr(command, "list_commands"):
            if parent is not None:
                lines.extend([f"## {path}", "", _plain(command.help), ""])
            for name in command.list_commands(ctx):
                child = command.get_command(ctx, name)
                if child is not None and not child.hidden:
                    visit(child, f"{path} {name}", ctx)
            return
        lines.extend([f"### {path}", "", _plain(command.help), ""])
        usage = " ".join(command.collect_usage_pieces(ctx))
        lines.extend([f"    {path} {usage}", ""])
        rows = [_parameter(p) for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
        if rows:
            lines.extend(["| | | default |", "|---|---|---|", *rows, ""])

    visit(root, "llmagentos", None)
    return "\n".join(lines)


def _parameter(parameter: Any) -> str:
    if parameter.param_type_name == "option":
        name = ", ".join([*parameter.opts, *parameter.secondary_opts])
        text = parameter.help or ""
    else:
        name = parameter.metavar or (parameter.name or "").upper()
        text = getattr(parameter, "help", "") or ""
    default = parameter.default
    shown = "" if default is None or callable(default) or parameter.required else getattr(default, "value", default)
    if isinstance(shown, bool):
        shown = "yes" if shown else ""
    return f"| `{name}` | {_cell(text)} | {_cell(str(shown)) if shown not in ((), '') else ''} |"


def settings() -> str:
    """Every setting with its type, default and variable."""
    from llmagentos.streams.settings import ModelSettings, Settings

    lines = [
        "# Settings",
        "",
        "Made from the code by `make docs`. Defaults, then `llmagentos.toml` in the working directory (or the file",
        "that `LLMAGENTOS_SETTINGS` names), then the environment, then flags; the later wins.",
        "",
        "| in the file | in the environment | default | |",
        "|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        if field.default_factory is not None:
            default = {"home": "~/.local/share/llmagentos", "cache": "~/.cache/llmagentos"}.get(name, "")
        elif field.default is None or "Secret" in type(field.default).__name__:
            default = ""
        else:
            default = field.default
        lines.append(
            f"| `{name}` | `LLMAGENTOS_{name.upper()}` | {_cell(str(default))} | {_cell(field.description or '')} |"
        )
    lines += ["", "## `[models.NAME]`", "", "| in the file | default | |", "|---|---|---|"]
    for name, field in ModelSettings.model_fields.items():
        default = "" if field.default in (None, (), "") else str(field.default)
        lines.append(f"| `{name}` | {_cell(default)} | {_cell(field.description or '')} |")
    return "\n".join([*lines, ""])


def topics() -> str:
    """The topology table."""
    from llmagentos.streams.topology import DAY_MS, TOPICS

    lines = [
        "# Topics",
        "",
        "Made from the code by `make docs`. Every name stands behind the setting `prefix` (`llmagentos.` by default);",
        "`NAME` is an agent's.",
        "",
        "| topic | key | cleanup | kept | partitions | holds |",
        "|---|---|---|---|---|---|",
    ]
    for topic in TOPICS:
        kept = f"{topic.retention_ms // DAY_MS} d" if topic.retention_ms else "the last per key"
        lines.append(
            f"| `{topic.name}` | {topic.key} | {topic.cleanup} | {kept} | {topic.partitions or 'setting'} |"
            f" {topic.holds} |"
        )
    return "\n".join([*lines, ""])


def api() -> str:
    """The public names with signatures and docstrings."""
    import llmagentos.agents as agents
    from llmagentos.agents import testing
    from llmagentos.streams import errors

    lines = ["# API", "", "Made from the code by `make docs`. `from llmagentos.agents import ...`", ""]
    kit = "The test kit: what pytest's fixture `agents` and its runs give; `from llmagentos.agents.testing import ...`"
    public = [(agents, name) for name in agents.__all__] + [(testing, name) for name in testing.__all__]
    for module, name in public:
        if (module, name) == (testing, testing.__all__[0]):
            lines.extend([kit, ""])
        value: Any = getattr(module, name)
        lines.extend([f"## {name}", ""])
        if not inspect.isclass(value):
            lines.extend([f"    {name}{_signature(value)}", ""])
        lines.extend([inspect.getdoc(value) or "", ""])
        if inspect.isclass(value):
            for method, member in vars(value).items():
                if method.startswith("_") or not (
                    inspect.isfunction(member) or isinstance(member, property | classmethod)
                ):
                    continue
                function = member.fget if isinstance(member, property) else inspect.unwrap(getattr(value, method))
                signature = "" if isinstance(member, property) else _signature(function)
                lines.extend([f"### {name}.{method}{signature}", "", inspect.getdoc(function) or "", ""])
    lines.extend(
        ["## Errors", "", "From `llmagentos.streams.errors`.", "", "```", inspect.getdoc(errors) or "", "```", ""]
    )
    return "\n".join(lines)


def _signature(function: Any) -> str:
    return str(inspect.signature(function)).replace("'", "")


def _plain(text: str | None) -> str:
    return inspect.cleandoc(text or "").replace("\b\n", "").replace("\f", "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PAGES = {"commands.md": commands, "settings.md": settings, "topics.md": topics, "api.md": api}


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is stale")
    check = parser.parse_args().check
    stale = []
    REFERENCE.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        path, text = REFERENCE / name, make().rstrip() + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    if stale:
        print(("stale: " if check else "written: ") + ", ".join(stale) + (" (run `make docs`)" if check else ""))
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
