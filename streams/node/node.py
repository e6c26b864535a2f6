"""The node: a real Kafka and a real Redis on this machine, under one data folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from confluent_kafka import KafkaException, Producer

from llmagentos.streams.endpoints import ENDPOINTS_FILE
from llmagentos.streams.errors import NodeError
from llmagentos.streams.node import java, ports
from llmagentos.streams.node.broker import LEAST_FREE_MB, Broker, Launch, properties
from llmagentos.streams.node.jars import Progress, fetch, missing, read_list
from llmagentos.streams.node.process import Daemon
from llmagentos.streams.node.state import State, new_cluster_id, write_whole
from llmagentos.streams.node.valkey import Valkey
from llmagentos.streams.settings import Settings

__all__ = ["KAFKA_VERSION", "Node", "Part", "Status"]

#: What streams/node/jars.txt holds.
KAFKA_VERSION = "4.4.0"
#: Where node.json is lost, `down` looks for as many processes; it needs no ports to find them.
_LARGEST = State("", (0, 0, 0), (0, 0, 0), 0)
#: A broker that recovers large logs after a kill needs longer than the usual 2 to 5 s.
_START_TIMEOUT_S = 120.0
#: A broker closes its logs; with three, the last finds no controller and gives up by itself.
_STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the node.

    Attributes:
        name: for people.
        running: whether its process lives.
        answers: whether it serves clients.
        trouble: what is wrong, in words; empty if nothing.
        pid, port: None where it does not run.
        rss_mb: resident memory, in MiB.
        up_s: seconds since its start.
    """

    name: str
    running: bool
    answers: bool
    trouble: str = ""
    pid: int | None = None
    port: int | None = None
    rss_mb: float | None = None
    up_s: float | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """What the node's parts do now.

    Attributes:
        home: the data folder.
        state: "running" (all parts answer), "degraded" (some), "stopped" (none runs, none should).
        cluster_id, brokers, redis: None before the first start.
    """

    home: Path
    state: str
    cluster_id: str | None = None
    brokers: str | None = None
    redis: str | None = None
    parts: tuple[Part, ...] = ()


