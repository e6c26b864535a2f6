"""The desk: what a gateway process has open, and what all of its routes go by."""

from __future__ import annotations

import asyncio
import os
import socket
from base64 import b64encode
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from typing import Any, cast

from starlette.requests import Request

from llmagentos.agents.cards import Card
from llmagentos.agents.gateway.access import Access, Caller
from llmagentos.agents.gateway.keys import Key
from llmagentos.agents.gateway.people import People
from llmagentos.agents.gateway.replies import Replies
from llmagentos.agents.gateway.tables import Tables
from llmagentos.agents.gateway.talk import Said, Talk
from llmagentos.streams.admin import ensure_topics, partitions_of
from llmagentos.streams.errors import UnknownAgent
from llmagentos.streams.message import Message
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.topology import named
from llmagentos.streams.wire import Codec

__all__ = ["Desk"]

#: What a gateway reads and writes of its own.
_TOPICS = ("replies", "events", "cards", "keys")


class Desk:
    """A gateway's clients of Kafka and Redis, from :meth:`start` to :meth:`stop`.

    Args:
        open_to_all: whether no key is needed.

    Attributes:
        access: tells callers.
        talk: sends, and follows what is said.
        people: history, approvals, cancellations.
    """

    access: Access
    talk: Talk
    people: People

    def __init__(self, settings: Settings, *, open_to_all: bool) -> None:
        self._settings = settings
        self._open = open_to_all
        self._opened = AsyncExitStack()

    async def start(self) -> None:
        """Connect.

        Raises:
            BrokerError, TopicError: the cluster is out of reach, or its topics are not as they must be.
        """
        settings = self._settings
        name = f"gateway-{socket.gethostname()}-{os.getpid()}"
        await asyncio.to_thread(ensure_topics, settings, [named(topic) for topic in _TOPICS])
        partitions = await asyncio.to_thread(partitions_of, settings, settings.topic("replies"))
        codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
        await asyncio.to_thread(codec.prepare)
        self._tables = Tables(settings, codec, {"cards": lambda record: Card(**record), "keys": Key.of}, name=name)
        self._opened.push_async_callback(self._tables.stop)
        await self._tables.start()
        replies = Replies(settings, codec, partitions, name=name)
        self._opened.push_async_callback(replies.stop)
        producer = await self._opened.enter_async_context(Producer(settings, codec))
        self.talk = Talk(settings, producer, replies)
        self.people = People(settings, codec, producer, self._cards)
        self._opened.push_async_callback(self.people.stop)
        self.access = Access(settings, self._keys, open_to_all=self._open)
        self._opened.push_async_callback(self.access.stop)

    async def stop(self) -> None:
        """Disconnect, when everything sent is acknowledged."""
        await self._opened.aclose()

    async def caller(self, request: Request) -> Caller:
        """Who makes *request*; raises Refused where that can't be told."""
        return self.access.caller(request.headers)

    async def admit(self, caller: Caller, agent: str) -> None:
        """Count a request of *caller* to *agent*.

        Raises:
            Refused: it is not for this caller, or over its limits. UnknownAgent: there is none.
        """
        caller.use(agent)
        if agent not in self.agents(caller):
            raise UnknownAgent(
                f"no agent is named {agent!r}",
                fix="`GET /v1/models` lists those there are, `llmagentos deploy` adds one",
            )
        await self.access.admit(caller)

    def agents(self, caller: Caller) -> dict[str, Card]:
        """Those that *caller* may talk to, by name."""
        return {
            name: card
            for name, card in sorted(self._cards.items())
            if card.topic == self._settings.topic(f"agent.{name}") and caller.may_use(name)
        }

    async def spending(self, caller: Caller, said: AsyncGenerator[list[Said]]) -> AsyncGenerator[list[Said]]:
        """*said*, counting what its answer has cost."""
        try:
            async for several in said:
                usage = several[-1].usage
                if usage is not None:
                    await self.access.spend(caller, (usage["tokens_in"] or 0) + (usage["tokens_out"] or 0))
                yield several
        finally:
            await said.aclose()

    @staticmethod
    def content(message: Message) -> Any:
        """What *message* says, as JSON can."""
        content = message.content
        if isinstance(content, bytes):
            return {"content_type": message.content_type, "base64": b64encode(content).decode()}
        return content

    @property
    def _cards(self) -> Mapping[str, Card]:
        return cast("Mapping[str, Card]", self._tables["cards"])

    @property
    def _keys(self) -> Mapping[str, Key]:
        return cast("Mapping[str, Key]", self._tables["keys"])
