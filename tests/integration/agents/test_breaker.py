"""An agent whose dependency is down is paused: few conversations are parked, and all is handled in order afterwards."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import Any

import pytest
from typer.testing import CliRunner

from llmagentos.agents import Agent, Context, Message, agent
from llmagentos.agents.testing import Agents
from llmagentos.agents.testing.run import Run
from llmagentos.cli.main import app
from llmagentos.streams.breaker import WINDOW

CONVERSATIONS = 60
EACH = 6


class Shop:
    """What the agent depends on."""

    def __init__(self) -> None:
        self.down = False
        self.calls = 0
        self.handled: dict[str, list[int]] = defaultdict(list)

    def buy(self, conversation: str, number: int) -> None:
        self.calls += 1
        if self.down:
            raise ConnectionError("the shop is down")
        self.handled[conversation].append(number)

    def all_but(self, conversations: set[str]) -> bool:
        wanted = {f"c{n}" for n in range(CONVERSATIONS)} - conversations
        return all(self.handled.get(name) == list(range(EACH)) for name in wanted)


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def buyer(shop: Shop) -> Agent:
    @agent("buyer", retries=0)
    async def buyer(message: Message, ctx: Context) -> None:
        await asyncio.sleep(0.001)
        if message.text == "poison":
            raise ValueError("poison")
        shop.buy(message.conversation_id, int(message.text))

    return buyer


async def until(condition: Any, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def send(run: Run, numbers: range) -> None:
    for number in numbers:
        await asyncio.gather(*(run.send("buyer", str(number), conversation=f"c{n}") for n in range(CONVERSATIONS)))


def paused(run: Run, agent: str = "buyer") -> str:
    return run.workers[0]._inboxes[agent].pausing.reason


async def parked(run: Run) -> set[str]:
    letters = [letter.message for letter in await run.dead_letters()]
    assert len(letters) == len({message.conversation_id for message in letters if message})
    return {message.conversation_id for message in letters if message}


async def test_an_outage_parks_a_handful_and_all_is_handled_in_order(
    agents: Agents, shop: Shop, buyer: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    async with agents.run(buyer) as run:
        await send(run, range(2))
        shop.down = True
        await send(run, range(2, 4))
        await until(lambda: paused(run))
        assert paused(run).startswith("ConnectionError at test_breaker.py:")
        calls = shop.calls
        await send(run, range(4, EACH))
        await until(lambda: "still fails by" in caplog.text)
        assert shop.calls - calls < CONVERSATIONS / 4, "while it pauses, one message tries now and then"
        shop.down = False
        await until(lambda: not paused(run))
        few = await parked(run)
        assert 0 < len(few) <= WINDOW
        assert shop.all_but(few)
        told = await asyncio.to_thread(CliRunner().invoke, app, ["dead", "redrive", "--agent", "buyer", "--yes"])
        assert told.exit_code == 0, told.output
        await until(lambda: shop.all_but(set()))
        events = {event["kind"]: event for event in await run.events()}
        assert events["breaker-open"]["agent"] == "buyer"
        assert "ConnectionError" in events["breaker-open"]["detail"]["reason"]
        assert int(events["breaker-closed"]["detail"]["kept"]) > 0
    assert "agent buyer is paused: most of its handlers fail by ConnectionError" in caplog.text
    assert "agent buyer goes on after" in caplog.text


async def test_one_poisonous_conversation_does_not_pause_the_others(agents: Agents, shop: Shop, buyer: Agent) -> None:
    async with agents.run(buyer) as run:
        await send(run, range(1))
        for _ in range(20):
            await run.send("buyer", "poison", conversation="poisoned")
        await send(run, range(1, EACH))
        await until(lambda: shop.all_but(set()))
        assert await parked(run) == {"poisoned"}
        assert not [event for event in await run.events() if event["kind"].startswith("breaker")]


async def test_a_pause_holds_up_no_drain(agents: Agents, shop: Shop, buyer: Agent) -> None:
    shop.down = True
    async with agents.run(buyer, drain_timeout_s=30.0) as run:
        await send(run, range(EACH))
        await until(lambda: paused(run))
        begun = time.monotonic()
        run.workers[0].stop()
        await until(lambda: run.workers[0].state == "stopped")
        assert time.monotonic() - begun < 15
    shop.down = False
    async with agents.run(buyer) as run:
        few = await parked(run)
        assert len(few) <= WINDOW
        await until(lambda: shop.all_but(few))


async def test_a_paused_agent_leaves_room_to_the_others(agents: Agents, shop: Shop, buyer: Agent) -> None:
    shop.down = True
    done: list[str] = []

    @agent("other")
    async def other(message: Message, ctx: Context) -> None:
        done.append(message.text)

    async with agents.run(buyer, other, max_in_flight=20) as run:
        await send(run, range(2))
        await until(lambda: paused(run))
        for number in range(50):
            await run.send("other", str(number), conversation=f"o{number}")
        await until(lambda: len(done) == 50)
        assert paused(run)
        shop.down = False
        await until(lambda: not paused(run))
        await run.settled()


# Those that wait already are tried first, after 1, 2, 4... seconds.
@pytest.mark.parametrize(("most", "poisons"), [(None, 8), (2, 6)])
async def test_messages_that_always_fail_do_not_pause_the_others_for_ever(
    agents: Agents, most: int | None, poisons: int
) -> None:
    done: list[str] = []

    @agent("picky", retries=0, max_in_flight=most)
    async def picky(message: Message, ctx: Context) -> None:
        if message.text == "poison":
            raise ValueError("poison")
        done.append(message.conversation_id)

    async with agents.run(picky) as run:
        for number in range(poisons):
            await run.send("picky", "poison", conversation=f"p{number}")
        await until(lambda: paused(run, "picky"))
        for number in range(20):  # which come when all that is in hand fails
            await run.send("picky", "good", conversation=f"g{number}")
        await until(lambda: len(done) == 20)
        assert await parked(run) == {f"p{number}" for number in range(poisons)}
