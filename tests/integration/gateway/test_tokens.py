"""Tokens say which run of a handler emitted them, and where in its text they stand."""

from __future__ import annotations

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents


async def test_tokens_carry_their_run_and_place_and_leave_other_ids_alone(agents: Agents) -> None:
    @agent("teller", retries=1, backoff=0.01)
    async def teller(message: Message, ctx: Context) -> str:
        for word in ("once ", "upon ", "a time") if ctx.attempt == 0 else ("once upon ", "a time"):
            await ctx.emit(word)
        await ctx.tell("keeper", "told")
        if ctx.attempt == 0 and message.text == "twice":
            raise ValueError("once")
        return "the end"

    @agent("keeper")
    async def keeper(message: Message, ctx: Context) -> None:
        kept.append(message.message_id)

    kept: list[str] = []
    async with agents.run(teller, keeper) as run:
        asked = await run.send("teller", "twice", message_id="m-1", conversation="c")
        tokens = [message for message in await run.outputs("c") if message.type == "token"]
        assert {token.caused_by for token in tokens} == {asked.message_id}
        told = [(token.text, token.attributes["at"], token.attributes["run"][-6:]) for token in tokens]
        assert told == [
            ("once ", "0", "000000"),
            ("upon ", "5", "000000"),
            ("a time", "10", "000000"),
            ("once upon ", "0", "000001"),
            ("a time", "10", "000001"),
        ]
        runs = [token.attributes["run"] for token in tokens]
        assert runs == sorted(runs)
        assert len({token.message_id for token in tokens}) == 5
        # The same message with another number of tokens: what is told has the id that it would have had.

        again = await run.send("teller", "once", message_id="m-2", conversation="c2")
        await run.settled()
        from llmagentos.streams.message import child_id

        assert kept == [child_id("m-1", "teller", 0), child_id(again.message_id, "teller", 0)]
