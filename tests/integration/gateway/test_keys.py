"""Keys and tenants, over two gateways side by side."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import httpx

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents

from .conftest import WAIT_S, Start


@agent("echo")
async def echo(message: Message, ctx: Context) -> None:
    await ctx.reply(ctx.tenant, usage={"model": "m", "tokens_in": 3, "tokens_out": 4, "cost": 0.0})


@agent("other")
async def other(message: Message, ctx: Context) -> str:
    return "other"


async def llmagentos(*arguments: str, code: int = 0) -> Any:
    """What the real command prints as JSON."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "llmagentos.cli.main", *arguments, "-o", "json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=dict(os.environ),
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == code, err
    return json.loads(out) if out else err.decode()


async def test_keys_are_scoped_limited_and_revoked_everywhere(agents: Agents, gateway: Start) -> None:
    async with agents.run(echo, other):
        async with asyncio.TaskGroup() as group:
            fronts = [group.create_task(gateway()) for _ in range(2)]
            create = ("key", "create", "--tenant")
            made = [
                group.create_task(llmagentos(*create, *options))
                for options in (
                    ("acme", "--agent", "echo", "--requests-per-minute", "100000"),
                    ("rival", "--name", "rivals"),
                    ("acme", "--expires", "1ms"),
                    ("acme", "--requests-per-minute", "1"),
                    ("acme", "--tokens-per-minute", "7"),
                )
            ]
        acme, rival, expired, one, seven = ({"Authorization": f"Bearer {each.result()['key']}"} for each in made)
        urls = [front.result().url for front in fronts]
        async with httpx.AsyncClient(timeout=60) as http:

            async def send(headers: dict[str, str], conversation: str = "c", at: int = 0, to: str = "echo") -> Any:
                url = f"{urls[at]}/v1/conversations/{conversation}/messages"
                return await http.post(url, json={"agent": to, "content": "x"}, headers=headers)

            for at in (0, 1):
                answer = await send(acme, at=at)
                assert (answer.status_code, answer.json()["content"]) == (200, "acme")
            for headers, what in (
                ({}, "no API key"),
                ({"Authorization": "Bearer lk_none"}, "wrong or revoked"),
                ({"Authorization": acme["Authorization"][:-1] + "!"}, "wrong or revoked"),
                ({"x-api-key": rival["Authorization"][7:-4] + "AAAA"}, "wrong or revoked"),
                (expired, "has expired"),
            ):
                refused = await send(headers)
                assert refused.status_code == 401
                assert what in refused.json()["error"]["message"]

            # Its agents, and its tenant's conversations, are all that a key opens.
            assert (await send(acme, to="other")).status_code == 403
            listed = (await http.get(f"{urls[0]}/v1/models", headers=acme)).json()
            assert [model["id"] for model in listed["data"]] == ["echo"]
            for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/approve")):
                foreign = await http.request(method, f"{urls[0]}/v1/conversations/acme:c{path}", headers=rival)
                assert foreign.status_code == 403
                assert "is not of tenant 'rival'" in foreign.json()["error"]["message"]
            assert (await send(rival, "acme:c")).status_code == 403
            assert (await send(rival, "c", to="other")).status_code == 200  # its own, whatever it is called
            own = (await http.get(f"{urls[1]}/v1/conversations/c", headers=acme)).json()
            assert [message["content"] for message in own["messages"]] == ["x", "acme"] * 2
            theirs = (await http.get(f"{urls[1]}/v1/conversations/c", headers=rival)).json()
            assert [message["to"] for message in theirs["messages"]] == ["other", "gateway"]

            # Limits are one for all gateways; a minute may end between two requests, but not twice.
            for headers in (one, seven):
                tries = [await send(headers, at=number % 2) for number in range(4)]
                assert tries[0].status_code == 200
                refused = next(each for each in tries if each.status_code == 429)
                assert 1 <= int(refused.headers["retry-after"]) <= 60
                assert refused.json()["error"]["type"] == "rate_limit_error"

            listed = await llmagentos("key", "list")
            assert [(key["tenant"], key["agents"]) for key in listed if key["name"] == "rivals"] == [("rival", [])]
            assert not any("secret" in field for key in listed for field in key)
            await llmagentos("key", "revoke", "rivals")
            async with asyncio.timeout(WAIT_S):
                for at in (0, 1):
                    while (await send(rival, at=at, to="other")).status_code != 401:
                        await asyncio.sleep(0.05)
            assert "there is no key 'rivals'" in await llmagentos("key", "revoke", "rivals", code=1)
            assert (await send(acme, at=1)).status_code == 200


async def test_a_gateway_that_others_can_reach_wants_keys(agents: Agents) -> None:
    said = await llmagentos_error("gateway", "--open", "--host", "0.0.0.0", "--port", "0")
    assert "can't be open to all" in said
    assert "key create" in said


async def llmagentos_error(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "llmagentos.cli.main", *arguments, stderr=asyncio.subprocess.PIPE
    )
    _, err = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 2
    return err.decode()
