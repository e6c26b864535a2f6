"""The example `chat`: its two programs as they are, through a real gateway, with a model that the test speaks for."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llmagentos.agents.testing import Agents

CHAT = Path(__file__).parents[3] / "examples" / "chat"
#: Seconds; far above what a busy machine needs.
WAIT_S = 90.0


@pytest.fixture
async def model() -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """An endpoint that has `6 * 7` calculated, and says how much it was told; its URL, and what it was asked."""
    from aiohttp import web

    asked: list[dict[str, Any]] = []

    async def complete(request: web.Request) -> web.Response:
        body = await request.json()
        asked.append(body)
        last = body["messages"][-1]
        if last["role"] == "tool":
            message = {"role": "assistant", "content": f"It is {last['content']}."}
        elif "6 * 7" in last["content"]:
            call = {"name": "calculate", "arguments": '{"expression": "6 * 7"}'}
            calls = [{"id": "call_1", "type": "function", "function": call}]
            message = {"role": "assistant", "content": None, "tool_calls": calls}
        else:
            said = [each["content"] for each in body["messages"] if each["role"] != "system"]
            message = {"role": "assistant", "content": f"You said: {said[0]} I said: {said[1]}"}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if "tool_calls" in message else "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        told = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        return web.json_response(told)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", asked
    await runner.cleanup()


async def _said(*command: str, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, env=os.environ | environment, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 0
    return out.decode()


async def test_the_agent_calculates_and_remembers(agents: Agents, model: tuple[str, list[dict[str, Any]]]) -> None:
    url, asked = model
    async with agents.run(CHAT / "chat.py", models={"m": {"base_url": url}}):
        gateway = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "llmagentos.cli.main", "gateway", "--open", "--port", "0"),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert gateway.stdout is not None
            line = await asyncio.wait_for(gateway.stdout.readline(), WAIT_S)
            base = {"OPENAI_BASE_URL": f"{line.decode().strip()}/v1"}
            talk = str(CHAT / "talk.py")
            assert await _said(talk, "what is 6 * 7?", **base) == "It is 42.\n"
            again = await _said(talk, "what did we say?", **base)
            assert again == "You said: what is 6 * 7? I said: It is 42.\n"
        finally:
            gateway.send_signal(signal.SIGTERM)
            await asyncio.wait_for(gateway.communicate(), WAIT_S)
    assert [tool["function"]["name"] for tool in asked[0]["tools"]] == ["clock", "calculate"]
    assert len(asked) == 3, json.dumps(asked)


def test_it_is_under_thirty_lines() -> None:
    assert len((CHAT / "chat.py").read_text().splitlines()) < 30
