"""OpenAI's interface, where the model is an agent: chat completions, streamed or whole, and the list of models."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Depends, Header
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.responses import Response

from llmagentos.agents.cards import Card
from llmagentos.agents.gateway.access import Caller
from llmagentos.agents.gateway.desk import Desk
from llmagentos.agents.gateway.native import IdempotencyKey, failed
from llmagentos.agents.gateway.refusals import Refused, body_of
from llmagentos.agents.gateway.sse import EventStream
from llmagentos.agents.gateway.talk import Said, id_of
from llmagentos.streams.errors import AnswerError, LLMAgentOSError, UnknownAgent
from llmagentos.streams.message import new_id

__all__ = ["routes"]

#: What a client may ask for and an agent can't give: better refused than left out unseen.
_NOT_HERE: Final = ("tools", "functions", "audio", "modalities")

#: Of what a message consists, where that is text.
_TEXTS: Final = ("text", "input_text")


class Part(BaseModel, extra="allow"):
    """A part of a message."""

    type: str
    text: str | None = None


class Turn(BaseModel, extra="allow"):
    """A message of the dialogue so far."""

    role: str
    content: str | list[Part] | None = None


class Completion(BaseModel, extra="allow"):
    """OpenAI's request; what stands here beside the fields below goes to the agent as attribute `parameters`."""

    model: str = Field(description="The agent's name.", max_length=200)
    messages: list[Turn] = Field(
        min_length=1, description="The last of them is what the agent is told; all are its attribute `messages`."
    )
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    n: int | None = 1
    user: str | None = None
    metadata: dict[str, str] | None = None


