"""`llmagentos tail`: what it shows, in which order, and what it says of bad input."""

from __future__ import annotations

import asyncio
import json
import signal
from itertools import pairwise

import pytest

from llmagentos.streams.message import Message
from llmagentos.streams.settings import Settings

from .conftest import Cast, Command, environment, lines, program


async def tail(command: Command, *arguments: str, **options: object) -> list[dict[str, object]]:
    return lines(await asyncio.to_thread(command, "tail", *arguments, "-o", "json", **options))


async def test_topics_are_merged_in_time_order(stage: Cast, command: Command) -> None:
    for number in range(40):
        message = Message.create(number, to="greeter", conversation=f"c{number % 7}")
        stage.put(("agent.greeter", "agent.poet", "replies")[number % 3], message, (number * 17) % 40)
    await stage.producer.delivered()
    found = await tail(command, "--from", "beginning")
    assert sorted(record["body"] for record in found) == list(range(40))
    places: dict[tuple[object, object], list[dict[str, object]]] = {}
    for record in found:
        places.setdefault((record["topic"], record["partition"]), []).append(record)
    for records in places.values():
        assert all(a["offset"] < b["offset"] for a, b in pairwise(records))  # type: ignore[operator]


async def test_times_in_order_come_out_in_order(stage: Cast, command: Command) -> None:
    for number in range(60):
        message = Message.create(number, to="greeter", conversation=f"c{number % 7}")
        stage.put(("agent.greeter", "agent.poet", "replies")[number % 3], message, number)
    await stage.producer.delivered()
    assert [record["body"] for record in await tail(command)] == list(range(60))


async def test_a_conversation_shows_across_all_agents_and_children(stage: Cast, command: Command) -> None:
    for number in range(5):
        await stage.dialogue(f"order-{number}", number * 10)
    await stage.dialogue("order-11", 5)  # a name that another one begins with
    found = await tail(command, "--conversation", "order-1")
    assert [(r["conversation_id"], r["type"], r["sender"]) for r in found] == [
        ("order-1", "task", "client"),
        ("order-1/1", "task", "greeter"),
        ("order-1/2", "task", "greeter"),
        ("order-1/1", "result", "poet"),
        ("order-1/2", "result", "poet"),
        *[("order-1", "token", "greeter")] * 5,
        ("order-1", "result", "greeter"),
    ]
    only = await tail(command, "replies", "--conversation", "order-1")
    assert {r["conversation_id"] for r in only} == {"order-1"}
    assert {r["topic"] for r in only} == {stage.settings.topic("replies")}
    child = await tail(command, "-c", "order-1/2")
    assert [r["sender"] for r in child] == ["greeter", "poet"]
    agent = await tail(command, "greeter", "-c", "order-1/2")
    assert [r["topic"] for r in agent] == [stage.settings.topic("answers.greeter")]


async def test_a_dialogue_reads_as_one(stage: Cast, command: Command) -> None:
    question = await stage.dialogue("order-1")
    dead = stage.codec.writer("llmagentos.DeadLetter", "dead_letter")
    letter = {
        "topic": stage.settings.topic("agent.greeter"), "partition": 3, "offset": 9, "timestamp": stage.begin_ms,
        "key": b"order-1", "value": stage.codec.encode(question), "headers": [], "agent": "greeter",
        "message_id": question.message_id, "conversation_id": "order-1", "cause": "failed",
        "error": "ValueError: no rhyme", "traceback": "Traceback ...\nValueError: no rhyme", "attempts": 3,
        "worker": "w", "died_at": stage.begin_ms + 900,
    }  # fmt: skip
    stage.raw("dead.greeter", dead(letter), 900, key="order-1")
    await stage.producer.delivered()
    done = await asyncio.to_thread(command, "tail", "-c", "order-1")
    shown = done.stdout.splitlines()
    assert shown[0].startswith("conversation order-1")
    assert "client → greeter" in shown[1]
    assert "two lines, please" in shown[1]
    assert "+1 ms" in shown[2]
    assert "/1 greeter → poet" in shown[2]
    assert "+99 ms" in shown[4]  # the answer after its question, not after the line before
    assert "+198 ms" in shown[5]
    assert "w0 w1 w2 w3 w4" in shown[6]
    assert "(5 tokens in 4 ms)" in shown[6]
    assert "line 1 ⏎ line 2" in shown[7]
    assert "failed: ValueError: no rhyme" in shown[8]
    assert "12 records of client, greeter, poet in 900 ms; 20 tokens in, 10 out, $0.0200" in shown[9]
    full = await asyncio.to_thread(command, "tail", "-c", "order-1", "--full")
    assert "    line 1\n    line 2\n" in full.stdout
    assert "    Traceback ...\n" in full.stdout
    found = await tail(command, "dead.greeter")
    assert (found[0]["type"], found[0]["cause"], found[0]["body"]) == ("dead-letter", "failed", "two lines, please")


async def test_where_limit_and_raw(stage: Cast, command: Command) -> None:
    for number in range(20):
        message = Message.create(
            {"n": number}, to="greeter", conversation=f"c{number}", attributes={"odd": str(number % 2)}
        )
        stage.put("agent.greeter", message, number)
    await stage.producer.delivered()
    found = await tail(command, "greeter", "--where", "body.n > 3 and attributes.odd == '1'", "--limit", "3")
    assert [record["body"] for record in found] == [{"n": 5}, {"n": 7}, {"n": 9}]
    raw = await asyncio.to_thread(command, "tail", "greeter", "-o", "raw", "-n", "2")
    assert raw.stdout == '{"n":0}\n{"n":1}\n'
    none = await asyncio.to_thread(command, "tail", "greeter", "--where", "body.m > 3")
    assert none.stdout == ""
    assert "can't be told of 20 records" in none.stderr
    assert "'m'" in none.stderr


