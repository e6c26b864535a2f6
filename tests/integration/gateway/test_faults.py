"""Gateways, workers and clients that end in mid-stream: nothing is shown twice, and nothing is missing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

import httpx
import openai
import pytest

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents

from .conftest import WAIT_S, Start, events_of, followed, streamed

STORY = "".join(f"{number} " for number in range(200))


async def sent(http: httpx.AsyncClient, to: str, content: str = "go") -> str:
    path = "/v1/conversations/c/messages"
    answer = await http.post(path, json={"agent": to, "content": content})
    assert answer.status_code == 200, answer.text
    return answer.json()["content"]


async def test_streams_go_on_without_a_gap_or_a_repeat_when_worker_and_gateway_are_gone(
    agents: Agents, gateway: Start
) -> None:
    runs: dict[str, int] = {}
    go = asyncio.Event()

    @agent("teller")
    async def teller(message: Message, ctx: Context) -> str:
        runs[ctx.conversation] = runs.get(ctx.conversation, 0) + 1
        if runs[ctx.conversation] == 1:
            for at in range(0, 300, 3):  # in other pieces than the run behind it
                await ctx.emit(STORY[at : at + 3])
            await asyncio.Event().wait()  # its worker ends here
        for at in range(0, len(STORY), 7):
            if at == 504:
                await go.wait()
            await ctx.emit(STORY[at : at + 7])
        return STORY

    async with agents.run(teller, drain_timeout_s=0.2) as run:
        first, second = await asyncio.gather(gateway("--open"), gateway("--open"))
        by_openai, by_events = Reader(), Reader()

        async def openai_client() -> None:
            async with openai.AsyncOpenAI(base_url=f"{second.url}/v1", api_key="none", max_retries=0) as client:
                stream = await client.chat.completions.create(
                    model="teller",
                    messages=[{"role": "user", "content": "go"}],
                    stream=True,
                    extra_headers={"X-Conversation-Id": "o", "Idempotency-Key": "k"},
                )
                async for chunk in stream:
                    by_openai.text += chunk.choices[0].delta.content or ""

        async def native_client() -> None:
            async with httpx.AsyncClient(base_url=first.url, timeout=WAIT_S) as http:
                asked = {"agent": "teller", "content": "go"}
                path, headers = "/v1/conversations/c/messages", {"Accept": "text/event-stream"}
                with contextlib.suppress(httpx.TransportError):
                    async with http.stream("POST", path, json=asked, headers=headers) as answer:
                        async for event in streamed(answer.aiter_lines()):
                            by_events.take(event)

        asking = asyncio.create_task(openai_client())
        following = asyncio.create_task(native_client())
        await asyncio.gather(by_openai.has(300), by_events.has(300))
        run.workers[0].stop()
        await run.add_worker()
        await asyncio.gather(by_openai.has(504), by_events.has(504))

        # Who sends the same again joins what is being said, from its beginning, at whichever gateway.
        joined = Reader()
        async with httpx.AsyncClient(base_url=first.url, timeout=WAIT_S) as http:
            body = {"model": "teller", "messages": [{"role": "user", "content": "go"}], "stream": True}
            headers = {"X-Conversation-Id": "o", "Idempotency-Key": "k"}
            async with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        joined.text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                    if len(joined.text) >= 504:
                        break
        assert joined.text == STORY[:504]

        await first.kill()
        await following
        go.set()
        async for event in followed(second.url, "c", by_events.last):
            by_events.take(event)
        await asking
        assert by_events.text == STORY
        assert by_events.answer == STORY
        assert by_openai.text == STORY
        assert runs == {"o": 2, "c": 2}


class Reader:
    """What a client has shown."""

    def __init__(self) -> None:
        self.text = ""
        self.last = ""
        self.answer = ""

    def take(self, event: tuple[str, str, dict[str, Any]]) -> None:
        kind, self.last, data = event
        assert kind in ("token", "answer")
        self.text += data.get("text", "")
        self.answer = data.get("content", "")

    async def has(self, count: int) -> None:
        """Return when it has shown so many characters, and no others."""
        async with asyncio.timeout(WAIT_S):
            while len(self.text) < count:
                await asyncio.sleep(0.02)
        assert self.text == STORY[:count]


async def test_a_later_run_that_says_something_else_is_told_apart(agents: Agents, gateway: Start) -> None:
    @agent("fickle", retries=1, backoff=0.01)
    async def fickle(message: Message, ctx: Context) -> str:
        for word in ("so ", "it ", "is") if ctx.attempt == 0 else ("so ", "it was ", "not"):
            await ctx.emit(word)
        if ctx.attempt == 0:
            raise ValueError("once")
        return "so it was not"

    async with agents.run(fickle):
        front = await gateway("--open")
        async with httpx.AsyncClient(base_url=front.url, timeout=WAIT_S) as http:
            asked = {"agent": "fickle", "content": "go"}
            events = {"Accept": "text/event-stream"}
            shown = ""
            kinds: list[str] = []
            async with http.stream("POST", "/v1/conversations/c/messages", json=asked, headers=events) as answer:
                async for kind, _, data in streamed(answer.aiter_lines()):
                    kinds.append(kind)
                    shown = data["text"] if kind == "anew" else shown + data.get("text", "")
            assert shown == "so it was not"
            assert kinds.count("anew") == 1
        async with openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="fickle", messages=[{"role": "user", "content": "go"}], stream=True
            )
            with pytest.raises(openai.APIError, match="had to begin anew"):
                _ = [chunk async for chunk in stream]


async def test_a_client_that_vanishes_or_reads_slowly_is_nobody_elses_trouble(agents: Agents, gateway: Start) -> None:
    piece, count = "x" * 999 + " ", 8_000  # above what sockets take in: some 6 MB

    @agent("long")
    async def long(message: Message, ctx: Context) -> str:
        for _ in range(count):
            await ctx.emit(piece)
        return "done"

    @agent("echo")
    async def echo(message: Message, ctx: Context) -> str:
        return message.text

    async with agents.run(long, echo) as run:
        front = await gateway("--open")
        host, port = front.url.removeprefix("http://").split(":")
        body = b'{"agent": "long", "content": "go"}'
        head = f"Accept: text/event-stream\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"

        async def ask(conversation: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
            reader, writer = await asyncio.open_connection(sock=sock, limit=4_096)
            writer.write(f"POST /v1/conversations/{conversation}/messages HTTP/1.0\r\n{head}\r\n\r\n".encode() + body)
            await reader.readuntil(b"event: token")
            return reader, writer

        _, gone = await ask("gone")
        gone.transport.abort()
        slow, writer = await ask("slow")
        async with httpx.AsyncClient(base_url=front.url, timeout=WAIT_S) as http:
            assert await sent(http, "echo", "hello") == "hello"
            await run.settled()
            rest = b"event: token" + await asyncio.wait_for(slow.read(-1), WAIT_S)
            writer.close()
            events = events_of(rest.decode())
            assert sum(len(data["text"]) for kind, _, data in events if kind == "token") == count * len(piece)
            assert events[-1][2]["content"] == "done"
            answers = (await http.get("/v1/conversations/gone")).json()["messages"]
            assert [each["content"] for each in answers] == ["go", "done"]
            assert front.process.returncode is None
