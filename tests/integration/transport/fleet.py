"""Workers as real processes, and what they did as seen from outside: topics and committed offsets."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

PROGRAMS = Path(__file__).parent / "programs"
PARTITIONS = 8
#: Longest that any condition may take: a start of Python with Faust is 1 s, on a busy machine 10.
DEADLINE_S = 60.0


def wait_for(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true result of *condition*."""
    deadline = time.monotonic() + deadline_s
    while True:
        if result := condition():
            return result
        assert time.monotonic() < deadline, f"waited {deadline_s:g} s for {what}"
        time.sleep(0.05)


@dataclass
class Result:
    """What was wrong, counted; all zero is right."""

    sent: int
    lost: int
    redelivered: int
    reordered: int
    uncommitted: int
    by_worker: dict[str, int] = field(default_factory=dict)


class Load(threading.Thread):
    """Sends numbered records at a steady rate until stopped; keys in order within a partition."""

    def __init__(self, brokers: str, topic: str, rate: int, keys: int = 50) -> None:
        super().__init__(daemon=True)
        self.topic, self.rate, self.keys = topic, rate, keys
        self.producer = Producer({"bootstrap.servers": brokers, "acks": "all", "enable.idempotence": True})
        self.sent = 0
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            for _ in range(max(1, self.rate // 50)):
                self.producer.produce(self.topic, str(self.sent).encode(), f"k{self.sent % self.keys}".encode())
                self.sent += 1
            self.producer.poll(0)
            time.sleep(0.02)
        assert self.producer.flush(30) == 0

    def stop(self) -> int:
        """How many records there are, all acknowledged."""
        self.stopping.set()
        self.join(60)
        return self.sent


class Fleet:
    """Workers of one group, and its topics."""

    def __init__(self, brokers: str, folder: Path, program: str = "copier.py", **settings: str) -> None:
        self.brokers, self.folder, self.program = brokers, folder, program
        self.name = f"fleet-{uuid.uuid4().hex[:8]}"
        self.source, self.target = f"{self.name}-in", f"{self.name}-out"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "LLMAGENTOS_BROKERS": brokers, **settings}
        self.admin = AdminClient({"bootstrap.servers": brokers})
        self.reader = Consumer({"bootstrap.servers": brokers, "group.id": self.name, "enable.auto.commit": False,
                                "auto.offset.reset": "earliest"})  # fmt: skip
        self.make_topics(self.source, self.target)

    def missed_soon(self) -> None:
        """Workers that start from now on are taken for dead after a second: on a busy machine, living ones too."""
        self.environment |= {"LLMAGENTOS_SESSION_TIMEOUT_MS": "1000", "LLMAGENTOS_HEARTBEAT_INTERVAL_MS": "300"}

    def make_topics(self, *names: str, partitions: int = PARTITIONS, **config: str) -> None:
        for future in self.admin.create_topics(
            [NewTopic(name, partitions, 1, config=config) for name in names]
        ).values():
            future.result(30)
        for name in names:
            wait_for(lambda name=name: self._led(name, partitions), f"{name} to have leaders")

    def _led(self, topic: str, partitions: int) -> bool:
        try:
            return bool([self.reader.get_watermark_offsets(TopicPartition(topic, p), 10) for p in range(partitions)])
        except KafkaException:
            return False

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A worker; it has joined when its log says so: see :meth:`joined`."""
        log = (self.folder / f"{self.name}-{len(self.processes)}.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / self.program), *arguments],
            stdout=log, stderr=subprocess.STDOUT, cwd=self.folder, env=self.environment,
        )  # fmt: skip
        log.close()
        self.processes.append(process)
        return process

    def copier(self, mode: str = "stream", seed: str = "", work_ms: float = 1.0) -> subprocess.Popen[bytes]:
        return self.start(self.name, self.source, self.target, mode, seed or "none", str(work_ms))

    def log(self, process: subprocess.Popen[bytes]) -> str:
        return (self.folder / f"{self.name}-{self.processes.index(process)}.log").read_text(errors="replace")

    def joined(self, *processes: subprocess.Popen[bytes], deadline_s: float = DEADLINE_S) -> None:
        """Wait until each of them owns partitions."""
        for process in processes:
            wait_for(
                lambda process=process: re.search(r"\bowns [1-9]", self.log(process)) or process.poll() is not None,
                "a worker to own partitions", deadline_s,
            )  # fmt: skip
            assert process.poll() is None, self.log(process)[-3000:]

    def count(self, topic: str) -> int:
        """Records of *topic*."""
        return sum(self.reader.get_watermark_offsets(TopicPartition(topic, p), 10)[1] for p in range(PARTITIONS))

    def committed(self) -> int:
        """The sum of the group's offsets of the source."""
        try:
            parts = self.reader.committed([TopicPartition(self.source, p) for p in range(PARTITIONS)], 10)
        except KafkaException:  # the coordinator moves, or has just come back
            return -1
        return sum(max(0, part.offset) for part in parts)

    def read(self, topic: str) -> list[Any]:
        """All records of *topic*, by partition, then offset."""
        ends = {p: self.reader.get_watermark_offsets(TopicPartition(topic, p), 10)[1] for p in range(PARTITIONS)}
        left = {p for p, end in ends.items() if end}
        self.reader.assign([TopicPartition(topic, p, 0) for p in left])
        found: dict[int, list[Any]] = defaultdict(list)
        deadline = time.monotonic() + DEADLINE_S
        while left:
            assert time.monotonic() < deadline, f"{topic} can't be read"
            for record in self.reader.consume(1000, 0.5):
                assert record.error() is None, record.error()
                found[record.partition()].append(record)
            left -= {part.partition for part in self.reader.position([TopicPartition(topic, p) for p in left])
                     if part.offset >= ends[part.partition]}  # fmt: skip
        self.reader.unassign()
        return [record for p in sorted(found) for record in found[p]]

    def settle(self, sent: int, deadline_s: float = DEADLINE_S) -> None:
        """Wait until everything sent is committed."""
        wait_for(
            lambda: self.committed() >= sent, f"{sent} records to be committed ({self.committed()} are)", deadline_s
        )

    def judge(self, sent: int) -> Result:
        """Compare source and target, once all workers have stopped."""
        source = {(record.partition(), record.offset()) for record in self.read(self.source)}
        assert len(source) == sent
        copies: Counter[tuple[int, int]] = Counter()
        last: dict[tuple[str, bytes], int] = {}
        reordered = 0
        workers: Counter[str] = Counter()
        for record in self.read(self.target):
            copy = orjson.loads(record.value())
            copies[copy["partition"], copy["offset"]] += 1
            workers[copy["worker"]] += 1
            owner = (copy["worker"], record.key())
            reordered += copy["seq"] < last.get(owner, -1)
            last[owner] = copy["seq"]
        return Result(
            sent=sent,
            lost=len(source - set(copies)),
            redelivered=copies.total() - len(copies),
            reordered=reordered,
            uncommitted=sent - self.committed(),
            by_worker=dict(workers),
        )

    def stop(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
        process.send_signal(number)
        process.wait(60)

    def close(self) -> None:
        """Leave nothing running."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(30)
        self.reader.close()
