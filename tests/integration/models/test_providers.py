"""Providers: what all of them hold, and how a model that misbehaves is told and got round. Real HTTP, no broker."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from llmagentos.agents.models import Models, Provider, Request, Scripted, Turn
from llmagentos.agents.models.endpoint import Endpoint
from llmagentos.agents.testing import MovableClock
from llmagentos.agents.testing.endpoint import Answer, ModelEndpoint
from llmagentos.streams.clock import Clock
from llmagentos.streams.errors import ContextTooLong, ModelFailure, SettingsError
from llmagentos.streams.settings import ModelSettings, Settings

QUESTION = Request([{"role": "user", "content": "Well?"}])


@asynccontextmanager
async def made(kind: str, answers: Sequence[Answer]) -> AsyncGenerator[Provider]:
    if kind == "scripted":
        yield Scripted(answers)
        return
    async with ModelEndpoint(answers) as server:
        provider = Endpoint("small", ModelSettings(base_url=server.url))
        yield provider
        await provider.close()


async def heard(provider: Provider, request: Request = QUESTION) -> tuple[list[str], Turn]:
    pieces = [piece async for piece in provider.ask(request)]
    *texts, turn = pieces
    assert isinstance(turn, Turn)
    assert all(isinstance(text, str) for text in texts)
    return [str(text) for text in texts], turn


@pytest.mark.parametrize("kind", ["endpoint", "scripted"])
class TestEveryProvider:
    """The conformance suite. A provider of one's own is added to `made`."""

    async def test_gives_text_piece_by_piece_and_the_turn_last(self, kind: str) -> None:
        chunks = ["Gr", "üße, ", "世", "界 🌍", "\n\ndata: x", " end"]
        async with made(kind, [{"chunks": chunks, "tokens_in": 7, "tokens_out": 3}]) as provider:
            texts, turn = await heard(provider)
        assert texts == chunks
        assert turn == Turn("".join(chunks), (), 7, 3, "stop")

    async def test_gives_calls_whole(self, kind: str) -> None:
        calls = [{"name": "a", "arguments": {"x": [1, "é"]}}, {"name": "b", "arguments": "{not json"}]
        async with made(kind, [{"text": "So:", "calls": calls}]) as provider:
            texts, turn = await heard(provider)
        assert texts == ["So:"]
        assert [(call.name, call.arguments) for call in turn.calls] == [("a", '{"x":[1,"é"]}'), ("b", "{not json")]
        assert len({call.id for call in turn.calls}) == 2
        assert turn.finish == "tool_calls"

    async def test_may_say_nothing(self, kind: str) -> None:
        async with made(kind, [{"text": ""}]) as provider:
            assert (await heard(provider))[1].text == ""

    async def test_answers_many_at_once(self, kind: str) -> None:
        async with made(kind, [f"answer {n}" for n in range(20)]) as provider:
            found = await asyncio.gather(*(heard(provider) for _ in range(20)))
        assert {turn.text for _, turn in found} == {f"answer {n}" for n in range(20)}

    async def test_can_be_left_in_mid_answer(self, kind: str) -> None:
        async with made(kind, [{"chunks": ["x"] * 50}, "next"]) as provider:
            async with aclosing(provider.ask(QUESTION)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    assert piece == "x"
                    break
            assert (await heard(provider))[1].text == "next"
            await provider.close()  # twice does no harm


@asynccontextmanager
async def models(answers: Any, clock: Clock | None = None, **more: Any) -> AsyncGenerator[tuple[Models, ModelEndpoint]]:
    """A model `small` whose endpoint says *answers*; *more* are its settings."""
    async with ModelEndpoint(answers) as server:
        settings = Settings.load(models={"small": {"base_url": server.url, "retries": 0} | more})
        asked = Models(settings, clock or Clock())
        try:
            yield asked, server
        finally:
            await asked.close()


#: What a model does, and what is said of it.
BROKEN: list[tuple[Answer, str, str]] = [
    ({"status": 500, "body": "boom"}, "overloaded", "answered 500: boom"),
    ({"status": 429}, "overloaded", "answered 429"),
    ({"status": 401}, "refused", "key_env"),
    ({"chunks": ["a", "b", "c"], "cut": 2}, "cut", "broke off in mid-answer"),
    ({"raw": b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'}, "cut", "without saying that it ends"),
    ({"raw": b"data: {not json}\n\n"}, "garbled", "not the OpenAI protocol"),
    ({"raw": b'data: {"chosen": 1}\n\n'}, "garbled", "not the OpenAI protocol"),
    ({"raw": b'data: {"error": {"message": "no memory"}}\n\n'}, "overloaded", "no memory"),
    ({"status": 200, "body": "<html>"}, "garbled", "not the OpenAI protocol"),
    ({"silent": True}, "slow", "silent for 0.3 s"),
]


@pytest.mark.parametrize(("answer", "kind", "says"), BROKEN, ids=lambda value: str(value)[:30])
async def test_a_model_that_misbehaves_is_a_failure_that_says_how(answer: Answer, kind: str, says: str) -> None:
    async with models([answer], timeout_s=0.3) as (asked, server):
        with pytest.raises(ModelFailure, match=says) as failed:
            await asked.ask("small", QUESTION)
        assert failed.value.kind == kind
        assert "small" in str(failed.value)
        assert len(server.asked) == 1


async def test_an_endpoint_that_is_down_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        asked = Models(Settings.load(models={"small": {"base_url": url, "retries": 0}}), Clock())
        with pytest.raises(ModelFailure, match="out of reach") as failed:
            await asked.ask(None, QUESTION)
        await asked.close()
    assert failed.value.kind == "down"
    assert url in str(failed.value)


async def test_too_long_a_question_is_told_apart() -> None:
    body = {"error": {"code": "context_length_exceeded", "message": "maximum context length is 10"}}
    async with models([{"status": 400, "body": body}]) as (asked, _):
        with pytest.raises(ContextTooLong, match=r"models\.small\.window"):
            await asked.ask("small", QUESTION)


async def test_it_is_asked_again_after_the_pause_that_it_wants() -> None:
    busy = {"status": 429, "headers": {"retry-after": "40"}}
    clock = MovableClock()
    async with models([busy, "now"], clock, retries=1) as (asked, server):
        asking = asyncio.create_task(asked.ask("small", QUESTION))
        await clock.waited_for(1)
        await clock.move(39)
        assert not asking.done()
        assert len(server.asked) == 1
        await clock.move(2)
        turn, usage = await asking
    assert turn.text == "now"
    assert usage.model == "small"


async def test_it_is_not_waited_for_where_it_wants_too_long_a_pause() -> None:
    async with models([{"status": 503, "headers": {"retry-after": "3600"}}], retries=5) as (asked, server):
        with pytest.raises(ModelFailure, match="503"):
            await asked.ask("small", QUESTION)
    assert len(server.asked) == 1


async def test_what_was_refused_is_not_asked_again() -> None:
    async with models([{"status": 404}, "never"], retries=5) as (asked, server):
        with pytest.raises(ModelFailure, match="404"):
            await asked.ask("small", QUESTION)
    assert len(server.asked) == 1


async def test_the_next_of_the_chain_is_asked_and_paid() -> None:
    async with ModelEndpoint([{"status": 500}]) as first, ModelEndpoint([{"text": "here", "tokens_out": 5}]) as second:
        settings = Settings.load(
            models={
                "big": {"base_url": first.url, "retries": 1, "fallback": ["lost", "small"]},
                "lost": {"base_url": "http://127.0.0.1:9/v1", "retries": 0},  # discard: nothing listens there
                "small": {"base_url": second.url, "model": "tiny-1", "price_out": 2.0},
            },
            model="big",
        )
        asked = Models(settings, Clock())
        turn, usage = await asked.ask(None, QUESTION)
        await asked.close()
    assert (turn.text, usage.model, usage.cost) == ("here", "small", 1e-5)
    assert len(first.asked) == 2
    assert second.asked[0]["model"] == "tiny-1"


async def test_what_was_heard_is_not_said_again_by_another() -> None:
    said: list[str] = []

    async def hear(text: str) -> None:
        said.append(text)

    async with (
        ModelEndpoint([{"chunks": ["a", "b", "c"], "cut": 2}, "again"]) as server,
        ModelEndpoint(["other"]) as other,
    ):
        settings = Settings.load(
            models={
                "small": {"base_url": server.url, "retries": 3, "fallback": ["other"]},
                "other": {"base_url": other.url},
            }
        )
        asked = Models(settings, Clock())
        with pytest.raises(ModelFailure, match="broke off"):
            await asked.ask("small", QUESTION, hear)
        assert (await asked.ask("small", QUESTION))[0].text == "again"
        await asked.close()
    assert said == ["a", "b"]
    assert (len(server.asked), len(other.asked)) == (2, 0)


async def test_the_key_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with models(["yes"], key_env="MY_KEY") as (asked, server):
        with pytest.raises(SettingsError, match="MY_KEY, which is not set"):
            await asked.ask("small", QUESTION)
        monkeypatch.setenv("MY_KEY", "secret")
        await asked.ask("small", QUESTION)
        assert server.keys == ["secret"]


def test_a_model_that_there_is_not_is_told_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match="no model is configured"):
        Models(Settings.load(), Clock()).named(None)
    two = Models(Settings.load(models={"a": {}, "b": {}}), Clock())
    with pytest.raises(SettingsError, match="no model is named"):
        two.named(None)
    with pytest.raises(SettingsError, match="'c'.*\n.*a, b"):
        two.named("c")
    with pytest.raises(SettingsError, match="fallback"):
        Settings.load(models={"a": {"fallback": ["b"]}})
