"""Talking to an agent: `chat` in a terminal or line by line, `ask` once."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import typer

from llmagentos.cli.output import Output, OutputOption

if TYPE_CHECKING:
    from llmagentos.agents.client import Client
    from llmagentos.streams.message import Message
    from llmagentos.streams.settings import Settings

__all__ = ["Conversation", "register"]


def register(app: typer.Typer) -> None:
    """Add `chat` and `ask`."""
    app.command()(chat)
    app.command()(ask)


def chat(
    agent: str = typer.Argument(..., help="Its name; `llmagentos agents` lists them."),
    conversation: str | None = typer.Option(None, "--conversation", "-c", help="Go on with this one."),
    timeout: float | None = typer.Option(None, min=0, help="Seconds that an answer may take."),
) -> None:
    """Talk to an agent: one conversation, answers shown as they come.

    In a terminal, Ctrl-C stops waiting for an answer and Ctrl-D ends. Otherwise each line of stdin is a message,
    answers go to stdout, and the exit status is 1 where one of them failed.

    Examples:

        llmagentos chat greeter

        printf 'Ada\\nGrace\\n' | llmagentos chat greeter
    """
    from llmagentos.streams.settings import Settings

    if not asyncio.run(_chat(Settings.load(), agent, conversation, timeout)):
        raise typer.Exit(1)


def ask(
    agent: str = typer.Argument(..., help="Its name; `llmagentos agents` lists them."),
    text: str = typer.Argument(..., help="What to ask; - reads it from stdin."),
    conversation: str | None = typer.Option(None, "--conversation", "-c", help="Go on with this one."),
    timeout: float | None = typer.Option(None, min=0, help="Seconds that the answer may take."),
    output: Output = OutputOption,
) -> None:
    """Ask an agent one thing and print its answer.

    Examples:

        llmagentos ask greeter Ada

        llmagentos ask greeter Ada --timeout 5 --output json

        git diff | llmagentos ask reviewer -
    """
    from llmagentos.cli.output import print_json
    from llmagentos.streams.settings import Settings

    content = sys.stdin.read() if text == "-" else text
    settings = Settings.load()

    async def once() -> Message:
        from llmagentos.agents.client import Client

        async with Client(settings) as client:
            return await client.ask(agent, content, conversation=conversation, timeout=timeout)

    started = time.monotonic()
    answer = asyncio.run(once())
    if output is Output.pretty:
        print(shown(answer))
        return
    body = answer.content
    print_json(
        {
            "agent": agent,
            "conversation": answer.conversation_id,
            "message_id": answer.message_id,
            "content_type": answer.content_type,
            "content": shown(answer) if isinstance(body, bytes) else body,
            "usage": answer.usage,
            "took_ms": round((time.monotonic() - started) * 1000, 1),
        }
    )


def shown(message: Message) -> str:
    """The content of a message for people: text as it is, JSON indented, of bytes how many."""
    import orjson

    content = message.content
    if isinstance(content, str):
        return content
    if isinstance(content, bytes):
        return f"<{len(content)} bytes of {message.content_type}>"
    return "" if content is None else orjson.dumps(content, option=orjson.OPT_INDENT_2).decode()


class Conversation:
    """One conversation with one agent, on a terminal or from lines.

    Attributes:
        busy: whether an answer is being printed: another's output would tear its line.
    """

    def __init__(self, client: Client, agent: str, conversation: str | None, timeout_s: float | None) -> None:
        from llmagentos.streams.message import new_id

        self.client = client
        self.agent = agent
        self.conversation = conversation or new_id()
        self.timeout_s = timeout_s
        self.busy = False

    async def answer(self, text: str, *, before: Callable[[], None] = lambda: None) -> None:
        """Ask and print the answer, token by token where they come; *before* the first of it is called once.

        Raises:
            AgentError: the agent is unknown, failed, or did not answer in time.
        """
        printed = ""
        stream = self.client.stream(self.agent, text, conversation=self.conversation, timeout=self.timeout_s)
        try:
            async for message in stream:
                if not self.busy:
                    before()
                    self.busy = True
                if message.type == "token":
                    printed += message.text
                    sys.stdout.write(message.text)
                    sys.stdout.flush()
                    continue
                whole = shown(message)
                if printed and whole.strip() != printed.strip():  # the tokens were not the answer itself
                    sys.stdout.write("\n")
                    printed = ""
                sys.stdout.write(whole + "\n" if not printed else "\n")
                sys.stdout.flush()
                printed = ""
        finally:
            if printed:
                sys.stdout.write("\n")
            self.busy = False

    async def lines(self) -> bool:
        """Each line of stdin is a message; returns whether all were answered."""
        from llmagentos.cli.output import print_error
        from llmagentos.streams.errors import AnswerError, AnswerTimeout

        fine = True
        async for line in _stdin_lines():
            try:
                await self.answer(line)
            except (AnswerError, AnswerTimeout) as error:
                fine = False
                print_error(error)
        return fine

    async def terminal(self) -> None:
        """Prompt, answer, prompt again; until Ctrl-D."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.formatted_text import ANSI
        from prompt_toolkit.patch_stdout import patch_stdout

        session: PromptSession[str] = PromptSession()
        while True:
            try:
                with patch_stdout(raw=True):
                    text = await session.prompt_async(ANSI("\x1b[1;36myou>\x1b[0m "))
            except (EOFError, KeyboardInterrupt):
                return
            if text.strip():
                await self._one(text)

    async def _one(self, text: str) -> None:
        """One question on the terminal; Ctrl-C stops waiting."""
        from llmagentos.cli.output import console, errors, print_error
        from llmagentos.streams.errors import LLMAgentOSError

        waiting = console.status(f"[dim]{self.agent} has it[/]", spinner="dots")

        def begin() -> None:
            waiting.stop()
            console.print(f"[bold green]{self.agent}>[/] ", end="")

        asking = asyncio.create_task(self.answer(text, before=begin))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, asking.cancel)
        waiting.start()
        try:
            await asyncio.wait((asking,))
            if asking.cancelled():
                errors.print("[dim]not waiting any longer; the agent may still answer[/]")
            elif (error := asking.exception()) is not None:
                if not isinstance(error, LLMAgentOSError):
                    raise error
                waiting.stop()
                print_error(error)
        finally:
            waiting.stop()
            loop.remove_signal_handler(signal.SIGINT)
            asking.cancel()


