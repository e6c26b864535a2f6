"""`llmagentos dev FILE`: everything that writing an agent needs, in one command."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llmagentos.cli.deploy import FaultOption, environment_with

if TYPE_CHECKING:
    from llmagentos.agents.checking import Checked
    from llmagentos.agents.deploying import Watcher
    from llmagentos.agents.deployment import Deployment
    from llmagentos.cli.chat import Conversation
    from llmagentos.streams.settings import Settings

__all__ = ["register"]

#: What the machinery says of its normal course is of no use between the lines of a chat; `logs` has it.
_ROUTINE = re.compile(r"[\d-]+ [\d:,.]+ (?:DEBUG|INFO) (?!llmagentos\.agent\.)(?:llmagentos|faust|mode)\b")


#: Of the rest, date, fraction and our own name are noise between the lines of a chat.
_LONG_STAMP = re.compile(r"[\d-]+ ([\d:]+),\d+ (\w+) (?:llmagentos\.(?:agents?\.)?)?")


def register(app: typer.Typer) -> None:
    """Add `dev`."""
    app.command()(dev)


def dev(
    target: str = typer.Argument(..., metavar="MODULE_OR_FILE", help="A Python file, or a dotted name."),
    agent: str | None = typer.Option(None, "--agent", "-a", help="Whom to talk to; by default the first agent."),
    name: str | None = typer.Option(None, "--name", "-n", help="Of the deployment; by default the module's."),
    fault: list[str] = FaultOption,
) -> None:
    """Write an agent: deploy it, load it anew on every save, and talk to it.

    Starts the local node if none runs. What the agent prints is shown between the lines of the chat. A save that does
    not import is shown with its traceback, and the version before goes on. Ctrl-D ends, and undeploys; the node stays.

    Examples:

        llmagentos dev hello.py

        llmagentos dev shop.agents --agent clerk

        llmagentos dev hello.py --fault fail=0.3
    """
    from llmagentos.streams.settings import Settings

    settings = Settings.load()
    session = _Session(settings, target, name, environment_with(fault, settings))
    session.start()
    asyncio.run(session.run(agent))


class _Session:
    def __init__(self, settings: Settings, target: str, name: str | None, environment: Mapping[str, str]) -> None:
        from llmagentos.agents.deployment import Process

        self.settings = settings
        self.target = target
        self.name = name
        self.environment = environment
        self.owner = Process.this()
        self.checked: Checked | None = None
        self.deployment: Deployment
        self.talk: Conversation | None = None
        self._ended = threading.Event()

    def start(self) -> None:
        """The node, where none is named and none runs, and the first deployment."""
        from llmagentos.cli.deploy import watching
        from llmagentos.cli.output import errors

        if not self.settings.brokers:
            from llmagentos.streams.node import Node

            with watching("looking for the local node") as (say, _):
                Node(self.settings).up(progress=lambda what, done, total: say(_progress(what, done, total)))
        started = time.monotonic()
        with watching(f"importing {self.target}") as (say, watch):
            self._deploy(lambda found: say(f"starting {', '.join(agent.name for agent in found.agents)}"), watch)
        agents = ", ".join(f"[bold]{agent.name}[/]" for agent in self.deployment.agents)
        errors.print(f"{agents} ready in {time.monotonic() - started:.1f} s; save {self.target} to load it anew")

    def _deploy(self, checked: Callable[[Checked], None] = lambda _: None, watch: Watcher | None = None) -> None:
        from llmagentos.agents import deploying

        def note(found: Checked) -> None:
            self.checked = found
            checked(found)

        self.deployment = deploying.deploy(
            self.settings,
            self.target,
            name=self.name,
            workers=1,
            owner=self.owner,
            environment=self.environment,
            checked=note,
            watch=watch,
        )

    async def run(self, agent: str | None) -> None:
        """Chat, reload and show logs until the person ends it; then undeploy."""
        from llmagentos.agents import deploying
        from llmagentos.agents.client import Client
        from llmagentos.cli.chat import Conversation, known
        from llmagentos.cli.deploy import watching
        from llmagentos.cli.output import errors
        from llmagentos.streams.errors import DeploymentError

        me = asyncio.current_task()
        assert me is not None
        for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal undeploys too
            asyncio.get_running_loop().add_signal_handler(number, me.cancel)
        helpers = [asyncio.create_task(self._reload()), asyncio.create_task(asyncio.to_thread(self._show_logs))]
        try:
            if agent is None and not self.deployment.agents:
                errors.print("[dim]it defines no agent to talk to; Ctrl-C ends[/]")
                await asyncio.Event().wait()
            agent = agent or self.deployment.agents[0].name
            await asyncio.to_thread(known, self.settings, agent)
            async with Client(self.settings) as client:
                self.talk = Conversation(client, agent, None, None)
                if sys.stdin.isatty() and sys.stdout.isatty():
                    errors.print(f"[dim]talking to {agent} · Ctrl-C stops waiting · Ctrl-D ends[/]")
                    await self.talk.terminal()
                elif not await self.talk.lines():
                    raise typer.Exit(1)
        except asyncio.CancelledError:
            me.uncancel()
        finally:
            self._ended.set()
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            with watching(f"draining {self.deployment.name}") as (_, watch), suppress(DeploymentError):  # gone already
                await asyncio.to_thread(deploying.undeploy, self.settings, self.deployment.name, watch=watch)
            local = "" if self.settings.brokers else "; the node stays up (`llmagentos down` ends it)"
            errors.print(f"[dim]undeployed {self.deployment.name}, its topics are kept{local}[/]")

    async def _reload(self) -> None:
        """Deploy anew whenever a Python file beside the module's, or beside one that it imports, is saved."""
        import watchfiles

        from llmagentos.cli.output import errors, print_error
        from llmagentos.streams.errors import LLMAgentOSError

        while True:
            folders = self.checked.folders if self.checked is not None else [Path.cwd()]
            async for changes in watchfiles.awatch(
                *folders, watch_filter=watchfiles.PythonFilter(), recursive=False, step=50
            ):
                started = time.monotonic()
                errors.print(f"[dim]{', '.join(_short(path) for _, path in changes)} changed, loading it anew[/]")
                try:
                    await asyncio.to_thread(self._deploy)
                except LLMAgentOSError as error:
                    print_error(error)
                else:
                    took = f"{time.monotonic() - started:.1f} s"
                    errors.print(f"[dim]version {self.deployment.version} runs ({took})[/]")
                if self.checked is not None and self.checked.folders != folders:
                    break

    def _show_logs(self) -> None:
        from rich.text import Text

        from llmagentos.agents.deployment import Deployments
        from llmagentos.agents.logs import follow
        from llmagentos.cli.output import console

        deployments = Deployments(self.settings.home)
        lines = follow(deployments, lambda: [self.deployment.name], stop=self._ended.is_set)
        for line in lines:
            while self.talk is not None and self.talk.busy and not self._ended.is_set():
                time.sleep(0.05)  # an answer is being printed
            if line is not None and not _ROUTINE.match(line.text):
                text = _LONG_STAMP.sub(r"\1 \2 ", line.text)
                with suppress(BlockingIOError):  # a terminal that does not take more: the log has it
                    console.print(Text(f"  │ {text}", "dim"), soft_wrap=True)


def _short(path: str) -> str:
    return os.path.relpath(path)


def _progress(what: str, done: int, total: int) -> str:
    return f"{what} {done * 100 // total}%" if total else what
