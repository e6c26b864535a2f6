"""`llmagentos dead`: what it shows of dead letters, and what becomes of those that are put back or given up."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import DEVNULL
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from llmagentos.agents.testing import Agents
from llmagentos.streams.admin import ensure_topics
from llmagentos.streams.endpoints import brokers
from llmagentos.streams.errors import InputError
from llmagentos.streams.letters import OPEN, Letter, Letters, Selection
from llmagentos.streams.producer import Producer
from llmagentos.streams.redrive import Outcome, Redrive, Wish, outstanding
from llmagentos.streams.registry import open_registry
from llmagentos.streams.wire import Codec

from .conftest import Dead, Till


async def test_letters_are_listed_by_cause_with_the_first_traceback(till: Till, dead: Dead) -> None:
    await till.send("ada", "tea", "cake", "coffee", "milk")
    await till.send("bob", "cake 2", "coffee")
    await till.send("eve", "pie")
    inbox = till.settings.topic("agent.till")
    await till.run.produce(inbox, b"garbage", key="eve")
    await till.run.produce(inbox, b"rubbish", key="dan")
    await till.run.settled()

    groups = {(g["cause"], g["error"][:3]): g for g in (await dead("list", "-o", "json")).json}
    keys = groups["failed", "Key"]
    assert (keys["letters"], keys["conversations"], keys["held"], keys["states"]) == (2, 2, 3, {"parked": 2})
    assert "raise KeyError(message.text)" in keys["traceback"]
    assert groups["failed", "Val"]["letters"] == 1
    assert sum(group["letters"] for group in groups.values()) == 5
    shown = (await dead("list")).out
    assert "till: failed, 2 dead letters in 2 conversations, 3 messages held behind" in shown
    assert "KeyError: 'cake" in shown

    async def chosen(*filters: str) -> set[str]:
        return {letter["conversation"] for letter in (await dead("list", "--each", "-o", "json", *filters)).json}

    assert await chosen() == {"ada", "bob", "eve", "dan"}
    assert await chosen("--cause", "undecodable") == {"eve", "dan"}
    assert await chosen("--where", "'cake' in body and 'KeyError' in error") == {"ada", "bob"}
    assert await chosen("--conversation", "bob") == {"bob"}
    assert await chosen("--since", "1h") == {"ada", "bob", "eve", "dan"}
    assert await chosen("--since", "2100-01-01") == set()
    assert await chosen("--agent", "till", "--cause", "failed", "--cause", "timeout") == {"ada", "bob", "eve"}

    one = (await dead("show", "--conversation", "ada", "-o", "json")).json
    assert (one["state"], one["held"], one["message"]["body"]) == ("parked", 2, "cake")
    text = (await dead("show", one["letter"])).out
    assert "parked: its conversation waits, 2 messages held behind it" in text
    assert "raise KeyError" in text
    assert "undecodable" in (await dead("show", "-c", "dan")).out


async def test_who_names_what_is_not_there_is_told_what_is(till: Till, dead: Dead) -> None:
    assert "close to it: till" in (await dead("list", "--agent", "tlil", status=1)).said
    assert "no dead letter till/0/99" in (await dead("show", "till/0/99", status=1)).said
    assert "no dead letter till/99/0" in (await dead("redrive", "till/99/0", status=1)).said
    assert "names no dead letter" in (await dead("drop", "tea", status=1)).said
    assert "no dead letter of conversation ada" in (await dead("show", "-c", "ada", status=1)).said
    assert "did you mean 'error'" in (await dead("list", "--where", "erorr == 1", status=1)).said
    assert "is no time" in (await dead("list", "--since", "12", status=1)).said
    assert "say which" in (await dead("redrive", status=2)).said
    assert "no other filter" in (await dead("drop", "--all", "--agent", "till", status=2)).said
    assert "is no rate" in (await dead("redrive", "--all", "--rate", "fast", status=2)).said
    assert "one of them" in (await dead("show", status=2)).said
    assert "no dead letter waits" in (await dead("list")).said
    assert "nothing was redriven" in (await dead("redrive", "--all")).said


async def test_redriven_conversations_are_whole_once_and_in_order(till: Till, dead: Dead) -> None:
    wanted = {f"c{number}": ["tea", "cake", "milk", "pie", "coffee"] for number in range(4)}
    for conversation, texts in wanted.items():
        await till.send(conversation, *texts)
    await till.run.settled()
    assert till.handled() == {conversation: ["tea"] for conversation in wanted}

    plan = await dead("redrive", "--agent", "till", "--dry-run")
    assert "4 parked messages of till would be run again, and then 12 messages held behind" in plan.out
    assert "wants a yes" in (await dead("redrive", "--agent", "till", status=1)).said
    assert till.handled() == {conversation: ["tea"] for conversation in wanted}

    again = (await dead("redrive", "--agent", "till", "--yes", "--wait", "-o", "json", status=1)).json
    assert (again["redriven"], again["left"], len(again["died_again"])) == (4, 0, 4)
    till.mend()
    first = (await dead("redrive", "--conversation", "c1", "--wait", "-o", "json")).json
    assert (first["redriven"], first["held"], first["already"], first["died_again"]) == (1, 3, 1, [])
    rest = (await dead("redrive", "--all", "--yes", "--wait", "--rate", "50/s", "-o", "json")).json
    assert (rest["redriven"], rest["held"], rest["left"], rest["died_again"]) == (3, 9, 0, [])
    assert "nothing was redriven" in (await dead("redrive", "--all", "--yes", "--wait")).said
    assert till.handled() == wanted
    listed = await dead("list")
    assert "no dead letter waits" in listed.said
    assert "8 more that are settled" in listed.said


async def test_what_is_dropped_is_never_handled_and_the_rest_goes_on(till: Till, dead: Dead) -> None:
    await till.send("ada", "cake", "coffee")
    await till.run.produce(till.settings.topic("agent.till"), b"garbage", key="dan")
    await till.run.settled()
    assert "wants a yes" in (await dead("drop", "--conversation", "ada", status=1)).said
    done = (await dead("drop", "--all", "--yes", "--wait", "-o", "json")).json
    assert (done["dropped"], done["held"], done["left"]) == (2, 1, 0)
    till.mend()
    assert "nothing was dropped" in (await dead("drop", "--all", "--yes")).said
    await till.send("ada", "milk")
    await till.run.settled()
    assert till.handled() == {"ada": ["coffee", "milk"]}
    assert {one["state"] for one in (await dead("list", "--each", "--all", "-o", "json")).json} == {"settled"}


async def test_an_edited_message_runs_under_a_new_id_in_the_place_of_the_old_one(
    till: Till, dead: Dead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await till.send("ada", "cake", "coffee")
    await till.run.send("till", {"dish": "cake"}, conversation="bob")
    await till.send("eve", "cake")
    await till.run.settled()
    old = {one["conversation"]: one["message_id"] for one in (await dead("list", "--each", "-o", "json")).json}
    await dead("edit", "--conversation", "ada", "--body", "cookie", "--wait")
    assert "does not wait any more" in (await dead("edit", "-c", "ada", "--body", "bun", status=1)).said
    assert "is not application/json" in (await dead("edit", "-c", "bob", "--body", "bun", status=1)).said
    (tmp_path / "body").write_text('{"dish": "bun"}')
    await dead("edit", "-c", "bob", "--body-file", str(tmp_path / "body"), "--wait")
    monkeypatch.setenv("EDITOR", "true")
    assert "was not changed" in (await dead("edit", "-c", "eve", status=1)).said
    monkeypatch.setenv("EDITOR", "sed -i s/cake/scone/")
    await dead("edit", "-c", "eve", "--wait")
    assert till.handled() == {"ada": ["cookie", "coffee"], "bob": ['{"dish": "bun"}'], "eve": ["scone"]}
    assert not set(till.ids()) & set(old.values())
    assert len(set(till.ids())) == 4


async def test_what_expired_runs_when_it_is_redriven_edited_or_not(till: Till, dead: Dead) -> None:
    await till.send("ada", "tea", deadline=-1.0)
    await till.send("bob", "coffee", deadline=-1.0)
    await till.run.settled()
    assert {one["state"] for one in (await dead("list", "--each", "-o", "json")).json} == {"passed"}
    await dead("redrive", "-c", "ada", "--wait")
    await dead("edit", "-c", "bob", "--body", "milk", "--wait")
    assert "nothing was redriven" in (await dead("redrive", "--all", "--yes")).said
    assert till.handled() == {"ada": ["tea"], "bob": ["milk"]}


# -- said twice, or half ----------------------------------------------------------------------------------------------


async def open_letters(till: Till, letters: Letters) -> list[Letter]:
    found = await asyncio.to_thread(letters.read, Selection())
    return [letter for letter in found if letter.state in OPEN]


async def ask_twice(till: Till, kind: type[Redrive] = Redrive) -> None:
    """Two people who saw the same letters redrive them."""
    codec = await asyncio.to_thread(lambda: Codec(open_registry(till.settings)))
    with till.letters() as mine, till.letters() as yours:
        seen = [(letters, await open_letters(till, letters)) for letters in (mine, yours)]
        async with Producer(till.settings, codec) as producer:
            for letters, chosen in seen:
                assert len(chosen) == 2
                outcome = await kind(producer, codec, letters, writer="test").ask("redrive", chosen)
                await asyncio.to_thread(list, outstanding(letters, chosen, outcome))
    await till.run.settled()


async def two_dead(till: Till) -> None:
    await till.send("ada", "cake", "coffee")
    await till.send("bob", "tea", deadline=-1.0)
    await till.run.settled()
    till.mend()


async def test_what_two_people_redrive_runs_once(till: Till) -> None:
    await two_dead(till)
    await ask_twice(till)
    assert till.handled() == {"ada": ["cake", "coffee"], "bob": ["tea"]}


async def test_seed_without_an_identity_what_two_people_redrive_runs_twice(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above sees it, where the message's own id is gone too."""
    monkeypatch.setattr("llmagentos.streams.redrive.REDRIVE", "redrive-nobody-looks-at")
    monkeypatch.setattr("llmagentos.streams.redrive.Redrive._without_deadline", anew)
    await two_dead(till)
    await ask_twice(till)
    assert till.handled() == {"ada": ["cake", "coffee"], "bob": ["tea", "tea"]}


