"""The evidence of a chaos run: what topics, committed offsets and ledger hold, by a reader of its own.

Times are milliseconds by the machine's clock: the run's topics have `message.timestamp.type=LogAppendTime`, so a worker
with a wrong clock can't blur the order. Kafka's group coordinator stamps commits itself.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import confluent_kafka
from confluent_kafka import TopicPartition

from llmagentos.cli.chaos.ledger import read_ledger
from llmagentos.cli.chaos.workload import AGENTS
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.errors import BrokerError, RecordError
from llmagentos.streams.producer import MESSAGE_ID, librdkafka_log
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec

__all__ = ["Arrival", "Attempt", "Commit", "Entry", "Evidence", "Execution", "Letter", "collect", "parse_commit"]

#: Without a record for this long, an end that should be there is missing.
READ_TIMEOUT_S = 30.0

#: Records taken from librdkafka in one call, and how long it may gather them: so that calls cost nothing.
BATCH = 5_000
GATHER_S = 0.05


class Arrival(NamedTuple):
    """A record in an agent's inbox. `root` and `turn` say which line of the input it comes from; `cause` is the
    message whose handling sent it. Of what can't be decoded only the header's id is known."""

    partition: int
    offset: int
    at: int
    id: str
    conversation: str
    root: str
    turn: int
    cause: str | None
    decodable: bool = True


class Letter(NamedTuple):
    """A dead letter: the place in the inbox that it was at, its cause, and the id in its header."""

    agent: str
    partition: int
    offset: int
    cause: str
    id: str
    at: int


class Entry(NamedTuple):
    """A record of an agent's journal: about *offset* of its inbox partition; `claim` is its writer's. Of a step also
    its name, its number among those of that name, and its outcome."""

    agent: str
    partition: int
    position: int
    kind: str
    claim: int
    offset: int
    at: int
    step: tuple[str, int, str] | None = None


class Commit(NamedTuple):
    """A record of `__consumer_offsets`."""

    topic: str
    partition: int
    offset: int
    metadata: str
    at: int


class Attempt(NamedTuple):
    """A line of the ledger: an effect that a worker wanted; `place` is its message's in the inbox."""

    key: str
    conversation: str
    turn: int
    root: str
    words: int
    checksum: int
    worker: int
    place: tuple[int, int]
    at: int


class Execution(NamedTuple):
    """A line of the ledger by a step's function; `place` is its message's: agent, partition, offset. `began` is by the
    worker's clock, `at` by the ledger's. `lost`: its worker never had the answer."""

    key: str
    place: tuple[str, int, int]
    step: str
    conversation: str
    turn: int
    root: str
    value: int
    worker: int
    began: int
    at: int
    lost: bool = False


@dataclass(slots=True)
class Evidence:
    """All of it.

    Attributes:
        arrivals: by agent, each partition in its order.
        commits: in the order in which they were made.
        attempts, executions: what the ledger has, of messages and of steps.
        ends: the end of each inbox partition, by (agent, partition).
        memory: resident bytes of each worker's process, by pid, as (time in s, bytes).
    """

    arrivals: dict[str, list[Arrival]] = field(default_factory=dict[str, list[Arrival]])
    letters: list[Letter] = field(default_factory=list[Letter])
    journal: list[Entry] = field(default_factory=list[Entry])
    commits: list[Commit] = field(default_factory=list[Commit])
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    executions: list[Execution] = field(default_factory=list[Execution])
    memory: dict[int, list[tuple[float, int]]] = field(default_factory=dict[int, list[tuple[float, int]]])


def collect(
    settings: Settings,
    group: str,
    ledger: Path,
    memory: dict[int, list[tuple[float, int]]],
    say: Callable[[str], None] = lambda _: None,
) -> Evidence:
    """Read everything that a run left.

    Args:
        group: the consumer group whose commits count.
    """
    codec = Codec(open_registry(settings))
    evidence = Evidence(memory=memory)
    with _consumer(settings) as consumer:
        for agent in AGENTS:
            say(f"reading inbox, journal and dead letters of {agent}")
            evidence.arrivals[agent] = [
                _arrival(codec, record) for record in _whole(consumer, settings.topic(f"agent.{agent}"))
            ]
            for record in _whole(consumer, settings.topic(f"dead.{agent}")):
                evidence.letters.append(_letter(codec, agent, record))
            for record in _whole(consumer, settings.topic(f"journal.{agent}")):
                evidence.journal.append(_entry(codec, agent, record))
        say("reading every commit")
        for record in _whole(consumer, "__consumer_offsets"):
            commit = parse_commit(_bytes(record.key()), _bytes(record.value()), record.timestamp()[1])
            if commit is not None and commit[0] == group:
                evidence.commits.append(commit[1])
    say("reading the ledger")
    for line in read_ledger(ledger):
        if "step" in line:
            evidence.executions.append(_execution(line))
        else:
            evidence.attempts.append(_attempt(line))
    return evidence


