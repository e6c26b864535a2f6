"""What a test's agents wait for, and deciding as a person would."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager

from llmagentos.streams.decisions import decide, the_one
from llmagentos.streams.errors import InputError
from llmagentos.streams.pending import Decided, Pending, Pendings, Selection
from llmagentos.streams.producer import Producer
from llmagentos.streams.settings import Settings
from llmagentos.streams.tail import Log
from llmagentos.streams.views import Served
from llmagentos.streams.wire import Codec

__all__ = ["decide_for", "what_waits"]

#: How often to look whether a handler has asked.
LOOK_S = 0.02


def what_waits(settings: Settings, codec: Codec, served: Mapping[str, Served], selection: Selection) -> list[Pending]:
    """What waits now, the oldest first. Blocks."""
    with _opened(settings, codec, served) as pendings:
        return pendings.read(selection)


async def decide_for(
    settings: Settings,
    producer: Producer,
    codec: Codec,
    served: Mapping[str, Served],
    conversation: str,
    *,
    approve: bool,
    by: str,
    why: str,
    timeout: float,
) -> Decided | None:
    """Wait until a handler of *conversation* has asked a person, and answer; None: none did in time.

    Raises:
        InputError: several have; or somebody else was first to answer.
    """
    selection = Selection(tuple(served), ("approval",), conversation)
    until = time.monotonic() + timeout
    with _opened(settings, codec, served) as pendings:
        while (pending := the_one(await asyncio.to_thread(pendings.read, selection), conversation)) is None:
            if time.monotonic() > until:
                return None
            await asyncio.sleep(LOOK_S)
        end, ours = await decide(producer, pendings, pending, approve=approve, by=by, why=why)
    if end is None or not ours:
        raise InputError(f"approval {pending.about!r} of conversation {conversation} ended before: {end}")
    return end


@contextmanager
def _opened(settings: Settings, codec: Codec, served: Mapping[str, Served]) -> Generator[Pendings]:
    with Log(settings) as log, closing(Pendings(settings, codec, served, log)) as pendings:
        yield pendings
