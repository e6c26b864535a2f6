"""The job `analytics`: what the agents did, counted from their topics.

Without a window it is incremental: each run takes over what is new into a store and counts over all of it. With
one, it reads just that window from Kafka. Either way it leaves Parquet tables and one HTML report.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmagentos.jobs.runs import Run, recorded
from llmagentos.jobs.spark import Progress, require_extra, session, watched
from llmagentos.jobs.store import BATCH_ROWS, Store
from llmagentos.jobs.topics import Span
from llmagentos.streams.admin import Admin
from llmagentos.streams.settings import Settings

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["default_out", "run", "tables"]

MESSAGE_TOPICS = ("agent.*", "answers.*", "replies")
DEAD_TOPICS = ("dead.*",)
#: What the tables below need; the bodies stay in Kafka.
MESSAGE_FIELDS = (
    *("message_id", "conversation_id", "type", "sender", "recipient", "tenant", "created_at", "caused_by"),
    *("reply_to", "usage"),
)
DEAD_FIELDS = ("agent", "topic", "partition", "offset", "cause", "error", "conversation_id", "died_at")

#: Rows of the tables that list single things.
_SLOWEST = 1_000
#: For the curve of an agent's latencies: every second percentile, and the far end.
_CURVE = [*(n / 100 for n in range(0, 100, 2)), 0.99, 0.995, 0.999, 1.0]


def default_out(settings: Settings) -> Path:
    """Where results go when nothing else is said; one folder a topic prefix, for a store is of one."""
    return settings.home / "jobs" / "analytics" / (settings.prefix.rstrip(".") or "all")


def run(
    settings: Settings,
    *,
    since_ms: int | None = None,
    until_ms: int | None = None,
    out: Path | None = None,
    master: str = "local[*]",
    allow_loss: bool = False,
    batch_rows: int = BATCH_ROWS,
    progress: Progress | None = None,
    spark: SparkSession | None = None,
) -> Run:
    """Run the job and return its record.

    Args:
        since_ms, until_ms: a window of Kafka timestamps, milliseconds since the epoch; none: incremental.
        out: folder of store, tables and report, seen by driver and executors.
        master: a Spark master; see :func:`llmagentos.jobs.spark.session`.
        allow_loss: see :meth:`llmagentos.jobs.store.Store.update`.
        batch_rows: see there.
        spark: a session to use; None: one of its own.

    Raises:
        JobError: Spark can't start, or the store can't go on; says why.
        BrokerError, SchemaError: the cluster or the registry is out of reach.
    """
    from llmagentos.jobs import report

    require_extra()
    out = (out or default_out(settings)).absolute()
    windowed = since_ms is not None or until_ms is not None
    parameters = {
        "since": _iso(since_ms),
        "until": _iso(until_ms),
        "master": master,
        "prefix": settings.prefix,
        "allow_loss": allow_loss,
    }
    with ExitStack() as stack:
        this = stack.enter_context(recorded(settings, "analytics", out, parameters))
        Admin(settings).cluster()  # out of reach shows now, not after Spark has started
        if spark is None:
            spark = stack.enter_context(session(settings, "llmagentos analytics", master=master, progress=progress))
        results = out / "runs" / this.id
        folder = results / "store" if windowed else out / "store"
        stores = {
            "message": Store(folder / "messages", settings, MESSAGE_TOPICS, "message", MESSAGE_FIELDS),
            "dead_letter": Store(folder / "dead_letters", settings, DEAD_TOPICS, "dead_letter", DEAD_FIELDS),
        }
        for store in stores.values():
            taken = store.update(
                spark,
                window=(since_ms, until_ms) if windowed else None,
                allow_loss=allow_loss,
                batch_rows=batch_rows,
                progress=progress,
            )
            this.inputs |= _by_topic(taken.spans)
            this.lost |= _by_topic(taken.lost)
            this.rows += taken.rows
            this.undecodable += taken.undecodable
        with watched(spark, "counting", progress):
            found = tables(
                stores["message"].frame(spark), stores["dead_letter"].frame(spark), inboxes=settings.topic("agent.")
            )
        results.mkdir(parents=True, exist_ok=True)
        for name, table in found.items():
            path = results / f"{name}.parquet"
            table.to_parquet(path, index=False)
            this.outputs.append(str(path))
        this.summary = _plain(found["totals"].iloc[0].to_dict())
        this.rows_total = int(this.summary["records"])
        latest = out / "report.html"
        this.report = str(results / "report.html")
        Path(this.report).write_text(report.render(found, this), encoding="utf-8")
        shutil.copyfile(this.report, latest)
        this.outputs += [this.report, str(latest)]
    return this


def tables(messages: DataFrame, dead_letters: DataFrame, *, inboxes: str) -> dict[str, pd.DataFrame]:
    """Every table of the report.

    Args:
        messages, dead_letters: rows as :func:`llmagentos.jobs.topics.records` has them, with the fields
            :data:`MESSAGE_FIELDS` and :data:`DEAD_FIELDS` at least.
        inboxes: what the full name of every inbox begins with.

    Returns:
        `traffic`: messages and bytes by agent, type, tenant and hour. The agent is the one whose inbox a message
        was in; elsewhere (answers, replies) the one that sent it.
        `latency`: by agent, milliseconds from a question's `created_at` to that of its first answer, and by the
        timestamps of their Kafka records.
        `curve`: by agent, the same at many percentiles.
        `cost`: tokens and US dollars by tenant, agent and model; a message sent twice counts once.
        `errors`: answers of type error by agent. `dead`: dead letters by agent and cause.
        `slowest`: conversations by the time that their questions waited for answers.
        `undecodable`: by topic and cause, with a place to look at.
        `totals`: one row.
    """
    from pyspark.sql import functions as F

    decoded = messages.where("cause is null").select("topic", "timestamp", "bytes", "record.*")
    inbox = F.col("topic").startswith(inboxes)
    known = decoded.withColumn("inbox", inbox).withColumn(
        "agent",
        F.when(inbox, F.col("topic").substr(F.lit(len(inboxes) + 1), F.length("topic"))).otherwise(F.col("sender")),
    )
    traffic = (
        known.groupBy("agent", "type", "tenant", F.date_trunc("hour", "timestamp").alias("hour"))
        .agg(F.count(F.lit(1)).alias("messages"), F.sum("bytes").alias("bytes"))
        .orderBy("agent", "type", "tenant", "hour")
    )
    answered = _answered(known).persist()
    try:
        return {
            "traffic": traffic.toPandas(),
            "latency": _latency(answered).toPandas(),
            "curve": _curve(answered).toPandas(),
            "cost": _cost(known).toPandas(),
            "errors": _errors(known).toPandas(),
            "dead": _dead(dead_letters).toPandas(),
            "slowest": _slowest(known, answered).toPandas(),
            "undecodable": _undecodable([messages, dead_letters]).toPandas(),
            "totals": _totals(messages, known).toPandas(),
        }
    finally:
        answered.unpersist()


def _answered(known: DataFrame) -> DataFrame:
    """Each question once, with the milliseconds to its first answer; null where there is none."""
    from pyspark.sql import functions as F

    ms, kafka_ms = F.unix_millis("created_at"), F.unix_millis("timestamp")
    questions = (
        known.where(F.col("inbox") & F.col("type").isin("task", "command"))
        .groupBy("message_id")
        .agg(
            F.min("agent").alias("agent"),
            F.min("conversation_id").alias("conversation_id"),
            F.min(ms).alias("asked_ms"),
            F.min(kafka_ms).alias("asked_kafka_ms"),
            F.max(F.col("reply_to").isNotNull()).alias("awaited"),
        )
    )
    answers = (
        known.where(F.col("type").isin("result", "error") & F.col("caused_by").isNotNull())
        .groupBy(F.col("caused_by").alias("message_id"))
        .agg(F.min(ms).alias("answered_ms"), F.min(kafka_ms).alias("answered_kafka_ms"))
    )
    return questions.join(answers, "message_id", "left").select(
        "agent",
        "conversation_id",
        "awaited",
        (F.col("answered_ms") - F.col("asked_ms")).alias("ms"),
        (F.col("answered_kafka_ms") - F.col("asked_kafka_ms")).alias("kafka_ms"),
    )


def _latency(answered: DataFrame) -> DataFrame:
    from pyspark.sql import functions as F

    def at(column: str, share: float, name: str) -> Any:
        return F.percentile(column, share).alias(name)

    return (
        answered.groupBy("agent")
        .agg(
            F.count(F.lit(1)).alias("questions"),
            F.count("ms").alias("answered"),
            F.count_if(F.col("awaited") & F.col("ms").isNull()).alias("unanswered"),
            at("ms", 0.5, "p50_ms"),
            at("ms", 0.95, "p95_ms"),
            at("ms", 0.99, "p99_ms"),
            F.max("ms").alias("max_ms"),
            at("kafka_ms", 0.5, "kafka_p50_ms"),
            at("kafka_ms", 0.95, "kafka_p95_ms"),
            at("kafka_ms", 0.99, "kafka_p99_ms"),
        )
        .orderBy(F.desc("answered"), "agent")
    )


def _curve(answered: DataFrame) -> DataFrame:
    from pyspark.sql import functions as F

    shares = F.array(*(F.lit(share) for share in _CURVE))
    return (
        answered.where("ms is not null")
        .groupBy("agent")
        .agg(F.count(F.lit(1)).alias("answered"), F.percentile("ms", shares).alias("ms"))
        .withColumn("share", shares)
        .orderBy(F.desc("answered"), "agent")
    )


def _cost(known: DataFrame) -> DataFrame:
    from pyspark.sql import functions as F

    return (
        known.where("usage is not null")
        .dropDuplicates(["message_id"])
        .groupBy("tenant", F.col("sender").alias("agent"), F.col("usage.model").alias("model"))
        .agg(
            F.count(F.lit(1)).alias("messages"),
            F.sum("usage.tokens_in").alias("tokens_in"),
            F.sum("usage.tokens_out").alias("tokens_out"),
            F.sum("usage.cost").alias("cost"),
        )
        .orderBy(F.desc("cost"), F.desc("tokens_out"), "tenant", "agent", "model")
    )


def _errors(known: DataFrame) -> DataFrame:
    from pyspark.sql import functions as F

    def distinct(kind: str) -> Any:
        return F.count_distinct(F.when(F.col("type") == kind, F.col("message_id")))

    return (
        known.where(F.col("type").isin("result", "error"))
        .groupBy(F.col("sender").alias("agent"))
        .agg(distinct("error").alias("errors"), distinct("result").alias("results"))
        .where("errors > 0")
        .withColumn("share", F.col("errors") / (F.col("errors") + F.col("results")))
        .orderBy(F.desc("errors"), "agent")
    )


def _dead(dead_letters: DataFrame) -> DataFrame:
    from pyspark.sql import functions as F

    return (
        dead_letters.where("cause is null")
        .select("record.*")
        .groupBy("agent", "cause")
        .agg(
            # A letter that was written twice names the same record.
            F.count_distinct("topic", "partition", "offset").alias("letters"),
            F.count_distinct("conversation_id").alias("conversations"),
            F.max("died_at").alias("last"),
            F.max_by("error", "died_at").alias("last_error"),
        )
        .orderBy(F.desc("letters"), "agent", "cause")
    )


def _slowest(known: DataFrame, answered: DataFrame) -> DataFrame:
    from pyspark.sql import functions as F

    waited = answered.groupBy("conversation_id").agg(
        F.sum("ms").alias("waited_ms"), F.max("ms").alias("longest_ms"), F.count(F.lit(1)).alias("questions")
    )
    seen = known.groupBy("conversation_id").agg(
        F.count(F.lit(1)).alias("messages"),
        F.array_join(F.array_sort(F.collect_set(F.when(F.col("inbox"), F.col("agent")))), ", ").alias("agents"),
        F.min("timestamp").alias("first"),
        (F.unix_millis(F.max("timestamp")) - F.unix_millis(F.min("timestamp"))).alias("lasted_ms"),
    )
    slowest = waited.where("waited_ms is not null").orderBy(F.desc("waited_ms"), "conversation_id").limit(_SLOWEST)
    return slowest.join(seen, "conversation_id").orderBy(F.desc("waited_ms"), "conversation_id")


def _undecodable(frames: Iterable[DataFrame]) -> DataFrame:
    from functools import reduce

    from pyspark.sql import DataFrame as Frame
    from pyspark.sql import functions as F

    columns = ("topic", "partition", "offset", "timestamp", "cause")
    rows = reduce(Frame.unionByName, (frame.where("cause is not null").select(*columns) for frame in frames))
    first = F.min_by(F.struct("partition", "offset"), F.struct("timestamp", "partition", "offset"))
    return (
        rows.groupBy("topic", "cause")
        .agg(F.count(F.lit(1)).alias("records"), first.alias("at"), F.max("timestamp").alias("last"))
        .select("topic", "cause", "records", F.expr("concat(at.partition, '@', at.offset)").alias("first"), "last")
        .orderBy(F.desc("records"), "topic", "cause")
    )


def _totals(messages: DataFrame, known: DataFrame) -> DataFrame:
    from pyspark.sql import functions as F

    all_rows = messages.agg(F.count(F.lit(1)).alias("records"), F.count("cause").alias("undecodable"))
    return all_rows.crossJoin(
        known.agg(
            F.count(F.lit(1)).alias("messages"),
            # The same id again in the same topic: sent again after a crash, or a client's retry.
            (F.count(F.lit(1)) - F.count_distinct("topic", "message_id")).alias("repeated"),
            F.count_distinct("conversation_id").alias("conversations"),
            F.count_distinct("agent").alias("agents"),
            F.coalesce(F.sum("bytes"), F.lit(0)).alias("bytes"),
            F.min("timestamp").alias("first"),
            F.max("timestamp").alias("last"),
        )
    )


def _by_topic(spans: Iterable[Span]) -> dict[str, dict[str, list[int]]]:
    """Spans as a run's record has them; adjoining ones, from one batch to the next, as one."""
    found: dict[str, dict[str, list[int]]] = {}
    for span in spans:
        there = found.setdefault(span.topic, {}).setdefault(str(span.partition), [span.start, span.end])
        there[0], there[1] = min(there[0], span.start), max(there[1], span.end)
    return found


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    """NumPy's and pandas' numbers and times as Python's."""
    import pandas as pd

    def value(item: Any) -> Any:
        if pd.isna(item):
            return None
        if isinstance(item, pd.Timestamp):
            return item.isoformat() + "Z"
        return item.item() if hasattr(item, "item") else item

    return {str(name): value(item) for name, item in row.items()}


def _iso(time_ms: int | None) -> str | None:
    return None if time_ms is None else datetime.fromtimestamp(time_ms / 1000, UTC).isoformat()
