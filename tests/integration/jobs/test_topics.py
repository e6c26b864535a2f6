"""Topics as DataFrames, and the store's checkpoint, against a real broker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from pyspark.sql import SparkSession

from llmagentos.jobs import analytics, topics
from llmagentos.jobs.runs import runs
from llmagentos.jobs.store import Store
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.errors import JobError
from llmagentos.streams.message import Message
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec

from . import workload
from .conftest import spark_test
from .workload import BEGIN_MS, HOUR_MS

pytestmark = spark_test


def test_every_truncation_of_a_record_is_undecodable(spark: SparkSession, own_settings: Settings) -> None:
    workload.ensure(own_settings, ["planner"])
    message = Message.create({"plan": ["a", "b"]}, to="planner", attributes={"k": "v"}, deadline=7, reply_to=("x", 1))
    whole = _encode(own_settings, message)
    _produce(own_settings, [whole[:size] for size in range(len(whole) + 1)])
    for fields in (None, ["type"]):  # with all fields decoded, and with nearly all of them skipped
        frame = topics.records(spark, own_settings, topics.window(own_settings, "agent.planner"), fields=fields)
        causes = Counter(row["cause"] for row in frame.collect())
        assert causes == {"wrong magic byte": 5, "undecodable body": len(whole) - 5, None: 1}


def test_all_fields_come_back_as_they_were_sent(spark: SparkSession, own_settings: Settings) -> None:
    workload.ensure(own_settings, ["planner"])
    sent = Message.create("grüße", to="planner", tenant="acme", attributes={"k": "v"}, deadline=1_000, created_at=2_000)
    sent.record["usage"] = {"model": "small", "tokens_in": 1, "tokens_out": 2, "cost": 0.5}
    _produce(own_settings, [_encode(own_settings, sent)])
    frame = topics.messages(spark, own_settings, "agent.*").where("cause is null")
    row = frame.collect()[0].asDict(recursive=True)
    times = {"created_at", "deadline"}
    assert {name: row[name] for name in sent.record if name not in times} == {
        name: value for name, value in sent.record.items() if name not in times
    }
    assert frame.selectExpr("unix_millis(created_at)", "unix_millis(deadline)").collect()[0][:] == (2_000, 1_000)
    assert row["topic"] == own_settings.topic("agent.planner")


def test_a_field_that_there_is_not_is_an_error(spark: SparkSession, own_settings: Settings) -> None:
    with pytest.raises(JobError, match="has no field colour"):
        topics.records(spark, own_settings, [], fields=["colour"])


def test_windows_are_cut_by_time_and_empty_ones_are_left_out(spark: SparkSession, own_settings: Settings) -> None:
    workload.ensure(own_settings, ["planner"])
    value = _encode(own_settings, Message.create("x", to="planner"))
    for hour in range(4):
        _produce(own_settings, [value] * 10, BEGIN_MS + hour * HOUR_MS)

    def count(since: int | None, until: int | None) -> int:
        since_ms = None if since is None else BEGIN_MS + since
        until_ms = None if until is None else BEGIN_MS + until
        spans = topics.window(own_settings, "agent.*", since_ms=since_ms, until_ms=until_ms)
        assert all(span.start < span.end for span in spans)
        frame = topics.messages(spark, own_settings, "agent.*", since_ms=since_ms, until_ms=until_ms, fields=["type"])
        return frame.count()

    assert count(None, None) == 40
    assert count(HOUR_MS, 3 * HOUR_MS) == 20
    assert count(HOUR_MS + 1, None) == 20
    assert count(4 * HOUR_MS, None) == 0
    assert count(None, 0) == 0
    _produce(own_settings, [value], BEGIN_MS + 4 * HOUR_MS)
    _produce(own_settings, [value] * 3, BEGIN_MS + 4 * HOUR_MS - 300_000)  # five minutes older than the one before
    assert count(3 * HOUR_MS + 1, 4 * HOUR_MS) == 3


def test_offsets_gone_by_retention_name_the_range(spark: SparkSession, own_settings: Settings, tmp_path: Path) -> None:
    workload.ensure(own_settings, ["planner"])
    value = _encode(own_settings, Message.create("x", to="planner"))
    store = Store(tmp_path, own_settings, ["agent.*"], fields=["type"])
    _produce(own_settings, [value] * 4)
    assert store.update(spark).rows == 4
    _produce(own_settings, [value] * 10)
    topic = own_settings.topic("agent.planner")
    _delete_before(own_settings, topic, 0, 9)
    with pytest.raises(JobError, match=rf"gone.*{topic} partition 0 offsets 4 to 8") as gone:
        store.update(spark)
    assert "--allow-loss" in gone.value.fix
    taken = store.update(spark, allow_loss=True)
    assert taken.rows == 5
    assert taken.lost == [topics.Span(topic, 0, 4, 9)]
    assert store.frame(spark).count() == 9
    assert store.update(spark).rows == 0


def test_a_killed_run_leaves_no_duplicate_and_no_hole(spark: SparkSession, own_settings: Settings) -> None:
    workload.ensure(own_settings)
    truth = workload.send(own_settings, 1_000)
    program = """
        import sys
        from llmagentos.jobs import analytics
        from llmagentos.streams.settings import Settings
        if __name__ == "__main__":
            analytics.run(Settings.load(), master="local[2]", batch_rows=100)
    """
    environment = os.environ | {
        "LLMAGENTOS_HOME": str(own_settings.home),
        "LLMAGENTOS_BROKERS": own_settings.brokers,
        "LLMAGENTOS_PREFIX": own_settings.prefix,
    }
    log = analytics.default_out(own_settings) / "store" / "messages" / "log"
    doomed = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], env=environment)
    try:
        _wait(lambda: (log / "000002.plan.json").exists() or doomed.poll() is not None, 120)
        assert runs(own_settings)[0].status == "running"
    finally:
        jvms = psutil.Process(doomed.pid).children(recursive=True)
        doomed.send_signal(signal.SIGKILL)
        doomed.wait()
    assert not psutil.wait_procs(jvms, 30)[1], "Java goes on without Python"
    assert not (log / "000015.plan.json").exists(), "it was to be killed in the middle"
    assert runs(own_settings)[0].status == "died"
    run = analytics.run(own_settings, spark=spark)
    assert run.summary["messages"] == truth.messages
    assert run.summary["repeated"] == 0
    rows = Store(log.parent, own_settings, analytics.MESSAGE_TOPICS, fields=analytics.MESSAGE_FIELDS).frame(spark)
    assert rows.select("topic", "partition", "offset").distinct().count() == rows.count() == truth.messages


def _encode(settings: Settings, message: Message) -> bytes:
    with closing(open_registry(settings)) as registry:
        return Codec(registry).encode(message)


def _produce(settings: Settings, values: list[bytes], timestamp_ms: int = 0) -> None:
    async def send() -> None:
        async with Producer(settings) as producer:
            for value in values:
                producer.produce(settings.topic("agent.planner"), value, b"k", partition=0, timestamp_ms=timestamp_ms)

    asyncio.run(send())


def _delete_before(settings: Settings, topic: str, partition: int, offset: int) -> None:
    admin = AdminClient(client_config(settings))
    for future in admin.delete_records([TopicPartition(topic, partition, offset)]).values():
        future.result(30)


def _wait(until: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)