def routes(desk: Desk) -> APIRouter:
    """The routes, served by *desk*."""
    router = APIRouter(prefix="/v1", tags=["openai"])

    async def complete(
        body: Completion,
        caller: Caller = Depends(desk.caller),
        conversation: Annotated[
            str | None,
            Header(
                alias="X-Conversation-Id", description="Go on with it; the agent has its memory. Without: a new one."
            ),
        ] = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Ask an agent as if it were a model."""
        _refuse(body)
        await desk.admit(caller, body.model)
        name = conversation or (body.metadata or {}).get("conversation")
        question = desk.talk.question(
            body.model,
            _text(body.messages[-1]),
            conversation=_conversation(caller, name, idempotency_key),
            tenant=caller.tenant,
            name=idempotency_key,
            attributes=_attributes(body),
        )
        message = question.message
        headers = {"X-Conversation-Id": caller.shown(message.conversation_id), "X-Message-Id": message.message_id}
        said = desk.spending(caller, desk.talk.answer(question))
        about = {"id": f"chatcmpl-{message.message_id}", "created": int(time.time()), "model": body.model}
        if body.stream:
            usage = bool((body.stream_options or {}).get("include_usage"))
            return EventStream(_chunks(said, about, usage), headers)
        text, end = await _whole(said)
        return JSONResponse(
            {
                **about,
                "object": "chat.completion",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": text, "refusal": None},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
                "usage": _usage(end.usage),
            },
            headers=headers,
        )

    async def models(caller: Caller = Depends(desk.caller)) -> dict[str, Any]:
        """The agents that this key may talk to."""
        return {"object": "list", "data": [_model(card) for card in desk.agents(caller).values()]}

    async def model(name: str, caller: Caller = Depends(desk.caller)) -> dict[str, Any]:
        """One agent."""
        caller.use(name)
        card = desk.agents(caller).get(name)
        if card is None:
            raise UnknownAgent(f"no agent is named {name!r}", fix="`GET /v1/models` lists those there are")
        return _model(card)

    router.add_api_route("/chat/completions", complete, methods=["POST"], response_class=JSONResponse)
    router.add_api_route("/models", models, methods=["GET"])
    router.add_api_route("/models/{name}", model, methods=["GET"])
    return router


def _conversation(caller: Caller, name: str | None, idempotency_key: str | None) -> str:
    """The one that is meant; a new one, of which a repeated request must make the same."""
    if name is None:
        name = new_id() if idempotency_key is None else id_of(caller.tenant, f"conversation {idempotency_key}")
    return caller.conversation(name)


def _refuse(body: Completion) -> None:
    more = body.model_extra or {}
    for field in _NOT_HERE:
        if more.get(field) and more[field] != ["text"]:
            raise Refused(400, f"an agent takes no {field!r} from its client: it has its own", fix=f"leave {field} out")
    if body.n not in (None, 1):
        raise Refused(400, f"n = {body.n}: an agent gives one answer", fix="leave n out, and ask again for another")


def _text(message: Turn) -> str:
    content = message.content
    if isinstance(content, list):
        for part in content:
            if part.type not in _TEXTS:
                raise Refused(400, f"a part of type {part.type!r} can't be sent to an agent", fix="send text")
        content = "".join(part.text or "" for part in content)
    if message.role not in ("user", "system", "developer") or not content:
        raise Refused(
            400,
            f"the last message, of role {message.role!r}, asks nothing",
            fix="end with a user's message that has text",
        )
    return content


def _attributes(body: Completion) -> Mapping[str, str]:
    parameters = {k: v for k, v in (body.model_extra or {}).items() if v is not None}
    found: dict[str, str] = {}
    if len(body.messages) > 1:
        said = [{"role": each.role, "content": _plain(each)} for each in body.messages]
        found["messages"] = orjson.dumps(said).decode()
    if parameters:
        found["parameters"] = orjson.dumps(parameters).decode()
    if body.user:
        found["user"] = body.user
    return found


def _plain(message: Turn) -> str:
    if isinstance(message.content, list):
        return "".join(part.text or "" for part in message.content)
    return message.content or ""


async def _whole(said: AsyncGenerator[list[Said]]) -> tuple[str, Said]:
    async for several in said:
        end = several[-1]
        if end.kind == "error":
            raise failed(end)
        if end.kind == "answer":
            content = end.content
            text = content if isinstance(content, str) else "" if content is None else orjson.dumps(content).decode()
            return text, end
    raise AssertionError("an answer ends by an answer or an error")


async def _chunks(said: AsyncGenerator[list[Said]], about: Mapping[str, Any], usage: bool) -> AsyncGenerator[bytes]:
    head = {**about, "object": "chat.completion.chunk"}
    usually: dict[str, Any] = {"usage": None} if usage else {}

    def chunk(delta: Mapping[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: " + orjson.dumps({**head, "choices": [choice], **usually}) + b"\n\n"

    role: dict[str, str] = {"role": "assistant"}
    try:
        async for several in said:
            end = several[-1]
            if end.kind == "error":
                raise failed(end)
            if any(each.kind == "anew" for each in several):
                # What such a client has shown can't be taken back.
                raise AnswerError(
                    f"agent {end.agent!r} had to begin anew, and says something else than before",
                    fix="ask again: with the same Idempotency-Key, to be given the answer that it comes to",
                )
            text = "".join(each.text for each in several)
            out = chunk({**role, "content": text}) if text or role else b""
            role = {}
            if end.kind == "answer":
                out += chunk({}, "stop")
                if usage:
                    counted = {**head, "choices": [], "usage": _usage(end.usage)}
                    out += b"data: " + orjson.dumps(counted) + b"\n\n"
                out += b"data: [DONE]\n\n"
            if out:
                yield out
    except LLMAgentOSError as error:  # the status is sent already
        yield b"data: " + orjson.dumps(body_of(error)) + b"\n\n"
    finally:
        await said.aclose()


def _usage(usage: Mapping[str, Any] | None) -> dict[str, int]:
    given = usage or {}
    prompt, completion = given.get("tokens_in") or 0, given.get("tokens_out") or 0
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _model(card: Card) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": card.deployed_at // 1_000,
        "owned_by": card.deployment,
        "description": card.description,
    }
