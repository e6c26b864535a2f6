"""A model's endpoint for tests: a real HTTP server on a free port that speaks the OpenAI protocol, and says what it is
told to.

    async with ModelEndpoint(["Hello!", {"calls": [{"name": "weather", "arguments": {"city": "Oslo"}}]}]) as endpoint:
        models = {"small": {"base_url": endpoint.url}}
        async with agents.run("hello.py", models=models) as run:
            ...
    assert endpoint.asked[0]["messages"][-1]["content"] == "Ada"

It misbehaves as it is told to, too: it refuses, is silent, breaks off, or talks nonsense.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import orjson

__all__ = ["Answer", "ModelEndpoint"]

#: Text, or a mapping with any of
#:   `text`, or `chunks`: the text as it comes, piece by piece; `pause_s` between the pieces;
#:   `calls`: tools to call, each with `name` and `arguments` (a mapping, or text as it is);
#:   `tokens_in`, `tokens_out`: what it says that this cost; `finish`: why it ended;
#:   `status`, `headers`, `body`: another answer than 200, as it is;
#:   `silent`: it takes the question and says nothing;
#:   `cut`: it closes the connection behind so many pieces of text;
#:   `raw`: bytes in place of the events.
Answer = str | Mapping[str, Any]

#: What it is asked, to what it says.
Choose = Callable[[dict[str, Any]], Answer | Awaitable[Answer]]


class ModelEndpoint:
    """See the module.

    Args:
        answers: one for each question, in order, the last one for all further; or a function of the question's body.

    Attributes:
        url: the base URL, with `/v1`.
        asked: the bodies of the questions, in their order.
        keys: the keys that they came with.
    """

    def __init__(self, answers: Sequence[Answer] | Choose) -> None:
        self._answers = answers
        self._begun = 0
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []

    async def __aenter__(self) -> ModelEndpoint:
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)
        await self._server.wait_closed()

    def say(self, answers: Sequence[Answer] | Choose) -> None:
        """Answer otherwise from now on."""
        self._answers = answers
        self._begun = len(self.asked)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._talks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # who asked has gone, or the test is over
        finally:
            self._talks.discard(task)
            writer.close()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One question; whether the connection stays."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if method == "GET" and path == "/v1/models":
            _whole(writer, 200, {}, orjson.dumps({"object": "list", "data": []}))
            return True
        if path != "/v1/chat/completions":
            _whole(writer, 404, {}, b'{"error": {"message": "no such path"}}')
            return True
        question: dict[str, Any] = orjson.loads(body)
        number = len(self.asked) - self._begun
        self.asked.append(question)
        self.keys.append(headers.get("authorization", "").removeprefix("Bearer "))
        chosen = (
            self._answers(question) if callable(self._answers) else self._answers[min(number, len(self._answers) - 1)]
        )
        answer = await chosen if inspect.isawaitable(chosen) else chosen
        return await _say(writer, {"text": answer} if isinstance(answer, str) else answer, question)


async def _say(writer: asyncio.StreamWriter, answer: Mapping[str, Any], question: Mapping[str, Any]) -> bool:
    if answer.get("silent"):
        await asyncio.Event().wait()
    if "status" in answer:
        body = answer.get("body", {"error": {"message": "as the test wants it"}})
        raw = body.encode() if isinstance(body, str) else orjson.dumps(body)
        _whole(writer, answer["status"], answer.get("headers", {}), raw)
        return True
    if not question.get("stream"):
        _whole(writer, 200, {}, orjson.dumps(_completion(answer, question)))
        return True
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    if "raw" in answer:
        await _part(writer, answer["raw"])
    else:
        for number, event in enumerate(_events(answer, question)):
            if number == answer.get("cut"):
                return False
            if number and answer.get("pause_s"):
                await asyncio.sleep(answer["pause_s"])
            await _part(writer, b"data: " + event + b"\n\n")
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


def _events(answer: Mapping[str, Any], question: Mapping[str, Any]) -> Iterator[bytes]:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return orjson.dumps(_head("chat.completion.chunk", question) | {"choices": [choice]})

    for text in answer.get("chunks") or ([answer["text"]] if answer.get("text") else []):
        yield chunk({"content": text})
    for number, call in enumerate(_calls(answer)):
        # As endpoints do: the name first, the arguments in pieces behind it.
        function = call["function"]
        half = len(function["arguments"]) // 2
        yield chunk({"tool_calls": [call | {"index": number, "function": function | {"arguments": ""}}]})
        for part in (function["arguments"][:half], function["arguments"][half:]):
            yield chunk({"tool_calls": [{"index": number, "function": {"arguments": part}}]})
    yield chunk({}, _finish(answer))
    yield orjson.dumps(_head("chat.completion.chunk", question) | {"choices": [], "usage": _usage(answer, question)})
    yield b"[DONE]"


def _completion(answer: Mapping[str, Any], question: Mapping[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": _text(answer)}
    if calls := _calls(answer):
        message["tool_calls"] = calls
    choice = {"index": 0, "message": message, "finish_reason": _finish(answer)}
    return _head("chat.completion", question) | {"choices": [choice], "usage": _usage(answer, question)}


def _head(kind: str, question: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-test", "object": kind, "created": 0, "model": question.get("model", "")}


def _text(answer: Mapping[str, Any]) -> str:
    return "".join(answer["chunks"]) if "chunks" in answer else answer.get("text", "")


def _calls(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    for number, call in enumerate(answer.get("calls", ())):
        arguments = call["arguments"]
        raw = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
        function = {"name": call["name"], "arguments": raw}
        calls.append({"id": call.get("id", f"call_{number}"), "type": "function", "function": function})
    return calls


def _finish(answer: Mapping[str, Any]) -> str:
    return answer.get("finish") or ("tool_calls" if answer.get("calls") else "stop")


def _usage(answer: Mapping[str, Any], question: Mapping[str, Any]) -> dict[str, int]:
    """As counted by words, where the test says nothing else."""
    words = sum(len(str(message.get("content") or "").split()) for message in question["messages"])
    tokens_in, tokens_out = answer.get("tokens_in", words), answer.get("tokens_out", len(_text(answer).split()))
    return {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}


def _whole(writer: asyncio.StreamWriter, status: int, headers: Mapping[str, str], body: bytes) -> None:
    lines = [f"HTTP/1.1 {status} {'OK' if status == 200 else 'Refused'}", "content-type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"content-length: {len(body)}", "", ""]
    writer.write("\r\n".join(lines).encode("latin-1") + body)


async def _part(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
    await writer.drain()