@dataclass
class Node:
    """The local node of `settings.home`.

    Args:
        settings: `home`, `cache` and `kafka_jars` count here.
        broker_properties: further Kafka settings, for tests of brokers with other security.
        scram: users that the cluster begins with, as kafka-storage's --add-scram takes them.
        outside: an address of this machine on which the brokers listen too, for clients that can't reach its
            loopback: those in another network namespace.
    """

    settings: Settings
    broker_properties: Mapping[str, str] = field(default_factory=dict[str, str])
    scram: Sequence[str] = ()
    outside: str = ""

    def __post_init__(self) -> None:
        self.home = self.settings.home.absolute()

    @property
    def brokers(self) -> str:
        """Kafka's bootstrap.servers; raises NodeError before the first start."""
        return _bootstrap(self._brokers(self._known(), local=False))

    @property
    def redis(self) -> str:
        """Redis' URL; raises NodeError before the first start."""
        return self._valkeys(self._known(), local=False)[0].url

    @property
    def brokers_outside(self) -> str:
        """Kafka's bootstrap.servers at the address `outside`."""
        return ",".join(f"{self.outside}:{broker.outside_port}" for broker in self._brokers(self._known(), local=False))

    def broker(self, number: int) -> Broker:
        """Broker *number*, from 1: its process, ports, folders; raises NodeError where there is none."""
        there = self._brokers(self._known(), local=False)
        if not 0 < number <= len(there):
            raise NodeError(f"the node in {self.home} has brokers 1 to {len(there)}, not {number}")
        return there[number - 1]

    def valkey(self) -> Valkey:
        """Redis: its process, port, folder; raises NodeError before the first start."""
        return self._valkeys(self._known(), local=False)[0]

    @property
    def jars_folder(self) -> Path:
        """Where the broker's jars are, or will be."""
        return (self.settings.kafka_jars or self.settings.cache / "jars" / f"kafka-{KAFKA_VERSION}").absolute()

    @property
    def logs(self) -> Path:
        """The folder of its logs."""
        return self.home / "logs"

    def up(self, nodes: int | None = None, *, port: int | None = None, progress: Progress | None = None) -> Status:
        """Start what does not run yet, and return when Kafka and Redis serve clients.

        Args:
            nodes: how many brokers, 1 or 3; None: as before, or 1.
            port: of the first broker; None: as before, or a free one.
            progress: told what goes on.

        Raises:
            NodeError: it can't be started; says why, and what to do.
        """
        say = progress or _silent
        if self.settings.brokers and self.settings.redis:
            raise NodeError(
                f"there is nothing to start: the settings name Kafka at {self.settings.brokers} "
                "and Redis by LLMAGENTOS_REDIS",
                fix="`llmagentos doctor` looks whether they answer; unset LLMAGENTOS_BROKERS and LLMAGENTOS_REDIS "
                "for a local node",
            )
        if nodes not in (None, 1, 3):
            raise NodeError(f"a node has 1 or 3 brokers, not {nodes}", fix="`llmagentos up --nodes 3`")
        protocol = self.settings.security_protocol
        if protocol != "PLAINTEXT" and not self.settings.brokers and not self.broker_properties:
            raise NodeError(
                f"the local node speaks plain text on loopback, but the settings ask for {protocol}",
                fix="unset LLMAGENTOS_SECURITY_PROTOCOL for the local node, or set LLMAGENTOS_BROKERS to the cluster",
            )
        with self._locked():
            self._room()
            state = self._plan(nodes, port, say)
            brokers, valkeys = self._brokers(state), self._valkeys(state)
            dead = [broker for broker in brokers if not broker.daemon.process()]
            cold = [valkey for valkey in valkeys if not valkey.daemon.process()]
            try:
                if dead:
                    self._start(dead, brokers, state, say)
                for valkey in cold:
                    say("starting Redis", 0, 0)
                    valkey.start()
                for valkey in valkeys:
                    valkey.wait(_START_TIMEOUT_S)
                self._wait(brokers)
            except BaseException:  # an interrupt too: what ran before goes on, what this call started does not
                for part in (*dead, *cold):
                    part.daemon.stop(_STOP_TIMEOUT_S)
                raise
            endpoints = {"brokers": _bootstrap(brokers)} if brokers else {}
            if valkeys:
                endpoints["redis"] = valkeys[0].url
            write_whole(self.home / ENDPOINTS_FILE, json.dumps(endpoints) + "\n")
        return self.status()

    def start(self, part: Broker | Valkey) -> None:
        """Start one part that has ended, and return when it serves; the others stay as they are, dead ones too.

        Raises:
            NodeError: it does not start; says why.
        """
        with self._locked():
            state = self._known()
            if part.daemon.process():
                return
            if isinstance(part, Valkey):
                part.start()
                part.wait(_START_TIMEOUT_S)
                return
            self._start([part], self._brokers(state, local=False), state, _silent)
            self._wait([part])

    def down(self, progress: Progress | None = None) -> bool:
        """Stop everything and return whether anything ran. The data stays.

        Raises:
            NodeError: a process can't be stopped.
        """
        say = progress or _silent
        if not self.home.exists():
            return False
        with self._locked():
            state = State.load(self.home) or _LARGEST
            parts = (*self._brokers(state, local=False), *self._valkeys(state, local=False))
            running = [part.daemon for part in parts if part.daemon.process()]
            brokers = [part for part in parts if isinstance(part, Broker) and part.daemon in running]
            (self.home / ENDPOINTS_FILE).unlink(missing_ok=True)
            for daemon in running:  # all at once: three brokers that go one by one wait for each other
                say(f"stopping {daemon.name}", 0, 0)
                daemon.terminate()
            deadline = time.monotonic() + _STOP_TIMEOUT_S
            for daemon in running:
                if not daemon.stop(max(0.1, deadline - time.monotonic())):
                    raise NodeError(
                        f"{daemon.name} can't be stopped",
                        kept=f"the data, in {self.home}",
                        fix=f"end the process that {daemon.pid_file} names by hand",
                    )
            for broker in brokers:
                if broker.new_archive.exists():
                    broker.keep_archive(self._launch(say))
            shutil.rmtree(self.home / "run", ignore_errors=True)
        return bool(running)

    def status(self) -> Status:
        """What runs, what answers, and what is wrong; never raises for a dead part."""
        state = State.load(self.home)
        if state is None:
            return Status(self.home, "stopped")
        brokers, valkeys = self._brokers(state), self._valkeys(state)
        wanted = (self.home / ENDPOINTS_FILE).exists()
        alive = self._alive(brokers)
        parts = [
            _part(
                b.daemon, b.port, "" if b.number in alive else "it does not answer", b.ended_because if wanted else None
            )
            for b in brokers
        ]
        parts += [_part(v.daemon, v.port, v.trouble() or "") for v in valkeys]
        if wanted and all(part.answers for part in parts):
            word = "running"
        elif wanted or any(part.running for part in parts):
            word = "degraded"
        else:
            word = "stopped"
        redis_url = valkeys[0].url if valkeys else None
        return Status(self.home, word, state.cluster_id, _bootstrap(brokers) or None, redis_url, tuple(parts))

    def jars(self, progress: Progress | None = None) -> list[Path]:
        """The broker's jars: LLMAGENTOS_KAFKA_JARS', or fetched once into the cache.

        Raises:
            NodeError: they can't be fetched, or that folder lacks some.
        """
        wanted = read_list(Path(__file__).with_name("jars.txt"))
        folder = self.jars_folder
        if self.settings.kafka_jars is None:
            return fetch(wanted, folder, progress)
        lacking = missing(wanted, folder)
        if lacking:
            names = ", ".join(jar.file_name for jar in lacking[:5]) + (" ..." if len(lacking) > 5 else "")
            raise NodeError(
                f"LLMAGENTOS_KAFKA_JARS is {folder}, which lacks {len(lacking)} of {len(wanted)} jars, "
                f"or has other versions of them: {names}",
                fix="put the jars that streams/node/jars.txt lists there, or unset it to have them fetched",
            )
        return [folder / jar.file_name for jar in wanted]

    # -- what there is

    def _known(self) -> State:
        state = State.load(self.home)
        if state is None:
            raise NodeError(f"no node was ever started in {self.home}", fix="start one with `llmagentos up`")
        return state

    def _brokers(self, state: State, *, local: bool = True) -> list[Broker]:
        """Of the data folder; with *local* none where the settings name a Kafka elsewhere."""
        if local and self.settings.brokers:
            return []
        pairs = zip(state.ports, state.controller_ports, strict=True)
        return [Broker(number, self.home, *pair) for number, pair in enumerate(pairs, 1)]

    def _valkeys(self, state: State, *, local: bool = True) -> list[Valkey]:
        """One, or with *local* none where the settings name a Redis elsewhere."""
        return [] if local and self.settings.redis else [Valkey(self.home, state.redis_port)]

    def _alive(self, brokers: Sequence[Broker], client: Producer | None = None, timeout_s: float = 1.0) -> set[int]:
        """The numbers of those of *brokers* that the cluster has now; empty where none answers."""
        if not any(broker.daemon.process() for broker in brokers):
            return set()
        try:
            return set((client or self._client(brokers)).list_topics(timeout=timeout_s).brokers)
        except KafkaException:
            return set()

    def _client(self, brokers: Sequence[Broker], **more: object) -> Producer:
        config: dict[str, object] = {
            "bootstrap.servers": _bootstrap(brokers),
            "log_level": 0,
            "reconnect.backoff.ms": 20,
            "reconnect.backoff.max.ms": 100,
        }
        return Producer(config | self.settings.security() | more)

    def _launch(self, say: Progress) -> Launch:
        return Launch(java.find(self.settings.cache, say).command, self.jars(say), self.settings.cache)

    # -- up, step by step

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        """One `up` or `down` of this data folder at a time."""
        path = self.home / "lock"
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except OSError as error:
            raise NodeError(
                f"the data folder {self.home} can't be written: {error.strerror}",
                fix="make it writable, or choose another with `--data DIR` or LLMAGENTOS_HOME",
            ) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            except OSError as error:
                raise NodeError(
                    f"the data folder {self.home} can't be used: {error.strerror}: {error.filename}",
                    kept="everything that Kafka acknowledged is in the data folder",
                    fix="`llmagentos doctor` looks for the cause",
                ) from error

    def _plan(self, nodes: int | None, port: int | None, say: Progress) -> State:
        state = State.load(self.home)
        if state is None:
            count = nodes or 1
            found = ports.free(2 * count + 1, taken=[port] if port else [])
            client_ports = [port or found[0], *found[1:count]]
            state = State(
                self._found_cluster_id() or new_cluster_id(),
                tuple(client_ports),
                tuple(found[count:-1]),
                found[-1],
                port is not None,
            )
        elif nodes is not None and nodes != state.nodes:
            raise NodeError(
                f"the node in {self.home} has {state.nodes} broker(s), not {nodes}; that is fixed at its birth",
                kept="its data, untouched",
                fix=f"leave out --nodes, or start another with `llmagentos up --nodes {nodes} --data DIR`",
            )
        elif port is not None and port != state.ports[0]:
            if self._brokers(state)[0].daemon.process():
                raise NodeError(
                    f"Kafka runs already, on port {state.ports[0]}, not {port}",
                    fix="`llmagentos down` first",
                )
            state = replace(state, ports=(port, *state.ports[1:]), fixed=True)
        foreign = self.foreign_data(state)
        if foreign is not None:
            raise foreign
        state = self._settle_ports(state, say)
        state.save(self.home)
        return state

    def _found_cluster_id(self) -> str | None:
        """Of data whose node.json is lost."""
        return Broker(1, self.home, 0, 0).cluster_id()

    def foreign_data(self, state: State) -> NodeError | None:
        """What to say where the data folder holds another cluster's data; None where it doesn't."""
        for broker in self._brokers(state):
            found = broker.cluster_id()
            if found not in (None, state.cluster_id):
                return NodeError(
                    f"{broker.data} holds the data of another cluster: its meta.properties says {found}, "
                    f"but the node in {self.home} is {state.cluster_id}",
                    kept="both, untouched; nothing was started",
                    fix="put the right folder back, or start with another one: `llmagentos up --data DIR`",
                )
        return None

    def _settle_ports(self, state: State, say: Progress) -> State:
        """Give every part that has to start a port that is free."""
        brokers, valkeys = self._brokers(state), self._valkeys(state)
        known = {*state.ports, *state.controller_ports, state.redis_port}
        client_ports, controller_ports, redis_port = list(state.ports), list(state.controller_ports), state.redis_port
        for index, broker in enumerate(brokers):
            if broker.daemon.process():
                continue
            if not ports.is_free(broker.port):
                if index == 0 and state.fixed:
                    raise NodeError(
                        f"Kafka's port {broker.port} is taken by {ports.holder(broker.port)}",
                        kept=f"the data, in {self.home}",
                        fix="stop that process, or choose another port with `llmagentos up --port P`",
                    )
                client_ports[index] = _instead(broker.port, known, broker.daemon.name, say)
            if not ports.is_free(broker.controller_port):
                controller_ports[index] = _instead(broker.controller_port, known, "Kafka's controller", say)
        if any(not valkey.daemon.process() for valkey in valkeys) and not ports.is_free(redis_port):
            redis_port = _instead(redis_port, known, "Redis", say)
        return replace(
            state, ports=tuple(client_ports), controller_ports=tuple(controller_ports), redis_port=redis_port
        )

    def _room(self) -> None:
        free_mb = shutil.disk_usage(self.home).free // 2**20
        if free_mb < LEAST_FREE_MB:
            raise NodeError(
                f"the disk of {self.home} is full: {free_mb} MiB are free, {LEAST_FREE_MB} are needed to start",
                kept="everything that Kafka acknowledged is in the data folder",
                fix="free some space and run `llmagentos up` again",
            )

    def _start(self, dead: Sequence[Broker], brokers: Sequence[Broker], state: State, say: Progress) -> None:
        launch = self._launch(say)
        for broker in dead:
            broker.write_config(properties(broker, brokers, self.broker_properties, self.outside))
            if broker.cluster_id() is None:
                say(f"formatting the data folder of {broker.daemon.name}", 0, 0)
                broker.format(launch, state.cluster_id, self.scram)
        for broker in dead:
            say(f"starting {broker.daemon.name}", 0, 0)
            broker.start(launch)

    def _wait(self, brokers: Sequence[Broker]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        wanted = {broker.number for broker in brokers}
        # Idempotent, so that it asks for a producer id at once: a new broker refuses the very first one that asks,
        # and a producer asks again only a second later.
        client = self._client(brokers, **{"enable.idempotence": True}) if brokers else None
        while not wanted <= (alive := self._alive(brokers, client, timeout_s=0.5)):
            for broker in brokers:
                if broker.daemon.exited():
                    raise self._failed(broker, broker.ended_because())
                if time.monotonic() > deadline and broker.number not in alive:
                    raise self._failed(broker, f"it does not answer after {_START_TIMEOUT_S:.0f} s")
            time.sleep(0.02)

    def _failed(self, broker: Broker, happened: str) -> NodeError:
        daemon = broker.daemon
        said = daemon.tail()
        return NodeError(
            f"{daemon.name} could not be started: {happened}" + (f"\nthe end of {daemon.log}:\n{said}" if said else ""),
            kept=f"its data, in {broker.data}",
            fix=f"`llmagentos doctor` looks for the cause; more is in {broker.log_file}",
        )


def _part(daemon: Daemon, port: int, trouble: str, ended_because: Callable[[], str] | None = None) -> Part:
    process = daemon.process()
    if process is None:
        return Part(daemon.name, False, False, ended_because() if ended_because else "it does not run", port=port)
    try:
        with process.oneshot():
            rss_mb = process.memory_info().rss / 2**20
            up_s = time.time() - process.create_time()
    except psutil.NoSuchProcess:
        return Part(daemon.name, False, False, "it has just ended", port=port)
    return Part(daemon.name, True, not trouble, trouble, process.pid, port, round(rss_mb, 1), round(up_s, 1))


def _instead(port: int, known: set[int], name: str, say: Progress) -> int:
    (other,) = ports.free(1, taken=known)
    known.add(other)
    say(f"{name}'s port {port} is taken by {ports.holder(port)}; it gets {other}", 0, 0)
    return other


def _bootstrap(brokers: Sequence[Broker]) -> str:
    return ",".join(f"127.0.0.1:{broker.port}" for broker in brokers)


def _silent(what: str, done: int, total: int) -> None:
    """The progress of nobody."""
