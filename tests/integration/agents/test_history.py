"""What was said before: found in topics, and the same on every run."""

from __future__ import annotations

from typing import Any

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.history import dialogue
from llmagentos.agents.testing import Agents


def said(messages: list[Message]) -> list[str]:
    return [f"{message.sender}: {message.text}" for message in messages]


async def test_a_handler_is_given_what_was_said_before_and_the_same_again(agents: Agents) -> None:
    seen: list[Any] = []

    @agent("poet")
    async def poet(message: Message, ctx: Context) -> str:
        return message.text.upper()

    @agent("scribe", retries=1, backoff=0.01)
    async def scribe(message: Message, ctx: Context) -> str:
        if message.text == "all":
            seen.append(said(await ctx.history()))
            if ctx.attempt == 0:
                raise ValueError("once more")
            return str(len(await ctx.history(limit=2)))
        return str(await ctx.ask("poet", message.text))

    async with agents.run(poet, scribe) as run:
        for text in ("one", "two"):
            await run.ask("scribe", text, conversation="a")
        await run.ask("scribe", "other", conversation="b")
        # Behind one another in the lane: the third is there before the first is answered.
        await run.send("scribe", "three", conversation="a")
        await run.send("scribe", "all", conversation="a")
        outputs = await run.outputs("a")
        assert next(o.text for o in outputs if o.recipient == "test" and o.text == "2")
    assert seen[0] == seen[1]
    mine = [line for line in seen[0] if "poet" not in line and "scribe: " not in line]
    assert [line.partition(": ")[2] for line in mine] == ["one", "two", "three"]
    assert seen[0][:4] == ["test: one", "scribe: one", "poet: ONE", "scribe: ONE"]
    assert seen[0][-4:] == ["test: three", "scribe: three", "poet: THREE", "scribe: THREE"]


def test_answers_stand_behind_what_they_answer() -> None:
    def make(text: str, offset: int, cause: Message | None = None) -> Message:
        message = Message.create(text, to="x", conversation="c", type="result" if cause else "task")
        message.record["caused_by"] = cause.message_id if cause else None
        place = ("replies", 0, offset) if cause else ("agent.x", 0, offset)
        return Message(message.record, *place, 1_000 + offset)

    one, two, three = (make(name, at) for at, name in enumerate(("one", "two", "three")))
    answers = [make("one!", 10, one), make("two!", 11, two)]
    assert [each.text for each in dialogue([one, two, three, *answers], three)] == ["one", "one!", "two", "two!"]
    assert [each.text for each in dialogue([one, two, three, *answers], two)] == ["one", "one!"]
