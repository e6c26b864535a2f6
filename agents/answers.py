"""Answers to the questions of one agent: read from `answers.NAME`, matched by the question's id.

The partition is that of the asker's inbox, so whoever owns the inbox partition reads its answers; they are read by
a hand-assigned consumer, never paused, so an answer always reaches a handler that waits. The first answer to a
question counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import confluent_kafka

from llmagentos.agents.outputs import LATE
from llmagentos.streams.errors import RecordError, SchemaError
from llmagentos.streams.follower import Follower
from llmagentos.streams.message import Message
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec

__all__ = ["Answers", "comes_from"]

log = logging.getLogger(__name__)


class Answers:
    """The questions that wait, in one worker.

    Args:
        name: of the worker; names its thread and client.
    """

    def __init__(self, settings: Settings, codec: Codec, *, name: str) -> None:
        self._codec = codec
        self._waiting: dict[str, tuple[asyncio.Future[Message], str, str]] = {}  # and who was asked, and what
        self._early: dict[str, tuple[Message, tuple[str, int] | None, int]] = {}  # by question, oldest first; its place
        self._passed_over: dict[tuple[str, int], int] = {}  # the first answer of a partition that was not kept
        self._early_most = settings.max_waiting
        self._positions: dict[tuple[str, int], int] = {}
        self._takers: dict[tuple[str, int], Callable[[Message, int], bool]] = {}
        self._follower = Follower(settings, self._deliver, name=f"{name}-answers")

    async def expect(
        self, question: str, topic: str, partition: int, asked: str, item: str = ""
    ) -> asyncio.Future[Message]:
        """The future of the answer of agent *asked* to *question*; *item*: which of many that is.

        Send it only afterwards, so that no answer comes too early.

        Raises:
            TopicError, BrokerError: the answers can't be read.
        """
        if (topic, partition) not in self._positions:
            await self.follow(topic, partition)
        known = self._waiting.get(question)
        if known is not None and not known[0].done():
            return known[0]
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[question] = (future, asked, item)
        if (early := self._early.pop(question, None)) is not None:
            self.hand(early[0])
        return future

    def route(self, topic: str, partition: int, taker: Callable[[Message, int], bool]) -> None:
        """Have *taker* given each answer there and its offset first; what it says True of goes no other way."""
        self._takers[topic, partition] = taker

    async def follow(self, topic: str, partition: int, start: int | None = None) -> None:
        """Read the answers in a partition from *start* on; None: from its end.

        Those that were there already are kept until somebody asks: as many as may wait at once.

        Raises:
            TopicError, BrokerError: the answers can't be read.
        """
        place = (topic, partition)

        def starting(offset: int) -> None:
            self._positions.setdefault(place, offset)

        await self._follower.follow(topic, partition, start, starting=starting)

    def position(self, topic: str, partition: int) -> int:
        """Every answer below this offset was read, and kept while its question may be asked; -1: nobody asked."""
        place = (topic, partition)
        return min(self._positions.get(place, -1), self._passed_over.get(place, self._positions.get(place, -1)))

    def forget(self, question: str) -> None:
        """Nobody waits for it any more."""
        self._waiting.pop(question, None)

    def unfollow(self, topic: str, partitions: set[int]) -> None:
        """Another worker owns these partitions now."""
        for partition in partitions:
            self._positions.pop((topic, partition), None)
            self._takers.pop((topic, partition), None)
            self._passed_over.pop((topic, partition), None)
        self._follower.unfollow((topic, partition) for partition in partitions)

    def decode(self, value: bytes) -> Message:
        """The answer in *value*, which the journal kept."""
        return self._codec.message(value, "", -1, -1, -1)

    async def stop(self) -> None:
        """End the reader's thread."""
        await self._follower.stop()

    def _deliver(self, records: Sequence[confluent_kafka.Message]) -> None:
        for record in records:
            place = (record.topic() or "", record.partition() or 0)
            if place in self._positions:
                self._positions[place] = (record.offset() or 0) + 1
            try:
                answer = self._codec.read(record)
            except (RecordError, SchemaError) as error:
                # It stays where it is, readable by `tail`; the asker's deadline ends the wait.
                log.error("answer left unread: %s", error)
                continue
            taker = self._takers.get(place)
            if taker is None or not taker(answer, record.offset() or 0):
                self.hand(answer, place, record.offset() or 0)

    def hand(self, answer: Message, place: tuple[str, int] | None = None, at: int = -1) -> None:
        """Give an answer to who waits for it, or will; *place*: where it was read, if it is nowhere else."""
        question = answer.caused_by or ""
        future, asked, item = self._waiting.get(question, (None, "", ""))
        if future is None:
            self._keep(answer, place, at)
        elif not comes_from(answer, asked):
            what = f"question {question} ({item})" if item else f"question {question}"
            log.warning("agent %r answered %s, which was for %r: passed over", answer.sender, what, asked)
        else:
            del self._waiting[question]
            if not future.done():
                future.set_result(answer)

    def _keep(self, answer: Message, place: tuple[str, int] | None, at: int) -> None:
        """Nobody waits for it: its question will perhaps be asked again, by a handler that runs again."""
        self._early.setdefault(answer.caused_by or "", (answer, place, at))
        if len(self._early) > self._early_most:
            _, place, at = self._early.pop(next(iter(self._early)))
            if place is not None and place in self._positions:  # the next owner is to read it again
                self._passed_over[place] = min(at, self._passed_over.get(place, at))


def comes_from(answer: Message, asked: str) -> bool:
    """Whether *answer* is of the agent that was asked, or says that its deadline passed."""
    return answer.sender == asked or (answer.type == "error" and LATE in answer.attributes)
