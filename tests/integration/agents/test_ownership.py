"""Who owns a partition says so in its journal; what an earlier owner had begun is brought to its end by the next."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llmagentos.agents.testing.run import running
from llmagentos.streams import ownership
from llmagentos.streams.admin import Admin, ensure_topics
from llmagentos.streams.delivery import Delivery
from llmagentos.streams.gate import decode_note
from llmagentos.streams.journal import Note
from llmagentos.streams.journal_record import SUBJECT
from llmagentos.streams.message import Message, child_id
from llmagentos.streams.ownership import Ownership
from llmagentos.streams.producer import MESSAGE_ID, Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.topology import named
from llmagentos.streams.wire import Codec

from .reading import read_topic
from .test_parking import Ward, until

BLANK: dict[str, Any] = {
    "claim": -1, "writer": "test", "at": 0, "offset": -1, "conversation_id": "", "message_id": "", "cause": "",
    "state": "", "refers": -1, "record": None, "outputs": [], "detail": {},
}  # fmt: skip


async def write(settings: Settings, agent: str, partition: int, *, times: int = 1, **fields: Any) -> int:
    """Append a journal record, perhaps several times; the last one's offset."""
    codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
    encode = await asyncio.to_thread(codec.writer, SUBJECT, "journal")
    async with Producer(settings) as producer:
        topic = settings.topic(f"journal.{agent}")
        value = encode({**BLANK, **fields})
        sent = [producer.post(topic, value, None, partition, kind=Delivery) for _ in range(times)]
        return (await sent[-1]).offset


async def send(settings: Settings, agent: str, conversation: str, *texts: str) -> list[str]:
    """Messages to an agent; their ids."""
    codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
    messages = [Message.create(text, to=agent, conversation=conversation) for text in texts]
    async with Producer(settings, codec) as producer:
        for message in messages:
            await producer.send(message)
    return [message.message_id for message in messages]


