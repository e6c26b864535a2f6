"""What of the jobs needs neither Spark nor Kafka."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llmagentos.jobs.runs import recorded, runs
from llmagentos.jobs.spark import kafka_options, session
from llmagentos.jobs.store import _batches, _still_there  # pyright: ignore[reportPrivateUsage]
from llmagentos.jobs.topics import Ends, Span
from llmagentos.streams.errors import JobError
from llmagentos.streams.settings import Settings

SPANS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 3_000)), max_size=8).map(
    lambda pairs: [Span("t", number, start, start + size) for number, (start, size) in enumerate(pairs)]
)


@given(SPANS, st.integers(10, 10**5))
@hypothesis_settings(deadline=None)  # the machine may be busy
def test_batches_hold_every_offset_once_in_order(spans: list[Span], rows: int) -> None:
    batches = _batches(spans, rows)
    reached = {span.partition: span.start for span in spans}
    for batch in batches:
        assert batch, "no batch is empty"
        assert sum(span.end - span.start for span in batch) <= rows + len(spans)
        for span in batch:
            assert span.start == reached[span.partition] < span.end
            reached[span.partition] = span.end
    assert reached == {span.partition: span.end for span in spans}


@given(SPANS, st.integers(0, 10**6))
@hypothesis_settings(deadline=None)
def test_what_is_gone_and_what_is_there_make_the_whole(spans: list[Span], first: int) -> None:
    there, gone = _still_there(spans, {("t", span.partition): Ends(first, 10**7) for span in spans})
    size = sum(span.end - span.start for span in spans)
    assert sum(span.end - span.start for span in there + gone) == size
    assert all(span.start >= first for span in there)
    assert all(span.start < span.end <= first for span in gone)


def test_a_run_is_recorded_from_its_beginning(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with recorded(settings, "analytics", tmp_path / "out", {"since": None}) as run:
        assert [(one.id, one.status) for one in runs(settings)] == [(run.id, "running")]
        run.rows = 7
    assert [(one.status, one.rows) for one in runs(settings)] == [("done", 7)]


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with pytest.raises(JobError), recorded(settings, "analytics", tmp_path / "out", {}):
        raise JobError("it rained")
    assert [(one.status, one.error) for one in runs(settings)] == [("failed", "it rained")]


def test_a_run_whose_process_is_gone_has_died(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with recorded(settings, "analytics", tmp_path / "out", {}) as run:
        pass
    path = tmp_path / "jobs" / "runs" / f"{run.id}.json"
    record = json.loads(path.read_text()) | {"status": "running", "pid_started_at": 1.0}
    path.write_text(json.dumps(record))
    assert runs(settings)[0].status == "died"


def test_one_folder_takes_one_run_at_a_time(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with (
        recorded(settings, "analytics", tmp_path / "out", {}),
        pytest.raises(JobError, match="another run"),
        recorded(settings, "analytics", tmp_path / "out", {}),
    ):
        pass
    with recorded(settings, "analytics", tmp_path / "out", {}):
        pass


def test_a_missing_extra_says_how_to_install_it(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['pyspark'] = None; "
        "from llmagentos.cli.main import main; sys.argv = ['llmagentos', 'job', 'run', 'analytics']; main()"
    )
    # No cluster is there either: the extra is looked for first.
    environment = os.environ | {"LLMAGENTOS_HOME": str(tmp_path), "LLMAGENTOS_BROKERS": "127.0.0.1:1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'llmagentos[spark]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_java_that_spark_cannot_run_on_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyspark", reason="the extra `spark` is not installed")
    command = tmp_path / "java" / "bin" / "java"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\nexit 1\n")
    command.chmod(0o755)
    (tmp_path / "java" / "release").write_text('JAVA_VERSION="25.0.1"\n')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "java"))
    monkeypatch.setenv("PATH", "")
    settings = Settings(home=tmp_path, brokers="127.0.0.1:1")
    with pytest.raises(JobError, match=r"Java 17 to 23: .* is Java 25"), session(settings):
        pass


def test_secrets_reach_java_as_java_reads_them(tmp_path: Path) -> None:
    settings = Settings.load(
        brokers="b:1",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="me",
        sasl_password='a"b\\c',
        ssl_ca=tmp_path / "ca.pem",
    )
    options = kafka_options(settings)
    assert options["kafka.sasl.jaas.config"].endswith(r'ScramLoginModule required username="me" password="a\"b\\c";')
    assert options["kafka.ssl.truststore.type"] == "PEM"


def test_times_and_sizes_are_for_people() -> None:
    pytest.importorskip("jinja2", reason="the extra `spark` is not installed")
    from llmagentos.jobs.report import duration, size

    assert [duration(ms) for ms in (0, 12.34, 999, 1_500, 61_000, 3_600_000 * 5, None, float("nan"))] == [
        *("0 ms", "12.3 ms", "999 ms", "1.5 s", "1 min 1 s", "5 h 0 min", "-", "-"),
    ]
    assert [size(count) for count in (0, 999, 1_000, 12_345_678, 5e12)] == [
        "0 bytes",
        "999 bytes",
        "1 kB",
        "12.3 MB",
        "5 TB",
    ]


def test_runs_are_newest_first(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    for name in ("one", "two", "three"):
        with recorded(settings, name, tmp_path / "out", {}):
            pass
    assert [run.job for run in runs(settings, 2)] == ["three", "two"]
    assert runs(settings)[0].started_at <= datetime.now(UTC)


def test_plots_take_any_name_and_their_colours_from_the_page() -> None:
    pd = pytest.importorskip("pandas", reason="the extra `spark` is not installed")
    from llmagentos.jobs import plots

    agents = ["$x$", "<b>", "詩人", *(f"agent{number}" for number in range(12))]
    hours = [datetime(2026, 11, 20, hour % 24) for hour in range(len(agents))]
    table = pd.DataFrame({"agent": agents, "type": "task", "tenant": "t", "hour": hours, "messages": 3, "bytes": 9})
    for svg in (plots.traffic(table), plots.messages_by_agent(table)):
        assert "var(--series-8)" in svg or "var(--series-1)" in svg
        assert "#0201" not in svg
        assert "#01010" not in svg
        assert "<metadata" not in svg
        assert "<b>" not in svg
    assert "others" in plots.traffic(table)
