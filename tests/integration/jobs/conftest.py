"""One Spark session a module: starting one takes longer than any of these tests."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pyspark", reason="the extra `spark` is not installed")

from pyspark.sql import SparkSession

from llmagentos.jobs.spark import session
from llmagentos.streams.node import Node
from llmagentos.streams.settings import Settings


@pytest.fixture(scope="module")
def spark(node: Node) -> Iterator[SparkSession]:
    """A session on two cores."""
    conf = {
        "spark.driver.memory": "1g",
        "spark.sql.shuffle.partitions": "2",
        # Few rows and many plans: Java's second compiler would take more time than it saves.
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
    }
    with session(Settings(home=node.home), "tests", master="local[2]", conf=conf) as opened:
        yield opened


#: pyspark leaves the socket of each result to the garbage collector.
spark_test = [pytest.mark.spark, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]


@pytest.fixture(scope="module")
def module_settings(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings for `node`, with a topic prefix and a data folder of this module's own."""
    home: Path = tmp_path_factory.mktemp("home")
    return Settings(home=home, brokers=node.brokers, redis=node.redis, prefix=f"t{uuid.uuid4().hex[:10]}.")


@pytest.fixture
def own_settings(node: Node, settings: Settings, tmp_path: Path) -> Settings:
    """`settings` with a data folder of this test's own, so that its runs are its own too."""
    return settings.model_copy(update={"home": tmp_path / "home", "brokers": node.brokers, "redis": node.redis})