@contextmanager
def _consumer(settings: Settings) -> Generator[confluent_kafka.Consumer]:
    consumer = confluent_kafka.Consumer(
        client_config(
            settings, group_id=f"{settings.prefix}oracle", enable_auto_commit=False, enable_partition_eof=True
        )
        | {"logger": librdkafka_log}
    )
    try:
        yield consumer
    finally:
        consumer.close()


def _whole(consumer: confluent_kafka.Consumer, topic: str) -> Iterator[confluent_kafka.Message]:
    """Every record of a topic, each partition in its order."""
    open_ends = set(consumer.list_topics(topic, 10).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, partition, 0) for partition in open_ends])
    moved_at = time.monotonic()
    while open_ends:
        batch = consumer.consume(BATCH, GATHER_S)
        if batch:
            moved_at = time.monotonic()
        elif time.monotonic() - moved_at > READ_TIMEOUT_S:
            raise BrokerError(f"{topic} could not be read to its end", fix="see `llmagentos doctor`")
        for record in batch:
            error = record.error()
            if error is None:
                yield record
            elif error.code() == confluent_kafka.KafkaError._PARTITION_EOF:
                open_ends.discard(record.partition() or 0)
            elif not error.retriable():
                raise BrokerError(f"{topic} can't be read: {error.str()}", fix="see `llmagentos doctor`")
    consumer.unassign()


def _bytes(raw: Any) -> bytes | None:
    return raw


def _place(record: confluent_kafka.Message) -> tuple[int, int, int]:
    return record.partition() or 0, record.offset() or 0, record.timestamp()[1]


def _header_id(headers: Any) -> str:
    found: bytes | None = dict(headers or ()).get(MESSAGE_ID)
    return (found or b"").decode(errors="replace")


def _arrival(codec: Codec, record: confluent_kafka.Message) -> Arrival:
    try:
        message = codec.read(record)
    except RecordError:
        header_id = _header_id(record.headers())
        key = (_bytes(record.key()) or b"").decode(errors="replace")
        return Arrival(*_place(record), header_id, key, header_id, -1, None, decodable=False)
    work = message.json()
    root = work.get("root", message.message_id)
    return Arrival(*_place(record), message.message_id, message.conversation_id, root, work["turn"], message.caused_by)


def _letter(codec: Codec, agent: str, record: confluent_kafka.Message) -> Letter:
    letter = codec.decode(_bytes(record.value()) or b"")
    headers = [(header["name"], header["value"]) for header in letter["headers"]]
    return Letter(
        agent, letter["partition"], letter["offset"], letter["cause"], _header_id(headers), record.timestamp()[1]
    )


def _entry(codec: Codec, agent: str, record: confluent_kafka.Message) -> Entry:
    partition, position, at = _place(record)
    entry = codec.decode(_bytes(record.value()) or b"")
    step = entry["step"] and (entry["step"]["name"], entry["step"]["number"], entry["step"]["outcome"])
    return Entry(agent, partition, position, entry["kind"], entry["claim"], entry["offset"], at, step)


def _attempt(line: dict[str, Any]) -> Attempt:
    return Attempt(
        line["key"],
        line["conversation"],
        line["sequence"],
        line["root"],
        line["words"],
        line["checksum"],
        line["worker"],
        (line["partition"], line["offset"]),
        int(line["at"] * 1000),
    )


def _execution(line: dict[str, Any]) -> Execution:
    return Execution(
        line["key"],
        (line["agent"], line["partition"], line["offset"]),
        line["step"],
        line["conversation"],
        line["sequence"],
        line["root"],
        line["value"],
        line["worker"],
        int(line["began"] * 1000),
        int(line["at"] * 1000),
        line.get("lost", False),
    )


def parse_commit(key: bytes | None, value: bytes | None, at: int) -> tuple[str, Commit] | None:
    """(group, commit) of a record of `__consumer_offsets`; None for its other records and for deletions.

    As Kafka's own OffsetCommitKey.json and OffsetCommitValue.json say (versions 0 to 4).
    """
    if key is None or value is None or struct.unpack_from(">h", key)[0] not in (0, 1):
        return None
    group, at_key = _string(key, 2)
    topic, at_key = _string(key, at_key)
    (partition,) = struct.unpack_from(">i", key, at_key)
    version, offset = struct.unpack_from(">hq", value)
    at_value = 10 + (4 if version >= 3 else 0)  # the leader's epoch
    metadata, _ = _compact_string(value, at_value) if version >= 4 else _string(value, at_value)
    return group, Commit(topic, partition, offset, metadata, at)


def _string(raw: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from(">h", raw, at)
    end = at + 2 + length
    return raw[at + 2 : end].decode(), end


def _compact_string(raw: bytes, at: int) -> tuple[str, int]:
    length = shift = 0
    while True:
        byte = raw[at]
        at += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    end = at + length - 1
    return raw[at:end].decode(), end
