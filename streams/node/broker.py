"""One Kafka broker of the node: its settings, its format, its process."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmagentos.streams.errors import NodeError
from llmagentos.streams.node.process import Daemon

__all__ = ["LEAST_FREE_MB", "Broker", "Launch", "properties"]

#: For a small machine that runs other things too. Measured on two cores: against Java's defaults, C1 and an archive
#: of loaded classes take a start from 3.9 to 1.5 s of CPU; 1M messages in and out took 1.9 s of CPU by C1 alone,
#: 2.4 s with C2, which pays only later.
_JVM = (
    "-Xms64m",
    "-Xmx320m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xlog:disable",  # else every class that can't be archived is a line in the log
    "-Xlog:all=error:stderr",
    "-XX:MaxDirectMemorySize=128m",
    "-Djdk.nio.maxCachedBufferSize=262144",  # or each network thread keeps a buffer of its largest request for ever
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
)

#: Three brokers on one machine: a killed one's partitions have a new leader in about 3 s (measured), not 9 to 18 s.
_FAILOVER = {
    "controller.quorum.fetch.timeout.ms": "1500",
    "controller.quorum.election.timeout.ms": "500",
    "replica.lag.time.max.ms": "5000",
}


#: From a broker's port to the one at another address. Kafka wants another number for each listener; chosen ports are
#: below 32,768, so that this is one too.
_OUTSIDE = 30_000

#: A broker that can't write ends, so starting it with less is no use: its segments' indexes alone take some.
LEAST_FREE_MB = 64

#: What a broker that ended by itself may have said last, and what it means.
_SIGNS = {
    "No space left on device": "its disk was full",
    "Address already in use": "its port was taken",
    "OutOfMemoryError": "it ran out of memory",
    "doesn't match stored clusterId": "its data is of another cluster",
    "Stored node id": "its data is of another broker",
}


@dataclass(frozen=True, slots=True)
class Launch:
    """By what a broker is started.

    Attributes:
        java: the command.
        jars: Kafka's.
        cache: where the archive of loaded classes is kept: Java reads them from it in place of 45 jars. The first
            broker that ends in peace writes it.
    """

    java: Path
    jars: Sequence[Path]
    cache: Path

    @property
    def classpath(self) -> str:
        """As Java's -cp takes it."""
        return os.pathsep.join(str(jar) for jar in self.jars)

    @property
    def archive(self) -> Path:
        """For this very Java and these very jars; Java ignores one that fits neither."""
        java = self.java.resolve()
        key = hashlib.sha256(f"{java} {java.stat().st_mtime_ns} {self.classpath}".encode()).hexdigest()[:12]
        return self.cache / "classes" / f"kafka-{key}.jsa"

    @property
    def archived(self) -> list[str]:
        """Java's option to use the archive, where there is one."""
        return [f"-XX:SharedArchiveFile={self.archive}"] if self.archive.exists() else []


