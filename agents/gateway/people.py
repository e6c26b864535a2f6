"""What a person, or a program for one, wants of a conversation: its history, to decide, and to cancel.

Each reads the topics as the command line does. Two at a time: each costs Kafka clients, and memory for what is open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, closing
from typing import Final

from llmagentos.agents.cards import Card
from llmagentos.agents.gateway.access import Caller
from llmagentos.agents.gateway.refusals import Refused
from llmagentos.agents.history import History
from llmagentos.streams.cancellation import Cancellation, Outcome, Unfinished
from llmagentos.streams.decisions import decide, the_one
from llmagentos.streams.entries import Decoder
from llmagentos.streams.message import Message
from llmagentos.streams.pending import Pending, Pendings, Selection
from llmagentos.streams.producer import Producer
from llmagentos.streams.settings import Settings
from llmagentos.streams.tail import Log
from llmagentos.streams.views import Served
from llmagentos.streams.wire import Codec

__all__ = ["People"]

AT_ONCE: Final = 2
#: How long a cancellation waits for handlers to end; they are given longer, and the answer says which still clean up.
CANCEL_S: Final = 5.0
#: How often their journals are looked at meanwhile.
LOOK_S: Final = 0.25
#: A message that the clock of another machine dates in the future is history all the same.
AHEAD_MS: Final = 3_600_000


class People:
    """History, approvals and cancellations.

    Args:
        cards: of the agents, as they are now.
        producer: started.
    """

    def __init__(self, settings: Settings, codec: Codec, producer: Producer, cards: Mapping[str, Card]) -> None:
        self._settings = settings
        self._codec = codec
        self._producer = producer
        self._cards = cards
        self._history = History(settings, codec)
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def history(self, caller: Caller, conversation: str, limit: int) -> list[Message]:
        """The last *limit* messages of the conversation that the caller may read, the oldest first.

        Raises:
            BrokerError, InputError: it can't be read.
        """
        now = Message.create(None, to="", conversation=conversation)
        now.timestamp = time.time_ns() // 1_000_000 + AHEAD_MS
        async with self._turn:
            found = await asyncio.to_thread(self._history.before, now, limit)
        return [
            message
            for message in found
            if message.tenant == caller.tenant
            and caller.may_use(message.sender if message.type in ("result", "error") else message.recipient)
        ]

    async def waiting(self, caller: Caller, conversation: str) -> list[Pending]:
        """The approvals that the conversation waits for."""
        async with self._pendings() as pendings:
            return await self._approvals(pendings, caller, conversation)

    async def decide(
        self, caller: Caller, conversation: str, *, approve: bool, why: str, step: int | None
    ) -> tuple[Pending, bool]:
        """Approve or reject what the conversation waits for; whether that counts, or another came first.

        Raises:
            Refused: it waits for no approval. InputError: it waits for several.
        """
        async with self._pendings() as pendings:
            meant = the_one(await self._approvals(pendings, caller, conversation), conversation, step=step)
            if meant is None:
                raise Refused(
                    409,
                    f"conversation {caller.shown(conversation)!r} waits for no approval",
                    fix="its history says how it stands",
                )
            _, counts = await decide(self._producer, pendings, meant, approve=approve, by=caller.name, why=why)
            return meant, counts

    async def cancel(self, caller: Caller, conversation: str, why: str) -> dict[Unfinished, Outcome | None]:
        """Cancel what is unfinished of the conversation's whole cause tree; what became of each, None: not over yet.

        Raises:
            Refused: the key is not for all agents that work on it. InputError: there is no such conversation.
        """
        async with self._turn:
            with Log(self._settings) as log:
                cancellation = await asyncio.to_thread(
                    Cancellation,
                    self._settings,
                    Decoder(self._settings, self._codec),
                    self._served(),
                    log,
                    conversation,
                )
                with closing(cancellation):
                    return await self._cancelled(caller, cancellation, why)

    async def _cancelled(
        self, caller: Caller, cancellation: Cancellation, why: str
    ) -> dict[Unfinished, Outcome | None]:
        found = [each for each in cancellation.found if each.state != "parked"]
        if caller.key is not None and caller.key.agents:
            for each in found:
                if each.conversation_id == cancellation.root:  # what those asked ends with them
                    caller.use(each.agent)
        outcomes: dict[Unfinished, Outcome | None] = {}
        until = time.monotonic() + CANCEL_S
        while found:
            for each in found:
                await cancellation.cancel(self._producer, each, by=caller.name, why=why)
                outcomes[each] = None
            while left := [each for each, outcome in outcomes.items() if outcome is None]:
                outcomes |= await asyncio.to_thread(cancellation.outcomes, left)
                if None not in outcomes.values() or time.monotonic() > until:
                    break
                await asyncio.sleep(LOOK_S)
            if time.monotonic() > until:
                break
            # A handler that was told to end may have asked a moment before.
            known = {(each.place, each.offset) for each in outcomes}
            now = await asyncio.to_thread(cancellation.unfinished)
            found = [each for each in now if each.state != "parked" and (each.place, each.offset) not in known]
        return outcomes

    async def stop(self) -> None:
        """Let the clients go."""
        await asyncio.to_thread(self._history.close)

    @asynccontextmanager
    async def _pendings(self) -> AsyncGenerator[Pendings]:
        async with self._turn:
            with (
                Log(self._settings) as log,
                closing(Pendings(self._settings, self._codec, self._served(), log)) as pendings,
            ):
                yield pendings

    async def _approvals(self, pendings: Pendings, caller: Caller, conversation: str) -> list[Pending]:
        found = await asyncio.to_thread(pendings.read, Selection(kinds=["approval"], conversation=conversation))
        return [pending for pending in found if caller.may_use(pending.agent)]

    def _served(self) -> dict[str, Served]:
        return {name: Served(card.deployment, card.topic) for name, card in self._cards.items()}
