"""`llmagentos model`, as a person uses it: against a real endpoint, from another process."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from llmagentos.agents.testing.endpoint import ModelEndpoint


async def test_models_are_listed_and_asked(bare_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def command(*args: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "llmagentos.cli.main", *args,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    async with ModelEndpoint([{"chunks": ["Rain ", "falls"], "tokens_in": 5, "tokens_out": 2}]) as endpoint:
        models = {"small": {"base_url": endpoint.url, "model": "tiny-1", "price_out": 1.0}}
        monkeypatch.setenv("LLMAGENTOS_MODELS", json.dumps(models))
        listed, asked, wrong = await asyncio.gather(
            command("model", "list", "-o", "json"),
            command("model", "run", "small", "a line about rain", "--system", "Be brief."),
            command("model", "run", "large", "x"),
        )
    (row,) = json.loads(listed[1])
    assert (row["name"], row["usual"], row["model"], row["where"]) == ("small", "yes", "tiny-1", endpoint.url)
    assert asked[:2] == (0, "Rain falls\n")
    assert "5 tokens in, 2 out, $0.000002" in asked[2]
    assert [each["role"] for each in endpoint.asked[0]["messages"]] == ["system", "user"]
    assert wrong[0] == 2
    assert "no model is named 'large'" in wrong[2]
