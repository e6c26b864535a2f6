"""Redrive, edit and drop: what a person wants of dead letters, said so that saying it twice does no harm.

Of a parked message it is one record in the journal, which names the park that it means; its owner runs the message,
or drops it, and then those that are held. A second command for the same park changes nothing. A message that was
passed goes into its inbox again, with a header that is its identity for dedup: it runs once, however often it is
sent. That done, a mark in the journal says that its letter is settled. So whoever is interrupted says it again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import google_crc32c
import orjson

from llmagentos.streams.dedup import REDRIVE
from llmagentos.streams.delivery import Delivery
from llmagentos.streams.entries import Entry
from llmagentos.streams.errors import InputError
from llmagentos.streams.journal_record import BLANK, SUBJECT
from llmagentos.streams.letters import Letter, Letters
from llmagentos.streams.message import JSON, TEXT, Message, new_id
from llmagentos.streams.producer import MESSAGE_ID, Producer
from llmagentos.streams.settings import Settings
from llmagentos.streams.views import COMMAND
from llmagentos.streams.wire import Codec

__all__ = ["Edited", "Outcome", "Redrive", "Wish", "body_of", "edit", "outstanding"]

Wish = Literal["redrive", "discard"]

#: Letters at once: what an interruption may say twice. A letter keeps at most a message, so that is bounded too.
CHUNK: Final = 500
#: With a rate, as many at once as come in this time.
TICK_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Edited:
    """What is to run in place of a dead message.

    Attributes:
        message_id: a new one, so that nobody takes it for the old one.
        record: a KeptRecord of journal.avsc.
    """

    message_id: str
    record: dict[str, Any]


@dataclass(slots=True)
class Outcome:
    """What was said.

    Attributes:
        parked: commands to owners of parked messages.
        passed: messages that went into their inbox again, or were given up.
        gone: letters whose message nobody has any more.
        sent: where messages are in their inbox now, by letter.
    """

    parked: int = 0
    passed: int = 0
    gone: list[Letter] = field(default_factory=list[Letter])
    sent: list[tuple[Letter, Delivery]] = field(default_factory=list["tuple[Letter, Delivery]"])


class Redrive:
    """Says what is wanted of dead letters.

    Args:
        producer: started.
        writer: who wants it; stands in the journal.
    """

    def __init__(self, producer: Producer, codec: Codec, letters: Letters, *, writer: str) -> None:
        self._producer = producer
        self._letters = letters
        self._codec = codec
        self._encode = codec.writer(SUBJECT, "journal")
        self._writer = writer

    async def ask(
        self,
        wish: Wish,
        chosen: Sequence[Letter],
        *,
        edited: Edited | None = None,
        rate: float | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Outcome:
        """Say *wish* of each letter of *chosen* that is parked or passed; of others nothing.

        Args:
            edited: what to run in place of the one letter that is chosen.
            rate: letters a second at most.
            progress: told how many are said, and acknowledged by Kafka.

        Raises:
            DeliveryError: Kafka did not take it; what was said before counts.
        """
        outcome = Outcome()
        # In the order of the inbox, so that passed messages of one conversation come back in the order they had.
        open_ = sorted(
            (letter for letter in chosen if letter.state in ("parked", "passed")),
            key=lambda letter: (letter.agent, letter.topic, letter.inbox_partition, letter.inbox_offset),
        )
        size = CHUNK if rate is None else max(1, min(CHUNK, int(rate * TICK_S)))
        begun = time.monotonic()
        for first in range(0, len(open_), size):
            if rate is not None:
                await asyncio.sleep(max(0.0, begun + first / rate - time.monotonic()))
            await self._chunk(wish, open_[first : first + size], edited, outcome)
            progress(min(first + size, len(open_)))
        return outcome

    async def _chunk(self, wish: Wish, chunk: Sequence[Letter], edited: Edited | None, outcome: Outcome) -> None:
        passed = [letter for letter in chunk if letter.state == "passed"]
        if passed and wish == "redrive":
            # First into the inbox, then the mark: interrupted between the two it is sent again, and dedup drops one.
            passed = await self._send(passed, edited, outcome)
            await self._producer.delivered()
        for letter in passed:
            self._write(wish, letter, refers=-1, edited=None)
        outcome.passed += len(passed)
        for letter in chunk:
            if letter.state == "parked":
                self._write(wish, letter, refers=letter.park, edited=edited)
                outcome.parked += 1
        await self._producer.delivered()
        for letter in chunk:
            if letter not in outcome.gone:
                letter.state = "settled" if letter.park < 0 else "redriving" if wish == "redrive" else "dropping"

    async def _send(self, passed: Sequence[Letter], edited: Edited | None, outcome: Outcome) -> list[Letter]:
        """Put the messages of *passed* into their inbox again; those that could be had."""
        originals = {} if edited is not None else await asyncio.to_thread(self._letters.originals, passed)
        sent: list[Letter] = []
        for letter in passed:
            record = edited.record if edited is not None else originals.get(letter.id)
            if record is None:
                outcome.gone.append(letter)
                continue
            headers = [(h["name"], h["value"]) for h in record["headers"] if h["name"] != REDRIVE]
            # Where it was, not where its letter is: a crash may have left two letters of one message.
            identity = f"{letter.topic}/{letter.inbox_partition}/{letter.inbox_offset}"
            delivery = self._producer.post(
                letter.topic,
                self._without_deadline(letter, record["value"]) if letter.cause == "expired" else record["value"],
                record["key"],
                letter.inbox_partition,
                [*headers, (REDRIVE, identity.encode())],
                kind=Delivery,
            )
            outcome.sent.append((letter, delivery))
            sent.append(letter)
        return sent

    def _without_deadline(self, letter: Letter, value: bytes) -> bytes:
        """A message that expired would do so again."""
        place = (letter.topic, letter.inbox_partition, letter.inbox_offset)
        message = self._codec.message(value, *place, -1)
        return self._codec.encode(Message(message.record | {"deadline": None}))

    def _write(self, wish: Wish, letter: Letter, *, refers: int, edited: Edited | None) -> None:
        value = self._encode(
            {
                **BLANK,
                "kind": wish,
                "writer": self._writer,
                "at": time.time_ns() // 1_000_000,
                "offset": letter.inbox_offset,
                "conversation_id": letter.conversation_id,
                "message_id": "" if edited is None else edited.message_id,
                "refers": refers,
                "record": None if edited is None else edited.record,
                "detail": {"letter": letter.id},
            }
        )
        self._producer.produce(
            self._letters.views.topic(letter.agent),
            value,
            letter.conversation_id.encode(errors="replace"),
            letter.inbox_partition,
            [(COMMAND, wish.encode())],
        )


# -- editing ----------------------------------------------------------------------------------------------------------


def body_of(settings: Settings, letter: Letter, entry: Entry) -> tuple[bytes, str]:
    """What can be edited of a dead message: its body, and of what type that is.

    Raises:
        InputError: it can't be edited; says what to do in its place.
    """
    value = (entry.record or {}).get("value")
    if value is None:
        raise InputError(
            f"{letter.id} does not hold its message, so there is nothing to edit: {letter.error}",
            fix="send a right one with `llmagentos produce`, and `llmagentos dead drop` this one",
        )
    if letter.topic != settings.topic(f"agent.{letter.agent}"):  # of a foreign topic: the value is the body
        return value, ""
    if entry.message is None:
        raise InputError(
            f"the message of {letter.id} can't be decoded, so there is nothing to edit: {letter.error}",
            fix=f"send a right one with `llmagentos produce --to {letter.agent}`, and `llmagentos dead drop` this one",
        )
    return entry.message.body, entry.message.content_type


def edit(
    settings: Settings, codec: Codec, letter: Letter, entry: Entry, body: bytes, content_type: str | None = None
) -> Edited:
    """*letter*'s message with another body, under a new id; all else as it was, but for a deadline, which is over.

    Raises:
        InputError: the body is not of its content type; RecordError: it can't be encoded.
    """
    _, media = body_of(settings, letter, entry)
    fields: dict[str, Any] = dict(entry.record or {})
    media = content_type or media
    _check(body, media)
    message_id = new_id()
    headers = [h for h in fields["headers"] if h["name"] != MESSAGE_ID]
    if letter.topic == settings.topic(f"agent.{letter.agent}"):
        assert entry.message is not None
        record = entry.message.record | {
            "message_id": message_id,
            "content_type": media,
            "body": body,
            "checksum": google_crc32c.value(body),
            "deadline": None,
        }
        body = codec.encode(Message(record))
        headers = [{"name": MESSAGE_ID, "value": message_id.encode()}, *headers]
    kept = {"key": fields["key"], "value": body, "headers": headers, "timestamp": fields["timestamp"]}
    return Edited(message_id, kept)


def _check(body: bytes, media: str) -> None:
    try:
        if media == JSON:
            orjson.loads(body)
        elif media == TEXT:
            body.decode()
    except ValueError as error:  # both kinds of error are
        raise InputError(
            f"the new body is not {media}: {error}", fix="correct it, or say what it is with --content-type"
        ) from None


# -- waiting ----------------------------------------------------------------------------------------------------------


def outstanding(letters: Letters, chosen: Sequence[Letter], outcome: Outcome) -> Iterator[int]:
    """How many messages are still to be handled because of what was asked, again and again, until none is. Blocks.

    A conversation that is parked anew is not waited for.

    Raises:
        BrokerError: the cluster does not answer.
    """
    views = letters.views
    waiting = [letter for letter in chosen if letter.park >= 0]
    in_inbox = {
        (letter.agent, delivery.partition, delivery.offset): letter
        for letter, delivery in outcome.sent
        if delivery.offset >= 0
    }
    while True:
        views.refresh()
        left = 0
        still: list[Letter] = []
        for letter in waiting:
            conversation = views[letter.place].open.get(letter.conversation_id)
            if conversation is None or (conversation.waits and conversation.first.park != letter.park):
                continue
            still.append(letter)
            left += len(conversation)
        waiting = still
        for agent in {agent for agent, _, _ in in_inbox}:
            done = views.finished(agent, [(p, o) for name, p, o in in_inbox if name == agent])
            for partition, offset in done:
                del in_inbox[agent, partition, offset]
        yield left + len(in_inbox)
        if not waiting and not in_inbox:
            return
