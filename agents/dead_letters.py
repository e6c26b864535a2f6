"""Dead letters: what an agent could not handle, kept whole in `dead.NAME` with where it was and why."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import confluent_kafka

from llmagentos.streams.message import Message
from llmagentos.streams.producer import Producer
from llmagentos.streams.settings import Settings

__all__ = ["DeadLetters"]

log = logging.getLogger(__name__)

#: A dead letter must fit a record beside the message that it keeps; the rest of a long traceback is in the log.
TRACEBACK_MAX = 16_000


class DeadLetters:
    """Writes dead letters for one worker.

    Args:
        encode: a dead letter's record to Confluent wire bytes.
        worker: the worker's name.
    """

    def __init__(
        self, settings: Settings, producer: Producer, encode: Callable[[dict[str, Any]], bytes], *, worker: str
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._encode = encode
        self._worker = worker

    def add(
        self,
        agent: str,
        record: confluent_kafka.Message,
        message: Message | None,
        *,
        cause: str,
        error: str,
        trace: str,
        attempts: int,
    ) -> None:
        """Keep *record*. It is safe before the commit of its offset, as every output is.

        Args:
            message: None where the record could not be decoded.
            cause: a short stable word (see dead_letter.avsc).
        """
        topic = self._settings.topic(f"dead.{agent}")
        place = (record.topic() or "", record.partition() or 0, record.offset() or 0)
        log.error(
            "dead letter (%s): %s [%d] offset %d of conversation %s: %s; kept in %s",
            cause,
            *place,
            message.conversation_id if message else repr(record.key()),
            error,
            topic,
        )
        key = record.key()
        value = self._encode(
            {
                "topic": place[0],
                "partition": place[1],
                "offset": place[2],
                "timestamp": record.timestamp()[1],
                "key": key,
                "value": record.value(),
                "headers": [{"name": name, "value": content} for name, content in record.headers() or ()],
                "agent": agent,
                "message_id": message.message_id if message else None,
                "conversation_id": message.conversation_id if message else None,
                "cause": cause,
                "error": error,
                "traceback": trace[-TRACEBACK_MAX:],
                "attempts": attempts,
                "worker": self._worker,
                "died_at": time.time_ns() // 1_000_000,
            }
        )
        self._producer.produce(topic, value, key)
