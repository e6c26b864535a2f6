"""Memory where Redis is emptied, killed, set back, and where workers lose their partitions at any moment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents, Run
from llmagentos.streams.mirror import Mirror
from llmagentos.streams.node.ports import free
from llmagentos.streams.node.valkey import Valkey

from .test_ownership import write


class Server:
    """A Redis of the test's own."""

    def __init__(self, home: Path) -> None:
        self.valkey = Valkey(home, free(1)[0])
        self.url = self.valkey.url
        self.start()

    def start(self) -> None:
        (self.valkey.home / "run").mkdir(parents=True, exist_ok=True)
        (self.valkey.home / "logs").mkdir(exist_ok=True)
        self.valkey.start()
        self.valkey.wait(10)

    def kill(self) -> None:
        self.valkey.daemon.kill()
        self.valkey.daemon.stop(5)

    def do(self, command: Callable[[redis.Redis], Any]) -> Any:
        with redis.Redis.from_url(self.url) as client:
            return command(client)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "redis")
    yield server
    server.valkey.daemon.stop(5)


@agent("counter", memory=dict)
async def counter(message: Message, ctx: Context) -> Any:
    """Appends what it is sent."""
    words = ctx.memory.setdefault("words", [])
    words.append(message.text)
    if message.text.endswith("!"):
        await asyncio.sleep(random.random() / 50)
    return words


@agent("plain")
async def plain(message: Message, ctx: Context) -> str:
    return message.text


async def say(run: Run, *words: str, conversation: str = "a") -> list[str]:
    *before, last = words
    for word in before:
        await run.ask("counter", word, conversation=conversation)
    return (await run.ask("counter", last, conversation=conversation)).content


async def in_redis(run: Run) -> None:
    """Wait until Redis has all that was remembered; before that the worker has it at hand."""
    async with asyncio.timeout(20):
        for worker in run.workers:
            for assignment in worker._inboxes["counter"].owned.values():  # pyright: ignore[reportPrivateUsage]
                while assignment.memory is None or assignment.memory.behind:
                    await asyncio.sleep(0.01)


async def empty_in_the_middle(agents: Agents, server: Server) -> list[str]:
    async with agents.run(counter, redis=server.url) as run:
        await say(run, "1", "2")
        await in_redis(run)
        server.do(lambda client: client.flushall())
        return await say(run, "3")


async def test_redis_is_emptied_in_the_middle(agents: Agents, server: Server) -> None:
    assert await empty_in_the_middle(agents, server) == ["1", "2", "3"]


