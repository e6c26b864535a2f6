"""The Spark session of every job: jars, Java, memory, quiet; and its progress.

Spark is an extra (`pip install 'llmagentos[spark]'`); importing this module needs none of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from llmagentos.streams.endpoints import brokers
from llmagentos.streams.errors import JobError, NodeError
from llmagentos.streams.node import java
from llmagentos.streams.node.jars import fetch, read_list
from llmagentos.streams.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["Progress", "kafka_options", "require_extra", "session", "watched"]

#: Told what goes on: (what, done, total); total is 0 where it isn't known.
Progress = Callable[[str, int, int], None]

#: Spark 4.0's documentation names 17 and 21; from 24 on, Java has no Security Manager, which its Hadoop asks for.
_JAVA_OLDEST, _JAVA_NEWEST = 17, 23
#: Of the JVM's heap in local mode: enough for shuffles of some million rows, little enough for a laptop.
_HEAP_LEAST_MIB, _HEAP_MOST_MIB = 1024, 4096
#: How often Spark is asked how far it is.
_WATCH_S = 0.2
#: A JVM that doesn't end by itself after its session is killed after this.
_JVM_STOP_S = 10.0


@contextlib.contextmanager
def session(
    settings: Settings,
    name: str = "llmagentos",
    *,
    master: str = "local[*]",
    conf: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Generator[SparkSession]:
    """A Spark session that can read Kafka and Avro; it and its JVM are gone afterwards.

    The JVM's own words go to `jobs/spark.log` in the data folder. Time zone is UTC.

    Args:
        name: the application's name, as a cluster's pages show it.
        master: any Spark master: `local[2]`, `spark://HOST:7077`, `yarn`, `k8s://...`.
        conf: further Spark properties; they win over the defaults here.
        progress: told about jars and Java being fetched.

    Raises:
        JobError: the extra is missing, Java is missing or unfit, the jars can't be had, or Spark doesn't start.
    """
    require_extra()
    from pyspark import SparkConf, SparkContext
    from pyspark.errors import PySparkRuntimeError
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    if SparkSession.getActiveSession() is not None:
        raise JobError(
            "a Spark session is open in this process already, and there can be one only",
            fix="stop it (`spark.stop()`), or give it to the function that you call",
        )
    properties = SparkConf(loadDefaults=False)
    properties.setAll(list(_properties(settings, name, master, progress).items()))
    properties.setAll(list((conf or {}).items()))
    log = settings.home / "jobs" / "spark.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as words, _environment(settings, progress):
        try:
            gateway: Any = launch_gateway(properties, {"stdout": words, "stderr": words})
        except PySparkRuntimeError as error:
            raise JobError(f"Spark's JVM did not start: {_last_words(log)}", fix=f"read {log}") from error
        try:
            try:
                interrupted = signal.getsignal(signal.SIGINT)
                context = SparkContext(conf=properties, gateway=gateway)
                if threading.current_thread() is threading.main_thread():
                    # Spark's own handler calls the JVM while a call may be under way, and fails with pages of it.
                    signal.signal(signal.SIGINT, interrupted)
            except Exception as error:
                raise JobError(f"Spark does not start on {master}: {_reason(error)}", fix=f"read {log}") from error
            spark = SparkSession(context)
            try:
                yield spark
            except Exception as error:
                if gateway.proc is not None and gateway.proc.poll() is not None:
                    raise JobError(
                        f"Spark's JVM ended, with status {gateway.proc.returncode}: {_last_words(log)}",
                        kept="what was done before; a run that is started again goes on there",
                        fix=f"read {log}; where it is memory, give it more, or run it elsewhere with --master",
                    ) from error
                raise
            finally:
                if gateway.proc is None or gateway.proc.poll() is None:
                    spark.stop()
        finally:
            _stop(gateway)


def require_extra() -> None:
    """Check, without importing it, that what the extra `spark` brings is there.

    Raises:
        JobError: it isn't; says how to install it.
    """

    def lacks(module: str) -> bool:
        try:
            return find_spec(module) is None
        except ValueError:  # it was imported, and then taken away
            return True

    missing = [module for module in ("pyspark", "pandas", "pyarrow", "matplotlib", "jinja2") if lacks(module)]
    if missing:
        raise JobError(
            f"jobs run on Spark, and {', '.join(missing)} is not installed", fix="pip install 'llmagentos[spark]'"
        )


def kafka_options(settings: Settings) -> dict[str, str]:
    """Options of Spark's Kafka source and sink: where the cluster is, and how to prove who we are.

    Only what :class:`Settings` has fields for is passed on: the free properties of `kafka` are librdkafka's, and
    Spark's client is Java's.
    """
    options = {
        "kafka.bootstrap.servers": brokers(settings),
        "kafka.security.protocol": settings.security_protocol,
    }
    if settings.sasl_mechanism:
        options["kafka.sasl.mechanism"] = settings.sasl_mechanism
        module = "plain.PlainLoginModule" if settings.sasl_mechanism == "PLAIN" else "scram.ScramLoginModule"
        user, password = (
            text.replace("\\", "\\\\").replace('"', '\\"')
            for text in (settings.sasl_username, settings.sasl_password.get_secret_value())
        )
        options["kafka.sasl.jaas.config"] = (
            f'org.apache.kafka.common.security.{module} required username="{user}" password="{password}";'
        )
    if settings.ssl_ca:
        options |= {"kafka.ssl.truststore.type": "PEM", "kafka.ssl.truststore.location": str(settings.ssl_ca)}
    if settings.ssl_certificate and settings.ssl_key:
        options |= {
            "kafka.ssl.keystore.type": "PEM",
            "kafka.ssl.keystore.certificate.chain": settings.ssl_certificate.read_text(encoding="utf-8"),
            "kafka.ssl.keystore.key": settings.ssl_key.read_text(encoding="utf-8"),
        }
    return options


@contextlib.contextmanager
def watched(spark: SparkSession, what: str, progress: Progress | None) -> Generator[None]:
    """Tell *progress* how many tasks are done, from Spark's own status, while the block runs Spark jobs.

    Raises:
        JobError: one of them failed; says what Java said.
    """
    with _translated(what):
        if progress is None:
            yield
        else:
            with _polled(spark, what, progress):
                yield


@contextlib.contextmanager
def _translated(what: str) -> Generator[None]:
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (Py4JError, PySparkException) as error:
        raise JobError(
            f"Spark failed while {what}: {_reason(error)}",
            kept="what was done before; a run that is started again goes on there",
            fix="see jobs/spark.log in the data folder; then run it again",
        ) from error


@contextlib.contextmanager
def _polled(spark: SparkSession, what: str, progress: Progress) -> Generator[None]:
    tracker = spark.sparkContext.statusTracker()
    over = threading.Event()

    def watch() -> None:
        stages: dict[int, tuple[int, int]] = {}
        while not over.wait(_WATCH_S):
            for stage in tracker.getActiveStageIds():
                info = tracker.getStageInfo(stage)
                if info is not None:
                    stages[stage] = (info.numCompletedTasks, info.numTasks)
            if stages:
                # A stage that has left the list is done, whatever was seen of it last.
                active = set(tracker.getActiveStageIds())
                done = sum(seen[0] if stage in active else seen[1] for stage, seen in stages.items())
                progress(what, done, sum(total for _, total in stages.values()))

    progress(what, 0, 0)
    watcher = threading.Thread(target=watch, name="spark-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    progress(what, 1, 1)


def _properties(settings: Settings, name: str, master: str, progress: Progress | None) -> dict[str, str]:
    jars = settings.cache / "spark"
    listed = Path(__file__).with_name("jars.txt")
    try:
        paths = fetch(read_list(listed), jars, progress)
    except NodeError as error:
        raise JobError(
            error.what,
            kept=error.kept,
            fix=f"check the network and run it again; without a way to Maven Central put the jars that {listed} "
            f"lists into {jars}",
        ) from error
    properties = {
        "spark.app.name": name,
        "spark.master": master,
        "spark.jars": ",".join(path.resolve().as_uri() for path in paths),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.warehouse.dir": str(Path(tempfile.gettempdir()) / "llmagentos-spark-warehouse"),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    # A batch reads each partition once: consumers that are kept only hold on to what they fetched, 8 MiB each.
    properties["spark.kafka.consumer.cache.capacity"] = "16"
    if master.startswith("local"):
        cores = os.cpu_count() or 1
        heap_mib = psutil.virtual_memory().total // (6 * 1024 * 1024)  # a sixth: the broker and workers live here too
        properties |= {
            "spark.driver.memory": f"{min(max(heap_mib, _HEAP_LEAST_MIB), _HEAP_MOST_MIB)}m",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            # Spark's default of 200 is for clusters: here each of them would be a task of nothing.
            "spark.sql.shuffle.partitions": str(2 * cores),
        }
    return properties


@contextlib.contextmanager
def _environment(settings: Settings, progress: Progress | None) -> Generator[None]:
    """What pyspark takes from the environment only; as it was afterwards."""
    changes = {"JAVA_HOME": str(_java(settings, progress)), "PYSPARK_PYTHON": sys.executable}
    if os.environ.get("PYSPARK_PYTHON"):  # on a cluster Python may be elsewhere
        del changes["PYSPARK_PYTHON"]
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _java(settings: Settings, progress: Progress | None) -> Path:
    """JAVA_HOME of a Java that Spark runs on."""
    there = java.installed(settings.cache)
    fit = [one for one in there if _JAVA_OLDEST <= one.version <= _JAVA_NEWEST]
    if not fit and any(one.version > _JAVA_NEWEST for one in there):
        seen = ", ".join(f"{one.command} is Java {one.version}" for one in there)
        raise JobError(
            f"Spark 4.0 runs on Java {_JAVA_OLDEST} to {_JAVA_NEWEST}: {seen}",
            fix="install Java 17 or 21 and set JAVA_HOME to it",
        )
    try:
        found = fit[0] if fit else java.find(settings.cache, progress)
    except NodeError as error:
        raise JobError(error.what.replace("Kafka needs", "Spark needs"), fix=error.fix) from error
    return found.command.resolve().parent.parent


def _stop(gateway: Any) -> None:
    """End the JVM, and let pyspark forget it: the next session starts its own, with its own memory and jars."""
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    process = gateway.proc
    if process is not None and process.poll() is not None:  # it died: pyspark can't have been told
        SparkContext._active_spark_context = None  # pyright: ignore[reportPrivateUsage]
        SparkSession._instantiatedSession = None  # pyright: ignore[reportPrivateUsage]
    SparkContext._gateway = None  # pyright: ignore[reportPrivateUsage]
    SparkContext._jvm = None  # pyright: ignore[reportPrivateUsage]
    gateway.shutdown()
    if process is None:
        return
    process.stdin.close()  # the JVM ends when its standard input does
    try:
        process.wait(_JVM_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "Exception" in line]
    return (telling or lines or ["it said nothing"])[-1]


def _reason(error: Exception) -> str:
    """The last cause in Java's trace, or else the first line."""
    lines = str(error).splitlines() or [type(error).__name__]
    causes = [line.strip().removeprefix("Caused by: ") for line in lines if line.lstrip().startswith("Caused by: ")]
    return causes[-1] if causes else lines[0].strip().rstrip(":")
