"""MCP servers and other agents as tools."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import psutil
import pydantic
import pytest

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents
from llmagentos.agents.tools import agent_tool, mcp_tools
from llmagentos.streams.errors import AgentError, ToolError

SERVER = str(Path(__file__).with_name("mcp_server.py"))


async def test_a_server_over_stdio_is_called_dies_and_is_started_again(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_KEY", "a-secret")
    monkeypatch.setenv("OTHER_KEY", "another")
    shop = mcp_tools([sys.executable, SERVER], prefix="shop_", env=["SHOP_KEY"], timeout=100)
    slow = mcp_tools([sys.executable, SERVER], only=["hangs"], timeout=1)
    calls: list[tuple[str, dict[str, Any]]] = [
        ("shop_add", {"a": 2, "b": 3}),
        ("shop_add", {"a": "two"}),
        ("shop_fails", {}),
        ("shop_environment", {"name": "SHOP_KEY"}),
        ("shop_environment", {"name": "OTHER_KEY"}),
        ("shop_pid", {}),
        ("shop_dies", {}),
        ("shop_pid", {}),
        ("hangs", {}),
    ]

    @agent("clerk", tools=[shop, slow], timeout=200)
    async def clerk(message: Message, ctx: Context) -> Any:
        described = ctx.tools["shop_add"]
        said = [described.description, sorted(described.parameters["properties"])]
        return said + [await ctx.tools[name].invoke(ctx, given) for name, given in calls]

    async with agents.run(clerk) as run:
        said = (await run.ask("clerk", "x", timeout=200)).content
    assert said[:3] == ["Adds two numbers.", ["a", "b"], "5"]
    assert said[3] == "error: wrong arguments: a: 'two' is not of type 'integer'"
    assert said[4] == "error: Error executing tool fails"
    assert said[5:7] == ["a-secret", "nothing"]
    assert said[8].startswith(f"error: MCP server {sys.executable} {SERVER} does not answer")
    assert said[8].endswith("it is started again for the next call")
    assert said[10] == f"error: hangs of MCP server {sys.executable} {SERVER} took longer than 1 s"
    pids = {said[7], said[9]}
    assert len(pids) == 2
    assert not any(psutil.pid_exists(int(one)) for one in pids)


async def test_a_server_over_http_goes_and_comes_back(agents: Agents, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    async def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, SERVER, str(port)], stderr=subprocess.DEVNULL)  # noqa: ASYNC220
        for _ in range(600):
            try:
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
                return process
            except OSError:
                await asyncio.sleep(0.1)
        raise TimeoutError(port)

    shop = mcp_tools(f"http://127.0.0.1:{port}/mcp", only=["add"], headers={"Authorization": "Bearer x"}, timeout=20)

    @agent("clerk", tools=[shop], timeout=200)
    async def clerk(message: Message, ctx: Context) -> Any:
        assert list(ctx.tools) == ["add"]
        return await ctx.tools["add"].invoke(ctx, {"a": message.content})

    process = await start()
    try:
        async with agents.run(clerk) as run:
            assert (await run.ask("clerk", 1, timeout=100)).text == "2"
            process.kill()
            process.wait()
            assert (await run.ask("clerk", 2, timeout=100)).text.startswith("error: MCP server http://127.0.0.1")
            process = await start()
            assert (await run.ask("clerk", 3, timeout=100)).text == "4"
    finally:
        process.kill()
        process.wait()


async def test_a_server_that_does_not_start_is_told_with_what_it_said() -> None:
    wrong = mcp_tools([sys.executable, "-c", "raise SystemExit('no such shop')"])
    with pytest.raises(ToolError, match=r"can't be started: .*; it said: no such shop"):
        await wrong.open()
    await wrong.close()
    missing = mcp_tools("no-such-program")
    with pytest.raises(ToolError, match="can't be started: FileNotFoundError"):
        await missing.open()
    with pytest.raises(AgentError, match="no command, or has options of the other kind"):
        mcp_tools("http://localhost/mcp", env=["HOME"])


async def test_another_agent_is_asked_as_a_tool(agents: Agents) -> None:
    class Order(pydantic.BaseModel):
        item: str
        size: Literal["S", "L"] = "S"

    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    critic = agent_tool("critic", "Judges a text.")
    shop = agent_tool("shop", "Takes orders.", Order, name="order")
    count = agent_tool("shop", "Counts.", schema, name="count")

    @agent("guide", tools=[critic, shop, count])
    async def guide(message: Message, ctx: Context) -> Any:
        return [
            await ctx.tools["critic"].invoke(ctx, {"message": "a line"}),
            await ctx.tools["critic"].invoke(ctx, {"message": "bad"}),
            await ctx.tools["critic"].invoke(ctx, {"text": "a line"}),
            await ctx.tools["order"].invoke(ctx, {"item": "cake"}),
            await ctx.tools["order"].invoke(ctx, {"size": "XL"}),
            await ctx.tools["count"].invoke(ctx, {"n": 3}),
            await ctx.tools["count"].invoke(ctx, {"n": "3"}),
        ]

    @agent("critic", retries=0)
    async def critic_agent(message: Message, ctx: Context) -> str:
        if message.text == "bad":
            raise ValueError("too bad")
        return f"{message.text}: fine"

    @agent("shop")
    async def shop_agent(message: Message, ctx: Context) -> Any:
        return message.content

    async with agents.run(guide, critic_agent, shop_agent) as run:
        said = (await run.ask("guide", "x")).content
    assert said[0] == "a line: fine"
    assert said[1].startswith("error: agent 'critic' failed question")
    assert said[2].startswith("error: wrong arguments")
    assert said[3] == '{"item":"cake","size":"S"}'
    assert said[4].startswith("error: wrong arguments: item: Field required; size: Input should be 'S' or 'L'")
    assert said[5:] == ['{"n":3}', "error: wrong arguments: n: '3' is not of type 'integer'"]
