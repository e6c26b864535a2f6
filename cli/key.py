"""`llmagentos key`: API keys of the gateways."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from llmagentos.cli.output import Output, OutputOption

if TYPE_CHECKING:
    from llmagentos.agents.gateway.keys import Key

__all__ = ["register"]

keys = typer.Typer(no_args_is_help=True, help="API keys of the gateways: create, revoke, list.")


def register(app: typer.Typer) -> None:
    """Add `key`."""
    app.add_typer(keys, name="key")


@keys.command(
    epilog="\b\nExamples:\n  llmagentos key create --name laptop\n"
    "  llmagentos key create --tenant acme --agent greeter --agent poet --expires 90d\n"
    "  llmagentos key create --tenant acme --requests-per-minute 60 --tokens-per-minute 20000 -o json"
)
def create(
    name: str = typer.Option("", "--name", help="For people: who has it, and what for."),
    tenant: str = typer.Option("default", "--tenant", help="Whose conversations it opens, and who pays."),
    agent: list[str] = typer.Option([], "--agent", help="That it may talk to; repeatable. Default: all."),
    expires: str | None = typer.Option(None, "--expires", metavar="TIME", help="90d, 12h, ... Default: never."),
    requests_per_minute: int = typer.Option(0, "--requests-per-minute", min=0, help="0: unlimited."),
    tokens_per_minute: int = typer.Option(0, "--tokens-per-minute", min=0, help="In and out; 0: unlimited."),
    output: Output = OutputOption,
) -> None:
    """Make a key. It is shown this once: only a hash of it is kept. To rotate one, make another and revoke it."""
    from llmagentos.agents.gateway.keys import create_key
    from llmagentos.cli.output import errors, print_json
    from llmagentos.streams.errors import InputError
    from llmagentos.streams.position import milliseconds
    from llmagentos.streams.settings import Settings

    span = 0 if expires is None else milliseconds(expires)
    if span is None or (expires is not None and not span):
        raise InputError(f"--expires {expires!r} is no time", fix="give 90d, 12h, 30m, ...")
    text, key = create_key(
        Settings.load(),
        name=name,
        tenant=tenant,
        agents=tuple(agent),
        expires_in_s=span / 1_000,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
    )
    if output is Output.json:
        print_json(_row(key) | {"key": text})
        return
    print(text)
    errors.print(f"[dim]it is not shown again; `llmagentos key revoke {key.key_id}` ends it[/]", soft_wrap=True)


@keys.command(epilog="\b\nExamples:\n  llmagentos key revoke 3f9a01c2b7de\n  llmagentos key revoke laptop")
def revoke(
    key: str = typer.Argument(..., metavar="KEY", help="Its id or name, as in `llmagentos key list`."),
    output: Output = OutputOption,
) -> None:
    """Have a key refused by every gateway from now on. What was begun with it goes on."""
    from llmagentos.agents.gateway.keys import revoke_key
    from llmagentos.cli.output import print_json
    from llmagentos.streams.settings import Settings

    gone = revoke_key(Settings.load(), key)
    if output is Output.json:
        print_json(_row(gone))
        return
    print(f"revoked: {gone.key_id}" + (f" ({gone.name})" if gone.name else ""))


@keys.command("list", epilog="\b\nExamples:\n  llmagentos key list\n  llmagentos key list -o json")
def list_(output: Output = OutputOption) -> None:
    """The keys that are not revoked, the oldest first; never their secrets."""
    from llmagentos.agents.gateway.keys import read_keys
    from llmagentos.cli.output import print_rows
    from llmagentos.streams.settings import Settings

    rows = [_row(key) for key in read_keys(Settings.load())]
    if output is Output.pretty:
        for row in rows:
            row["agents"] = ", ".join(row["agents"]) or "all"
            for name in ("created_at", "expires_at"):
                row[name] = f"{datetime.fromtimestamp(row[name] / 1_000):%Y-%m-%d %H:%M}" if row[name] else ""
            for name in ("requests_per_minute", "tokens_per_minute"):
                row[name] = row[name] or ""
    columns = ("key_id", "name", "tenant", "agents", "requests_per_minute", "tokens_per_minute", "expires_at")
    print_rows(rows, columns, output=output, empty="there is no key; `llmagentos key create` makes one")


def _row(key: Key) -> dict[str, Any]:
    return {name: value for name, value in key.record().items() if name != "secret_sha256"}
