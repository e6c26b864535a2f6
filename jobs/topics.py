"""Topics as DataFrames: which offsets, read once, decoded by the schema that each record was written with.

    spans = window(settings, "agent.*", since_ms=...)
    frame = records(spark, settings, spans)

A record that can't be decoded is a row like the others, with its `cause`, its raw `value`, and a null `record`:
nothing is left out in silence.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import reduce
from typing import TYPE_CHECKING, Any

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # pyright: ignore[reportPrivateImportUsage]

from llmagentos import schemas
from llmagentos.jobs.spark import kafka_options
from llmagentos.streams.admin import Admin, translate
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.errors import JobError
from llmagentos.streams.registry import full_name, open_registry
from llmagentos.streams.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

__all__ = ["CAUSES", "Ends", "Span", "ends", "messages", "partitions", "records", "window"]

#: What is wrong with a row whose `record` is null.
CAUSES = ("no value", "wrong magic byte", "unknown schema id", "undecodable body")

#: Kafka's default of 1 MiB makes a request of nearly every batch: 8 MiB doubled the rows a second.
_FETCH_BYTES = 8 * 1024 * 1024
_ADMIN_TIMEOUT_S = 30.0
#: By how much a record may be older than one before it: some delivery timeouts (120 s), and clocks that differ.
_DISORDER_MS = 10 * 60 * 1000


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """The offsets `start` up to, not including, `end` of one partition."""

    topic: str
    partition: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Ends:
    """Of one partition: the first offset that is still there, and the one after the last committed record."""

    first: int
    last: int


def partitions(settings: Settings, *patterns: str) -> list[tuple[str, int]]:
    """Each (topic, partition) of the topics whose name without the prefix fits one of *patterns*.

    Args:
        patterns: as a shell's: `agent.*`, `replies`.

    Raises:
        BrokerError: the cluster is out of reach.
    """
    found = Admin(settings).topics(settings.prefix)
    return sorted(
        (name, number)
        for name, topic in found.items()
        if any(fnmatchcase(name.removeprefix(settings.prefix), pattern) for pattern in patterns)
        for number in range(topic.partitions)
    )


def ends(settings: Settings, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Ends]:
    """First and last offset of each place; open transactions don't count.

    Raises:
        BrokerError: the cluster is out of reach.
    """
    places = list(places)
    first = _offsets(settings, dict.fromkeys(places, OffsetSpec.earliest()))
    last = _offsets(settings, dict.fromkeys(places, OffsetSpec.latest()))
    return {place: Ends(first[place], last[place]) for place in places}


def window(settings: Settings, *patterns: str, since_ms: int | None = None, until_ms: int | None = None) -> list[Span]:
    """Offsets that hold every record with *since_ms* <= timestamp < *until_ms*; only spans that aren't empty.

    Kafka finds them by its time index. Timestamps come from producers, so a partition's are not quite in order: a
    span goes on until ten minutes after *until_ms*, and :func:`records` leaves out what is not in the window. A
    record that lies behind others which are newer by more than that is not found.

    Args:
        patterns: as :func:`partitions` takes them.
        since_ms, until_ms: milliseconds since the epoch; None: from the first, to the last that there is now.

    Raises:
        BrokerError: the cluster is out of reach.
    """
    known = ends(settings, partitions(settings, *patterns))

    def at(time_ms: int | None, otherwise: Callable[[Ends], int]) -> dict[tuple[str, int], int]:
        if time_ms is None:
            return {place: otherwise(there) for place, there in known.items()}
        found = _offsets(settings, dict.fromkeys(known, OffsetSpec.for_timestamp(time_ms)))
        # No record so late: the span begins, or ends, behind the last one.
        return {place: known[place].last if offset < 0 else offset for place, offset in found.items()}

    start, end = (
        at(since_ms, lambda there: there.first),
        at(None if until_ms is None else until_ms + _DISORDER_MS, lambda there: there.last),
    )
    return [Span(*place, start[place], end[place]) for place in known if start[place] < end[place]]


def records(
    spark: SparkSession,
    settings: Settings,
    spans: Sequence[Span],
    schema: str = "message",
    *,
    fields: Sequence[str] | None = None,
    since_ms: int | None = None,
    until_ms: int | None = None,
) -> DataFrame:
    """The records at *spans* in one scan, decoded.

    Columns: `topic`, `partition`, `offset`, `timestamp`, `key`, `bytes` (size of the value), `record` (a struct of
    the schema's fields; null where undecodable), `cause` (one of :data:`CAUSES`; null where decoded), `value` (the
    raw bytes; null where decoded).

    Each record is decoded with the schema that its id names, into the project's own of that name, as Avro resolves
    them. The checksum of a message's body is not compared: Spark has no CRC-32C.

    Args:
        schema: one of the names in `llmagentos.schemas`, for example ``"message"``.
        fields: only these of the record, and what tells a decoded one; fewer are faster. None: all.
        since_ms, until_ms: of these offsets only records with *since_ms* <= timestamp < *until_ms*.

    Raises:
        SchemaError: the registry is out of reach.
        JobError: *fields* names one that the schema has not.
    """
    from pyspark.sql import functions as F
    from pyspark.sql.avro.functions import from_avro

    reader, required = _reader(schema, fields)
    writers = _writers(settings, full_name(reader), {span.topic for span in spans}) if spans else {}
    raw = _raw(spark, settings, spans)
    if since_ms is not None:
        raw = raw.where(F.col("timestamp") >= F.timestamp_millis(F.lit(since_ms)))
    if until_ms is not None:
        raw = raw.where(F.col("timestamp") < F.timestamp_millis(F.lit(until_ms)))
    header = F.substring("value", 1, 5)
    headers = {number: F.lit(b"\x00" + number.to_bytes(4, "big")) for number in writers}
    options = {"mode": "PERMISSIVE", "avroSchema": _avro(reader)}
    body = F.expr("substring(value, 6)")
    tried: list[Column] = [
        from_avro(F.when(header == headers[number], body), _avro(writer), options) for number, writer in writers.items()
    ]
    # A registry without any schema of the name: nothing can be decoded, and the type must be known all the same.
    tried = tried or [from_avro(F.lit(None).cast("binary"), _avro(reader), options)]
    known = reduce(lambda one, other: one | other, (header == lit for lit in headers.values()), F.lit(False))
    cause = (
        F.when(F.col("value").isNull(), CAUSES[0])
        .when((F.substring("value", 1, 1) != F.lit(b"\x00")) | (F.length("value") < 5), CAUSES[1])
        .when(~known, CAUSES[2])
        # What fails comes back as a struct of nulls: only a field that can't be null tells.
        .when(F.col(f"record.{required}").isNull(), CAUSES[3])
    )
    place = ("topic", "partition", "offset", "timestamp", "key")
    rows = (
        raw.select(*place, "value", F.coalesce(*tried).alias("record"))
        .select(*place, "value", "record", cause.alias("cause"))
        .select(
            *place,
            F.coalesce(F.length("value"), F.lit(0)).alias("bytes"),
            F.when(F.col("cause").isNull(), F.col("record")).alias("record"),
            "cause",
            F.when(F.col("cause").isNotNull(), F.col("value")).alias("value"),
        )
    )
    # The optimizer moves a caller's filter below the decoding, which then runs twice (108k rows/s in place of
    # 225k): it moves none below a generator.
    return rows.select(F.inline(F.array(F.struct("*"))))


def messages(
    spark: SparkSession,
    settings: Settings,
    *patterns: str,
    since_ms: int | None = None,
    until_ms: int | None = None,
    fields: Sequence[str] | None = None,
) -> DataFrame:
    """The messages of a window, one column a field, with `topic`, `partition`, `offset`, `timestamp`, `cause`, `value`.

    What is undecodable is in it with its cause and with null fields: `where("cause is null")` leaves it out.

    Args:
        patterns: of topics; none: all inboxes, answers and replies.
        since_ms, until_ms: as :func:`window` takes them.
        fields: as :func:`records` takes them.

    Raises:
        BrokerError, SchemaError, JobError: as :func:`window` and :func:`records` do.
    """
    spans = window(settings, *(patterns or ("agent.*", "answers.*", "replies")), since_ms=since_ms, until_ms=until_ms)
    return records(spark, settings, spans, fields=fields, since_ms=since_ms, until_ms=until_ms).select(
        "topic", "partition", "offset", "timestamp", "bytes", "record.*", "cause", "value"
    )


def _raw(spark: SparkSession, settings: Settings, spans: Sequence[Span]) -> DataFrame:
    if not spans:
        schema = "topic string, partition int, offset long, timestamp timestamp, key binary, value binary"
        return spark.createDataFrame([], schema)

    def by_topic(value: Callable[[Span], Any]) -> dict[str, dict[str, Any]]:
        grouped: dict[str, dict[str, Any]] = {}
        for span in spans:
            grouped.setdefault(span.topic, {})[str(span.partition)] = value(span)
        return grouped

    starts = by_topic(lambda span: span.start)
    return (
        spark.read.format("kafka")
        .options(**kafka_options(settings))
        .option("assign", json.dumps({topic: [int(number) for number in there] for topic, there in starts.items()}))
        .option("startingOffsets", json.dumps(starts))
        .option("endingOffsets", json.dumps(by_topic(lambda span: span.end)))
        .option("kafka.isolation.level", "read_committed")
        .option("kafka.max.partition.fetch.bytes", str(_FETCH_BYTES))
        .option("kafka.fetch.max.bytes", str(8 * _FETCH_BYTES))
        .load()
    )


def _reader(name: str, fields: Sequence[str] | None) -> tuple[dict[str, Any], str]:
    """The schema to read into, less what isn't asked for, and the name of a field that is never null in it."""
    schema = schemas.load(name)
    all_fields: list[dict[str, Any]] = schema["fields"]
    required = next(field["name"] for field in all_fields if "default" not in field)
    if fields is None:
        return schema, required
    missing = set(fields) - {field["name"] for field in all_fields}
    if missing:
        raise JobError(
            f"the schema {name} has no field {', '.join(sorted(missing))}",
            fix=f"it has {', '.join(field['name'] for field in all_fields)}",
        )
    return {**schema, "fields": [field for field in all_fields if field["name"] in {*fields, required}]}, required