async def _stdin_lines() -> AsyncIterator[str]:
    """Lines of stdin that are not blank. Read by a thread that nothing waits for, as a read can't be interrupted."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | None] = asyncio.Queue(maxsize=1)  # a long file is read no faster than it is answered

    def put(line: str | None) -> None:
        asyncio.run_coroutine_threadsafe(lines.put(line), loop).result()

    def read() -> None:
        for line in sys.stdin:
            put(line.rstrip("\n"))
        put(None)

    threading.Thread(target=read, name="stdin", daemon=True).start()
    while (line := await lines.get()) is not None:
        if line.strip():
            yield line


async def _chat(settings: Settings, agent: str, conversation: str | None, timeout_s: float | None) -> bool:
    from llmagentos.agents.client import Client
    from llmagentos.cli.output import console

    async with Client(settings) as client:
        talk = Conversation(client, agent, conversation, timeout_s)
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            return await talk.lines()
        await asyncio.to_thread(known, settings, agent)
        console.print(f"[dim]conversation {talk.conversation} · Ctrl-C stops waiting · Ctrl-D ends[/]")
        await talk.terminal()
        console.print(f"[dim]go on with: llmagentos chat {agent} --conversation {talk.conversation}[/]")
        return True


def known(settings: Settings, agent: str) -> Any:
    """The card of *agent*.

    Raises:
        UnknownAgent: there is none; says which there are.
    """
    from llmagentos.agents.cards import read_cards
    from llmagentos.streams.errors import UnknownAgent

    cards = read_cards(settings)
    if agent not in cards:
        raise UnknownAgent(
            f"no agent is named {agent!r}; there are {', '.join(sorted(cards)) or 'none'}",
            fix="`llmagentos deploy` the module that defines it, or correct the name",
        )
    return cards[agent]
