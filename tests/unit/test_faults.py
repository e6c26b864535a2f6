"""The fault middleware by itself: what may be written, who is hit, and in which order things then happen."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from llmagentos.agents import agent
from llmagentos.agents.faults import Fault, Faults, Plan
from llmagentos.agents.testing import MovableClock
from llmagentos.streams.errors import InjectedFault, LostReply, SettingsError
from llmagentos.streams.message import Message

MESSAGES = [Message.create("x", to="one", message_id=f"m{number}") for number in range(2_000)]


@agent("one")
async def one(message: Message, ctx: Any) -> str:
    ctx.append("handled")
    return "said"


@agent("foreign", topic="orders")
async def foreign(message: Message, ctx: Any) -> str:
    return "said"


class Struck:
    """An agent under a plan, and what happened."""

    def __init__(self, text: str, over: Any = one) -> None:
        self.seen: list[str] = []
        self.clock = MovableClock()
        self.faults = Faults(
            Plan.parse(text),
            clock=self.clock,
            duplicate=lambda message: self.seen.append(f"sent {message.message_id} again"),
            tell=lambda name, agent, message, count: self.seen.append(f"{name} {count}"),
        )
        self.agent = self.faults.around(over)

    async def run(self, message: Message) -> str:
        try:
            return await self.agent.handler(message, self.seen)  # pyright: ignore[reportArgumentType]
        except InjectedFault as error:
            return type(error).__name__


def test_what_may_be_written() -> None:
    plan = Plan.parse("fail=0.01, delay@one=0.1:250ms,duplicate=1,reply-lost=0,fail=0.5:after,seed=7", ["one"])
    assert plan.seed == 7
    assert plan.faults == (
        Fault("fail", 0.01),
        Fault("delay", 0.1, agent="one", delay_s=0.25),
        Fault("duplicate", 1.0),
        Fault("reply-lost", 0.0),
        Fault("fail", 0.5, when="after"),
    )
    assert not Plan.parse("")
    assert not Plan.parse("seed=3")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fail", "'fail' has no ="),
        ("fial=0.1", "is none of duplicate, delay, fail, reply-lost, seed"),
        ("fail=1%", "the rate '1%', not one from 0 to 1"),
        ("fail=1.5", "the rate '1.5'"),
        ("fail=nan", "the rate 'nan'"),
        ("fail=", "the rate ''"),
        ("fail=0.1:sometimes", "'sometimes' after its rate"),
        ("duplicate=0.1:2", "'2' after its rate, which duplicate doesn't take"),
        ("reply-lost=0.1:", "'' after its rate"),
        ("delay=0.1", "says not how long"),
        ("delay=0.1:soon", "says not how long"),
        ("seed=x", "is no whole number"),
        ("fail@two=0.1", "names no agent of this deployment (one)"),
        ("fail@=0.1", "names no agent"),
        ("delay=0.1:1s,fail:0.1", "'fail:0.1' has no ="),
    ],
)
def test_what_may_not(text: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Plan.parse(text, ["one"])
    assert says in caught.value.what
    assert "fail@NAME" in caught.value.fix


def test_without_a_fault_for_it_an_agent_is_left_alone() -> None:
    assert Struck("fail=0,fail@other=1").agent is one
    assert Struck("duplicate=1", foreign).agent is foreign  # its records have no ids


async def test_as_many_are_hit_as_the_rate_says_and_the_same_again() -> None:
    async def hit(text: str) -> list[str]:
        struck = Struck(text)
        return [message.message_id for message in MESSAGES if await struck.run(message) != "said"]

    first = await hit("fail=0.1,seed=1")
    assert 140 < len(first) < 260  # 200 are expected, with a standard deviation of 13
    assert await hit("fail=0.1,seed=1") == first
    assert await hit("fail=0.1,seed=2") != first
    # One kind doesn't go with another.
    assert 5 < len(set(first) & set(await hit("reply-lost=0.1,seed=1"))) < 40


async def test_a_retry_is_drawn_anew() -> None:
    struck = Struck("fail=0.5")
    for message in MESSAGES[:50]:
        for _ in range(40):  # one in 2^40 would fail them all
            if await struck.run(message) == "said":
                break
        else:
            pytest.fail("hit again and again")


async def test_each_fault_in_its_place() -> None:
    message = MESSAGES[0]
    for text, said, seen in (
        ("fail=1:before", "InjectedFault", ["fail:before 1"]),
        ("fail=1:after", "InjectedFault", ["handled", "fail:after 1"]),
        ("reply-lost=1", "LostReply", ["handled", "reply-lost 1"]),
        ("duplicate=1", "said", ["sent m0 again", "duplicate 1", "handled"]),
        ("duplicate=1,reply-lost=1", "LostReply", ["sent m0 again", "duplicate 1", "handled", "reply-lost 1"]),
    ):
        struck = Struck(text)
        assert (await struck.run(message), struck.seen) == (said, seen), text
        # A second run of the same message sends no second duplicate.
        await struck.run(message)
        assert struck.seen.count("sent m0 again") == ("duplicate" in text)


async def test_chance_chooses_before_and_after() -> None:
    struck = Struck("fail=1")
    for message in MESSAGES[:100]:
        await struck.run(message)
    assert 25 < struck.faults.fired["fail:before"] < 75
    assert struck.faults.fired["fail:before"] + struck.faults.fired["fail:after"] == 100


async def test_a_delay_goes_by_the_clock() -> None:
    struck = Struck("delay=1:1h")
    started = time.monotonic()
    run = asyncio.create_task(struck.run(MESSAGES[0]))
    assert await struck.clock.skip() == pytest.approx(3_600, abs=1)
    assert await run == "said"
    assert struck.seen == ["delay 1", "handled"]
    assert time.monotonic() - started < 60


def test_a_lost_reply_is_a_time_out_to_whoever_looks() -> None:
    assert issubclass(LostReply, TimeoutError)