async def test_from_and_to(stage: Cast, command: Command) -> None:
    for number in range(10):
        stage.put("agent.greeter", Message.create(number, to="greeter", conversation="one"), number * 1000)
    await stage.producer.delivered()

    async def bodies(*arguments: str) -> list[object]:
        return [record["body"] for record in await tail(command, "greeter", *arguments)]

    def at(number: int) -> str:
        from datetime import UTC, datetime

        return datetime.fromtimestamp((stage.begin_ms + number * 1000) / 1000, UTC).isoformat()

    assert await bodies() == list(range(10))  # within ten minutes
    assert await bodies("--from", "3", "--to", "6") == [3, 4, 5]
    assert await bodies("--from", "-2") == [8, 9]
    assert await bodies("--from", at(4)) == [4, 5, 6, 7, 8, 9]
    assert await bodies("--from", "beginning", "--to", at(2)) == [0, 1]
    assert await bodies("--from", "end") == []
    nothing = await asyncio.to_thread(command, "tail", "greeter", "--from", "-1ms")
    assert "nothing in greeter" in nothing.stderr


async def test_what_can_not_be_decoded_is_shown_with_place_and_reason(stage: Cast, command: Command) -> None:
    whole = stage.codec.encode(Message.create("fine", to="greeter", conversation="c"))
    spoilt = bytearray(whole)
    spoilt[-12:-8] = b"\xff" * 4
    bad = [b'{"not": "avro"}', b"\0\0\0\x03\xe7abc", whole[:40], None, b"", whole[:3]]
    for number, value in enumerate(bad):
        stage.raw("agent.greeter", value, number, key="c")
    stage.raw("agent.greeter", whole, 10, key="c")
    stage.raw("agent.greeter", whole, 11, key=None, partition=0)
    await stage.producer.delivered()
    found = await tail(command, "greeter")
    assert [record.get("body") for record in found[-2:]] == ["fine", "fine"]
    reasons = [str(record["error"]) for record in found[:-2]]
    for reason, said in zip(reasons, ("magic", "no schema 999", "ends too early", "tombstone", "", ""), strict=True):
        assert said in reason
    assert [record["offset"] for record in found[:-2]] == list(range(len(bad)))
    assert found[0]["value"] == '{"not": "avro"}'
    pretty = await asyncio.to_thread(command, "tail", "greeter")
    assert f"{stage.settings.topic('agent.greeter')}[{stage.partition('c')}]@1" in pretty.stdout
    one = await tail(command, "-c", "c")
    assert len(one) == len(bad) + 1  # by its key, where nothing else says what it belongs to


async def test_follow_shows_what_comes_and_ends_with_130(stage: Cast, command: Command) -> None:
    stage.put("agent.greeter", Message.create("before", to="greeter", conversation="c"), 0)
    await stage.producer.delivered()
    process = await asyncio.create_subprocess_exec(
        program(), "tail", "--follow", "-o", "json",
        env=environment(stage.settings), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            assert json.loads(await process.stdout.readline())["body"] == "before"
            stage.put("agent.poet", Message.create("second", to="poet", conversation="d"), 60_001)
            stage.put("agent.greeter", Message.create("first", to="greeter", conversation="c"), 60_000)
            await stage.producer.delivered()
            bodies = [json.loads(await process.stdout.readline())["body"] for _ in range(2)]
            assert bodies == ["first", "second"]
            process.send_signal(signal.SIGINT)
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 130
    assert b"Traceback" not in said


async def test_following_a_conversation_finds_its_children(stage: Cast) -> None:
    process = await asyncio.create_subprocess_exec(
        program(), "tail", "-f", "-c", "order-7", "-o", "json",
        env=environment(stage.settings), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            await stage.dialogue("order-8")
            await stage.dialogue("order-7")
            found = [json.loads(await process.stdout.readline()) for _ in range(11)]
    finally:
        process.terminate()
        await process.wait()
    assert {record["root_conversation"] for record in found} == {"order-7"}
    assert {record["conversation_id"] for record in found} == {"order-7", "order-7/1", "order-7/2"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gretr"], ["no topic or agent 'gretr'", "greeter"]),
        (["greeter", "--from", "yesterday"], ["--from 'yesterday'", "-10m"]),
        (["greeter", "--to", "x"], ["--to 'x'"]),
        (["greeter", "--where", "type == "], ["--where", "character 8", "type =="]),
        (["greeter", "--where", "typ == 1"], ["did you mean 'type'"]),
        (["--follow", "--to", "5"], ["--follow", "--to"]),
        (["--conversation", ""], ["--conversation is empty"]),
    ],
)
async def test_bad_arguments_say_what_and_how(
    stage: Cast, command: Command, arguments: list[str], said: list[str]
) -> None:
    done = await asyncio.to_thread(command, "tail", *arguments, status=1)
    for part in said:
        assert part in done.stderr
    assert "fix:" in done.stderr


def test_a_cluster_out_of_reach_is_said(settings: Settings, command: Command) -> None:
    done = command("tail", status=1, LLMAGENTOS_BROKERS="127.0.0.1:1")
    assert "127.0.0.1:1" in done.stderr
    assert "out of reach" in done.stderr
    assert "fix:" in done.stderr


async def test_names_complete_in_the_shell(stage: Cast, command: Command) -> None:
    done = await asyncio.to_thread(
        command, "tail", "gre", _LLMAGENTOS_COMPLETE="complete_bash", COMP_WORDS="llmagentos tail gre", COMP_CWORD="2"
    )
    assert done.stdout.split() == ["greeter"]
