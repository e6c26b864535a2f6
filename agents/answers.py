"""Answers to the questions of one agent: read from `answers.NAME`, matched by the question's id.

The partition is that of the asker's inbox, so whoever owns the inbox partition reads its answers; they are read by
a hand-assigned consumer, never paused, so an answer always reaches a handler that waits. The first answer to a
question counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import confluent_kafka

from llmagentos.streams.errors import RecordError, SchemaError
from llmagentos.streams.follower import Follower
from llmagentos.streams.message import Message
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec

__all__ = ["Answers"]

log = logging.getLogger(__name__)


class Answers:
    """The questions that wait, in one worker.

    Args:
        name: of the worker; names its thread and client.
    """

    def __init__(self, settings: Settings, codec: Codec, *, name: str) -> None:
        self._codec = codec
        self._waiting: dict[str, asyncio.Future[Message]] = {}
        self._follower = Follower(settings, self._deliver, name=f"{name}-answers")

    async def expect(self, question: str, topic: str, partition: int) -> asyncio.Future[Message]:
        """The future of the answer to *question*. Send it only afterwards, so that no answer comes too early.

        Raises:
            TopicError, BrokerError: the answers can't be read.
        """
        await self._follower.follow(topic, partition)
        future = self._waiting.get(question)
        if future is None or future.done():
            future = self._waiting[question] = asyncio.get_running_loop().create_future()
        return future

    def forget(self, question: str) -> None:
        """Nobody waits for it any more."""
        self._waiting.pop(question, None)

    def unfollow(self, topic: str, partitions: set[int]) -> None:
        """Another worker owns these partitions now."""
        self._follower.unfollow((topic, partition) for partition in partitions)

    async def stop(self) -> None:
        """End the reader's thread."""
        await self._follower.stop()

    def _deliver(self, records: Sequence[confluent_kafka.Message]) -> None:
        for record in records:
            try:
                answer = self._codec.read(record)
            except (RecordError, SchemaError) as error:
                # It stays where it is, readable by `tail`; the asker's deadline ends the wait.
                log.error("answer left unread: %s", error)
                continue
            future = self._waiting.pop(answer.caused_by or "", None)
            if future is not None and not future.done():
                future.set_result(answer)