def _avro(schema: Mapping[str, Any]) -> str:
    """As JSON without the words for people, which every plan would carry."""

    def bare(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: bare(value) for name, value in part.items() if name != "doc"}
        return [bare(item) for item in part] if isinstance(part, list) else part

    return json.dumps(bare(schema))


def _writers(settings: Settings, name: str, topics: Iterable[str]) -> dict[int, Mapping[str, Any]]:
    """Every schema of the record *name* that the registry has under the subject of any naming strategy, by id.

    It is asked after the spans are known: what was written before them was registered before them.
    """
    subjects = {name}.union(*({f"{topic}-value", f"{topic}-{name}"} for topic in topics))
    found: dict[int, Mapping[str, Any]] = {}
    with contextlib.closing(open_registry(settings)) as registry:
        for subject in subjects.intersection(registry.subjects()):
            for version in registry.versions(subject):
                if full_name(version.schema) == name:
                    found[version.id] = version.schema
    return dict(sorted(found.items(), reverse=True))  # the newest is the likeliest: it is compared first


def _offsets(settings: Settings, wanted: Mapping[tuple[str, int], Any]) -> dict[tuple[str, int], int]:
    """Of all places in one request; those of open transactions are behind the end."""
    if not wanted:
        return {}
    client = AdminClient(client_config(settings) | {"log_level": 0})  # errors come as exceptions: no need to print them
    futures = client.list_offsets(
        {TopicPartition(*place): spec for place, spec in wanted.items()},
        isolation_level=IsolationLevel.READ_COMMITTED,
        request_timeout=_ADMIN_TIMEOUT_S,
    )
    try:
        return {(place.topic, place.partition): future.result().offset for place, future in futures.items()}
    except KafkaException as error:
        raise translate(error, settings, "look up offsets") from error
