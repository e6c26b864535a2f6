"""Compacted topics that a gateway goes by, read whole at its start and followed from then on: cards, and keys."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import confluent_kafka

from llmagentos.streams.errors import RecordError, SchemaError
from llmagentos.streams.follower import Follower
from llmagentos.streams.settings import Settings
from llmagentos.streams.spans import Spans
from llmagentos.streams.wire import Codec

__all__ = ["Tables"]

log = logging.getLogger(__name__)

#: Makes of a record's fields what the table holds.
Make = Callable[[dict[str, Any]], Any]


class Tables:
    """The newest value of each key, by topic; as new as what the broker has sent.

    Args:
        makes: by topic, without the settings' prefix; each topic has one partition, and is there.
    """

    def __init__(self, settings: Settings, codec: Codec, makes: Mapping[str, Make], *, name: str) -> None:
        self._settings = settings
        self._codec = codec
        self._makes = {settings.topic(topic): make for topic, make in makes.items()}
        self._rows: dict[str, dict[str, Any]] = {topic: {} for topic in self._makes}
        self._follower = Follower(settings, self._take, name=f"{name}-tables")

    async def start(self) -> None:
        """Read what there is.

        Raises:
            TopicError, BrokerError: it can't be read.
        """
        for topic, end in (await asyncio.to_thread(self._read)).items():
            await self._follower.follow(topic, 0, end)

    def __getitem__(self, topic: str) -> Mapping[str, Any]:
        """The rows of *topic*, without the prefix."""
        return self._rows[self._settings.topic(topic)]

    async def stop(self) -> None:
        """Let the client go."""
        await self._follower.stop()

    def _read(self) -> dict[str, int]:
        spans = Spans(self._settings, name="tables")
        try:
            ends = {topic: spans.ends(topic, 0)[1] for topic in self._rows}
            for topic in self._rows:
                for batch in spans.whole(topic):
                    self._take(batch)
            return ends
        finally:
            spans.close()

    def _take(self, records: Sequence[confluent_kafka.Message]) -> None:
        for record in records:
            topic = record.topic() or ""
            key = (record.key() or b"").decode(errors="replace")
            value = record.value()
            if value is None:
                self._rows[topic].pop(key, None)
                continue
            try:
                self._rows[topic][key] = self._makes[topic](self._codec.decode(value))
            except (RecordError, SchemaError) as error:
                log.warning("a record of %s was left unread: %s", topic, error)
