"""A worker that is killed in the middle of a map: its items are asked about once, and answered in order."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path
from textwrap import dedent

import pytest

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.loading import load
from llmagentos.agents.provision import provision
from llmagentos.agents.testing import Agents
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.wire import Codec

from .journals import Books
from .reading import read_topic
from .test_kills import until, worker

ITEMS, KILLS, LIMIT = 300, 2, 20

SOURCE = """
    import os
    from llmagentos.agents import agent, asking
    asking.IN_HAND_MOST = 50
    {seed}

    @agent("chief")
    async def chief(message, ctx):
        return await ctx.map("oracle", [str(n) for n in range({items})], limit={limit})
"""

#: The seed: who runs the handler again asks anew.
ASKS_ANEW = """
    made = asking.question_id
    asking.question_id = lambda parent, agent, name, offset: made(parent, agent, f"{name} {os.getpid()}", offset)
"""


async def killed(agents: Agents, folder: Path, seed: str) -> tuple[list[str], Counter[str]]:
    """Have one map done by workers that are killed in turns; its answers, and how often who was asked handled what."""
    handled: Counter[str] = Counter()

    @agent("oracle")
    async def oracle(message: Message, ctx: Context) -> str:
        await asyncio.sleep(0.05)
        handled[message.text] += 1
        return f"so {message.text}"

    source = folder / f"chief_{agents.settings.prefix.rstrip('.')}.py"
    code = dedent(SOURCE)
    source.write_text(code.format(seed="", items=ITEMS, limit=LIMIT))  # the seed is for the workers only
    deployment = f"{agents.settings.prefix}{source.stem}"
    await asyncio.to_thread(lambda: provision(agents.settings, deployment, load(str(source))))
    sys.modules.pop(source.stem, None)
    source.write_text(code.format(seed=dedent(seed), items=ITEMS, limit=LIMIT))
    codec = await asyncio.to_thread(lambda: Codec(open_registry(agents.settings)))
    async with Producer(agents.settings, codec) as producer:
        await producer.send(Message.create("x", to="chief", conversation="c"))
    books = Books(agents.settings, "chief")
    async with agents.run(oracle):
        for kill in range(KILLS):
            most = ITEMS * (kill + 1) // (KILLS + 1)
            async with worker(source, deployment, folder) as process:
                await until(process, lambda most=most: asyncio.sleep(0, handled.total() >= most))

        async def completed() -> bool:
            return bool(await books.lines("done"))

        async with worker(source, deployment, folder) as process:
            await until(process, completed)
            (reply,) = await read_topic(agents.settings, "replies", 1)
    return reply.content, handled


async def test_a_map_asks_once_whenever_its_worker_is_killed(agents: Agents, tmp_path: Path) -> None:
    answers, handled = await killed(agents, tmp_path, "")
    assert answers == [f"so {n}" for n in range(ITEMS)]
    assert handled == {str(n): 1 for n in range(ITEMS)}
    recorded = await Books(agents.settings, "chief").lines("step")
    assert len(recorded) >= ITEMS // 3, "no answer went to the journal on the way"


async def test_the_above_is_red_where_a_rerun_asks_anew(
    agents: Agents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "KILLS", 1)
    _, handled = await killed(agents, tmp_path, ASKS_ANEW)
    assert max(handled.values()) > 1
