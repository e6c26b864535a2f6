"""Memory: what a handler left is what the next message of its conversation finds, whatever happens in between."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents


class Cart(BaseModel):
    items: list[str] = []
    paid: bool = False


@agent("till", memory=Cart, retries=1, backoff=0.01)
async def till(message: Message, ctx: Context) -> Any:
    cart: Cart = ctx.memory
    if message.text == "look":
        return cart.items
    if message.text == "forget":
        ctx.forget()
        return None
    cart.items.append(message.text)
    if message.text == "fail" and ctx.attempt == 0:
        raise ValueError("once")
    return len(cart.items)


async def test_what_a_handler_left_is_what_the_next_message_finds(agents: Agents) -> None:
    async with agents.run(till) as run:
        assert (await run.ask("till", "tea", conversation="a")).content == 1
        assert (await run.ask("till", "cake", conversation="a")).content == 2
        assert (await run.ask("till", "milk", conversation="b")).content == 1
        assert (await run.ask("till", "fail", conversation="a")).content == 3
        assert (await run.ask("till", "look", conversation="a")).content == ["tea", "cake", "fail"]
        await run.send("till", "forget", conversation="a")
        assert (await run.ask("till", "look", conversation="a")).content == []
        assert (await run.ask("till", "look", conversation="b")).content == ["milk"]
        topic = run.settings.topic("memory.till")
        written = await run.records(topic)
    assert [record.value is None for record in written].count(True) == 1
    assert len(written) == 5
