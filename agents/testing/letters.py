"""Dead letters in a test: what they hold, and having them run again or dropped, as a person would."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import confluent_kafka

from llmagentos.streams.entries import Decoder
from llmagentos.streams.letters import OPEN, Letter, Letters, Selection
from llmagentos.streams.message import Message
from llmagentos.streams.producer import Producer
from llmagentos.streams.redrive import Outcome, Redrive, Wish, outstanding
from llmagentos.streams.settings import Settings
from llmagentos.streams.tail import Log
from llmagentos.streams.views import Served, Views
from llmagentos.streams.wire import Codec

__all__ = ["DeadLetter", "dead_letter", "settle_letters"]

#: How often to look whether what was asked for is done.
LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What an agent could not handle.

    Attributes:
        agent: whose it was.
        cause: `failed`, `timeout`, `expired`, `undecodable`, `invalid`, `too-large`.
        error, traceback: what the last attempt raised.
        attempts: how often it was tried.
        message: None where the record is none.
        value: the record's, as it was.
    """

    agent: str
    cause: str
    error: str
    traceback: str
    attempts: int
    message: Message | None
    value: bytes | None


def dead_letter(record: confluent_kafka.Message, decoder: Decoder) -> DeadLetter:
    """The dead letter in *record*."""
    entry = decoder.entry(record)
    fields = entry.record or {}
    return DeadLetter(
        fields["agent"],
        fields["cause"],
        fields["error"],
        fields["traceback"],
        fields["attempts"],
        entry.message,
        fields["value"],
    )


async def settle_letters(
    settings: Settings, producer: Producer, codec: Codec, served: Mapping[str, Served], wish: Wish, timeout: float
) -> tuple[int, int]:
    """Say *wish* of every dead letter of the agents in *served* that waits, and wait until it is done.

    Returns:
        How many letters there were, and how many messages are still to be handled when *timeout* seconds are over.
    """
    until = time.monotonic() + timeout

    def wait(letters: Letters, chosen: list[Letter], outcome: Outcome) -> int:
        left = 0
        for left in outstanding(letters, chosen, outcome):
            if not left or time.monotonic() > until:
                break
            time.sleep(LOOK_S)
        return left

    with _opened(settings, codec, served) as letters:
        found = await asyncio.to_thread(letters.read, Selection(agents=tuple(served)))
        chosen = [letter for letter in found if letter.state in OPEN]
        outcome = await Redrive(producer, codec, letters, writer="test").ask(wish, chosen)
        return len(chosen), await asyncio.to_thread(wait, letters, chosen, outcome)


@contextmanager
def _opened(settings: Settings, codec: Codec, served: Mapping[str, Served]) -> Generator[Letters]:
    with Log(settings) as log:
        views = Views(settings, codec, served)
        try:
            yield Letters(settings, Decoder(settings), views, log)
        finally:
            views.close()
