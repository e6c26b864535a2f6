"""A gateway process in front of agents, talked to by the real clients."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents

from .conftest import Start, curl, events_of, followed

WORDS = ["once ", "upon ", "a ", "time"]
JSON = {"Content-Type": "application/json"}
USAGE = {"model": "m", "tokens_in": 3, "tokens_out": 4, "cost": 0.0}


@agent("teller")
async def teller(message: Message, ctx: Context) -> None:
    """Tells a story."""
    for word in WORDS:
        await ctx.emit(word)
    await ctx.reply("".join(WORDS), usage=USAGE)


@agent("echo")
async def echo(message: Message, ctx: Context) -> dict[str, object]:
    """Says what it was told."""
    return {"text": message.text, "tenant": ctx.tenant, "attributes": dict(message.attributes)}


@agent("failing", retries=0)
async def failing(message: Message, ctx: Context) -> None:
    raise ValueError("as it was told")


@agent("clerk", retries=0)
async def clerk(message: Message, ctx: Context) -> str:
    if message.text == "sleep":
        await ctx.sleep(10 * 365 * 86_400)
    decided = await ctx.approve("refund 10")
    return f"{'yes' if decided else 'no'}, {decided.by}: {decided.why}"


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


async def test_the_openai_client_and_curl(agents: Agents, gateway: Start) -> None:
    async with agents.run(teller, echo, failing) as run:
        front = await gateway("--open", LLMAGENTOS_GATEWAY_MAX_BODY_BYTES="20000")
        async with openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0) as client:
            create = client.chat.completions.create
            assert [model.id async for model in client.models.list()] == ["echo", "failing", "teller"]
            assert (await client.models.retrieve("echo")).object == "model"

            whole = await create(model="teller", messages=user("go"))
            assert whole.choices[0].message.content == "once upon a time"
            assert whole.usage is not None
            assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 4)

            chunks = [
                chunk
                async for chunk in await create(
                    model="teller", messages=user("go"), stream=True, stream_options={"include_usage": True}
                )
            ]
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "once upon a time"
            assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
            assert chunks[-1].usage is not None
            assert chunks[-1].usage.total_tokens == 7

            dialogue: list[Any] = [*user("first"), {"role": "assistant", "content": "yes"}, *user("second")]
            answer = await create(
                model="echo",
                messages=dialogue,
                temperature=0.5,
                extra_headers={"X-Conversation-Id": "c-1", "Idempotency-Key": "k"},
            )
            said = json.loads(answer.choices[0].message.content or "")
            assert (said["text"], said["tenant"]) == ("second", "default")
            assert json.loads(said["attributes"]["messages"]) == dialogue
            assert json.loads(said["attributes"]["parameters"]) == {"temperature": 0.5}

            # The same key again joins the first answer, be that given, and whatever it asks this time.
            for stream in (False, True):
                again = await create(
                    model="echo",
                    messages=user("other"),
                    stream=stream,  # type: ignore[arg-type]
                    extra_headers={"X-Conversation-Id": "c-1", "Idempotency-Key": "k"},
                )
                if stream:
                    text = "".join([c.choices[0].delta.content or "" async for c in again])  # type: ignore[union-attr]
                else:
                    assert again.id == answer.id
                    text = again.choices[0].message.content or ""
                assert json.loads(text) == said

            with pytest.raises(openai.NotFoundError, match="no agent is named 'nobody'"):
                await create(model="nobody", messages=user("x"))
            with pytest.raises(openai.BadRequestError, match="gives one answer"):
                await create(model="echo", messages=user("x"), n=2)
            with pytest.raises(openai.BadRequestError, match="takes no 'tools'"):
                await create(model="echo", messages=user("x"), tools=[{"type": "function", "function": {"name": "f"}}])
            with pytest.raises(openai.BadRequestError, match="asks nothing"):
                await create(model="echo", messages=[{"role": "assistant", "content": "x"}])
            with pytest.raises(openai.InternalServerError, match="as it was told"):
                await create(model="failing", messages=user("x"))
            with pytest.raises(openai.APIError, match="as it was told"):
                async for _ in await create(model="failing", messages=user("x"), stream=True):
                    pass
            with pytest.raises(openai.APIStatusError, match="over 20,000 bytes") as over:
                await create(model="echo", messages=user("x" * 30_000))
            assert over.value.status_code == 413

        messages = f"{front.url}/v1/conversations/c-2/messages"
        body = ["-H", "Content-Type: application/json", "-d", '{"agent": "teller", "content": "go"}']
        told = json.loads(await curl(messages, *body))
        assert (told["content"], told["conversation"]) == ("once upon a time", "c-2")
        events = events_of(await curl("-N", messages, "-H", "Accept: text/event-stream", *body))
        assert "".join(data["text"] for kind, _, data in events if kind == "token") == "once upon a time"
        assert events[-1][0] == "answer"
        # What comes behind an event is given to whoever says that it was the last.
        resumed = [event async for event in followed(front.url, "c-2", told["event_id"])]
        assert [data for _, _, data in resumed] == [data for _, _, data in events]

        history = json.loads(await curl(f"{front.url}/v1/conversations/c-2"))
        assert [(m["type"], m["content"]) for m in history["messages"]] == [
            ("task", "go"),
            ("result", "once upon a time"),
        ] * 2
        later = json.loads(await curl(messages, *body[:3], '{"agent": "teller", "content": "go", "wait": false}'))
        resumed = [event async for event in followed(front.url, "c-2", later["last_event_id"])]
        assert {data["message"] for _, _, data in resumed} == {later["message"]}

        async with httpx.AsyncClient(base_url=front.url) as http:
            paths = (await http.get("/openapi.json")).json()["paths"]
            assert {"/v1/chat/completions", "/v1/conversations/{conversation}/messages"} <= set(paths)
            assert "openapi.json" in (await http.get("/docs")).text
            pages = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
            plain = await http.options("/v1/chat/completions", headers=pages)
            assert "access-control-allow-origin" not in plain.headers
            for content, what in (
                ("{", "JSON"),
                ('{"agent": "echo"}', "content"),
                ('{"agent": "echo", "content": 1, "x": 2}', "x"),
            ):
                wrong = await http.post("/v1/conversations/c/messages", content=content, headers=JSON)
                assert wrong.status_code == 400
                assert what in wrong.json()["error"]["message"]
            assert (await http.get("/v1/conversations/a%20b")).status_code == 400
            assert (await http.get("/nothing")).json()["error"]["type"] == "not_found_error"
            chunked = await http.post("/v1/conversations/c/messages", content=_pieces())
            assert chunked.status_code == 413
            bad = await http.get("/v1/conversations/c/events", headers={"Last-Event-ID": "x"})
            assert bad.status_code == 400
        assert front.process.returncode is None
        await run.settled()


async def _pieces() -> Any:
    for _ in range(50):
        yield b"x" * 1_000


async def test_a_person_decides_and_cancels(agents: Agents, gateway: Start) -> None:
    async with agents.run(clerk):
        front = await gateway("--open", "--cors", "https://shop.example")
        async with httpx.AsyncClient(base_url=front.url, timeout=60) as http:
            allowed = await http.get("/v1/models", headers={"Origin": "https://shop.example"})
            assert allowed.headers["access-control-allow-origin"] == "https://shop.example"

            for decision, word in (("approve", "yes"), ("reject", "no")):
                c = f"/v1/conversations/{decision}"
                asked = asyncio.create_task(http.post(f"{c}/messages", json={"agent": "clerk", "content": "x"}))
                async with asyncio.timeout(60):
                    while not (waiting := (await http.get(c)).json()["waiting"]):
                        await asyncio.sleep(0.1)
                assert (waiting[0]["agent"], waiting[0]["what"]) == ("clerk", "refund 10")
                assert (await http.post(f"{c}/{decision}", json={"why": "so"})).status_code == 200
                assert (await asked).json()["content"] == f"{word}, gateway: so"
                assert (await http.post(f"{c}/{decision}")).status_code == 409

            asked = asyncio.create_task(
                http.post("/v1/conversations/c/messages", json={"agent": "clerk", "content": "sleep"})
            )
            async with asyncio.timeout(60):
                while True:
                    cancelled = await http.post("/v1/conversations/c/cancel", json={"why": "enough"})
                    if cancelled.status_code == 200 and cancelled.json()["messages"]:
                        break
                    await asyncio.sleep(0.1)
            assert [each["agent"] for each in cancelled.json()["messages"]] == ["clerk"]
            failed = await asked
            assert failed.status_code == 502
            assert "cancelled" in failed.json()["error"]["message"]
