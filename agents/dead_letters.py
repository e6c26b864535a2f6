"""Dead letters: what an agent could not handle, kept whole in `dead.NAME` with where it was and why."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import confluent_kafka

from llmagentos.streams.errors import LLMAgentOSError, RecordError
from llmagentos.streams.message import Message
from llmagentos.streams.producer import Producer
from llmagentos.streams.settings import Settings

__all__ = ["DeadLetters", "Death", "describe"]

log = logging.getLogger(__name__)

#: A dead letter must fit a record beside the message that it keeps; the rest of a long traceback is in the log.
TRACEBACK_MAX = 16_000
#: The same of what an error says of itself.
ERROR_MAX = 4_000
#: What the journal keeps of them for a letter that its worker did not live to write, in bytes: together with small
#: things under 4,000 (`ownership.RECORD_ROOM`).
KEPT_TRACEBACK_BYTES = 2_500
KEPT_ERROR_BYTES = 1_000
#: Without its key a letter is in another partition, which matters less than that it is written.
KEY_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Death:
    """Why a message could not be handled, as its letter says it.

    Attributes:
        cause: a short stable word (see dead_letter.avsc).
    """

    cause: str
    error: str
    traceback: str
    attempts: int

    @classmethod
    def by(cls, error: BaseException, cause: str, attempts: int) -> Death:
        """That of a message that was given up because of *error*."""
        return cls(cause, describe(error), "" if isinstance(error, RecordError) else _trace(error), attempts)

    def detail(self) -> dict[str, str]:
        """As the journal keeps it: the beginning of the error and the end of the traceback."""
        error, trace = self.error.encode(), self.traceback.encode()
        return {
            "error": error[:KEPT_ERROR_BYTES].decode(errors="ignore"),
            "traceback": trace[-KEPT_TRACEBACK_BYTES:].decode(errors="ignore"),
            "attempts": str(self.attempts),
        }

    @classmethod
    def restored(cls, cause: str, detail: Mapping[str, str]) -> Death:
        """What :meth:`detail` made *detail* of."""
        return cls(cause, detail.get("error", ""), detail.get("traceback", ""), int(detail.get("attempts", 0)))


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
        death: Death,
    ) -> None:
        """Keep *record*. It is safe before the commit of its offset, as every output is.

        Args:
            message: None where the record could not be decoded.
        """
        topic = self._settings.topic(f"dead.{agent}")
        place = (record.topic() or "", record.partition() or 0, record.offset() or 0)
        log.error(
            "dead letter (%s): %s [%d] offset %d of conversation %s: %s; kept in %s",
            death.cause,
            *place,
            message.conversation_id if message else repr(record.key()),
            death.error,
            topic,
        )
        key: Any = record.key()  # bytes or None, where librdkafka is asked for no strings
        letter: dict[str, Any] = {
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
            "cause": death.cause,
            "error": death.error,
            "traceback": death.traceback,
            "attempts": death.attempts,
            "worker": self._worker,
            "died_at": time.time_ns() // 1_000_000,
        }
        value = self._encode(letter)
        if len(value) > self._settings.max_message_bytes:
            # The record itself is not lost: it stays where it was.
            letter["value"], letter["headers"] = None, []
            letter["error"] += (
                f"\nkept: not here, as its {len(record):,} bytes are too many, but in {place[0]} [{place[1]}] at offset"
                f" {place[2]}, until its retention ends"
            )
            value = self._encode(letter)
        # In the partition of its conversation, where people look for it; the record's own key is in the letter.
        place_key = message.conversation_id.encode(errors="replace") if message else key
        self._producer.produce(topic, value, place_key if len(place_key or b"") <= KEY_MAX else None)


def describe(error: BaseException) -> str:
    """What *error* says, whatever it is: one that can't be printed must not take the worker with it."""
    try:
        said = error.what if isinstance(error, LLMAgentOSError) else str(error)
        text = said if isinstance(error, RecordError) else f"{type(error).__name__}: {said}"
    except BaseException as worse:  # noqa: BLE001
        text = f"{type(error).__name__}, whose text can't be had: {type(worse).__name__}"
    return _clean(text[:ERROR_MAX])


def _trace(error: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException as worse:  # noqa: BLE001
        text = f"the traceback can't be had: {type(worse).__name__}"
    return _clean(text[-TRACEBACK_MAX:])


def _clean(text: str) -> str:
    """Without lone surrogates, which UTF-8 can't say."""
    return text.encode(errors="replace").decode()
