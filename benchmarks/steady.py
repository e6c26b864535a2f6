"""A deployment of real workers under a steady load, watched from outside: what `failover` and `rollout` share."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster import cluster
from noting import LEDGER, WORK_MS

from llmagentos.agents import Message
from llmagentos.agents.deploying import deploy, undeploy
from llmagentos.agents.deployment import Deployments, WorkerRecord
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec

__all__ = ["DEPLOYMENT", "Entry", "Steady", "percentile", "steady"]

DEPLOYMENT = "noting"
#: Nothing that is waited for here takes longer, unless it never comes.
PATIENCE_S = 60.0
#: Between two handfuls of the feeder: at 1,000 a second ten messages.
TICK_S = 0.01


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger; times in seconds of the monotonic clock."""

    partition: int
    conversation: str
    number: int
    sent: float
    begun: float
    done: float
    pid: int


class Steady:
    """The deployment, its load, and its ledger as far as it was read.

    Args:
        rate: messages a second, spread over *conversations*.
    """

    def __init__(self, settings: Settings, ledger: Path, *, rate: int, conversations: int) -> None:
        self.settings = settings
        self.entries: list[Entry] = []
        self.sent = 0
        self._ledger = ledger
        self._read = 0
        self._rate, self._conversations = rate, conversations
        self._deployments = Deployments(settings.home)
        self._stopping = threading.Event()
        self._feeder = threading.Thread(target=lambda: asyncio.run(self._feed()))

    # -- load

    def start(self) -> None:
        """Begin to send."""
        self._feeder.start()

    def stop(self) -> int:
        """End the load; how many messages were sent and acknowledged, numbered from 0."""
        self._stopping.set()
        if self._feeder.is_alive():
            self._feeder.join()
        return self.sent

    async def _feed(self) -> None:
        codec = await asyncio.to_thread(lambda: Codec(open_registry(self.settings)))
        async with Producer(self.settings, codec) as producer:
            began = time.monotonic()
            while not self._stopping.is_set():
                for number in range(self.sent, int((time.monotonic() - began) * self._rate)):
                    await producer.send(
                        Message.create(
                            f"{number} {time.monotonic():.6f}",
                            to="noting",
                            conversation=f"c{number % self._conversations}",
                        )
                    )
                    self.sent = number + 1
                await asyncio.sleep(TICK_S)
            await producer.delivered()

    # -- what is seen

    def look(self) -> list[Entry]:
        """Entries that are new in the ledger."""
        try:
            with self._ledger.open("rb") as file:
                file.seek(self._read)
                lines = file.read()
        except FileNotFoundError:
            return []
        lines = lines[: lines.rfind(b"\n") + 1]
        self._read += len(lines)
        new = [_entry(line) for line in lines.decode().splitlines()]
        self.entries += new
        return new

    def workers(self) -> list[WorkerRecord]:
        """As the supervisor has them."""
        return self._deployments.workers(DEPLOYMENT)

    def owned(self) -> dict[int, set[int]]:
        """Partitions by worker's pid, as the workers say; only of those that run."""
        found: dict[int, set[int]] = {}
        for worker in self.workers():
            report = self._deployments.report(DEPLOYMENT, worker)
            if worker.state == "running" and report is not None:
                found[report.pid] = {int(place.rpartition(":")[2]) for place in report.assigned}
        return found

    def until(self, true: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
        """Read the ledger until *true*."""
        deadline = time.monotonic() + patience_s
        while True:
            self.look()
            if true():
                return
            if time.monotonic() > deadline:
                raise SystemExit(f"waited {patience_s:g} s in vain for {what}")
            time.sleep(0.02)

    def settled(self, workers: int, calm_s: float) -> dict[int, set[int]]:
        """Wait until so many workers have owned all partitions, the same ones, for *calm_s*; who owns what."""
        last: dict[int, set[int]] = {}
        since = time.monotonic()

        def calm() -> bool:
            nonlocal last, since
            owned = self.owned()
            if owned != last:
                last, since = owned, time.monotonic()
            everything = sorted(partition for mine in owned.values() for partition in mine)
            whole = everything == list(range(self.settings.partitions)) and all(owned.values())
            return len(owned) == workers and whole and time.monotonic() - since >= calm_s

        self.until(calm, f"{workers} workers with all partitions between them")
        return last


def _entry(line: str) -> Entry:
    partition, conversation, number, sent, begun, done, pid = line.split()
    return Entry(int(partition), conversation, int(number), float(sent), float(begun), float(done), int(pid))


@contextmanager
def steady(*, workers: int, rate: int, conversations: int, work_ms: float, **changes: object) -> Generator[Steady]:
    """A node, a deployment of *workers* on it, and a load; gone afterwards.

    Args:
        changes: of settings.
    """
    with cluster(**changes) as settings:
        ledger = settings.home / "ledger"
        environment = {
            **os.environ,
            **{f"LLMAGENTOS_{name.upper()}": str(value) for name, value in changes.items()},
            "LLMAGENTOS_HOME": str(settings.home),
            "LLMAGENTOS_BROKERS": settings.brokers,
            "LLMAGENTOS_PREFIX": settings.prefix,
            LEDGER: str(ledger),
            WORK_MS: str(work_ms),
        }
        program = str(Path(__file__).with_name("noting.py"))
        load = Steady(settings, ledger, rate=rate, conversations=conversations)
        try:
            deploy(settings, program, name=DEPLOYMENT, workers=workers, environment=environment)
            load.start()
            load.until(lambda: len(load.entries) > rate, "the first second of work")
            yield load
        finally:
            load.stop()
            if DEPLOYMENT in Deployments(settings.home).names():
                undeploy(settings, DEPLOYMENT)


def percentile(values: list[float], share: float) -> float:
    """The lowest value that *share* of them don't exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
