"""One scenario, from the cluster's start to the verdict."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import psutil
from confluent_kafka.admin import OffsetSpec

from llmagentos.agents.deployment import Process
from llmagentos.cli.chaos.chain import LEDGER, MENDED
from llmagentos.cli.chaos.cluster import Cluster
from llmagentos.cli.chaos.evidence import collect
from llmagentos.cli.chaos.faults import FAULTS, Fired
from llmagentos.cli.chaos.once import STEPS, judge_durable
from llmagentos.cli.chaos.oracle import Verdict, judge
from llmagentos.cli.chaos.people import People, pendings, unfinished
from llmagentos.cli.chaos.scenarios import Scenario
from llmagentos.cli.chaos.workload import AGENTS, Line, Production, data_folder, make_input, read_input, write_input
from llmagentos.streams.admin import Admin
from llmagentos.streams.errors import LLMAgentOSError
from llmagentos.streams.settings import Settings
from llmagentos.streams.topology import named

__all__ = ["CHAIN", "DURABLE", "Outcome", "Progress", "run"]

#: What is deployed; the tests deploy it with bugs.
CHAIN = Path(__file__).with_name("chain.py")
DURABLE = Path(__file__).with_name("durable.py")

#: Handlers of durable runs that wait are suspended so soon: sooner than their timers end.
SUSPEND_AFTER_S = 0.3

#: Of the ledger's answers to the steps of durable runs, one in so many is lost: 5 %.
LOST_ONE_IN = 20

#: Neither an effect nor a commit for so long: nothing more will come. The longest that a partition stands still by
#: design is a session, a start and a rebalance (some 15 s here).
STALL_S = 60.0

#: Between two looks at what goes on.
LOOK_S = 0.5

#: What is redriven is handled within seconds; for a machine that does much else, so many times a stall.
REDRIVE_STALLS = 3

#: The ledger is a small Python process.
LEDGER_START_S = 30.0


@dataclass(slots=True)
class Progress:
    """How far a run is; written by the run, read by who shows it."""

    doing: str = ""
    total: int = 0
    produced: int = 0
    effects: int = 0


@dataclass(slots=True)
class Outcome:
    """What came of one scenario.

    Attributes:
        fired: every fault that happened, in order.
        trouble: why it could not run as it should; empty where it did.
        seconds: from the first message to the last effect; whole_s with start and judgement.
    """

    scenario: Scenario
    seed: int
    fired: list[Fired] = field(default_factory=list[Fired])
    verdict: Verdict | None = None
    trouble: str = ""
    started_at: float = 0.0
    seconds: float = 0.0
    whole_s: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether it ran, and everything that must hold does."""
        return not self.trouble and self.verdict is not None and self.verdict.holds


def run(
    scenario: Scenario,
    seed: int,
    *,
    progress: Progress | None = None,
    told: Callable[[Fired], None] = lambda _: None,
    chain: Path | None = None,
    keep: Path | None = None,
    environment: Mapping[str, str] | None = None,
    cluster: Cluster | None = None,
    stall_s: float = STALL_S,
) -> Outcome:
    """Run one scenario.

    Args:
        told: called with each fault as it happens, from other threads.
        chain: the file that is deployed; None: the scenario's.
        keep: a folder for the input, the ledger and the logs; None: they go with the cluster.
        environment: of the workers, beside what they need.
        cluster: one that runs, and goes on, with topics of this run's own; None: one that is gone afterwards.
        stall_s: without an effect or a commit for so long, nothing more is waited for.
    """
    outcome = Outcome(scenario, seed)
    progress = progress or Progress()
    started = time.monotonic()
    needs = {need: None for name in scenario.faults for need in FAULTS[name].needs()}
    if needs:
        outcome.trouble = "could not run: " + "; ".join(needs)
        return outcome
    try:
        _Run(
            outcome, progress, told, chain or (DURABLE if scenario.durable else CHAIN), keep, environment or {}, stall_s
        ).run(cluster)
    except LLMAgentOSError as error:
        outcome.trouble = f"could not run: {error}"
    outcome.whole_s = time.monotonic() - started
    return outcome


