"""A conversation with more messages than a worker may hold stops no other partition."""

from __future__ import annotations

import asyncio

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents


async def test_a_hot_conversation_holds_up_no_other_partition(agents: Agents) -> None:
    cold = asyncio.Event()
    done: list[str] = []

    @agent("clerk")
    async def clerk(message: Message, ctx: Context) -> None:
        if message.conversation_id == "hot":
            await cold.wait()
        done.append(message.conversation_id)

    async with agents.run(clerk, max_in_flight=128) as run:
        hot = await asyncio.gather(*(run.send("clerk", str(n), conversation="hot") for n in range(200)))
        async with asyncio.timeout(20):
            while run.workers[0]._room.messages > 16:  # it holds all that it may
                await asyncio.sleep(0.02)
        others = await asyncio.gather(*(run.send("clerk", "x", conversation=f"c{n}") for n in range(30)))
        elsewhere = {message.conversation_id for message in others if message.partition != hot[0].partition}
        async with asyncio.timeout(20):
            while not elsewhere <= set(done):
                await asyncio.sleep(0.02)
        assert "hot" not in done
        cold.set()
        await run.settled()
        assert len(done) == 230
