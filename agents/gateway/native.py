"""The gateway's own interface: conversations with agents, their events, and what a person decides in them."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.responses import Response

from llmagentos.agents.gateway.access import Caller
from llmagentos.agents.gateway.desk import Desk
from llmagentos.agents.gateway.refusals import Refused, body_of
from llmagentos.agents.gateway.sse import EventStream, event
from llmagentos.agents.gateway.talk import Said
from llmagentos.streams.errors import AnswerError, LLMAgentOSError

__all__ = ["routes"]

_PLACE: Final = re.compile(r"(\d{1,9})-(\d{1,19})")
#: History that one request gives at most; each message may be as large as a record.
HISTORY_MOST: Final = 1_000
#: Of an idempotency key; a UUID has 36 characters.
KEY_MOST: Final = 255


class Send(BaseModel, extra="forbid"):
    """A message to an agent."""

    agent: str = Field(description="Its name, as in `GET /v1/models`.", max_length=200)
    content: Any = Field(description="Text, or whatever JSON can say.")
    attributes: dict[str, str] = Field(default={}, description="The agent finds them in `message.attributes`.")
    wait: bool = Field(True, description="False: don't wait for the answer, which is among the conversation's events.")
    timeout: float | None = Field(
        None, gt=0, description="Seconds after which the agent is to give up. Without: it may wait for days."
    )


class Decision(BaseModel, extra="forbid"):
    """What a person decides."""

    why: str = Field("", description="Kept with it, and told to the handler.", max_length=10_000)
    step: int | None = Field(None, ge=1, description="Which approval of the handler, where it asks for several.")


class Cancel(BaseModel, extra="forbid"):
    """An end to what a conversation has caused."""

    why: str = Field("", description="Kept with it, and told to whoever asked.", max_length=10_000)


Stream = Annotated[str, Header(description="`text/event-stream` for events as they come.")]
LastEventID = Annotated[str | None, Header(alias="Last-Event-ID", description="Go on behind the event of this id.")]
IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="The same again joins the first answer.", max_length=KEY_MOST),
]


def routes(desk: Desk) -> APIRouter:
    """The routes, served by *desk*."""
    router = APIRouter(prefix="/v1/conversations/{conversation}", tags=["conversations"])

    async def send(
        conversation: str,
        body: Send,
        caller: Caller = Depends(desk.caller),
        accept: Stream = "application/json",
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Send a message to an agent, and wait for its answer; or take what it says as it comes."""
        await desk.admit(caller, body.agent)
        name = caller.conversation(conversation)
        question = desk.talk.question(
            body.agent,
            body.content,
            conversation=name,
            tenant=caller.tenant,
            name=idempotency_key,
            attributes=body.attributes,
            timeout_s=body.timeout,
        )
        asked = {"conversation": conversation, "message": question.message.message_id}
        if not body.wait:
            after = await desk.talk.place(name)
            await desk.talk.send(question)
            return JSONResponse(asked | {"last_event_id": after}, status_code=202)
        said = desk.spending(caller, desk.talk.answer(question))
        if "text/event-stream" in accept:
            return EventStream(_told(said), {"X-Message-Id": question.message.message_id})
        async for several in said:
            end = several[-1]
            if end.kind == "error":
                raise failed(end)
            if end.kind == "answer":
                answer = {"agent": end.agent, "content": end.content, "usage": end.usage, "event_id": end.id}
                return JSONResponse(asked | answer)
        raise AssertionError("an answer ends by an answer or an error")

    async def events(
        conversation: str,
        caller: Caller = Depends(desk.caller),
        last_event_id: LastEventID = None,
    ) -> Response:
        """What agents say in a conversation, as it comes, from now on or behind `Last-Event-ID`; without end.

        Events: `token` (goes behind what was shown of this message's answer), `anew` (in its place: a crashed agent
        ran again and says something else), `partial`, `answer`, `error`.
        """
        name = caller.conversation(conversation)
        after = None if last_event_id is None else _place(last_event_id, desk.talk.partition_of(name))
        return EventStream(_told(_readable(caller, desk.talk.events(name, after))))

    async def history(
        conversation: str,
        caller: Caller = Depends(desk.caller),
        limit: Annotated[int, Query(ge=1, le=HISTORY_MOST)] = 50,
    ) -> dict[str, Any]:
        """What was said, the oldest first, as far as topics still have it; and the approvals that it waits for."""
        name = caller.conversation(conversation)
        said = await desk.people.history(caller, name, limit)
        return {
            "conversation": conversation,
            "messages": [
                {
                    "message": each.message_id,
                    "type": each.type,
                    "from": each.sender,
                    "to": each.recipient,
                    "caused_by": each.caused_by,
                    "at": each.timestamp,
                    "content": desk.content(each),
                    "usage": each.usage,
                }
                for each in said
            ],
            "waiting": [
                {"agent": each.agent, "step": each.step, "what": each.about, "since": each.since, "due": each.due}
                for each in await desk.people.waiting(caller, name)
            ],
        }

    async def decide(conversation: str, body: Decision, caller: Caller, approve: bool) -> dict[str, Any]:
        name = caller.conversation(conversation)
        pending, counts = await desk.people.decide(caller, name, approve=approve, why=body.why, step=body.step)
        if not counts:
            raise Refused(409, f"somebody else decided first about {pending.about[:200]!r}")
        decided = "approved" if approve else "rejected"
        return {"conversation": conversation, "agent": pending.agent, "what": pending.about, "decision": decided}

    async def approve(
        conversation: str, body: Decision = Decision(why="", step=None), caller: Caller = Depends(desk.caller)
    ) -> dict[str, Any]:
        """Approve what a handler of the conversation asks for."""
        return await decide(conversation, body, caller, True)

    async def reject(
        conversation: str, body: Decision = Decision(why="", step=None), caller: Caller = Depends(desk.caller)
    ) -> dict[str, Any]:
        """Reject what a handler of the conversation asks for."""
        return await decide(conversation, body, caller, False)

    async def cancel(
        conversation: str, body: Cancel = Cancel(why=""), caller: Caller = Depends(desk.caller)
    ) -> dict[str, Any]:
        """End all that the conversation has caused and that is not finished, over all agents."""
        outcomes = await desk.people.cancel(caller, caller.conversation(conversation), body.why)
        messages = [
            {"message": each.message_id, "agent": each.agent, "outcome": outcome or "cancelling"}
            for each, outcome in outcomes.items()
        ]
        return {"conversation": conversation, "messages": messages}

    router.add_api_route("/messages", send, methods=["POST"], response_class=JSONResponse)
    router.add_api_route("/events", events, methods=["GET"], response_class=EventStream)
    router.add_api_route("", history, methods=["GET"])
    router.add_api_route("/approve", approve, methods=["POST"])
    router.add_api_route("/reject", reject, methods=["POST"])
    router.add_api_route("/cancel", cancel, methods=["POST"])
    return router


