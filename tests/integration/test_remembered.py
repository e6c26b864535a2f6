"""`llmagentos memory`: what agents remember of a conversation, by Redis or by Kafka alone."""

from __future__ import annotations

from typing import Any

import pytest

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents

from .test_waiting import llmagentos


@agent("till", memory=dict)
async def till(message: Message, ctx: Context) -> str:
    if message.text == "forget":
        ctx.forget()
    else:
        ctx.memory[message.text] = "sk-abcdefghijklmnop1234"
    return "yes"


@agent("diary", memory=dict)
async def diary(message: Message, ctx: Context) -> str:
    ctx.memory.setdefault("days", []).append(message.text)
    return "yes"


async def test_memory_is_shown(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    async def shown(*arguments: str) -> list[Any]:
        return (await llmagentos("memory", "a", *arguments, "-o", "json")).json

    async with agents.run(till, diary) as run:
        assert await shown() == []
        await run.ask("diary", "monday", conversation="a")
        await run.ask("till", "key", conversation="a")
        mine, other = await shown()
        assert (mine["agent"], mine["memory"], mine["reflects"]) == ("diary", {"days": ["monday"]}, 1)
        assert other["memory"] == {"key": "•••"}
        (other,) = await shown("--agent", "till", "--show")
        assert other["memory"] == {"key": "sk-abcdefghijklmnop1234"}
        text = (await llmagentos("memory", "a")).out
        assert '"monday"' in text
        assert "up to offset 1" in text
        assert "sk-abc" not in text
        monkeypatch.setenv("LLMAGENTOS_REDIS", "redis://127.0.0.1:1/0")
        mine, other = await shown()
        assert (mine["memory"], mine["redis"]) == ({"days": ["monday"]}, None)
        assert "Kafka alone" in (await llmagentos("memory", "a")).out
        monkeypatch.delenv("LLMAGENTOS_REDIS")
        await run.ask("till", "forget", conversation="a")
        assert [each["agent"] for each in await shown()] == ["diary"]
        assert "nothing" not in (await llmagentos("memory", "b")).out
        wrong = await llmagentos("memory", "a", "--agent", "nobody", status=1)
        assert "these have: diary, till" in wrong.said
