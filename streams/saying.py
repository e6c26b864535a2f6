"""What a person says to the handler of one message: a record in its journal, which names who says it and why."""

from __future__ import annotations

import time
from typing import Final, Literal, Protocol

import orjson

from llmagentos.streams.delivery import Delivery, Place
from llmagentos.streams.errors import InputError
from llmagentos.streams.journal_record import BLANK, SUBJECT, step_record
from llmagentos.streams.message import JSON
from llmagentos.streams.producer import Producer
from llmagentos.streams.views import COMMAND
from llmagentos.streams.wire import Codec

__all__ = ["WHY_MAX", "Subject", "say"]

#: Of what a person says of why: a page. It comes back to the handler with every rerun, or is in what it answers.
WHY_MAX: Final = 10_000


class Subject(Protocol):
    """The message whose handler is told."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def conversation_id(self) -> str: ...
    @property
    def message_id(self) -> str: ...


async def say(
    producer: Producer,
    codec: Codec,
    journal: str,
    subject: Subject,
    outcome: Literal["approve", "reject", "cancel"],
    *,
    name: str,
    number: int,
    by: str,
    why: str,
) -> tuple[Place, int]:
    """Write *outcome* of step *number* of that *name* into the topic *journal*.

    Returns:
        Where it stands, and the time in it, milliseconds since the epoch.

    Raises:
        InputError: *why* is too long. DeliveryError: Kafka did not take it.
    """
    if len(why) > WHY_MAX:
        raise InputError(f"--why has {len(why):,} characters; the limit is {WHY_MAX:,}", fix="say it shorter")
    at = time.time_ns() // 1_000_000
    said = {key: text.encode(errors="replace").decode() for key, text in (("by", by), ("why", why))}
    value = codec.writer(SUBJECT, "journal")(
        {
            **BLANK,
            "kind": outcome,
            "writer": by,
            "at": at,
            "offset": subject.offset,
            "conversation_id": subject.conversation_id,
            "message_id": subject.message_id,
            "step": step_record(name, number, outcome, content_type=JSON, body=orjson.dumps(said)),
        }
    )
    key = subject.conversation_id.encode(errors="replace")
    header = (COMMAND, outcome.encode())
    return await producer.post(journal, value, key, subject.partition, [header], kind=Delivery), at
