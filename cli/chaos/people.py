"""The people of a durable run: they approve whatever waits for them, as `llmagentos approve` does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from llmagentos.cli.chaos.cluster import Cluster
from llmagentos.cli.chaos.workload import AGENTS
from llmagentos.streams.decisions import decide
from llmagentos.streams.errors import BrokerError, DeliveryError, LLMAgentOSError
from llmagentos.streams.pending import Pendings, Selection
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.tail import Log
from llmagentos.streams.unfinished import Entry
from llmagentos.streams.views import Place, Served
from llmagentos.streams.wire import Codec

__all__ = ["People", "pendings", "unfinished"]

#: Between two looks at what waits: a person looks more seldom.
LOOK_S = 0.5


@contextmanager
def pendings(cluster: Cluster) -> Generator[Pendings]:
    """What waits in the run's agents, for one thread."""
    settings = cluster.settings
    served = {agent: Served(cluster.name, settings.topic(f"agent.{agent}")) for agent in AGENTS}
    with Log(settings) as log:
        found = Pendings(settings, Codec(open_registry(settings)), served, log)
        try:
            yield found
        finally:
            found.close()


def unfinished(found: Pendings) -> Iterator[tuple[Place, Entry]]:
    """What the agents' journals say is open now, but for what is completed and only to be sent."""
    found.read(Selection(kinds=["approval"]))
    for place in found.places(Selection()):
        for entry in found.views[place].entries.values():
            if entry.state != "done":
                yield place, entry


class People(threading.Thread):
    """Approves what waits, in a thread, until told to stop.

    Attributes:
        approved: how many decisions counted.
        failure: what ended it; None while it goes on.
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(name="people", daemon=True)
        self._cluster = cluster
        self._over = threading.Event()
        self.approved = 0
        self.failure: LLMAgentOSError | None = None

    def stop(self) -> None:
        """Decide nothing more; returns when the thread has ended."""
        self._over.set()
        if self.ident is not None:
            self.join()

    def run(self) -> None:
        try:
            asyncio.run(self._run())
        except LLMAgentOSError as error:
            self.failure = error

    async def _run(self) -> None:
        with pendings(self._cluster) as found:
            async with Producer(self._cluster.settings, found.codec) as producer:
                while not await asyncio.to_thread(self._over.wait, LOOK_S):
                    try:
                        await self._look(found, producer)
                    except (BrokerError, DeliveryError):
                        continue  # a broker is down: they look again, as people do

    async def _look(self, found: Pendings, producer: Producer) -> None:
        for pending in await asyncio.to_thread(found.read, Selection(kinds=["approval"])):
            if self._over.is_set():
                return
            _, ours = await decide(producer, found, pending, approve=True, by="chaos")
            self.approved += ours
