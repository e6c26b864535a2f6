"""Approve and reject: what a person decides, said to the handler that asked for it.

A decision is one record in the journal of the handler's inbox partition, which names the step that waits. Of several
for one step the first in the log counts, whoever reads it: so who decides reads back, and learns whether it was theirs.
"""

from __future__ import annotations

import asyncio

from llmagentos.streams.errors import InputError
from llmagentos.streams.pending import Decided, Pending, Pendings
from llmagentos.streams.producer import Producer
from llmagentos.streams.saying import say

__all__ = ["decide", "the_one"]


def the_one(found: list[Pending], conversation: str, *, step: int | None = None) -> Pending | None:
    """The approval that is meant, of those that *conversation* waits for; None: it waits for none.

    Args:
        step: which of several, as people count.

    Raises:
        InputError: there are several; lists them.
    """
    meant = [pending for pending in found if step in (None, pending.step)]
    if len(meant) > 1 or (found and not meant):
        listed = "\n".join(f"  --agent {p.agent} --step {p.step}: {p.about[:200]}" for p in found)
        several = f"{len(found)} approvals" if len(found) > 1 else "one approval"
        other = "" if len(meant) > 1 else f", and none is number {step}"
        raise InputError(f"conversation {conversation} waits for {several}{other}:\n{listed}", fix="name one of them")
    return meant[0] if meant else None


async def decide(
    producer: Producer, pendings: Pendings, pending: Pending, *, approve: bool, by: str, why: str = ""
) -> tuple[Decided | None, bool]:
    """Say that *pending* is approved, or rejected.

    Args:
        producer: started.

    Returns:
        What counts, and whether that is this decision; None: the handler is past it, and the journal does not say how.

    Raises:
        InputError: *why* is too long. DeliveryError: Kafka did not take it.
        BrokerError: it was written, and could not be read back; to say it again does no harm.
    """
    place, at = await say(
        producer,
        pendings.codec,
        pendings.views.topic(pending.agent),
        pending,
        "approve" if approve else "reject",
        name=pending.name,
        number=pending.number,
        by=by,
        why=why,
    )
    await asyncio.to_thread(pendings.refresh)
    end = pendings.end_of(pending)
    if end is None or place.offset >= 0:
        return end, end is not None and end.place == place.offset
    return end, (end.by, end.at) == (by, at)  # Kafka does not always say where a record is that it has already
