"""`llmagentos gateway`: HTTP in front of the agents."""

from __future__ import annotations

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `gateway`."""
    app.command(
        epilog="\b\nExamples:\n  llmagentos gateway --open\n  llmagentos gateway --port 8001\n"
        "  llmagentos gateway --host 0.0.0.0 --cors https://shop.example"
    )(gateway)


def gateway(
    host: str = typer.Option("127.0.0.1", "--host", help="Where to listen; the default is for this machine only."),
    port: int = typer.Option(8080, "--port", "-p", min=0, max=65_535, help="0: a free one."),
    open_: bool = typer.Option(
        False, "--open", help="Need no API key, and take all as tenant `default`; on this machine only."
    ),
    cors: list[str] = typer.Option([], "--cors", metavar="ORIGIN", help="Let pages of ORIGIN call it; repeatable."),
) -> None:
    """Let HTTP clients talk to agents: its own interface, and OpenAI's where the model is an agent.

    Its URL is on stdout once it answers; URL/docs says what there is. Any number of gateways run side by side. Ends on
    Ctrl-C or SIGTERM. Keys: `llmagentos key create`.
    """
    import sys

    from llmagentos.agents.gateway.app import run
    from llmagentos.streams.settings import Settings

    def ready(url: str) -> None:
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()

    run(Settings.load(), host, port, open_to_all=open_, cors=cors, ready=ready)
