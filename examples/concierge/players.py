"""The users: each says a recorded turn, waits for the answer, and says the next; hundreds at once."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

import dialogues
import uvloop
from dialogues import Exchange
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from llmagentos.agents import Client
from llmagentos.streams.errors import AgentError

#: Seconds that a user waits for one answer: with a worker killed and hundreds of others waiting, some are usual.
PATIENCE_S = 120.0


async def play(at_once: int) -> int:
    """Play all dialogues; how many ended before their time."""
    errors = Console(stderr=True)
    recorded = await asyncio.to_thread(dialogues.read)
    gate = asyncio.Semaphore(at_once)
    columns = (TextColumn("user turns answered"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors) as progress:
        task = progress.add_task("", total=sum(map(len, recorded.values())))

        async def converse(client: Client, conversation: str, exchanges: Sequence[Exchange]) -> bool:
            async with gate:
                for exchange in exchanges:
                    try:
                        await client.ask("assistant", exchange.user, conversation=conversation, timeout=PATIENCE_S)
                    except AgentError as error:
                        errors.print(f"{conversation} ends early: {error}", markup=False)
                        return False
                    progress.advance(task)
            return True

        async with Client(name="users") as client:
            whole = await asyncio.gather(*(converse(client, *each) for each in recorded.items()))
    return whole.count(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at-once", type=int, default=300, help="conversations side by side")
    failed = uvloop.run(play(parser.parse_args().at_once))
    if failed:
        sys.exit(f"{failed} conversations ended early")


if __name__ == "__main__":
    main()