def handled(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


async def test_a_worker_that_meets_a_late_claim_claims_again_and_loses_nothing(
    deploy, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "handled"
    await deploy(
        f"""
        import asyncio, pathlib
        from llmagentos.agents import agent

        @agent("clerk")
        async def clerk(message, ctx):
            await asyncio.sleep(0.02)
            with pathlib.Path({str(file)!r}).open("a") as out:
                out.write(message.text + chr(10))
            return message.text
        """
    )
    texts = [str(n) for n in range(60)]
    sending = asyncio.create_task(send(settings, "clerk", "c", *texts))
    await until(lambda: len(handled(file)) > 5)
    for partition in range(settings.partitions):  # as of a worker that was frozen while it claimed
        await write(settings, "clerk", partition, kind="claim")
    await sending
    await until(lambda: set(handled(file)) == set(texts))
    first_time = list(dict.fromkeys(handled(file)))
    assert first_time == texts
    await send(settings, "clerk", "c", "after")
    await until(lambda: handled(file)[-1] == "after")


async def test_what_is_read_before_a_claim_learns_where_reading_began_counts(settings: Settings) -> None:
    """Seen: the position went back to the beginning then, and the claim waited for ever for its own record."""

    class Quick(ownership.Journal):
        async def follow(self, ownership: Ownership) -> None:
            start = ownership.view.position
            await super().follow(ownership)
            await until(lambda: ownership.view.position > start)

    await asyncio.to_thread(ensure_topics, settings, [named("journal.NAME").of("clerk")])
    await write(settings, "clerk", 0, kind="claim")
    codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
    async with Producer(settings) as producer:
        journal = Quick(settings, producer, codec, writer="test", broken=lambda error: pytest.fail(repr(error)))
        try:
            async with asyncio.timeout(10):
                await journal.claim(settings.topic("journal.clerk"), 0, Note(), lambda: None)
        finally:
            await journal.stop()


async def test_outputs_that_are_recorded_are_sent_and_the_handler_is_not_run(
    deploy, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "handled"
    worker = await deploy(
        f"""
        import pathlib
        from llmagentos.agents import agent

        @agent("teller")
        async def teller(message, ctx):
            with pathlib.Path({str(file)!r}).open("a") as out:
                out.write(message.text + chr(10))
            await ctx.tell("listener", message.text + " once")
            await ctx.tell("listener", message.text + " twice")

        @agent("listener")
        async def listener(message, ctx):
            return message.text
        """
    )
    await send(settings, "teller", "c", "first")
    heard = await read_topic(settings, "replies", 2)
    assert [reply.text for reply in heard] == ["first once", "first twice"]
    inbox = settings.topic("agent.teller")
    await until(lambda: sum(Admin(settings).committed(worker.deployment, [inbox]).values()) == 1)
    ((_, partition),) = Admin(settings).committed(worker.deployment, [inbox])
    worker.stop()
    await until(lambda: worker.state == "stopped")

    # An owner that recorded its outputs, and was killed before it sent them.
    (second,) = await send(settings, "teller", "c", "second")
    codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
    told = Message.create("second, recorded", to="listener", conversation="c", message_id=child_id(second, "teller", 0))
    output = {
        "topic": settings.topic("agent.listener"), "partition": -1, "key": b"c", "value": codec.encode(told),
        "headers": [{"name": MESSAGE_ID, "value": told.message_id.encode()}],
    }  # fmt: skip
    claim = await write(settings, "teller", partition, kind="claim")
    await write(
        settings, "teller", partition, kind="done", claim=claim, offset=1, conversation_id="c", message_id=second,
        outputs=[output],
    )  # fmt: skip
    # A record of one that lost the partition before counts for nothing.
    await write(
        settings, "teller", partition, kind="done", claim=claim - 1, offset=2, conversation_id="c", message_id="x",
        outputs=[output | {"value": b"never"}],
    )  # fmt: skip
    async with running(type(worker)(worker.settings, worker.deployment, worker.loaded, index=1)):
        await send(settings, "teller", "c", "third")
        heard = await read_topic(settings, "replies", 5)
    texts = [reply.text for reply in heard]
    assert texts == ["first once", "first twice", "second, recorded", "third once", "third twice"]
    assert handled(file) == ["first", "third"]


async def test_a_question_that_was_answered_before_its_asker_went_is_not_lost(
    deploy, settings: Settings, tmp_path: Path
) -> None:
    answered = tmp_path / "answered"
    go = tmp_path / "go"
    await deploy(
        f"""
        import pathlib
        from llmagentos.agents import agent

        @agent("oracle")
        async def oracle(message, ctx):
            with pathlib.Path({str(answered)!r}).open("a") as out:
                out.write(message.text + chr(10))
            return "42"
        """,
        "oracles",
    )
    asker = await deploy(
        f"""
        import asyncio, pathlib
        from llmagentos.agents import agent

        @agent("asker")
        async def asker(message, ctx):
            answer = await ctx.ask("oracle", message.text, timeout=15)
            while not pathlib.Path({str(go)!r}).exists():
                await asyncio.sleep(0.02)
            return f"the answer is {{answer}}"
        """,
        "askers",
        drain_timeout_s=0.2,
    )
    await send(settings, "asker", "c", "why")
    await until(lambda: handled(answered) == ["why"])
    async with running(type(asker)(asker.settings, asker.deployment, asker.loaded, index=1)):
        asker.stop()  # its handler does not end in time
        await until(lambda: asker.state == "stopped")
        go.touch()
        (reply,) = await read_topic(settings, "replies", 1)
    assert reply.text == "the answer is 42"
    assert handled(answered) == ["why"]


async def test_a_journal_is_cleaned_and_the_next_owner_reads_only_its_end(
    deploy, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "CLEAN_RECORDS", 20)
    monkeypatch.setattr(ownership, "CLEAN_S", 0.1)
    ward = Ward(settings, tmp_path)
    worker = await deploy(ward.source, partitions=1)
    await ward.send("a", "1 poison", "2", "3")

    async def states(wanted: list[str]) -> bool:
        return await ward.states("a") == wanted

    await until(lambda: states(["parked", "held", "held"]))
    inbox = settings.topic("agent.doctor")

    def low() -> int:
        ((_, text),) = Admin(settings).commits(worker.deployment, [inbox]).values()
        return Note.parse(decode_note(text)).low

    # Records of one that lost the partition: they count for nothing, and make the journal long.
    await write(settings, "doctor", 0, times=40, kind="sent", claim=-1, refers=0)
    await ward.send("c", "1")  # so that something is committed
    await until(lambda: low() > 20)
    assert await ward.states("a") == ["parked", "held", "held"]
    (ward.folder / "ill").unlink()
    async with running(type(worker)(worker.settings, worker.deployment, worker.loaded, index=1)):
        worker.stop()
        await until(lambda: worker.state == "stopped")
        await ward.command("redrive", "a")
        await until(lambda: ward.handled("a") == ["1 poison", "2", "3"])
