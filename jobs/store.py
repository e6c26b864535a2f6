"""Records of topics in Parquet, each taken once: the checkpoint of the incremental jobs.

A store takes over records in batches. Before a batch is read, its offsets are written down as a plan; when its rows
are on disk, it is marked done. The next batch starts where the last plan ends. A run that is killed leaves a plan
that isn't done: the next run reads the same offsets again, into a folder of its own, as Java may still be writing
what Python began. So no record is twice in a store, and none is left out, however often a run dies
(docs/decisions/ says why this and not Spark's own streaming checkpoint).

    FOLDER/source.json           the cluster, the prefix and the schema that the rows are of
    FOLDER/log/NNNNNN.plan.json  a batch's spans, and the position after it
    FOLDER/log/NNNNNN.done.json  how many rows it has, and which folder holds them
    FOLDER/rows/NNNNNN-XXXX/     Parquet files of one attempt at it
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmagentos.jobs.spark import Progress, watched
from llmagentos.jobs.topics import Ends, Span, ends, partitions, records
from llmagentos.jobs.topics import window as offsets_of
from llmagentos.streams.admin import Admin
from llmagentos.streams.errors import JobError
from llmagentos.streams.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["Store", "Taken", "write_json"]

#: Offsets in one batch: what a killed run reads again at most; some 20 s on two cores.
BATCH_ROWS = 4_000_000
#: Rows of one Parquet file, about: small enough for one task's memory, large enough to make few files.
_FILE_ROWS = 500_000


@dataclass(slots=True)
class Taken:
    """What one update took: offsets, rows (decoded or not), and how many of them are undecodable."""

    spans: list[Span] = field(default_factory=list[Span])
    lost: list[Span] = field(default_factory=list[Span])
    rows: int = 0
    undecodable: int = 0


class Store:
    """The decoded records of some topics, in a folder that driver and executors all see.

    Args:
        folder: made where it isn't there.
        settings: name the cluster.
        patterns: of topics, as :func:`~llmagentos.jobs.topics.partitions` takes them.
        schema, fields: as :func:`~llmagentos.jobs.topics.records` takes them.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        patterns: Sequence[str],
        schema: str = "message",
        fields: Sequence[str] | None = None,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.patterns = tuple(patterns)
        self.schema = schema
        self.fields = fields
        self._log = folder / "log"
        self._rows = folder / "rows"

    def update(
        self,
        spark: SparkSession,
        *,
        window: tuple[int | None, int | None] | None = None,
        allow_loss: bool = False,
        batch_rows: int = BATCH_ROWS,
        progress: Progress | None = None,
    ) -> Taken:
        """Take over what is new since the last update.

        Args:
            window: just the records with since_ms <= timestamp < until_ms, in place of all that is new; for a
                store of its own.
            allow_loss: go on where retention, or a topic made anew, has taken offsets that weren't read yet.
            batch_rows: offsets in one batch.

        Raises:
            JobError: the store is of another cluster, prefix or schema; or offsets are gone, naming the range.
            BrokerError, SchemaError: the cluster or the registry is out of reach.
        """
        self._log.mkdir(parents=True, exist_ok=True)
        self._same_source()
        taken = Taken()
        unfinished = self._unfinished()
        if unfinished is not None:
            number, todo = unfinished
            available, lost = _still_there(todo, ends(self.settings, [(s.topic, s.partition) for s in todo]))
            self._refuse(lost, allow_loss)
            taken.lost += lost
            self._take(spark, number, available, taken, progress, window)
        if window is None:
            spans, lost = self._new(allow_loss)
            taken.lost += lost
        else:
            spans = offsets_of(self.settings, *self.patterns, since_ms=window[0], until_ms=window[1])
        number = len(list(self._log.glob("*.plan.json")))
        for part in _batches(spans, batch_rows):
            position = self._position() | {(span.topic, span.partition): span.end for span in part}
            plan = {
                "spans": [[s.topic, s.partition, s.start, s.end] for s in part],
                "position": [[*place, offset] for place, offset in sorted(position.items())],
            }
            write_json(self._file(number, "plan"), plan)
            self._take(spark, number, part, taken, progress, window)
            number += 1
        return taken

    def frame(self, spark: SparkSession) -> DataFrame:
        """All rows of the batches that are done; columns as :func:`~llmagentos.jobs.topics.records` has them."""
        empty = records(spark, self.settings, [], self.schema, fields=self.fields)
        done = sorted(self._log.glob("*.done.json"))
        if not done:
            return empty
        return spark.read.schema(empty.schema).parquet(*(str(self._rows / _read_json(path)["folder"]) for path in done))

    # -- how

    def _take(
        self,
        spark: SparkSession,
        number: int,
        spans: Sequence[Span],
        taken: Taken,
        progress: Progress | None,
        window: tuple[int | None, int | None] | None,
    ) -> None:
        from pyspark.sql import functions as F

        for left_over in self._rows.glob(f"{number:06}-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        folder = f"{number:06}-{secrets.token_hex(2)}"
        target = str(self._rows / folder)
        offsets = sum(span.end - span.start for span in spans)
        files = min(len(spans), max(2 * spark.sparkContext.defaultParallelism, offsets // _FILE_ROWS))
        what = f"reading {offsets:,} {self.schema.replace('_', ' ')}s"
        with watched(spark, what, progress):
            since_ms, until_ms = window or (None, None)
            frame = records(
                spark, self.settings, spans, self.schema, fields=self.fields, since_ms=since_ms, until_ms=until_ms
            )
            frame.coalesce(max(files, 1)).write.option("compression", "zstd").parquet(target)
            # Counted from what is on disk, not from what was meant to be.
            counted = spark.read.parquet(target).agg(F.count(F.lit(1)).alias("rows"), F.count("cause").alias("bad"))
            row = counted.collect()[0]
        write_json(self._file(number, "done"), {"folder": folder, "rows": row["rows"], "undecodable": row["bad"]})
        taken.spans += spans
        taken.rows += row["rows"]
        taken.undecodable += row["bad"]

    def _new(self, allow_loss: bool) -> tuple[list[Span], list[Span]]:
        position = self._position()
        known = ends(self.settings, partitions(self.settings, *self.patterns))
        made_anew = [
            Span(*place, there.last, position[place])
            for place, there in known.items()
            if position.get(place, 0) > there.last
        ]
        self._refuse(made_anew, allow_loss)
        starts = {
            place: there.first if position.get(place, -1) > there.last else position.get(place, there.first)
            for place, there in known.items()
        }
        wanted = [Span(*place, starts[place], there.last) for place, there in known.items()]
        spans, lost = _still_there(wanted, known)
        self._refuse(lost, allow_loss)
        return spans, made_anew + lost

    def _refuse(self, lost: Sequence[Span], allow_loss: bool) -> None:
        if not lost or allow_loss:
            return
        ranges = "; ".join(f"{s.topic} partition {s.partition} offsets {s.start} to {s.end - 1}" for s in lost[:5])
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        raise JobError(
            f"offsets that were not read yet are gone (by retention, or the topic was made anew): {ranges}{more}",
            kept=f"what was read before, in {self.folder}",
            fix="go on without them with --allow-loss; run the job more often than the retention of its topics",
        )

    def _same_source(self) -> None:
        source = {
            "cluster": Admin(self.settings).cluster().cluster_id,
            "prefix": self.settings.prefix,
            "schema": self.schema,
        }
        path = self.folder / "source.json"
        if not path.exists():
            write_json(path, source)
            return
        there = _read_json(path)
        if there != source:
            named = ", ".join(f"{key} {there.get(key)!r}, not {value!r}" for key, value in source.items())
            raise JobError(
                f"{self.folder} holds records of another source: {named}",
                kept="they stay as they are",
                fix="give another folder with --out",
            )

    def _unfinished(self) -> tuple[int, list[Span]] | None:
        for path in sorted(self._log.glob("*.plan.json")):
            number = int(path.name[:6])
            if not self._file(number, "done").exists():
                return number, [Span(*span) for span in _read_json(path)["spans"]]
        return None

    def _position(self) -> dict[tuple[str, int], int]:
        plans = sorted(self._log.glob("*.plan.json"))
        if not plans:
            return {}
        return {(topic, number): offset for topic, number, offset in _read_json(plans[-1])["position"]}

    def _file(self, number: int, kind: str) -> Path:
        return self._log / f"{number:06}.{kind}.json"


def _still_there(wanted: Iterable[Span], known: dict[tuple[str, int], Ends]) -> tuple[list[Span], list[Span]]:
    """What of *wanted* can be read, and what is gone."""
    there: list[Span] = []
    gone: list[Span] = []
    for span in wanted:
        first = known[span.topic, span.partition].first
        if span.start < min(first, span.end):
            gone.append(Span(span.topic, span.partition, span.start, min(first, span.end)))
        if max(span.start, first) < span.end:
            there.append(Span(span.topic, span.partition, max(span.start, first), span.end))
    return there, gone


def _batches(spans: Sequence[Span], rows: int) -> list[list[Span]]:
    """*spans* in batches of about *rows* offsets, each with its share of every span."""
    total = sum(span.end - span.start for span in spans)
    count = -(-total // rows)

    def share(span: Span, index: int) -> Span:
        size = span.end - span.start
        return Span(
            span.topic, span.partition, span.start + size * index // count, span.start + size * (index + 1) // count
        )

    batches = ([s for s in (share(span, index) for span in spans) if s.start < s.end] for index in range(count))
    return [batch for batch in batches if batch]


def write_json(path: Path, value: Any) -> None:
    """Write a file that is there whole or not at all, even after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    with scratch.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, default=str)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
