"""The client: asks agents from outside, and reads their answers and tokens."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Self

import confluent_kafka

from llmagentos.agents.cards import read_cards
from llmagentos.streams.admin import partitions_of
from llmagentos.streams.clock import Clock
from llmagentos.streams.errors import (
    AnswerError,
    AnswerTimeout,
    RecordError,
    SchemaError,
    TopicError,
    UnknownAgent,
)
from llmagentos.streams.follower import Follower
from llmagentos.streams.message import Message
from llmagentos.streams.partition import murmur2_partition
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec

__all__ = ["Client"]

log = logging.getLogger(__name__)


class Client:
    """Talks to agents from any asyncio program.

        async with Client() as client:
            answer = await client.ask("greeter", "Ada")
            print(answer.text)

    Args:
        settings: None: :meth:`Settings.load`.
        name: what the agents see as sender.
        clock: that questions' deadlines are told by.
    """

    def __init__(self, settings: Settings | None = None, *, name: str = "client", clock: Clock | None = None) -> None:
        self._settings = settings or Settings.load()
        self._name = name
        self._clock = clock or Clock()
        self._replies = self._settings.topic("replies")
        self._streams: dict[str, asyncio.Queue[Message]] = {}  # by conversation
        self._waiting: dict[str, asyncio.Future[Message]] = {}  # by question
        self._inboxes: set[str] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connect.

        Raises:
            UnknownAgent: nothing was ever deployed on this cluster.
            BrokerError: it does not answer.
        """
        settings = self._settings
        try:
            self._partitions = await asyncio.to_thread(partitions_of, settings, self._replies)
        except TopicError:
            raise UnknownAgent(
                f"no agent was ever deployed here: topic {self._replies} does not exist",
                fix="`llmagentos deploy FILE` first",
            ) from None
        self._codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
        self._producer = Producer(settings, self._codec)
        await self._producer.start()
        self._follower = Follower(settings, self._deliver, name=f"{self._name}-replies")

    async def stop(self) -> None:
        """Disconnect, when everything sent is acknowledged."""
        try:
            await self._producer.stop()
        finally:
            await self._follower.stop()

    async def ask(
        self,
        agent: str,
        content: object,
        *,
        conversation: str | None = None,
        timeout: float | None = None,
        tenant: str = "default",
        attributes: Mapping[str, str] | None = None,
    ) -> Message:
        """Ask *agent* and wait for its answer.

        Args:
            conversation: None begins a new one.
            timeout: seconds; None: the settings' `ask_timeout_s`.

        Raises:
            UnknownAgent: nothing serves an agent of that name.
            AnswerError: it answered with an error.
            AnswerTimeout: it did not answer in time.
        """
        question, timeout = await self._question(agent, content, conversation, timeout, tenant, attributes)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[question.message_id] = future
        try:
            await self._producer.send(question)
            async with asyncio.timeout(timeout):
                answer = await future
        except TimeoutError:
            raise self._timeout(question, timeout) from None
        finally:
            self._waiting.pop(question.message_id, None)
        return _checked(answer, agent)

    async def stream(
        self,
        agent: str,
        content: object,
        *,
        conversation: str | None = None,
        timeout: float | None = None,
        tenant: str = "default",
        attributes: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Message]:
        """As :meth:`ask`, but gives each token of the conversation as it comes, and the answer last.

        One conversation can be streamed by one caller at a time.
        """
        question, timeout = await self._question(agent, content, conversation, timeout, tenant, attributes)
        queue: asyncio.Queue[Message] = asyncio.Queue()
        if question.conversation_id in self._streams:
            raise RuntimeError(f"conversation {question.conversation_id} is streamed already")
        self._streams[question.conversation_id] = queue
        until = time.monotonic() + timeout
        try:
            await self._producer.send(question)
            while True:
                async with asyncio.timeout(until - time.monotonic()):
                    message = await queue.get()
                if message.type == "token":
                    yield message
                elif message.caused_by == question.message_id:
                    yield _checked(message, agent)
                    return
        except TimeoutError:
            raise self._timeout(question, timeout) from None
        finally:
            del self._streams[question.conversation_id]

    async def tell(
        self,
        agent: str,
        content: object,
        *,
        conversation: str | None = None,
        tenant: str = "default",
        attributes: Mapping[str, str] | None = None,
    ) -> Message:
        """Send to *agent* and wait until Kafka has it, not for an answer.

        Returns:
            The message, with its place.
        """
        await self._know(agent)
        message = Message.create(
            content, to=agent, conversation=conversation, sender=self._name, tenant=tenant, attributes=attributes
        )
        place = await (await self._producer.send(message))
        return Message(message.record, place.topic, place.partition, place.offset)

    async def _question(
        self,
        agent: str,
        content: object,
        conversation: str | None,
        timeout: float | None,
        tenant: str,
        attributes: Mapping[str, str] | None,
    ) -> tuple[Message, float]:
        """The message to send, its partition of `replies` followed before it is sent."""
        await self._know(agent)
        wait_s = self._settings.ask_timeout_s if timeout is None else timeout
        question = Message.create(
            content,
            to=agent,
            conversation=conversation,
            sender=self._name,
            tenant=tenant,
            attributes=attributes,
            deadline=int((self._clock.time() + wait_s) * 1000),
        )
        # The same partition as of everything else of the conversation in `replies`, its tokens for one.
        partition = murmur2_partition(question.conversation_id.encode(), self._partitions)
        question.record["reply_to"] = {"topic": self._replies, "partition": partition}
        await self._follower.follow(self._replies, partition)
        return question, wait_s

    async def _know(self, agent: str) -> None:
        if agent in self._inboxes:
            return
        cards = await asyncio.to_thread(read_cards, self._settings, self._codec)
        if agent not in cards:
            raise UnknownAgent(
                f"no agent is named {agent!r}; there are {', '.join(sorted(cards)) or 'none'}",
                fix="`llmagentos deploy` the module that defines it, or correct the name",
            )
        if cards[agent].topic != self._settings.topic(f"agent.{agent}"):
            raise UnknownAgent(
                f"agent {agent!r} has no inbox: it reads topic {cards[agent].topic!r}",
                fix="produce records to that topic",
            )
        self._inboxes.add(agent)

    def _timeout(self, question: Message, timeout_s: float) -> AnswerTimeout:
        return AnswerTimeout(
            f"agent {question.recipient!r} gave no answer within {timeout_s:.1f} s to message {question.message_id}"
            f" of conversation {question.conversation_id}",
            kept=f"the message is in {self._settings.topic('agent.' + question.recipient)}",
            fix="see `llmagentos ps`, `llmagentos lag` and `llmagentos logs`; `llmagentos dead list` tells whether its"
            " conversation waits behind a dead letter; or give a longer --timeout",
        )

    def _deliver(self, records: Sequence[confluent_kafka.Message]) -> None:
        for record in records:
            try:
                message = self._codec.read(record)
            except (RecordError, SchemaError) as error:
                log.warning("a reply was left unread: %s", error)
                continue
            future = self._waiting.get(message.caused_by or "")
            if future is not None:
                if message.type != "token" and not future.done():
                    future.set_result(message)
                continue
            queue = self._streams.get(message.conversation_id)
            if queue is not None:
                queue.put_nowait(message)


def _checked(answer: Message, agent: str) -> Message:
    if answer.type == "error":
        said = answer.content
        if isinstance(said, dict) and said.get("cause") == "cancelled":
            raise AnswerError(
                f"agent {agent!r} did not answer: {said.get('error')}",
                fix=f"`llmagentos steps {answer.conversation_id}` shows what was done",
            )
        raise AnswerError(
            f"agent {agent!r} failed: {said.get('error', said) if isinstance(said, dict) else said}",
            kept=f"the message is a dead letter in dead.{agent}",
            fix=f"`llmagentos tail dead.{agent}` shows it with its traceback",
        )
    return answer
