"""The model: an HTTP endpoint that speaks the OpenAI protocol, and says what the assistant of the dialogues said.

It knows nothing of Kafka, and keeps nothing: a request tells the whole conversation, and is answered only where that is
what was recorded. To a user's turn it answers with the calls that were made then; given their results, with the text.
Anything else is refused with status 400, so a lost, repeated or foreign word anywhere ends the conversation.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
from collections.abc import Sequence
from typing import Any

import dialogues
import orjson
import uvloop
from aiohttp import web
from catalogue import AGENTS
from dialogues import Exchange

#: Where the assistant's system prompt says which conversation it is.
CONVERSATION = re.compile(r"conversation ([\w-]+)")
#: Whom to call for a service.
DESKS = {service.name: name for name, group in AGENTS.items() for service in group}
#: A streamed answer comes in pieces of so many words.
WORDS = 4


class Refused(Exception):
    """The request is not what was recorded."""


class Model:
    """Answers requests.

    Attributes:
        requests, repeated, refused: how many there were; `repeated` were answered the same before.
        texts: how many turns were answered in full, whatever was repeated.
    """

    def __init__(self, recorded: dict[str, list[Exchange]]) -> None:
        self._recorded = recorded
        self._answered: set[tuple[str, int, bool]] = set()
        self.requests = self.repeated = self.refused = self.texts = 0

    def answer(self, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The assistant's next message."""
        self.requests += 1
        found = CONVERSATION.search(_text(messages[0])) if messages else None
        exchanges = self._recorded.get(found[1]) if found else None
        if found is None or exchanges is None:
            raise Refused("the system message names no recorded conversation")
        said, results = _split(messages[1:])
        number = len(said) // 2
        expected = [text for exchange in exchanges for text in (exchange.user, exchange.text)][: len(said)]
        if len(said) % 2 == 0 or said != expected:
            raise Refused(f"{found[1]} went otherwise: {said[-2:]} is not {expected[-2:]}")
        calls = exchanges[number].calls
        asks = bool(calls) and results is None
        if not asks and (results or []) != [call.results for call in calls]:
            raise Refused(f"{found[1]}, turn {2 * number + 1}: the results are not those that were recorded")
        place = (found[1], number, asks)
        self.repeated += place in self._answered
        self.texts += not asks and place not in self._answered
        self._answered.add(place)
        if not asks:
            return {"role": "assistant", "content": exchanges[number].text}
        tools = [
            {
                "id": f"call_{found[1]}_{number}_{index}",
                "type": "function",
                "function": {"name": DESKS[call.service], "arguments": call.request},
            }
            for index, call in enumerate(calls)
        ]
        return {"role": "assistant", "content": None, "tool_calls": tools}


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _split(messages: Sequence[dict[str, Any]]) -> tuple[list[str], list[Any] | None]:
    """What was said so far, and the results of the calls at its end."""
    said: list[str] = []
    results: list[Any] | None = None
    for message in messages:
        if message["role"] == "tool":
            try:
                results = [*(results or []), orjson.loads(_text(message))]
            except orjson.JSONDecodeError:
                raise Refused(f"a tool's result is not JSON: {_text(message)[:200]!r}") from None
        elif not message.get("tool_calls"):
            said.append(_text(message))
            results = None
    return said, results


class Endpoint:
    """The model behind HTTP."""

    def __init__(self, model: Model) -> None:
        self._model = model

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`, streamed or not."""
        try:
            body = orjson.loads(await request.read())
        except ConnectionResetError:  # the worker that asked was killed: nobody will read this
            raise web.HTTPBadRequest from None
        try:
            message = self._model.answer(body["messages"])
        except Refused as refused:
            self._model.refused += 1
            return _json({"error": {"message": str(refused), "type": "invalid_request_error"}}, 400)
        reason = "tool_calls" if "tool_calls" in message else "stop"
        tokens_in = sum(len(_text(each).split()) for each in body["messages"])
        tokens_out = len(_text(message).split())
        usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
        head = {"id": "chatcmpl-recorded", "created": 0, "model": body.get("model", "recorded")}
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": reason}
            return _json(head | {"object": "chat.completion", "choices": [choice], "usage": usage})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        head["object"] = "chat.completion.chunk"
        deltas = [(delta, None) for delta in _deltas(message)]
        for delta, finish in [*deltas, ({}, reason)]:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            await response.write(_event(head | {"choices": [choice]}))
        if (body.get("stream_options") or {}).get("include_usage"):
            await response.write(_event(head | {"choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def models(self, request: web.Request) -> web.Response:
        """`GET /v1/models`."""
        return _json({"object": "list", "data": [{"id": "recorded", "object": "model", "owned_by": "concierge"}]})

    async def stats(self, request: web.Request) -> web.Response:
        """`GET /stats`: how far it is."""
        model = self._model
        return _json(
            {
                "requests": model.requests,
                "repeated": model.repeated,
                "refused": model.refused,
                "texts": model.texts,
            }
        )


def _json(content: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(content), status=status, content_type="application/json")


def _event(content: object) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


def _deltas(message: dict[str, Any]) -> list[dict[str, Any]]:
    if "tool_calls" in message:
        calls = [{"index": index, **call} for index, call in enumerate(message["tool_calls"])]
        return [{"role": "assistant", "content": None, "tool_calls": calls}]
    words = re.findall(r"\S+\s*|\s+", message["content"])
    pieces = ["".join(words[start : start + WORDS]) for start in range(0, len(words), WORDS)]
    return [{"role": "assistant", "content": ""}, *({"content": piece} for piece in pieces)]


async def serve(port: int) -> None:
    """Serve until SIGTERM or ctrl-C; the first line on stdout is the base URL for clients."""
    endpoint = Endpoint(Model(await asyncio.to_thread(dialogues.read)))
    app = web.Application(client_max_size=8 * 1024**2)  # the longest dialogue with all tools is some 20 kB
    app.router.add_post("/v1/chat/completions", endpoint.chat)
    app.router.add_get("/v1/models", endpoint.models)
    app.router.add_get("/stats", endpoint.stats)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    host, bound, *_ = runner.addresses[0]
    print(f"http://{host}:{bound}/v1", flush=True)
    await over.wait()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0: any that is free")
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
