"""Agents under test: run by real workers in the test's own event loop, on a real Kafka."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import confluent_kafka
import pytest

from llmagentos.agents.agent import Agent
from llmagentos.agents.client import Client
from llmagentos.agents.loading import LoadedModule, load, version_of
from llmagentos.agents.provision import provision
from llmagentos.agents.testing.clock import MovableClock
from llmagentos.agents.testing.letters import DeadLetter, dead_letter, settle_letters
from llmagentos.agents.testing.people import decide_for, what_waits
from llmagentos.agents.testing.reading import Reader, Record, plain
from llmagentos.agents.worker import Worker
from llmagentos.streams.entries import Decoder
from llmagentos.streams.errors import DeploymentError, RecordError, UnknownAgent
from llmagentos.streams.message import Message
from llmagentos.streams.node import Node
from llmagentos.streams.pending import Pending, Selection
from llmagentos.streams.producer import Producer
from llmagentos.streams.redrive import Wish
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.views import Served
from llmagentos.streams.wire import Codec

__all__ = ["Agents", "Run", "running"]

T = TypeVar("T")

#: Real seconds that a test waits for its agents before it fails: far above what a busy machine needs.
WAIT_S = 30.0

#: What is finished is committed this often, not each 200 ms as by default: a test waits for it.
COMMIT_INTERVAL_MS = 20

#: The deadline of a question that the test gives none: beyond any time that a test moves its clock to.
NEVER_S = 10 * 365 * 86_400.0


@asynccontextmanager
async def running(worker: Worker) -> AsyncGenerator[asyncio.Task[None]]:
    """*worker* at work, from when it has joined until it has drained; its task, which ends early where it crashes.

    Raises:
        LLMAgentOSError: the worker refuses to start, or crashed.
    """
    run = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(WAIT_S):
            while worker.state != "running" and not run.done():  # noqa: ASYNC110 - the state is a plain value
                await asyncio.sleep(0.01)
        if run.done():
            await run
        yield run
    finally:
        worker.stop()
        await run


class Agents:
    """The fixture `agents`: runs agents.

    Attributes:
        node: the Kafka and Redis of this test run.
        settings: for this test, with a topic prefix of its own. Whatever calls `Settings.load()` meanwhile gets them.
    """

    def __init__(self, node: Node, settings: Settings, *, beside: Path) -> None:
        self.node = node
        self.settings = settings
        self._beside = beside
        self._topics: dict[str, str] = {}  # agents that were run in this test, to what they read

    @asynccontextmanager
    async def run(
        self, *what: str | Path | Agent, name: str | None = None, workers: int = 1, **settings: Any
    ) -> AsyncGenerator[Run]:
        """Deploy agents, and run them until the block ends.

            async with agents.run("hello.py") as run:
                reply = await run.ask("greeter", "Ada")

        Args:
            what: one Python file (beside the test, or seen from where pytest was called) or one dotted name; or
                agents themselves.
            name: of the deployment, behind the test's prefix; None: the file's, or the id of its Faust app.
            workers: how many, all in this process.
            settings: that differ from the test's, for example `faults="fail=0.5"`.

        Raises:
            DeploymentError: the module can't be loaded, or another one runs that serves an agent of it.
            SettingsError: there is no such setting, or it takes no such value.
            LLMAgentOSError: a worker refuses to start, or crashed.
        """
        # Loaded, not copied, so that a wrong name or value is refused; the test's own are in the environment.
        changed = Settings.load(**{"commit_interval_ms": COMMIT_INTERVAL_MS} | settings)
        with self._loaded(what) as loaded:
            if name is None and loaded.app is not None:
                deployment = loaded.app.conf.id
            else:
                deployment = f"{self.settings.prefix}{name or loaded.module_name.rpartition('.')[2]}"
            cards = await asyncio.to_thread(provision, changed, deployment, loaded)
            self._topics |= {card.name: card.topic for card in cards}
            async with AsyncExitStack() as stack:
                run = Run(changed, deployment, loaded, self._topics, stack)
                for _ in range(workers):
                    await run.add_worker()
                yield run

    @contextmanager
    def _loaded(self, what: Sequence[str | Path | Agent]) -> Generator[LoadedModule]:
        own = [one for one in what if isinstance(one, Agent)]
        if own and len(own) == len(what):
            yield _of(own)
            return
        if len(what) != 1 or own:
            raise DeploymentError(
                f"agents.run() can't run {', '.join(map(repr, what)) or 'nothing'}",
                fix='give one module, run("hello.py") or run("shop.agents"), or agents: run(greeter, poet)',
            )
        (target,) = map(str, what)
        if (self._beside / target).is_file():
            target = str(self._beside / target)
        # Imported anew, so that no test sees what another left in the module; what was there before comes back.
        name = Path(target).stem if target.endswith(".py") else ""
        path, known = list(sys.path), sys.modules.get(name)
        try:
            yield load(target)
        finally:
            sys.path[:] = path
            sys.modules.pop(name, None)
            if known is not None:
                sys.modules[name] = known


def _of(agents: Sequence[Agent]) -> LoadedModule:
    """*agents*, as if a module of their own defined them."""
    path = Path(inspect.getfile(agents[0].function))
    return LoadedModule(
        target=str(path),
        module_name="_".join(agent.name for agent in agents)[:50],
        path=path,
        version=version_of(path),
        agents={agent.name: agent for agent in agents},
        app=None,
    )


class Run:
    """Agents at work. Everything that it tells comes from topics and committed offsets.

    Attributes:
        settings: of the workers.
        deployment: its name.
        workers: of the deployment, in this process.
        clock: that deadlines, retries and handlers' limits go by; the test moves it.
    """

    def __init__(
        self,
        settings: Settings,
        deployment: str,
        loaded: LoadedModule,
        topics: Mapping[str, str],
        stack: AsyncExitStack,
    ) -> None:
        self.settings = settings
        self.deployment = deployment
        self.loaded = loaded
        self.clock = MovableClock()
        self.workers: list[Worker] = []
        self._topics = topics
        self._stack = stack
        self._tasks: list[asyncio.Task[None]] = []
        self._opened: dict[type, Any] = {}
        self._opening = asyncio.Lock()

    async def add_worker(self) -> Worker:
        """One more, which joins and shares the partitions; it runs as long as the others."""
        worker = Worker(self.settings, self.deployment, self.loaded, index=len(self.workers), clock=self.clock)
        self._tasks.append(await self._stack.enter_async_context(running(worker)))
        self.workers.append(worker)
        return worker

    # -- messages in

    async def ask(
        self,
        agent: str,
        content: object,
        *,
        conversation: str | None = None,
        deadline: float | None = None,
        tenant: str = "default",
        attributes: Mapping[str, str] | None = None,
        timeout: float = WAIT_S,
    ) -> Message:
        """Ask *agent* and return its answer.

        Args:
            conversation: None begins a new one.
            deadline: seconds of the test's clock after which it is not to be handled any more; None: none.
            timeout: real seconds after which the test fails.

        Raises:
            AnswerError: it answered with an error: the message became a dead letter.
            UnknownAgent: there is none of that name.
        """
        client = await self._open(Client, lambda: Client(self.settings, name="test", clock=self.clock))
        asking = client.ask(
            agent,
            content,
            conversation=conversation,
            timeout=NEVER_S if deadline is None else deadline,
            tenant=tenant,
            attributes=attributes,
        )
        return await self._while_alive(asking, timeout, f"no answer of {agent!r}")

    async def send(
        self,
        agent: str,
        content: object,
        *,
        conversation: str | None = None,
        message_id: str | None = None,
        deadline: float | None = None,
        tenant: str = "default",
        attributes: Mapping[str, str] | None = None,
    ) -> Message:
        """Send to *agent*, and return the message, with its place, when Kafka has it.

        Args:
            conversation: None begins a new one.
            message_id: None: a new one; the same again is a producer's duplicate.
            deadline: seconds of the test's clock after which it is not to be handled any more; None: none.

        Raises:
            UnknownAgent: there is none of that name, or it has no inbox.
        """
        if self._topics.get(agent) != self.settings.topic(f"agent.{agent}"):
            raise UnknownAgent(
                f"no agent with an inbox is named {agent!r}; there are {', '.join(sorted(self._topics))}",
                fix="correct the name; records of an agent over a topic go there by run.produce()",
            )
        message = Message.create(
            content,
            to=agent,
            conversation=conversation,
            message_id=message_id,
            sender="test",
            deadline=None if deadline is None else int((self.clock.time() + deadline) * 1000),
            tenant=tenant,
            attributes=attributes,
        )
        place = await (await (await self._producer()).send(message))
        return Message(message.record, place.topic, place.partition, place.offset)

    async def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: str | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        """Append a plain record to any topic, by its full name: for agents over topics, and for broken messages."""
        producer = await self._producer()
        producer.produce(
            topic, value, key.encode() if key else None, headers=list(headers.items()) if headers else None
        )
        await producer.delivered()

    # -- what came of them

    async def settled(self, *, timeout: float = WAIT_S) -> None:
        """Return when every message to the test's agents is handled: answered, a dead letter, or kept for later.

        Args:
            timeout: real seconds after which the test fails.
        """
        __tracebackhide__ = True
        reader = await self._reader()
        topics = [self._topics[agent] for agent in self.loaded.agents]
        settling = asyncio.to_thread(reader.settle, topics, timeout)
        left = await self._while_alive(settling, 2 * timeout, "Kafka did not say what is handled")
        if left:
            pytest.fail(
                f"not all is handled after {timeout:g} s: {'; '.join(map(str, left[:5]))}"
                + (f"; {len(left) - 5} more partitions" if len(left) > 5 else "")
                + "; a handler that waits, or pauses before a retry, goes on when run.clock is moved"
            )

    async def outputs(self, conversation: str | None = None, *, timeout: float = WAIT_S) -> list[Message]:
        """What the agents said, when all is handled: answers, tokens, errors, and messages to each other, by time.

        Args:
            conversation: only of that one, and of those that sprang from it; None: of all.
        """
        await self.settled(timeout=timeout)
        kinds = [self.settings.topic("replies")]
        kinds += [self.settings.topic(f"{kind}.{agent}") for kind in ("agent", "answers") for agent in self._topics]
        found: list[Message] = []
        for record in await self._read(kinds):
            try:
                message = (await self._codec()).read(record)
            except RecordError:
                continue  # a broken message of the test's own: it is no output
            if message.sender in self._topics and conversation in (
                None,
                message.conversation_id,
                message.root_conversation,
            ):
                found.append(message)
        return found

    async def dead_letters(self, agent: str | None = None, *, timeout: float = WAIT_S) -> list[DeadLetter]:
        """What could not be handled, when all is handled, by time.

        Args:
            agent: only its; None: of all.
        """
        await self.settled(timeout=timeout)
        letters = await self._read(self.settings.topic(f"dead.{name}") for name in self._named(agent))
        decoder = await asyncio.to_thread(Decoder, self.settings)
        return [await asyncio.to_thread(dead_letter, record, decoder) for record in letters]

    async def redrive(self, agent: str | None = None, *, timeout: float = WAIT_S) -> int:
        """Have what became a dead letter handled again, in its order, with what waits behind it; as `dead redrive`.

        Args:
            agent: only its; None: of all.

        Returns:
            How many letters there were, when all of it is handled.
        """
        return await self._settle_letters("redrive", agent, timeout)

    async def drop(self, agent: str | None = None, *, timeout: float = WAIT_S) -> int:
        """Give dead letters up, and have what waits behind them handled; as `dead drop`. See :meth:`redrive`."""
        return await self._settle_letters("discard", agent, timeout)

    async def waiting(self, conversation: str | None = None, *, agent: str | None = None) -> list[Pending]:
        """What handlers wait for now, the oldest first; as `llmagentos waiting`.

        Args:
            conversation: only of that one; None: of all.
            agent: only its; None: of all.
        """
        codec, served = await self._codec(), self._served(agent)
        selection = Selection(tuple(served), conversation=conversation)
        looking = asyncio.to_thread(what_waits, self.settings, codec, served, selection)
        return await self._while_alive(looking, WAIT_S, "Kafka did not say what waits")

    async def approve(
        self,
        conversation: str,
        *,
        agent: str | None = None,
        by: str = "test",
        why: str = "",
        timeout: float = WAIT_S,
    ) -> None:
        """Approve what the handler of *conversation* asks, as a person would; wait until it has asked.

        Args:
            agent: whose handler, where several ask.
            by, why: given to the handler.
            timeout: real seconds after which the test fails.
        """
        await self._decide(True, conversation, agent, by, why, timeout)

    async def reject(
        self,
        conversation: str,
        *,
        agent: str | None = None,
        by: str = "test",
        why: str = "",
        timeout: float = WAIT_S,
    ) -> None:
        """Reject what the handler of *conversation* asks. See :meth:`approve`."""
        await self._decide(False, conversation, agent, by, why, timeout)

    async def records(self, topic: str, *, timeout: float = WAIT_S) -> list[Record]:
        """The plain records of any topic, by its full name, when all is handled, by time."""
        await self.settled(timeout=timeout)
        return [plain(record) for record in await self._read([topic])]

    async def events(self, kind: str | None = None, *, timeout: float = WAIT_S) -> list[dict[str, Any]]:
        """The events of workers and conversations, when all is handled: `kind`, `agent`, `detail` and so on.

        Args:
            kind: only of that one, for example `fault`.
        """
        await self.settled(timeout=timeout)
        codec = await self._codec()
        found = [codec.decode(record.value() or b"") for record in await self._read([self.settings.topic("events")])]
        return [event for event in found if kind in (None, event["kind"])]

    # -- inside

    async def _settle_letters(self, wish: Wish, agent: str | None, timeout: float) -> int:
        __tracebackhide__ = True
        await self.settled(timeout=timeout)
        producer, codec = await self._producer(), await self._codec()
        settling = settle_letters(self.settings, producer, codec, self._served(agent), wish, timeout)
        letters, left = await self._while_alive(settling, 2 * timeout, "Kafka did not say what is handled")
        if left:
            pytest.fail(f"{left} messages of {letters} dead letters are not handled after {timeout:g} s")
        await self.settled(timeout=timeout)
        return letters

    async def _decide(
        self, approve: bool, conversation: str, agent: str | None, by: str, why: str, timeout: float
    ) -> None:
        __tracebackhide__ = True
        producer, codec = await self._producer(), await self._codec()
        deciding = decide_for(
            self.settings,
            producer,
            codec,
            self._served(agent),
            conversation,
            approve=approve,
            by=by,
            why=why,
            timeout=timeout,
        )
        if await self._while_alive(deciding, 2 * timeout, "Kafka did not say who asks") is None:
            pytest.fail(f"no handler of conversation {conversation!r} asked for an approval within {timeout:g} s")

    def _served(self, agent: str | None) -> dict[str, Served]:
        return {name: Served(self.deployment, self._topics[name]) for name in self._named(agent)}

    def _named(self, agent: str | None) -> list[str]:
        """The agents of this run, or the one that is named."""
        if agent is None:
            return list(self.loaded.agents)
        if agent not in self.loaded.agents:
            raise UnknownAgent(
                f"no agent of this run is named {agent!r}; there are {', '.join(sorted(self.loaded.agents))}",
                fix="correct the name",
            )
        return [agent]

    async def _read(self, topics: Iterable[str]) -> list[confluent_kafka.Message]:
        reader = await self._reader()
        return await asyncio.to_thread(reader.read, list(topics))

    async def _reader(self) -> Reader:
        return await self._open(Reader, lambda: _closing(lambda: Reader(self.settings, self.deployment)))

    async def _producer(self) -> Producer:
        codec = await self._codec()
        return await self._open(Producer, lambda: Producer(self.settings, codec))

    async def _codec(self) -> Codec:
        return await self._open(Codec, lambda: _made(lambda: Codec(open_registry(self.settings))))

    async def _open(self, kind: type[T], make: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        """The run's one *kind*, made when it is first needed, closed before the workers end."""
        async with self._opening:
            if kind not in self._opened:
                self._opened[kind] = await self._stack.enter_async_context(make())
            return self._opened[kind]

    async def _while_alive(self, doing: Coroutine[Any, Any, T], timeout: float, missing: str) -> T:
        """What *doing* returns; an error at once where a worker crashes meanwhile."""
        __tracebackhide__ = True
        task = asyncio.create_task(doing)
        try:
            done, _ = await asyncio.wait((task, *self._tasks), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if task in done:
                return await task
            for ended in done:
                await ended  # raises what it crashed by
                pytest.fail("a worker has ended, as somebody told it to stop")
            pytest.fail(f"{missing} within {timeout:g} s")
        finally:
            task.cancel()


@asynccontextmanager
async def _made(make: Callable[[], T]) -> AsyncGenerator[T]:
    """What *make* makes in a thread, as it asks Kafka."""
    yield await asyncio.to_thread(make)


@asynccontextmanager
async def _closing(make: Callable[[], Reader]) -> AsyncGenerator[Reader]:
    reader = await asyncio.to_thread(make)
    try:
        yield reader
    finally:
        await asyncio.to_thread(reader.close)