def anew(self: Any, letter: Letter, value: bytes) -> bytes:
    from llmagentos.streams.message import Message, new_id

    codec: Codec = self._codec
    message = codec.message(value, "", 0, 0, 0)
    return codec.encode(Message(message.record | {"deadline": None, "message_id": new_id()}))


class Unplugged(Exception):
    pass


class Fragile(Producer):
    """One whose process ends after so many waits for deliveries."""

    lives = 1

    async def delivered(self, upto: int | None = None) -> None:
        await super().delivered(upto)
        self.lives -= 1
        if self.lives == 0:
            raise Unplugged


class MarkFirst(Redrive):
    """The bug: a letter is settled before its message is in the inbox."""

    async def _chunk(self, wish: Wish, chunk: Any, edited: Any, outcome: Outcome) -> None:
        for letter in chunk:
            if letter.state == "passed":
                self._write(wish, letter, refers=-1, edited=None)
        await self._producer.delivered()
        await super()._chunk(wish, chunk, edited, outcome)


async def interrupted(till: Till, kind: type[Redrive]) -> int:
    """Redrive, unplugged in the middle; how many letters wait then."""
    codec = await asyncio.to_thread(lambda: Codec(open_registry(till.settings)))
    with till.letters() as letters:
        chosen = await open_letters(till, letters)
        with pytest.raises(Unplugged):
            async with Fragile(till.settings, codec) as producer:
                await kind(producer, codec, letters, writer="test").ask("redrive", chosen)
    await till.run.settled()
    with till.letters() as letters:
        return len(await open_letters(till, letters))


