"""Replay brings every open message once and in order, and reads little in vain, however conversations were held."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from llmagentos.agents.replay import Replay
from llmagentos.streams.journal import View
from llmagentos.streams.unfinished import Entry

CONVERSATIONS, HELD = 50, 100


def record(kind: str, conversation_id: str, offset: int, refers: int = -1) -> dict[str, Any]:
    """Of the journal; the claim is its first."""
    claim = -1 if kind in ("claim", "redrive") else 0
    return {
        "kind": kind, "claim": claim, "offset": offset, "refers": refers, "conversation_id": conversation_id,
        "message_id": f"m{offset}", "record": None, "at": 0,
    }  # fmt: skip


def journal(order: Sequence[tuple[str, int]]) -> View:
    """A journal in which the first message of each conversation was parked and redriven, the others held in *order*."""
    view = View()
    records = [("claim", "", -1, -1)]
    for number in range(CONVERSATIONS):
        records.append(("park", f"c{number}", number, -1))
    for place, (name, _) in enumerate(order):
        records.append(("held", name, CONVERSATIONS + place, -1))
    for number in range(CONVERSATIONS):
        records.append(("redrive", f"c{number}", number, number + 1))
    for at, (kind, name, offset, refers) in enumerate(records):
        view.fold(record(kind, name, offset, refers), at)
    return view


IN_TURNS = [(f"c{number}", turn) for turn in range(HELD) for number in range(CONVERSATIONS)]
ONE_BY_ONE = [(f"c{number}", turn) for number in range(CONVERSATIONS) for turn in range(HELD)]


@pytest.mark.parametrize("order", [IN_TURNS, ONE_BY_ONE], ids=["in turns", "one by one"])
async def test_all_comes_once_in_order_and_little_is_read_in_vain(order: Sequence[tuple[str, int]]) -> None:
    view = journal(order)
    total = len(view)
    read = 0
    brought: list[Entry] = []

    async def payloads(entries: Sequence[Entry]) -> dict[int, Mapping[str, Any]]:
        nonlocal read
        places = [entry.payload_at for entry in entries]
        read += max(places) - min(places) + 1  # a reading goes from the first to the last
        return {place: {} for place in places}

    def put(entry: Entry, payload: Mapping[str, Any]) -> None:
        brought.append(entry)
        asyncio.get_running_loop().call_soon(handled, entry)

    def handled(entry: Entry) -> None:
        view.fold(record("drop", entry.conversation_id, entry.offset), view.position)
        replay.ended(entry)

    assignment: Any = SimpleNamespace(
        view=view.open, journaled=set(), open=True, ownership=SimpleNamespace(payloads=payloads)
    )
    room: Any = SimpleNamespace(left=lambda: 1_000)
    failed: list[BaseException] = []
    replay = Replay(assignment, put, room, failed.append)
    for name in list(view.open):
        replay.consider(name)
    async with asyncio.timeout(10):
        while len(brought) < total and not failed:
            await asyncio.sleep(0)
    assert not failed
    assert sorted(entry.offset for entry in brought) == list(range(total))
    for number in range(CONVERSATIONS):
        offsets = [entry.offset for entry in brought if entry.conversation_id == f"c{number}"]
        assert offsets == sorted(offsets)
    assert read < 3 * total


async def test_what_ends_while_the_partition_goes_brings_nothing_more() -> None:
    """A handler that is let go, as its partition is another worker's, would run again here: side by side with that."""
    view = journal(ONE_BY_ONE)
    brought: list[Entry] = []

    async def payloads(entries: Sequence[Entry]) -> dict[int, Mapping[str, Any]]:
        return {entry.payload_at: {} for entry in entries}

    assignment: Any = SimpleNamespace(
        view=view.open, journaled=set(), open=True, ownership=SimpleNamespace(payloads=payloads)
    )
    room: Any = SimpleNamespace(left=lambda: 1)
    replay = Replay(assignment, lambda entry, _: brought.append(entry), room, lambda error: pytest.fail(str(error)))
    replay.consider("c0")
    async with asyncio.timeout(10):
        while not brought:
            await asyncio.sleep(0)
    replay.stop()
    replay.ended(brought[0])
    replay.consider("c1")
    for _ in range(100):  # turns of the loop: the first one takes three
        await asyncio.sleep(0)
    assert [entry.offset for entry in brought] == [0]