class _Run:
    def __init__(
        self,
        outcome: Outcome,
        progress: Progress,
        told: Callable[[Fired], None],
        chain: Path,
        keep: Path | None,
        environment: Mapping[str, str],
        stall_s: float,
    ) -> None:
        self.outcome = outcome
        self.scenario = outcome.scenario
        self.progress = progress
        self.told = told
        self.chain = chain
        self.keep = keep
        self.environment = environment
        self.stall_s = stall_s
        self.memory: dict[int, list[tuple[float, int]]] = {}

    def run(self, running: Cluster | None) -> None:
        if running is not None:
            return self._in(running)
        self._say("starting the cluster")
        with Cluster(say=self._say) as cluster:
            return self._in(cluster)

    def _in(self, cluster: Cluster) -> None:
        scenario, outcome = self.scenario, self.outcome
        self.cluster = cluster
        cluster.renew(f"{scenario.name}-{uuid.uuid4().hex[:6]}.")
        home = self.home = cluster.home / cluster.settings.prefix.rstrip(".")
        home.mkdir()
        lines = make_input(scenario, outcome.seed, data_folder())
        write_input(home / "input.ndjson", lines)
        self.progress.total = len({line.id for line in lines}) * (len(STEPS) if scenario.durable else 1)
        mended = home / "mended"
        with self._kept(), self._ledger() as socket:
            self._topics(cluster.settings)
            named = {LEDGER: str(socket), MENDED: str(mended)}
            if scenario.durable:
                named["LLMAGENTOS_SUSPEND_AFTER_S"] = str(SUSPEND_AFTER_S)
            # Of its own, as a scenario may change it.
            module = Path(shutil.copy(self.chain, home / f"{self.chain.stem}.py"))
            cluster.deploy(module, scenario.workers, {**named, **self.environment})
            with self._watched():
                started = time.monotonic()
                outcome.started_at = time.time()
                with self._people() as people:
                    production = self._under_faults(lines, people)
                    self._say("waiting until all work is done or kept")
                    self._settle()
                if people.failure is not None:
                    self._fail(f"nobody was there to approve: {people.failure}")
                if any(line.poison for line in lines):
                    self._say("mending what failed, and redriving")
                    mended.touch()
                    self._redrive()
                    self._settle()
                outcome.seconds = time.monotonic() - started
            if production.failure is not None:
                self._fail(f"the input could not be produced: {production.failure}")
            evidence = collect(cluster.settings, cluster.name, self.ledger, self.memory, self._say)
        self._say("judging")
        outcome.verdict = (judge_durable if scenario.durable else judge)(
            list(read_input(home / "input.ndjson")),
            evidence,
            acknowledged=(line.id for line in production.acknowledged),
            redelivers=scenario.redelivers,
            topics={agent: cluster.settings.topic(f"agent.{agent}") for agent in AGENTS},
        )

    def _say(self, text: str) -> None:
        self.progress.doing = text

    # -- around it

    @contextmanager
    def _ledger(self) -> Generator[Path]:
        """The ledger's process; gives its socket."""
        socket, self.ledger = self.home / "ledger.sock", self.home / "ledger.ndjson"
        self.ledger.touch()
        lost = LOST_ONE_IN if self.scenario.durable else 0
        with (self.home / "ledger.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "llmagentos.cli.chaos.ledger", str(socket), str(self.ledger), str(lost)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C ends the run, which then ends it
            )
        try:
            self.cluster.until(socket.exists, "the ledger's start", LEDGER_START_S)
            yield socket
        finally:
            process.kill()
            process.wait()

    @contextmanager
    def _kept(self) -> Generator[None]:
        """Copy what tells of a run to where it is to be kept."""
        try:
            yield
        finally:
            if self.keep is not None:
                folder = self.keep / f"{self.scenario.name}-{self.outcome.seed}"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                logs = ("logs/*.log", "deployments/*.log", "deployments/*/*.log*")
                found = [path for pattern in logs for path in self.cluster.home.glob(pattern)]
                for path in (*self.home.glob("*.ndjson"), *found):
                    shutil.copy2(path, folder / path.name)

    def _topics(self, settings: Settings) -> None:
        """The agents' topics before they are deployed, stamped by the brokers' clocks: see evidence.py."""
        kinds = [named(f"{kind}.NAME").of(agent) for agent in AGENTS for kind in ("agent", "journal", "dead")]
        stamped = {"message.timestamp.type": "LogAppendTime"}
        Admin(settings).ensure(
            (settings.topic(kind.name), settings.partitions, kind.config | stamped) for kind in kinds
        )

    @contextmanager
    def _watched(self) -> Generator[None]:
        """Sample the workers' memory meanwhile, and count effects."""
        over = threading.Event()
        keys: set[str] = set()
        known: dict[int, Process] = {}  # also those that are told to leave and still work
        read = 0

        def count() -> None:
            nonlocal read
            with self.ledger.open("rb") as file:
                file.seek(read)
                whole = file.read().rpartition(b"\n")[0]
            read += len(whole) + bool(whole)
            keys.update(orjson.loads(line)["key"] for line in whole.splitlines())
            self.progress.effects = len(keys)

        def watch() -> None:
            while not over.wait(LOOK_S):
                known.update((worker.pid, worker.process) for worker in self.cluster.workers())
                for pid in [pid for pid, process in known.items() if not process.alive()]:
                    del known[pid]
                for pid in known:
                    try:
                        size = psutil.Process(pid).memory_info().rss
                    except psutil.NoSuchProcess:
                        continue
                    self.memory.setdefault(pid, []).append((time.time(), size))
                count()

        thread = threading.Thread(target=watch, name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            count()

    # -- the work

    @contextmanager
    def _people(self) -> Generator[People]:
        """Those who approve; not at work yet."""
        people = People(self.cluster)
        try:
            yield people
        finally:
            people.stop()

    def _under_faults(self, lines: list[Line], people: People) -> Production:
        """Produce the input while the faults go on; returns when both are over."""
        scenario, cluster = self.scenario, self.cluster
        production = Production(cluster.settings, lines, scenario.seconds, self.outcome.seed, scenario.sleep_s)
        threads = [
            threading.Thread(target=self._fault, args=(name,), name=f"fault {name}", daemon=True)
            for name in scenario.faults
        ]
        self._say(f"{len(lines):,} messages in {scenario.conversations:,} conversations, and faults")
        if not threads or scenario.ahead:
            production.faults_over.set()
        production.start()
        if scenario.ahead:
            production.join()
        elif scenario.people:
            people.start()
        try:
            for thread in threads:
                thread.start()
            for thread in (*threads, production):
                while thread.is_alive() and not self.outcome.trouble:
                    thread.join(LOOK_S)
                    self.progress.produced = production.sent
                if not any(fault.is_alive() for fault in threads):
                    production.faults_over.set()
        finally:
            if production.is_alive() or any(thread.is_alive() for thread in threads):
                production.stop()
                cluster.interrupt()
                for thread in threads:
                    thread.join()
        production.join()
        if scenario.ahead:
            people.start()
        return production

    def _fault(self, name: str) -> None:
        rng = random.Random(f"{self.outcome.seed}/{self.scenario.name}/{name}")
        fault = FAULTS[name]
        count = 0
        try:
            for fired in fault.run(self.cluster, rng, max(fault.short_s, fault.seconds * self.scenario.share)):
                count += 1
                self.outcome.fired.append(fired)
                self.told(fired)
        except Exception as error:  # noqa: BLE001 - whatever it is, the scenario did not run as it should
            self._fail(f"fault {name} could not run: {type(error).__name__}: {error}")
            return
        if not count:
            self._fail(f"fault {name} never fired")

    def _fail(self, trouble: str) -> None:
        """The first trouble is told: others follow from it."""
        self.outcome.trouble = self.outcome.trouble or trouble

    def _settle(self) -> None:
        """Wait until the commits cover all inboxes, or nothing moves any more."""
        admin = Admin(self.cluster.settings)
        latest = OffsetSpec.latest()
        assert latest is not None  # its stub says it may be
        topics = [self.cluster.settings.topic(f"agent.{agent}") for agent in AGENTS]
        shape: object = None
        moved_at = time.monotonic()
        with pendings(self.cluster) as pending:
            while time.monotonic() - moved_at < max(self.stall_s, self.scenario.sleep_s):
                ends = {(t, p): end for t in topics for p, end in admin.offsets(t, latest).items() if end}
                committed = admin.committed(self.cluster.name, topics)
                # What waits is covered, too, and parked messages are: those are for a redrive.
                waiting = [entry.offset for _, entry in unfinished(pending)] if self.scenario.durable else []
                if not waiting and all(committed.get(place, 0) >= end for place, end in ends.items()):
                    return
                if (seen := (ends, committed, len(waiting))) != shape:
                    shape, moved_at = seen, time.monotonic()
                time.sleep(LOOK_S)

    def _redrive(self) -> None:
        """As a person would, once what failed is mended; and once more, which must do no harm."""
        settings = self.cluster.settings
        environment = {key: value for key, value in os.environ.items() if not key.startswith("LLMAGENTOS_")} | {
            "LLMAGENTOS_HOME": str(settings.home),
            "LLMAGENTOS_BROKERS": settings.brokers,
            "LLMAGENTOS_PREFIX": settings.prefix,
        }
        words = (
            "dead",
            "redrive",
            "--cause",
            "failed",
            "--yes",
            "--wait",
            "--timeout",
            f"{REDRIVE_STALLS * self.stall_s:.0f}",
        )
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-m", "llmagentos.cli.main", *words],
                cwd=self.cluster.home,  # where no llmagentos.toml lies
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                self._fail(f"`llmagentos {' '.join(words)}` failed: {done.stderr.strip()[-2_000:]}")