@dataclass(frozen=True, slots=True)
class Broker:
    """A combined broker and controller.

    Attributes:
        number: node.id, from 1.
        home: the node's data folder.
        port, controller_port: on 127.0.0.1.
    """

    number: int
    home: Path
    port: int
    controller_port: int

    @property
    def outside_port(self) -> int:
        """Where it listens at another address than 127.0.0.1, if it does."""
        return self.port + _OUTSIDE

    @property
    def folder(self) -> Path:
        """Its own part of the data folder."""
        return self.home / "kafka" / str(self.number)

    @property
    def data(self) -> Path:
        """Its log.dirs."""
        return self.folder / "data"

    @property
    def config_file(self) -> Path:
        """Its properties."""
        return self.folder / "server.properties"

    @property
    def log_file(self) -> Path:
        """What the broker logs; rotated by itself."""
        return self.home / "logs" / f"kafka-{self.number}.log"

    @property
    def daemon(self) -> Daemon:
        """Its process."""
        return Daemon(
            name=f"Kafka broker {self.number}",
            program="java",
            marker=str(self.config_file),
            pid_file=self.home / "run" / f"kafka-{self.number}.pid",
            log=self.home / "logs" / f"kafka-{self.number}.out",
        )

    def cluster_id(self) -> str | None:
        """The cluster that its data belongs to, or None where there is no data yet."""
        try:
            text = (self.data / "meta.properties").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        for line in text.splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "cluster.id":
                return value.strip()
        return None

    def ended_because(self) -> str:
        """Why it does not run, as far as its disk and its log tell."""
        folder = self.data if self.data.exists() else self.home
        free_mb = shutil.disk_usage(folder).free // 2**20
        if free_mb < LEAST_FREE_MB:
            return f"it ended: the disk of {folder} is full ({free_mb} MiB are free)"
        said = _end_of(self.log_file) + _end_of(self.daemon.log)
        for sign, meaning in _SIGNS.items():
            if sign in said:
                return f"it ended: {meaning}"
        errors = re.findall(r"^\S+ \S+ (?:ERROR|FATAL) +(.*\n(?:\S+(?:Exception|Error)\b.*)?)", said, re.MULTILINE)
        if errors:
            return "it ended: " + " ".join(errors[-1].split())
        return "it ended, and its log does not say why (killed?)"

    def write_config(self, settings: Mapping[str, str]) -> None:
        """Write its properties."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{name}={value}\n" for name, value in settings.items())
        self.config_file.write_text(f"# Written by `llmagentos up` at every start.\n{lines}", encoding="utf-8")

    def format(self, launch: Launch, cluster_id: str, scram: Sequence[str] = ()) -> None:
        """Make its empty data folder one of the cluster.

        Args:
            scram: users to begin with, as kafka-storage's --add-scram takes them.

        Raises:
            NodeError: Kafka's storage tool refuses; says why.
        """
        users = [word for user in scram for word in ("--add-scram", user)]
        command = [
            str(launch.java), *_JVM, *launch.archived, *self._logging(),
            "-cp", launch.classpath, "kafka.tools.StorageTool", "format",
            "--cluster-id", cluster_id, "--config", str(self.config_file), *users,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            output = (done.stdout + done.stderr).splitlines()
            said = [line.strip() for line in output if line.strip() and not line.startswith("\tat ")]
            raise NodeError(
                f"the data folder of {self.daemon.name}, {self.data}, can't be formatted: {' / '.join(said[-3:])}",
                fix="free some space or make the folder writable; "
                "`llmagentos up --data DIR` starts with another data folder",
            )

    def start(self, launch: Launch) -> None:
        """Start its process; it answers some seconds later."""
        command = [
            str(launch.java), *_JVM, *self._archiving(launch), *self._logging(),
            f"-XX:ErrorFile={self.home}/logs/hs_err_kafka.log",
            "-cp", launch.classpath, "kafka.Kafka", str(self.config_file),
        ]  # fmt: skip
        self.daemon.start(command)

    def keep_archive(self, launch: Launch) -> None:
        """After its end: make the classes that it wrote those that later starts begin with."""
        launch.archive.parent.mkdir(parents=True, exist_ok=True)
        scratch = launch.archive.with_name(f"{launch.archive.name}.{os.getpid()}")
        shutil.copyfile(self.new_archive, scratch)
        scratch.replace(launch.archive)

    @property
    def new_archive(self) -> Path:
        """Where the first start of a Java has its classes written at the end."""
        return self.home / "run" / f"kafka-{self.number}.jsa"

    def _archiving(self, launch: Launch) -> list[str]:
        if launch.archive.exists() or self.number > 1:
            return launch.archived
        return [f"-XX:ArchiveClassesAtExit={self.new_archive}"]

    def _logging(self) -> list[str]:
        settings = Path(__file__).with_name("log4j.properties").as_uri()
        # Log4j 2 is in the jars for Kafka's changing of log levels only, and complains that nobody configured it.
        return [f"-Dlog4j.configuration={settings}", f"-Dnode.log={self.log_file}", "-Dlog4j2.statusLoggerLevel=OFF"]


def _end_of(log: Path, size: int = 32_768) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def properties(broker: Broker, voters: Sequence[Broker], extra: Mapping[str, str], outside: str = "") -> dict[str, str]:
    """The broker's settings as one of *voters*, which listens at the address *outside* too; *extra* wins."""
    replicas = str(min(3, len(voters)))
    in_sync = str(max(1, min(2, len(voters) - 1)))
    settings = {
        "process.roles": "broker,controller",
        "node.id": str(broker.number),
        "controller.quorum.voters": ",".join(f"{b.number}@127.0.0.1:{b.controller_port}" for b in voters),
        "listeners": f"CLIENTS://127.0.0.1:{broker.port},CONTROLLER://127.0.0.1:{broker.controller_port}",
        "advertised.listeners": f"CLIENTS://127.0.0.1:{broker.port}",
        "listener.security.protocol.map": "CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "CLIENTS",
        "log.dirs": str(broker.data),
        # Nothing is created by a misspelt name; ensure_topics() creates what is meant.
        "auto.create.topics.enable": "false",
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
        # One machine's worth of groups and producers: Kafka's 50 are for large clusters, and cost start-up time.
        "offsets.topic.num.partitions": "8",
        "transaction.state.log.num.partitions": "8",
        "share.coordinator.state.topic.num.partitions": "4",
        # A node that was down for a holiday still knows where its groups were (7 days by default).
        "offsets.retention.minutes": str(30 * 24 * 60),
        # The lowest session timeouts that a worker may ask for (Kafka's: 6 s classic, 45 s consumer protocol),
        # and what the consumer protocol gives one that asks for nothing: Settings' defaults.
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "500",
        "group.consumer.min.session.timeout.ms": "500",
        "group.consumer.session.timeout.ms": "1000",
        "group.consumer.min.heartbeat.interval.ms": "100",
        "group.consumer.heartbeat.interval.ms": "200",
        # A killed broker is let in again only when its old session has ended: by default 9 s.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        # Kafka's 128 MB for deduplication is heap; 16 MB map 700k keys a pass.
        "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
        "num.network.threads": "2",
        "num.io.threads": "4",
        "group.coordinator.threads": "1",
    }
    if len(voters) > 1:
        settings |= _FAILOVER
    if outside:
        place = f"OUTSIDE://{outside}:{broker.outside_port}"
        settings["listeners"] += f",{place}"
        settings["advertised.listeners"] += f",{place}"
        settings["listener.security.protocol.map"] += ",OUTSIDE:PLAINTEXT"
    return settings | dict(extra)
