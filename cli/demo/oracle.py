"""The demo's judge: counts from topics, committed offsets and the ledger, never from the engine's own counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson
from confluent_kafka.admin import OffsetSpec

from llmagentos.cli.demo.measure import Measures, add
from llmagentos.cli.demo.sources import Expected
from llmagentos.streams.admin import Admin
from llmagentos.streams.message import Message
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.spans import Spans
from llmagentos.streams.wire import Codec

__all__ = ["AGENTS", "Kill", "Verdict", "judge", "lag", "read_ledger"]

AGENTS = ("parser", "measurer", "compiler")


@dataclass(frozen=True, slots=True)
class Kill:
    """The worker that was killed: when (seconds since the epoch), and what it owned (`topic:partition`)."""

    pid: int
    at: float
    owned: frozenset[str]


@dataclass(slots=True)
class Verdict:
    """What came of the run.

    Attributes:
        messages: records in the agents' inboxes and in `replies`.
        redelivered: messages that were handled more than once, by id: their outputs are in the log twice, or their
            entry is in the ledger twice.
        lost: entries that are missing, and messages that no committed offset covers.
        out_of_order: entries that were first made before an earlier one of their file.
        twice: entries in the ledger more than once.
        failover_s: from the kill to the first message handled of a partition that the dead worker owned.
        unequal: files whose survey is not what one loop makes of them.
    """

    messages: int = 0
    redelivered: int = 0
    lost: int = 0
    out_of_order: int = 0
    twice: int = 0
    failover_s: float | None = None
    events_per_s: float = 0.0
    files: int = 0
    unequal: list[str] = field(default_factory=list[str])

    def failures(self) -> list[str]:
        """What is off, in words; empty where all is as it must be."""
        checks = {
            f"{self.lost} lost": self.lost,
            f"{self.out_of_order} out of order": self.out_of_order,
            "the kill redelivered nothing, so it proves nothing": not self.redelivered,
            f"{self.twice} entries made twice by {self.redelivered} redelivered": self.twice > self.redelivered,
            "nobody took the dead worker's partitions over": self.failover_s is None,
            f"{len(self.unequal)} files differ from the single loop, the first {self.unequal[:1]}": self.unequal,
        }
        return [words for words, wrong in checks.items() if wrong]


def read_ledger(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of the ledger from byte *start* on, in order, and the byte behind them."""
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read().split(b"\n")[:-1]  # the last one is empty, or not whole yet
    return [orjson.loads(line) for line in lines], start + sum(len(line) + 1 for line in lines)


def lag(settings: Settings, group: str) -> int:
    """Records in the agents' inboxes that *group*'s committed offsets do not cover."""
    admin = Admin(settings)
    topics = [settings.topic(f"agent.{agent}") for agent in AGENTS]
    committed = admin.committed(group, topics)
    total = 0
    for topic in topics:
        low = admin.offsets(topic, cast(OffsetSpec, OffsetSpec.earliest()))
        for partition, end in admin.offsets(topic, cast(OffsetSpec, OffsetSpec.latest())).items():
            total += end - max(committed.get((topic, partition), 0), low[partition])
    return total


def judge(
    settings: Settings,
    group: str,
    ledger: Path,
    expected: Mapping[str, Expected],
    kill: Kill,
    *,
    seconds: float,
) -> Verdict:
    """Compare what is in topics and ledger with what must be.

    Args:
        seconds: from the first message produced to the last entry made.
    """
    inboxes = {agent: _read(settings, f"agent.{agent}") for agent in AGENTS}
    replies = _read(settings, "replies")
    entries, _ = read_ledger(ledger)
    verdict = Verdict(messages=sum(map(len, inboxes.values())) + len(replies), files=len(expected))

    # A message handled twice sent the same outputs twice: its children's ids stand at two offsets.
    again: set[str] = set()
    for records in (inboxes["measurer"], inboxes["compiler"], replies):
        seen = Counter(message.message_id for message in records)
        again |= {message.caused_by or "" for message in records if seen[message.message_id] > 1}
    # The same child at two offsets is one message that was itself delivered twice.
    entered = Counter(entry["message_id"] for entry in entries)
    again |= {message_id for message_id, count in entered.items() if count > 1}
    verdict.redelivered = len(again)
    verdict.twice = sum(count > 1 for count in entered.values())

    by_file: dict[str, dict[int, dict[str, Any]]] = {}
    for entry in entries:
        parts = by_file.setdefault(entry["path"], {})
        index = entry.get("index", 0)
        if index not in parts:
            verdict.out_of_order += bool(parts) and index < max(parts)
            parts[index] = entry
    for path, wanted in expected.items():
        parts = by_file.get(path, {})
        needed = range(wanted.pieces + 1) if wanted.measures is not None else range(1)  # the last one says "end"
        verdict.lost += sum(index not in parts for index in needed)
        if _measures(parts.values()) != wanted.measures:
            verdict.unequal.append(path)
    verdict.lost += lag(settings, group)
    verdict.unequal += [path for path in by_file if path not in expected]

    # What was sent after the kill because of a message in a partition that the dead worker owned, another one sent.
    orphaned = {
        message.message_id
        for records in inboxes.values()
        for message in records
        if f"{message.topic}:{message.partition}" in kill.owned
    }
    sent = [
        message.timestamp / 1000 - kill.at
        for records in (inboxes["measurer"], inboxes["compiler"], replies)
        for message in records
        if message.caused_by in orphaned and message.timestamp / 1000 > kill.at
    ]
    verdict.failover_s = min(sent, default=None)
    verdict.events_per_s = verdict.messages / seconds
    return verdict


def _measures(parts: Iterable[dict[str, Any]]) -> Measures | None:
    parts = list(parts)
    if any("unparsable" in part for part in parts):
        return None
    names = ("functions", "branches", "docstrings", "longest")
    return add(Measures(*(part[name] for name in names)) for part in parts if "piece" in part)


def _read(settings: Settings, name: str) -> list[Message]:
    """The whole of a topic, each partition in its order."""
    codec = Codec(open_registry(settings))
    spans = Spans(settings, name="oracle")
    try:
        return [codec.read(record) for batch in spans.whole(settings.topic(name)) for record in batch]
    finally:
        spans.close()
