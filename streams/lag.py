"""How far deployments are behind: messages not finished, conversations that wait, and how long the oldest has.

What a worker finished above its committed offset, out of order, stands in the commit's metadata
(:mod:`llmagentos.streams.gate`) and doesn't count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from llmagentos.streams.admin import Admin
from llmagentos.streams.gate import decode_finished
from llmagentos.streams.position import BEGINNING, END
from llmagentos.streams.tail import Log, Span

__all__ = ["BACKLOG", "PartitionLag", "lag"]

#: Records of a partition's backlog that are looked at; of a longer one, only the messages are known in full.
BACKLOG = 100_000


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """One partition of one deployment's input.

    Attributes:
        committed: the committed offset; None where nothing was ever committed: all is to be done.
        end: the offset after the last record.
        behind: messages not finished.
        waiting: conversations with such messages.
        oldest_ms: timestamp of the first of them; None without any.
        whole: whether the backlog was looked at in full; else `waiting` is at least that, and `behind` counts offsets.
    """

    deployment: str
    topic: str
    partition: int
    committed: int | None
    end: int
    behind: int
    waiting: int
    oldest_ms: int | None
    whole: bool


def lag(log: Log, admin: Admin, deployments: Iterable[str], inputs: Mapping[str, Iterable[str]]) -> list[PartitionLag]:
    """The lag of each partition that a deployment reads.

    Args:
        inputs: topics by deployment, as its agents' cards name them; those that don't exist are left out.
    """
    topics = log.topics()
    found: list[PartitionLag] = []
    for deployment in deployments:
        names = sorted(set(inputs[deployment]) & set(topics))
        commits = admin.commits(deployment, names)
        places = [(topic, partition) for topic in names for partition in range(topics[topic])]
        found += _of(log, deployment, log.spans(places, BEGINNING, END), commits)
    return found


def _of(
    log: Log, deployment: str, spans: list[Span], commits: Mapping[tuple[str, int], tuple[int, str]]
) -> list[PartitionLag]:
    backlog: dict[tuple[str, int], Span] = {}
    finished: dict[tuple[str, int], set[int]] = {}
    for span in spans:
        start, metadata = commits.get(span.place, (span.start, ""))
        start = max(start, span.low)
        ranges = decode_finished(start, metadata)
        # The metadata is some kilobytes and bounds the ranges, but a range says nothing of its length.
        finished[span.place] = {
            offset for first, last in ranges for offset in range(first, min(last + 1, start + BACKLOG))
        }
        backlog[span.place] = Span(span.topic, span.partition, start, min(span.stop, start + BACKLOG), span.low)
    behind: dict[tuple[str, int], int] = defaultdict(int)
    waiting: dict[tuple[str, int], set[bytes]] = defaultdict(set)
    oldest: dict[tuple[str, int], int] = {}
    for record in log.read(list(backlog.values())):
        assert record is not None
        place = cast(tuple[str, int], (record.topic(), record.partition()))
        if record.offset() in finished[place]:
            continue
        behind[place] += 1
        oldest.setdefault(place, record.timestamp()[1])
        if (key := record.key()) is not None:
            waiting[place].add(key)
    return [
        PartitionLag(
            deployment,
            span.topic,
            span.partition,
            commits[span.place][0] if span.place in commits else None,
            span.stop,
            behind[span.place] + span.stop - max(backlog[span.place].stop, backlog[span.place].start),
            len(waiting[span.place]),
            oldest.get(span.place),
            backlog[span.place].stop >= span.stop,
        )
        for span in spans
    ]
