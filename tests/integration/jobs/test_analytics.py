"""The job `analytics` against messages whose counts are known."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import subprocess
import sys
from collections import Counter
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

from llmagentos.jobs import analytics
from llmagentos.jobs.runs import Run, runs
from llmagentos.streams.errors import JobError
from llmagentos.streams.settings import Settings

from . import workload
from .conftest import spark_test
from .workload import BEGIN_MS, HOUR_MS, Truth

pytestmark = spark_test

#: More than one batch at each update.
BATCH_ROWS = 2_000
#: Read before the tests' own environment takes it away.
DATA = os.environ.get("LLMAGENTOS_DATA", "")


@pytest.fixture(scope="module")
def grown(spark: SparkSession, module_settings: Settings) -> tuple[Truth, Truth, list[Run]]:
    """Two rounds of messages with a run after each, then one with nothing new: (first, both, runs)."""
    workload.ensure(module_settings)
    first = workload.send(module_settings, 1_500)
    found = [analytics.run(module_settings, spark=spark, batch_rows=BATCH_ROWS)]
    second = workload.send(module_settings, 700, seed=8, begin_ms=BEGIN_MS + 11 * HOUR_MS, hours=6)
    workload.spoil(module_settings, second)
    found += [analytics.run(module_settings, spark=spark, batch_rows=BATCH_ROWS) for _ in range(2)]
    return first, _sum(first, second), found


def test_counts_equal_what_was_sent(grown: tuple[Truth, Truth, list[Run]]) -> None:
    first, both, found = grown
    _equal(first, found[0])
    _equal(both, found[1])
    assert _table(found[1], "totals")["repeated"].item() == 0


def test_latency_equals_what_was_sent(grown: tuple[Truth, Truth, list[Run]]) -> None:
    _, both, found = grown
    latency = _table(found[1], "latency").set_index("agent")
    for agent, sent in both.latencies.items():
        row: Any = latency.loc[agent]
        assert row["answered"] == len(sent)
        for share in (50, 95, 99):
            expected = np.percentile(sent, share)
            assert row[f"p{share}_ms"] == pytest.approx(expected)
            assert row[f"kafka_p{share}_ms"] == pytest.approx(expected)
        assert row["max_ms"] == max(sent)


def test_tokens_errors_and_dead_letters_equal_what_was_sent(grown: tuple[Truth, Truth, list[Run]]) -> None:
    _, both, found = grown
    cost, errors, dead = (_table(found[1], name) for name in ("cost", "errors", "dead"))
    assert {(r.tenant, r.agent, r.model): r.tokens_out for r in cost.itertuples()} == both.tokens
    assert cost["cost"].sum() == pytest.approx(both.tokens.total() * 2e-6)
    assert {r.agent: r.errors for r in errors.itertuples()} == both.errors
    assert {(r.agent, r.cause): r.letters for r in dead.itertuples()} == both.dead


def test_undecodable_records_are_counted_and_kept(
    spark: SparkSession, grown: tuple[Truth, Truth, list[Run]], module_settings: Settings
) -> None:
    _, both, found = grown
    assert found[0].undecodable == 0
    assert found[1].undecodable == both.undecodable.total()
    assert {r.cause: r.records for r in _table(found[1], "undecodable").itertuples()} == both.undecodable
    folder = analytics.default_out(module_settings) / "store" / "messages"
    kept = (
        analytics.Store(folder, module_settings, analytics.MESSAGE_TOPICS, "message", analytics.MESSAGE_FIELDS)
        .frame(spark)
        .where("cause is not null")
        .collect()
    )
    assert len(kept) == both.undecodable.total()
    assert all(row["record"] is None and (row["value"] is None) == (row["cause"] == "no value") for row in kept)


def test_a_run_reads_only_what_is_new(grown: tuple[Truth, Truth, list[Run]]) -> None:
    first, both, found = grown
    assert found[0].rows == first.messages + first.dead.total()
    assert found[1].rows == both.messages + both.dead.total() + both.undecodable.total() - found[0].rows
    assert found[2].rows == 0
    assert found[2].inputs == {}
    for topic, there in found[1].inputs.items():
        for partition, (start, _) in there.items():
            assert start == found[0].inputs.get(topic, {}).get(partition, [0, 0])[1]
    for name in ("traffic", "latency", "cost", "slowest"):
        pd.testing.assert_frame_equal(_table(found[1], name), _table(found[2], name))


def test_incremental_equals_full(
    spark: SparkSession, grown: tuple[Truth, Truth, list[Run]], module_settings: Settings, tmp_path: Path
) -> None:
    full = analytics.run(module_settings, spark=spark, out=tmp_path)
    for name in ("traffic", "latency", "cost", "errors", "dead", "slowest", "undecodable"):
        pd.testing.assert_frame_equal(_table(grown[2][1], name), _table(full, name))


def test_a_window_counts_only_what_is_in_it(
    spark: SparkSession, grown: tuple[Truth, Truth, list[Run]], module_settings: Settings, tmp_path: Path
) -> None:
    since, until = BEGIN_MS + 3 * HOUR_MS, BEGIN_MS + 6 * HOUR_MS
    run = analytics.run(module_settings, spark=spark, out=tmp_path, since_ms=since, until_ms=until)
    inside = {
        key: n for key, n in grown[1].traffic.items() if since <= key[3].replace(tzinfo=UTC).timestamp() * 1000 < until
    }
    assert 0 < run.rows < grown[2][0].rows
    assert _traffic(run) == inside
    assert not (tmp_path / "store").exists()


def test_the_report_needs_nothing_else_and_escapes(grown: tuple[Truth, Truth, list[Run]]) -> None:
    page = Path(grown[2][1].report).read_text()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!\#)""", page)
    assert "@import" not in page
    assert "<script" not in page
    assert "the plan &lt;b&gt;has&lt;/b&gt; no step 7" in page
    assert page.count("<svg") == 5
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_a_window_with_nothing_in_it_is_an_empty_report(
    spark: SparkSession, grown: tuple[Truth, Truth, list[Run]], module_settings: Settings, tmp_path: Path
) -> None:
    run = analytics.run(module_settings, spark=spark, out=tmp_path, since_ms=HOUR_MS, until_ms=2 * HOUR_MS)
    assert (run.status, run.rows, run.summary["messages"]) == ("done", 0, 0)
    assert "Nothing to show" in Path(run.report).read_text()