async def test_one_that_was_interrupted_is_finished_by_the_next(till: Till, dead: Dead) -> None:
    await two_dead(till)
    assert await interrupted(till, Redrive) == 2
    await dead("redrive", "--all", "--yes", "--wait")
    assert till.handled() == {"ada": ["cake", "coffee"], "bob": ["tea"]}


async def test_seed_settled_before_it_is_sent_an_interruption_loses_it(till: Till, dead: Dead) -> None:
    await two_dead(till)
    assert await interrupted(till, MarkFirst) == 1
    await dead("redrive", "--all", "--yes", "--wait")
    assert till.handled() == {"ada": ["cake", "coffee"]}


async def test_a_command_that_is_killed_in_the_middle_is_typed_again(till: Till, dead: Dead) -> None:
    wanted = {f"c{number}": ["flan", "coffee"] for number in range(40)}
    for conversation, texts in wanted.items():
        await till.send(conversation, *texts)
    await till.run.settled()
    till.mend()
    environment = os.environ | {
        "LLMAGENTOS_BROKERS": brokers(till.settings),
        "LLMAGENTOS_PREFIX": till.settings.prefix,
        "LLMAGENTOS_HOME": str(till.settings.home),
    }
    program = str(Path(sys.executable).with_name("llmagentos"))
    command = [program, "dead", "redrive", "--agent", "till", "--yes", "--rate", "40/s"]
    killed = await asyncio.create_subprocess_exec(*command, env=environment, stdout=DEVNULL, stderr=DEVNULL)
    async with asyncio.timeout(30):
        while not till.handled() and killed.returncode is None:
            await asyncio.sleep(0.01)
    killed.kill()
    await killed.wait()
    await till.run.settled()
    some = len(till.handled())
    assert 0 < some < 40
    done = (await dead("redrive", "--agent", "till", "--yes", "--wait", "-o", "json")).json
    assert done["redriven"] + done["already"] == 40
    assert till.handled() == wanted


