"""What a rebalance means to the Faust app: only the partitions that come or go are touched.

Faust suspends everything, clears every queue, raises a generation and seeks all partitions to their committed
offsets, which runs messages again and out of order wherever a partition stays. With cooperative assignment most
stay, so here they go on: their events remain in the queues, and their gates as they are.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from faust.types import TP

__all__ = ["Rebalance"]

log = logging.getLogger(__name__)


class Rebalance:
    """Tells the app's services about one rebalance at a time."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = asyncio.Lock()

    async def assigned(self, owned: set[TP], new: set[TP]) -> None:
        """*new* partitions have come, so that the worker has *owned*. Releases them once the tables have them."""
        app = self._app
        consumer = app.consumer
        async with self._lock:
            app.on_rebalance_start()
            app.unassigned = not owned
            app._assignment = set(owned)
            if not app.client_only:
                await app.agents.on_rebalance(set(), new)
                await app.topics.maybe_wait_for_subscriptions()
            # Without an await between them, so no record meets half an index.
            await app.topics.on_partitions_assigned(consumer.assignment())
            await app.on_partitions_assigned.send(set(owned))
            app.on_rebalance_return()
        if not app.client_only:
            await app.tables.recover(new)
        if not app.flow_control.is_active():
            app.flow_control.resume()
        consumer.release(new & consumer.assignment())
        await app.on_rebalance_complete.send()
        app.on_rebalance_end()
        if not app.client_only:
            app.tables.recovered()
        log.info("owns %s partitions, %s of them new", len(owned), len(new))

    async def revoked(self, owned: set[TP], gone: set[TP]) -> None:
        """*gone* are drained and given up; *owned* are left."""
        app = self._app
        async with self._lock:
            app._assignment = set(owned)
            app.tables.forget(gone, owned)
            await app.agents.on_rebalance(gone, set())
            await app.topics.on_partitions_assigned(set(owned))
            await app.on_partitions_revoked.send(gone)
        log.info("gave up %s partitions, owns %s", len(gone), len(owned))

    def purge(self, tps: set[TP]) -> None:
        """Take the events of *tps* that no stream has taken yet out of the channels' queues."""
        queues = {id(channel.queue): channel.queue for channel in self._app.topics}
        for queue in queues.values():
            items = queue._queue
            kept = [event for event in items if getattr(event, "message", None) is None or event.message.tp not in tps]
            if len(kept) != len(items):
                items.clear()
                items.extend(kept)