async def test_memory_that_believes_an_empty_redis_is_seen(
    agents: Agents, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seeded bug: nobody looks at the offset that Redis reflects."""
    fields = Mirror._fields  # pyright: ignore[reportPrivateUsage]

    async def believing(self: Mirror, names: list[Any]) -> list[bytes | None]:
        found = await fields(self, names)
        if len(names) > 1 and names[0] == "@offset" and names[1] != "@when":
            found[0] = b"%d" % self.reflects
        return found

    monkeypatch.setattr(Mirror, "_fields", believing)
    assert await empty_in_the_middle(agents, server) == ["3"]


async def test_redis_is_killed_and_comes_back_with_nothing(
    agents: Agents, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with agents.run(counter, plain, redis=server.url) as run:
        await say(run, "1", "2")
        await in_redis(run)
        server.kill()
        asked = asyncio.create_task(say(run, "3"))
        others = [asyncio.create_task(say(run, "x", conversation=f"c{n}")) for n in range(5)]
        for n in range(5):
            assert (await run.ask("plain", f"hello {n}")).text == f"hello {n}"
        async with asyncio.timeout(20):
            while "is out of reach" not in caplog.text:
                await asyncio.sleep(0.02)
        assert not asked.done()
        for file in (server.valkey.folder / "appendonlydir").iterdir():
            file.unlink()
        server.start()
        assert await asked == ["1", "2", "3"]
        assert await asyncio.gather(*others) == [["x"]] * 5
        assert "Redis is back" in caplog.text


async def test_a_worker_ends_at_once_though_its_messages_wait_for_redis(agents: Agents, server: Server) -> None:
    async with agents.run(counter, redis=server.url) as run:
        await say(run, "1")
        await in_redis(run)
        server.kill()
        await run.send("counter", "2", conversation="a")
        async with asyncio.timeout(20):
            while not run.workers[0]._inboxes["counter"]._waiting:  # pyright: ignore[reportPrivateUsage]
                await asyncio.sleep(0.01)
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < run.settings.drain_timeout_s
    server.start()
    async with agents.run(counter, redis=server.url) as run:
        assert await say(run, "3") == ["1", "2", "3"]


async def test_redis_that_falls_back_to_yesterday_is_followed_up(agents: Agents, server: Server) -> None:
    async with agents.run(counter, redis=server.url, partitions=1) as run:
        await say(run, "1")
        await in_redis(run)
        (key,) = server.do(lambda client: client.keys("*"))
        old = server.do(lambda client: client.dump(key))
        await say(run, "2", "3")
        await in_redis(run)
        server.do(lambda client: client.restore(key, 0, old, replace=True))
        assert await say(run, "4") == ["1", "2", "3", "4"]


async def test_a_new_owner_needs_no_scan_and_one_that_finds_nonsense_makes_it_anew(
    agents: Agents, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmagentos.streams import mirror

    read: list[int] = []

    def reading(spans: Any, place: Any, start: int, end: int) -> Any:
        read.append(end - start)
        return original(spans, place, start, end)

    original = mirror._read  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(mirror, "_read", reading)
    async with agents.run(counter, redis=server.url, partitions=1) as run:
        await say(run, *"123")
    async with agents.run(counter, redis=server.url, partitions=1) as run:
        assert await say(run, "4") == list("1234")
    assert sum(read) <= 1  # what was written last may not have been in Redis yet
    (key,) = server.do(lambda client: client.keys("*"))
    server.do(lambda client: client.hset(key, "@offset", 1_000))
    async with agents.run(counter, redis=server.url, partitions=1) as run:
        assert await say(run, "5") == list("12345")
    assert sum(read) >= 4


async def test_each_message_finds_what_the_one_before_it_left_whatever_happens(
    agents: Agents, server: Server, request: pytest.FixtureRequest
) -> None:
    """Workers lose their partitions in the middle, come and go; Redis is emptied. Each word is there once, in order."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    conversations = [f"c{n}" for n in range(8)]
    sent: dict[str, list[str]] = {name: [] for name in conversations}
    async with agents.run(counter, redis=server.url, partitions=2, drain_timeout_s=0.2) as run:
        for n in range(200):
            name = chance.choice(conversations)
            word = f"{n}" + "!" * chance.randrange(2)
            sent[name].append(word)
            await run.send("counter", word, conversation=name)
            fault = chance.randrange(40)
            if fault == 0:  # as of a worker that took over: what is under way is void
                await write(run.settings, "counter", chance.randrange(2), kind="claim")
            elif fault == 1:
                server.do(lambda client: client.flushall())
            elif fault == 2 and len(run.workers) < 3:
                await run.add_worker()
            elif fault == 3:
                await asyncio.sleep(chance.random() / 10)
        await run.settled(timeout=60)
        for name in conversations:
            assert await say(run, "end", conversation=name) == [*sent[name], "end"]
        replies: dict[str, list[list[str]]] = {name: [] for name in conversations}
        seen: set[str] = set()
        for reply in await run.outputs():
            if reply.type == "result" and reply.message_id not in seen:
                seen.add(reply.message_id)
                replies[reply.conversation_id].append(reply.content)
    for name, lists in replies.items():
        words = [*sent[name], "end"]
        assert sorted(map(len, lists)) == list(range(1, len(words) + 1))
        assert all(each == words[: len(each)] for each in lists)