async def test_a_letter_that_keeps_no_message_has_it_from_the_inbox_or_says_so(till: Till, dead: Dead) -> None:
    codec = await asyncio.to_thread(lambda: Codec(open_registry(till.settings)))
    inbox = till.settings.topic("agent.till")
    message = await till.run.send("till", "tea", conversation="ada")
    letter = {
        "topic": inbox, "partition": message.partition, "offset": message.offset, "timestamp": 0, "key": b"ada",
        "value": None, "headers": [], "agent": "till", "message_id": message.message_id, "conversation_id": "ada",
        "cause": "invalid", "error": "too large to keep", "traceback": "", "attempts": 0, "worker": "w",
        "died_at": time.time_ns() // 1_000_000,
    }  # fmt: skip
    encode = codec.writer("llmagentos.DeadLetter", "dead_letter")
    topic = till.settings.topic("dead.till")
    await till.run.produce(topic, encode(letter), key="ada")
    gone = letter | {"offset": 9_999, "cause": "lost"}
    await till.run.produce(topic, encode(gone), key="ada")
    await till.run.settled()
    assert (
        "nothing to edit" in (await dead("edit", "till/{partition}/0".format(**letter), "--body", "x", status=1)).said
    )
    done = (await dead("redrive", "--all", "--yes", "--wait", "-o", "json", status=1)).json
    assert (done["redriven"], len(done["gone"])) == (1, 1)
    assert till.handled() == {"ada": ["tea", "tea"]}  # the letter was a lie: it had been handled


def test_a_name_of_no_letter_is_refused() -> None:
    from llmagentos.streams.letters import parse_id

    assert parse_id("dead.a/b/3/17") == ("a/b", 3, 17)
    with pytest.raises(InputError):
        parse_id("till/3")


