"""Faults on purpose, on the real engine: each is seen to do what it says, and the engine to bear it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from llmagentos.agents import agent
from llmagentos.agents.testing import Agents, Run
from llmagentos.streams.dedup import Dedup
from llmagentos.streams.errors import SettingsError


class Ledger:
    """The effects of an agent outside of Kafka, as they happen."""

    def __init__(self, *, blocking: bool = False, retries: int = 2) -> None:
        self.effects: list[tuple[str, str]] = []  # conversation, message id

        def plain(message, ctx):
            self.effects.append((message.conversation_id, message.message_id))
            return message.text

        async def till(message, ctx):
            return plain(message, ctx)

        how = "thread" if blocking else None
        self.agent = agent("till", retries=retries, backoff=0.0, blocking=how)(plain if blocking else till)

    @property
    def times(self) -> Counter[str]:
        return Counter(message_id for _, message_id in self.effects)

    async def feed(self, run: Run, conversations: int = 4, messages: int = 5) -> list[str]:
        """Messages m0, m1 ... of conversations c0, c1 ..., so that the same are hit in every run of the test."""
        ids = [f"m{number}" for number in range(conversations * messages)]
        for number, message_id in enumerate(ids):
            conversation = f"c{number % conversations}"
            await run.send("till", message_id, conversation=conversation, message_id=message_id)
        return ids


async def fired(run: Run) -> Counter[tuple[str, str]]:
    """(fault, message id) of every event of a fault."""
    return Counter((event["detail"]["fault"], event["detail"]["message_id"]) for event in await run.events("fault"))


async def duplicated(agents: Agents) -> tuple[Ledger, list[str]]:
    ledger = Ledger()
    async with agents.run(ledger.agent, faults="duplicate=1") as run:
        ids = await ledger.feed(run)
        inbox = await run.records(run.settings.topic("agent.till"))
        assert Counter(record.headers["message-id"] for record in inbox) == {name.encode(): 2 for name in ids}
        assert await fired(run) == {("duplicate", name): 1 for name in ids}
        assert await run.dead_letters() == []
    return ledger, ids


async def test_a_duplicate_is_another_record_and_is_dropped(agents: Agents) -> None:
    ledger, ids = await duplicated(agents)
    assert ledger.times == dict.fromkeys(ids, 1)


async def test_the_above_is_red_without_dedup(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dedup, "twin", lambda self, identity, offset: False)
    ledger, ids = await duplicated(agents)
    assert ledger.times == dict.fromkeys(ids, 2)


async def test_a_failed_run_is_repeated_and_says_its_own_once(agents: Agents, caplog) -> None:
    ledger = Ledger(retries=20)
    async with agents.run(ledger.agent, faults="fail=0.5,seed=1") as run:
        ids = await ledger.feed(run)
        outputs = await run.outputs()
        assert await run.dead_letters() == []
        faults = await fired(run)
    before = {name: faults["fail:before", name] for name in ids}
    after = {name: faults["fail:after", name] for name in ids}
    assert sum(before.values()) > 3
    assert sum(after.values()) > 3
    # What failed after the handler had done its work did it again, what failed before did not; nobody was told twice.
    assert ledger.times == {name: 1 + after[name] for name in ids}
    assert Counter(message.text for message in outputs) == dict.fromkeys(ids, 1)
    for conversation in range(4):
        own = [message.text for message in outputs if message.conversation_id == f"c{conversation}"]
        assert own == [name for name in ids if int(name[1:]) % 4 == conversation]
    assert "FAULTS ARE ON, on purpose" in caplog.text
    assert "fail=0.5,seed=1" in caplog.text


async def test_a_lost_reply_is_an_effect_of_which_nobody_hears(agents: Agents) -> None:
    ledger = Ledger(retries=20)
    async with agents.run(ledger.agent, faults="reply-lost=0.5,seed=1") as run:
        ids = await ledger.feed(run)
        outputs = await run.outputs()
        faults = await fired(run)
    lost = {name: faults["reply-lost", name] for name in ids}
    assert sum(lost.values()) > 3
    assert ledger.times == {name: 1 + lost[name] for name in ids}
    assert Counter(message.text for message in outputs) == dict.fromkeys(ids, 1)


async def test_a_fault_that_goes_on_ends_as_a_dead_letter_of_a_thread_too(agents: Agents) -> None:
    ledger = Ledger(retries=1, blocking=True)
    async with agents.run(ledger.agent, faults="reply-lost@till=1") as run:
        await run.send("till", "x", conversation="c")
        (dead,) = await run.dead_letters()
        assert (dead.cause, dead.attempts) == ("timeout", 2)
        assert "fault reply-lost fired on purpose" in dead.error
        assert [message.type for message in await run.outputs("c")] == ["error"]
    assert len(ledger.effects) == 2


async def test_a_delay_holds_its_conversation_and_no_other(agents: Agents) -> None:
    ledger = Ledger()
    async with agents.run(ledger.agent, faults="delay=0.5:1h,seed=4") as run:
        ids = await ledger.feed(run, conversations=4, messages=1)
        await run.clock.waited_for(2)
        async with asyncio.timeout(30):
            while len(ledger.effects) < 2:
                await asyncio.sleep(0.01)
        assert set(ledger.times) == {"m0", "m3"}
        await run.clock.move(3601)
        assert len(await run.outputs()) == len(ids)
        assert await fired(run) == {("delay", "m1"): 1, ("delay", "m2"): 1}
    assert ledger.times == dict.fromkeys(ids, 1)


async def test_a_worker_refuses_faults_that_are_none(agents: Agents) -> None:
    with pytest.raises(SettingsError, match="'fial=1' is none of duplicate, delay, fail, reply-lost"):
        async with agents.run(Ledger().agent, faults="fial=1"):
            pass


async def test_no_fault_fires_where_none_is_switched_on(agents: Agents, caplog) -> None:
    ledger = Ledger()
    async with agents.run(ledger.agent) as run:
        ids = await ledger.feed(run)
        assert len(await run.outputs()) == len(ids)
        assert await run.events("fault") == []
        (started,) = await run.events("worker-started")
        assert started["detail"]["faults"] == ""
    assert "FAULTS" not in caplog.text
