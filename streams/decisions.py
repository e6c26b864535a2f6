"""Approve and reject: what a person decides, said to the handler that asked for it.

A decision is one record in the journal of the handler's inbox partition, which names the step that waits. Of several
for one step the first in the log counts, whoever reads it: so who decides reads back, and learns whether it was theirs.
"""

from __future__ import annotations

import asyncio
import time

import orjson

from llmagentos.streams.delivery import Delivery
from llmagentos.streams.errors import InputError
from llmagentos.streams.journal_record import BLANK, SUBJECT, step_record
from llmagentos.streams.message import JSON
from llmagentos.streams.pending import Decided, Pending, Pendings
from llmagentos.streams.producer import Producer
from llmagentos.streams.views import COMMAND

__all__ = ["WHY_MAX", "decide", "the_one"]

#: Of what a person says of their decision: a page. It comes back to the handler, with every rerun.
WHY_MAX = 10_000


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
    if len(why) > WHY_MAX:
        raise InputError(f"--why has {len(why):,} characters; the limit is {WHY_MAX:,}", fix="say it shorter")
    outcome = "approve" if approve else "reject"
    at = time.time_ns() // 1_000_000
    body = orjson.dumps({key: text.encode(errors="replace").decode() for key, text in (("by", by), ("why", why))})
    value = pendings.codec.writer(SUBJECT, "journal")(
        {
            **BLANK,
            "kind": outcome,
            "writer": by,
            "at": at,
            "offset": pending.offset,
            "conversation_id": pending.conversation_id,
            "message_id": pending.message_id,
            "step": step_record(pending.name, pending.number, outcome, content_type=JSON, body=body),
        }
    )
    place = await producer.post(
        pendings.views.topic(pending.agent),
        value,
        pending.conversation_id.encode(errors="replace"),
        pending.partition,
        [(COMMAND, outcome.encode())],
        kind=Delivery,
    )
    await asyncio.to_thread(pendings.refresh)
    end = pendings.end_of(pending)
    if end is None or place.offset >= 0:
        return end, end is not None and end.place == place.offset
    return end, (end.by, end.at) == (by, at)  # Kafka does not always say where a record is that it has already