async def test_a_parked_message_outlives_its_letter(till: Till, dead: Dead) -> None:
    await till.send("ada", "cake", "coffee")
    await till.run.settled()
    with till.letters() as letters:
        (letter,) = await open_letters(till, letters)
        view = letters.views[letter.place]
    codec = await asyncio.to_thread(lambda: Codec(open_registry(till.settings)))
    copy = {"kind": "copy", "claim": view.claim, "writer": "w", "at": 0, "offset": letter.inbox_offset, "cause": "",
            "conversation_id": "ada", "message_id": letter.message_id, "state": "parked", "refers": letter.park,
            "outputs": [], "detail": {}}  # fmt: skip
    topic = till.settings.topic("journal.till")
    with till.letters() as letters:
        parked = await asyncio.to_thread(letters.views.spans.pick, topic, letter.inbox_partition, [letter.park])
    copy["record"] = codec.decode(parked[letter.park].value() or b"")["record"]
    async with Producer(till.settings) as producer:
        encode = codec.writer("llmagentos.Journal", "journal")
        producer.produce(topic, encode(copy), b"ada", letter.inbox_partition)
        await producer.delivered()
    client = AdminClient({"bootstrap.servers": brokers(till.settings)})
    place = TopicPartition(till.settings.topic("dead.till"), letter.partition, letter.offset + 1)
    await asyncio.to_thread(client.delete_records([place])[place].result)

    (group,) = (await dead("list", "-o", "json")).json
    assert (group["states"], group["held"]) == ({"parked": 1}, 1)
    assert "gone" in (await dead("list", "--each")).out
    assert "is parked" in (await dead("show", "-c", "ada", status=1)).said
    till.mend()
    await dead("redrive", "--conversation", "ada", "--wait")
    assert till.handled() == {"ada": ["cake", "coffee"]}


FOREIGN = """
import pathlib

from llmagentos.agents import agent

HERE = pathlib.Path({folder!r})


@agent("orders", topic={topic!r}, key=lambda key, order: order["customer"], retries=0)
async def orders(message, ctx):
    if message.content["dish"] == "cake":
        raise KeyError("cake")
    with (HERE / "handled").open("a") as file:
        file.write(f"{{ctx.conversation}} {{message.message_id}} {{message.content['dish']}}\\n")
"""


async def test_records_of_a_foreign_topic_are_put_back_too(agents: Agents, dead: Dead, tmp_path: Path) -> None:
    topic = agents.settings.topic("shop-orders")
    await asyncio.to_thread(ensure_topics, agents.settings, [(topic, 2, {})])
    source = tmp_path / f"orders_{agents.settings.prefix.rstrip('.')}.py"
    source.write_text(FOREIGN.format(folder=str(tmp_path), topic=topic))
    async with agents.run(source) as run:
        till = Till(run, tmp_path)
        for value in (
            b'{"customer": "ada", "dish": "cake"}',
            b'{"customer": "ada", "dish": "tea"}',
            b'{"dish": "bun"}',
        ):
            await run.produce(topic, value, key="k")
        await run.settled()
        one = (await dead("show", "--conversation", "ada", "-o", "json")).json
        assert (one["state"], one["held"], one["value"]) == ("parked", 1, '{"customer": "ada", "dish": "cake"}')
        right = '{"customer": "ada", "dish": "scone"}'
        await dead("edit", "--conversation", "ada", "--body", right, "--wait")
        assert till.handled() == {"ada": ["scone", "tea"]}
        passed = await dead("redrive", "--agent", "orders", "--dry-run")
        assert f"so into {topic}, where its other readers see them too" in passed.out
        (letter,) = (await dead("list", "--each", "-o", "json")).json
        await dead("edit", letter["letter"], "--body", '{"customer": "eve", "dish": "bun"}', "--wait")
        assert till.handled() == {"ada": ["scone", "tea"], "eve": ["bun"]}