def failed(end: Said) -> AnswerError:
    """The error of an answer that is one."""
    said = end.content if isinstance(end.content, dict) else {"error": end.content}
    if said.get("cause") == "cancelled":
        return AnswerError(f"agent {end.agent!r} did not answer: {said.get('error')}")
    return AnswerError(
        f"agent {end.agent!r} failed: {said.get('error')}",
        kept=f"message {end.message} is a dead letter",
        fix="who runs the agent finds it by `llmagentos dead list`",
    )


async def _told(said: AsyncGenerator[list[Said]]) -> AsyncGenerator[bytes]:
    try:
        async for several in said:
            yield b"".join(map(_event, several))
    except LLMAgentOSError as error:  # the status is sent already
        yield event("error", body_of(error))
    finally:
        await said.aclose()


def _event(said: Said) -> bytes:
    data: dict[str, Any] = {"message": said.message, "agent": said.agent}
    if said.kind in ("token", "anew"):
        data["text"] = said.text
    elif said.kind == "error":
        data |= body_of(failed(said))
    else:
        data["content"] = said.content
        if said.kind == "answer":
            data["usage"] = said.usage
    return event(said.kind, data, said.id)


async def _readable(caller: Caller, said: AsyncGenerator[list[Said]]) -> AsyncGenerator[list[Said]]:
    """Without what agents say that the caller may not talk to."""
    try:
        async for several in said:
            if found := [each for each in several if caller.may_use(each.agent)]:
                yield found
    finally:
        await said.aclose()


def _place(text: str, partition: int) -> int:
    found = _PLACE.fullmatch(text)
    if found is None or int(found[1]) != partition:
        raise Refused(
            400, f"Last-Event-ID {text[:100]!r} is not of this conversation", fix="give the id of one of its events"
        )
    return int(found[2])