def test_a_folder_of_another_source_is_refused(
    spark: SparkSession, grown: tuple[Truth, Truth, list[Run]], module_settings: Settings
) -> None:
    other = module_settings.model_copy(update={"prefix": "another."})
    with pytest.raises(JobError, match="records of another source") as refused:
        analytics.run(other, spark=spark, out=analytics.default_out(module_settings))
    assert "--out" in refused.value.fix
    assert runs(other)[0].status == "failed"
    assert "another source" in runs(other)[0].error


@pytest.mark.skipif(not DATA, reason="LLMAGENTOS_DATA doesn't name the folder with sgd_dev.ndjson.gz")
def test_real_dialogues_are_counted(spark: SparkSession, own_settings: Settings) -> None:
    workload.ensure(own_settings, ["assistant"])
    with gzip.open(Path(DATA) / "sgd_dev.ndjson.gz", "rt") as lines:
        turns = [json.loads(line) for line in lines]
    asyncio.run(workload.replay(own_settings, turns))
    run = analytics.run(own_settings, spark=spark)
    users = [turn for turn in turns if turn["speaker"] == "user"]
    assert run.summary["messages"] == len(turns)
    assert run.summary["conversations"] == len({turn["conversation"] for turn in turns})
    traffic = _table(run, "traffic").groupby("type")["messages"].sum()
    assert traffic.to_dict() == {"task": len(users), "result": len(turns) - len(users)}
    latency = _table(run, "latency").iloc[0]
    assert (latency["questions"], latency["answered"]) == (len(users), len(turns) - len(users))


def test_the_command_says_that_a_window_is_empty(own_settings: Settings) -> None:
    command = [sys.executable, "-m", "llmagentos.cli.main", "job", "run", "analytics", "--since", "-1h"]
    environment = os.environ | {
        "LLMAGENTOS_HOME": str(own_settings.home),
        "LLMAGENTOS_BROKERS": own_settings.brokers,
        "LLMAGENTOS_PREFIX": own_settings.prefix,
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no messages in this window" in done.stderr
    assert "WARN" not in done.stderr
    (run,) = runs(own_settings)
    assert run.report in done.stdout.replace("\n", "")
    listed = subprocess.run([*command[:4], "status", "-o", "json"], env=environment, capture_output=True, check=True)
    assert [one["status"] for one in json.loads(listed.stdout)] == ["done"]


def _table(run: Run, name: str) -> pd.DataFrame:
    return pd.read_parquet(next(path for path in run.outputs if path.endswith(f"/{name}.parquet")))


def _traffic(run: Run) -> dict[tuple[Any, ...], int]:
    rows = _table(run, "traffic").itertuples()
    return {(r.agent, r.type, r.tenant, r.hour.to_pydatetime()): r.messages for r in rows}


def _equal(truth: Truth, run: Run) -> None:
    assert _traffic(run) == truth.traffic
    assert run.summary["messages"] == truth.messages
    assert run.summary["conversations"] == len(truth.conversations)


def _sum(one: Truth, other: Truth) -> Truth:
    return Truth(
        traffic=one.traffic + other.traffic,
        latencies={agent: one.latencies[agent] + other.latencies[agent] for agent in one.latencies},
        tokens=one.tokens + other.tokens,
        errors=one.errors + other.errors,
        dead=one.dead + other.dead,
        conversations=one.conversations | other.conversations,
        undecodable=Counter(one.undecodable + other.undecodable),
    )
