"""`llmagentos model`: the models that the settings name, and a question to one of them."""

from __future__ import annotations

from typing import Any

import typer

from llmagentos.cli.output import Output, OutputOption

__all__ = ["register"]

_LIST = "\b\nExamples:\n  llmagentos model list\n  llmagentos model list -o json"
_RUN = (
    '\b\nExamples:\n  llmagentos model run small "a line about rain"\n'
    '  llmagentos model run small "name a city" --system "Be brief." -o json'
)


def register(app: typer.Typer) -> None:
    """Add the group `model`."""
    group = typer.Typer(name="model", no_args_is_help=True, help="See which models there are, and ask one.")
    group.command(name="list", epilog=_LIST)(list_models)
    group.command(epilog=_RUN)(run)
    app.add_typer(group)


def list_models(output: Output = OutputOption) -> None:
    """List the models that agents here can ask: what `[models.NAME]` in llmagentos.toml and LLMAGENTOS_MODELS say."""
    from llmagentos.cli.output import print_rows
    from llmagentos.streams.settings import Settings

    settings = Settings.load()
    usual = settings.model or (next(iter(settings.models)) if len(settings.models) == 1 else "")
    rows = [
        {
            "name": name,
            "usual": "yes" if name == usual else "",
            "provider": model.provider,
            "model": model.model or name,
            "where": str(model.base_url or model.path or model.script or "the OpenAI endpoint"),
            "window": model.window,
            "in $/M": model.price_in,
            "out $/M": model.price_out,
            "fallback": ", ".join(model.fallback),
        }
        for name, model in sorted(settings.models.items())
    ]
    columns = ["name", "usual", "provider", "model", "where", "window", "in $/M", "out $/M", "fallback"]
    print_rows(rows, columns, output=output, empty="no model is configured: add [models.NAME] to llmagentos.toml")


def run(
    name: str = typer.Argument(..., metavar="MODEL", help="By its name in the settings."),
    question: str = typer.Argument(..., metavar="QUESTION", help="What it is asked."),
    system: str = typer.Option("", "--system", help="What it is told beforehand.", show_default=False),
    max_tokens: int = typer.Option(0, "--max-tokens", min=0, help="Of the answer; 0: as many as it likes."),
    output: Output = OutputOption,
) -> None:
    """Ask a model from here, with its retries and fallbacks, as an agent would: the shortest way to see that it works.

    Its answer is printed as it comes; what it cost goes to stderr.
    """
    import asyncio
    import sys

    from llmagentos.agents.models import Models, Request, Turn, Usage
    from llmagentos.cli.output import errors, print_json
    from llmagentos.streams.clock import Clock
    from llmagentos.streams.settings import Settings

    messages = [{"role": "system", "content": system}] if system else []
    request = Request([*messages, {"role": "user", "content": question}], max_tokens=max_tokens)

    async def hear(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    async def ask() -> tuple[Turn, Usage]:
        models = Models(Settings.load(), Clock())
        try:
            return await models.ask(name, request, hear if output is Output.pretty else None)
        finally:
            await models.close()

    turn, usage = asyncio.run(ask())
    if output is Output.json:
        answer: dict[str, Any] = {"text": turn.text, "finish": turn.finish, **usage.record()}
        print_json(answer)
        return
    sys.stdout.write("\n")
    errors.print(
        f"{usage.model}: {usage.tokens_in:,} tokens in, {usage.tokens_out:,} out, ${usage.cost:.6f}",
        style="dim",
        markup=False,
        highlight=False,
    )
