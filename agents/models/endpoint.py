"""Models behind an HTTP endpoint that speaks the OpenAI protocol, by the official client.

The client makes the requests; the lines of a streamed answer are read here, as its objects for each chunk cost more
than all the rest of a token's way.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import orjson

from llmagentos.agents.models.provider import Call, Request, Turn
from llmagentos.agents.models.window import estimate
from llmagentos.streams.errors import ContextTooLong, ModelFailure, SettingsError
from llmagentos.streams.settings import ModelSettings

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

__all__ = ["Endpoint"]

#: By which endpoints say that a question is too long: OpenAI's code, and words of vLLM and llama.cpp.
_TOO_LONG = (
    "context_length_exceeded",
    "maximum context length",
    "exceed_context_size",
    "exceeds the available context",
)
#: 408: it waited too long for us; 409: OpenAI's for a lock; 425, 429: not now.
_NOT_NOW = frozenset({408, 409, 425, 429})
#: How much of what an endpoint says stands in an error.
_SHOWN = 500


class Endpoint:
    """See the module. The client is made at the first question, as its import takes a second."""

    def __init__(self, name: str, settings: ModelSettings) -> None:
        self._name = name
        self._settings = settings
        self._model = settings.model or name
        self._client: AsyncOpenAI | None = None
        self._opening = asyncio.Lock()

    @property
    def _where(self) -> str:
        return f"model {self._name!r} at {self._settings.base_url or 'the OpenAI endpoint'}"

    async def _opened(self) -> AsyncOpenAI:
        async with self._opening:
            if self._client is None:
                self._client = await asyncio.to_thread(self._open)
            return self._client

    def _open(self) -> AsyncOpenAI:
        try:
            from openai import AsyncOpenAI, Timeout
        except ImportError as error:
            raise SettingsError(
                f"{self._where} needs the openai client: {error}", fix="pip install 'llmagentos[models]'"
            ) from None
        settings = self._settings
        key = os.environ.get(settings.key_env, "") if settings.key_env else "none"
        if not key:
            raise SettingsError(
                f"{self._where} takes its key from the environment variable {settings.key_env}, which is not set",
                fix=f"export {settings.key_env}=... where the worker runs, or change models.{self._name}.key_env",
            )
        return AsyncOpenAI(
            api_key=key,
            base_url=settings.base_url or None,
            timeout=Timeout(settings.timeout_s),
            max_retries=0,  # ours to count, so that a fallback and the agent's log know of them
        )

    async def ask(self, request: Request) -> AsyncGenerator[str | Turn]:
        """See :class:`~llmagentos.agents.models.provider.Provider`."""
        import openai

        client = await self._opened()
        turn = _Turn()
        try:
            # As `extra_body`, which goes as it is: what the client makes of 20 messages by their types takes 5 ms.
            body = self._body(request)
            async with client.chat.completions.with_streaming_response.create(
                model=self._model, messages=[], stream=True, extra_body=body
            ) as response:
                if "text/event-stream" not in response.headers.get("content-type", ""):
                    turn.whole(await response.read())  # it streams nothing, though it was asked to
                    if turn.text:
                        yield turn.text
                else:
                    async for line in response.iter_lines():
                        if line.startswith("data:") and (text := turn.take(line[5:].strip())):
                            yield text
        except openai.APIStatusError as error:
            raise self._refused(error) from error
        except openai.APITimeoutError as error:
            raise self._slow() from error
        except openai.APIConnectionError as error:
            raise ModelFailure(
                f"{self._where} is out of reach: {error.__cause__ or error}",
                "down",
                fix=f"start it, or correct models.{self._name}.base_url",
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ModelFailure(f"{self._where} answers what is not the OpenAI protocol: {error}", "garbled") from error
        except Exception as error:
            if not (kind := _broken(error)):
                raise
            if kind == "slow":
                raise self._slow() from error
            raise self._cut(f"{type(error).__name__}: {error}") from error
        if turn.error:
            raise ModelFailure(f"{self._where} failed in mid-answer: {turn.error}", "overloaded")
        if not turn.finish:
            raise self._cut("it ended without saying that it ends")
        yield turn.done()

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": list(request.messages),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.tools:
            body["tools"] = [{"type": "function", "function": dict(tool)} for tool in request.tools]
        if request.schema is not None:
            schema = {"name": "answer", "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if request.max_tokens:
            body["max_tokens"] = request.max_tokens
        if request.temperature is not None:
            body["temperature"] = request.temperature
        return body

    def _slow(self) -> ModelFailure:
        return ModelFailure(
            f"{self._where} was silent for {self._settings.timeout_s:g} s",
            "slow",
            fix=f"raise models.{self._name}.timeout_s where it needs that long",
        )

    def _cut(self, why: str) -> ModelFailure:
        return ModelFailure(f"{self._where} broke off in mid-answer: {why}", "cut")

    def _refused(self, error: APIStatusError) -> ModelFailure | ContextTooLong:
        said = error.response.text[:_SHOWN]
        what = f"{self._where} answered {error.status_code}: {said or error.message}"
        if error.status_code in (400, 413, 422) and any(word in said for word in _TOO_LONG):
            return ContextTooLong(
                what, fix=f"set models.{self._name}.window, so that what is too much is left out beforehand"
            )
        if error.status_code in _NOT_NOW or error.status_code >= 500:
            return ModelFailure(what, "overloaded", after_s=_seconds(error.response.headers.get("retry-after")))
        fix = f"correct the key in models.{self._name}.key_env" if error.status_code in (401, 403) else ""
        return ModelFailure(what, "refused", fix=fix)

    def count(self, request: Request) -> int:
        """An estimate: which vocabulary the model has, nobody says."""
        return estimate(request)

    async def close(self) -> None:
        """See :class:`~llmagentos.agents.models.provider.Provider`."""
        if self._client is not None:
            await self._client.close()
            self._client = None


class _Turn:
    """A turn as it comes."""

    def __init__(self) -> None:
        self.text = ""
        self.finish = ""
        self.error = ""
        self._calls: dict[int, list[str]] = {}  # id, name, arguments by the number that the endpoint gives it
        self._tokens = (-1, -1)

    def take(self, data: str) -> str:
        """One event of the stream; the text in it."""
        if data == "[DONE]":
            return ""
        chunk = orjson.loads(data)
        if error := chunk.get("error"):
            self.error = orjson.dumps(error).decode()[:_SHOWN]
            return ""
        self._count(chunk)
        if not chunk["choices"]:
            return ""
        choice = chunk["choices"][0]
        self.finish = choice.get("finish_reason") or self.finish
        delta = choice.get("delta") or {}
        for number, call in enumerate(delta.get("tool_calls") or ()):
            known = self._calls.setdefault(call.get("index", number), ["", "", ""])
            function = call.get("function") or {}
            known[0] = call.get("id") or known[0]
            known[1] += function.get("name") or ""
            known[2] += function.get("arguments") or ""
        text = delta.get("content") or ""
        self.text += text
        return text

    def whole(self, body: bytes) -> None:
        """An answer that is not streamed."""
        answer = orjson.loads(body)
        self._count(answer)
        choice = answer["choices"][0]
        message = choice["message"]
        self.text = message.get("content") or ""
        self.finish = choice.get("finish_reason") or "stop"
        for number, call in enumerate(message.get("tool_calls") or ()):
            function = call["function"]
            self._calls[number] = [call["id"], function["name"], function["arguments"]]

    def _count(self, chunk: dict[str, Any]) -> None:
        usage = chunk.get("usage")
        if usage:
            self._tokens = (int(usage["prompt_tokens"]), int(usage["completion_tokens"]))

    def done(self) -> Turn:
        calls = tuple(
            Call(call[0] or f"call_{number}", call[1], call[2]) for number, call in sorted(self._calls.items())
        )
        return Turn(self.text, calls, *self._tokens, self.finish)


def _broken(error: Exception) -> str:
    """Whether *error* is of the HTTP library that the client came with: `cut`, `slow`, or empty where it is not.

    By name, as the client changed its library, and lets the errors of a body that is read line by line pass as it is.
    """
    kind = type(error)
    if kind.__module__.partition(".")[0] not in ("httpx", "httpx2"):
        return ""
    return "slow" if kind.__name__.endswith("Timeout") else "cut"


def _seconds(after: str | None) -> float | None:
    """The pause that a Retry-After header asks for: seconds, or a date."""
    if not after:
        return None
    try:
        return max(0.0, float(after))
    except ValueError:
        from datetime import UTC, datetime
        from email.utils import parsedate_to_datetime

        try:
            until = parsedate_to_datetime(after)
        except ValueError:
            return None
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
