"""The worker: an OS process that hosts the agents of one deployment as one Faust app, one member of its group.

    python -m llmagentos.agents.worker --deployment NAME --target FILE_OR_MODULE --index 0 --run-dir DIR

It says how it is in `DIR/worker-INDEX.json`, drains on SIGTERM, and exits with 0 when it was told to stop, 3 where
the module can't be loaded, 4 where it refuses to start, and 1 where it crashed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import faust
from faust.types import TP
from yarl import URL

from llmagentos.agents.agent import Agent
from llmagentos.agents.answers import Answers
from llmagentos.agents.dead_letters import DeadLetters
from llmagentos.agents.faults import Faults, Plan
from llmagentos.agents.foreign import reader
from llmagentos.agents.heap import give_back
from llmagentos.agents.history import History
from llmagentos.agents.inbox import Inbox
from llmagentos.agents.loading import LoadedModule, load
from llmagentos.agents.memory import Memories
from llmagentos.agents.outputs import Outputs
from llmagentos.agents.room import Room
from llmagentos.agents.standing import stands_still
from llmagentos.streams.clock import Clock
from llmagentos.streams.endpoints import brokers
from llmagentos.streams.errors import (
    AccessError,
    DeploymentError,
    IncompatibleSchema,
    LLMAgentOSError,
    SettingsError,
    TopicError,
)
from llmagentos.streams.message import Message
from llmagentos.streams.mirror import Mirrors
from llmagentos.streams.ownership import Journal
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.transport import attach, configure
from llmagentos.streams.transport.consumer import Consumer
from llmagentos.streams.transport.extension import SCHEME
from llmagentos.streams.transport.sink import Start
from llmagentos.streams.wire import Codec

__all__ = ["EXIT_CRASHED", "EXIT_REFUSED", "EXIT_UNLOADABLE", "Status", "Worker", "read_status"]

log = logging.getLogger("llmagentos.worker")

EXIT_CRASHED = 1
EXIT_UNLOADABLE = 3
EXIT_REFUSED = 4

#: What somebody has to mend; a broker out of reach, say, comes back by itself, and then a new start helps.
_REFUSALS = (TopicError, AccessError, DeploymentError, SettingsError, IncompatibleSchema)

#: The status file is written anew this often, so that a reader sees a worker that hangs; it is one small file.
STATUS_INTERVAL_S = 5.0

#: Loggers that tell of each service's start and stop; with LLMAGENTOS_LOG=DEBUG they do.
_CHATTY = ("faust", "mode", "llmagentos.streams.transport")

State = Literal["starting", "running", "draining", "stopped"]


@dataclass(slots=True)
class Status:
    """How a worker is, as in its status file. Times are seconds since the epoch."""

    pid: int
    state: State
    version: str
    assigned: list[str]
    started_at: float
    updated_at: float
    in_flight: int = 0
    paused: dict[str, str] = field(default_factory=dict[str, str])  # agents whose breaker is open, and why
    standing: bool = False  # begins nothing new, as other code is about to take over


def read_status(run_dir: Path, index: int) -> Status | None:
    """What worker *index* last said of itself; None before it said anything."""
    try:
        return Status(**json.loads(_status_path(run_dir, index).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _status_path(run_dir: Path, index: int) -> Path:
    return run_dir / f"worker-{index}.json"


class Worker:
    """One worker. :meth:`run` returns when it was told to stop and has drained.

    Args:
        run_dir: where its status file goes; None: none is written.
        clock: that deadlines, pauses and limits go by; a test has one that it moves.
    """

    def __init__(
        self,
        settings: Settings,
        deployment: str,
        loaded: LoadedModule,
        *,
        index: int = 0,
        run_dir: Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings
        self.deployment = deployment
        self.loaded = loaded
        self.index = index
        self.name = f"{deployment}-{index}@{socket.gethostname()}"
        self._run_dir = run_dir
        self._status_file = _status_path(run_dir, index) if run_dir else None
        self._status = Status(os.getpid(), "starting", loaded.version, [], time.time(), time.time())
        self._clock = clock or Clock()
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None
        self.stuck = False  # whether a plain function's thread did not end
        self._inboxes: dict[str, Inbox] = {}

    @property
    def state(self) -> State:
        """As in the status file."""
        return self._status.state

    def stop(self) -> None:
        """Drain, commit, leave the group; :meth:`run` returns then."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until :meth:`stop`.

        Raises:
            LLMAgentOSError: it refuses to start, or can't go on; its text says why.
        """
        settings = self.settings
        self._write_status("starting")
        plan = Plan.parse(settings.faults, self.loaded.agents)
        app = self.app = self._make_app()
        codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
        await asyncio.to_thread(codec.prepare)
        encode_event = codec.writer("llmagentos.Event", "event")
        encode_dead_letter = codec.writer("llmagentos.DeadLetter", "dead_letter")
        answers = Answers(settings, codec, name=self.name)
        history = History(settings, codec)
        mirrors: Mirrors | None = None
        status: asyncio.Task[None] | None = None
        journal: Journal | None = None
        outputs: Outputs | None = None
        try:
            await app.maybe_start_producer()
            producer: Producer = cast(Any, app.producer).core
            self._event = partial(self._produce_event, producer, encode_event)
            journal = Journal(settings, producer, codec, writer=self.name, broken=self._broken)
            outputs = Outputs(settings, producer, codec.encode, self._clock, history)
            outputs.event = self._event
            dead_letters = DeadLetters(settings, producer, encode_dead_letter, worker=self.name)
            self._room = Room(settings.max_in_flight, settings.max_in_flight_bytes, self._room_returned)
            memories: Memories | None = None
            if any(agent.memory is not None for agent in self.loaded.agents.values()):
                mirrors = Mirrors(settings, producer, name=self.name, broken=self._broken)
                memories = Memories(mirrors, codec)
            faults = self._faults(plan, outputs)
            for agent in map(faults.around, self.loaded.agents.values()):
                topic = agent.topic or settings.topic(f"agent.{agent.name}")
                inbox = self._inboxes[agent.name] = _ReportingInbox(
                    agent,
                    decode=codec.read if agent.topic is None else reader(agent, codec),
                    outputs=outputs,
                    answers=answers,
                    dead_letters=dead_letters,
                    journal=journal,
                    room=self._room,
                    finish=self._finish,
                    committed=lambda tp: self._consumer.committed(tp),
                    begin_again=lambda tp: self._consumer.begin_again(tp),
                    broken=self._broken,
                    told=partial(self._event, agent=agent.name),
                    memories=memories,
                    owned_changed=self._owned_changed,
                )
                attach(app, topic, inbox)
            self._consumer = cast(Consumer, app.consumer)
            # Before partitions come: the first record of all takes half a second, as the producer gets its id with it,
            # and until its claim is written a partition stands still.
            self._event("worker-started", version=self.loaded.version, pid=str(os.getpid()), faults=plan.text)
            await producer.delivered()
            await app.maybe_start()
            # What is loaded now stays for good: the collector need not look at it again.
            gc.collect()
            gc.freeze()
            status = asyncio.create_task(self._report())
            await self._until_stopped(app)
            self._write_status("draining")
            if self._failure is None:
                self._event("worker-stopped")
        finally:
            if status is not None:
                status.cancel()
            if journal is not None:
                await journal.quiesce()
            with contextlib.suppress(asyncio.CancelledError):
                await app.stop()
            for inbox in self._inboxes.values():
                await inbox.stop()
            for agent in self.loaded.agents.values():
                self.stuck |= not await agent.close()
            if journal is not None:
                await journal.stop()
            await answers.stop()
            if outputs is not None:
                await outputs.models.close()
            if mirrors is not None:
                await mirrors.stop()
            await asyncio.to_thread(history.close)
            gc.unfreeze()  # a test runs many workers in one process, and each holds a few Kafka clients
            self._write_status("stopped")
        if self._failure is not None:
            raise self._failure

    def _produce_event(
        self,
        producer: Producer,
        encode: Callable[[dict[str, Any]], bytes],
        kind: str,
        *,
        about: Message | None = None,
        agent: str = "",
        **detail: str,
    ) -> None:
        conversation_id = None if about is None else about.conversation_id
        event = {
            "kind": kind,
            "at": time.time_ns() // 1_000_000,
            "deployment": self.deployment,
            "worker": self.name,
            "agent": agent,
            "conversation_id": conversation_id,
            "detail": detail,
        }
        producer.produce(self.settings.topic("events"), encode(event), (conversation_id or self.name).encode())

    def _faults(self, plan: Plan, outputs: Outputs) -> Faults:
        """Those that somebody switched on: none, unless the setting says so."""
        if plan:
            log.warning(
                "FAULTS ARE ON, on purpose, in worker %s: %s. Messages will be delayed, fail or come twice, as that"
                " says; without --fault and LLMAGENTOS_FAULTS a deployment has none",
                self.name,
                plan.text,
            )

        def duplicate(message: Message) -> None:
            outputs.send(outputs.to_inbox(message)._replace(topic=message.topic, partition=message.partition))

        def tell(fault: str, agent: str, message: Message, count: int) -> None:
            detail = {"fault": fault, "message_id": message.message_id, "count": str(count)}
            self._event("fault", about=message, agent=agent, **detail)

        return Faults(plan, clock=self._clock, duplicate=duplicate, tell=tell)

    def _make_app(self) -> faust.App:
        app = self.loaded.app
        if app is None:
            hosts = brokers(self.settings).split(",")
            # Faust's own default is a folder where the process runs: that of the user's project.
            folder = (self._run_dir or self.settings.home) / f"faust-{self.deployment}-{self.index}"
            folder.parent.mkdir(parents=True, exist_ok=True)
            app = faust.App(
                self.deployment,
                broker=[URL(f"{SCHEME}://{host}") for host in hosts],
                web_enabled=False,
                origin=None,
                autodiscover=False,
                datadir=folder,
            )
        elif app.conf.broker[0].scheme != SCHEME:
            raise DeploymentError(
                f"the Faust app in {self.loaded.path} has broker {app.conf.broker[0]}",
                fix=f'write faust.App(..., broker="{SCHEME}://"): the deployment\'s cluster, on our transport',
            )
        elif app.conf.id != self.deployment:  # the consumer group is one thing, and can't have two names
            raise DeploymentError(
                f"the Faust app in {self.loaded.path} is named {app.conf.id!r}, its deployment {self.deployment!r}",
                fix=f"deploy it with --name {app.conf.id}, or write faust.App({self.deployment!r}, ...)",
            )
        configure(app, self.settings)
        return app

    async def _until_stopped(self, app: faust.App) -> None:
        """Wait for :meth:`stop`, or for the app to end by itself, which it does only when it crashed."""
        stopping = asyncio.create_task(self._stopping.wait())
        crashed = asyncio.create_task(app.wait_until_stopped())
        await asyncio.wait((stopping, crashed), return_when=asyncio.FIRST_COMPLETED)
        if not self._stopping.is_set() and self._failure is None:
            self._failure = app.crash_reason or DeploymentError(
                f"the app of worker {self.name} ended by itself", fix="see its log above"
            )
        for task in (stopping, crashed):
            task.cancel()
        await asyncio.gather(stopping, crashed, return_exceptions=True)

    def _finish(self, tp: TP, offset: int) -> None:
        self._consumer.finish(tp, offset)

    def _room_returned(self) -> None:
        self._consumer.wake()

    def _broken(self, error: BaseException) -> None:
        """A defect of ours, or a send that failed: nothing may be committed past it, so the worker ends."""
        log.critical("worker %s can't go on", self.name, exc_info=error)
        if self._failure is None:
            self._failure = error
        self._stopping.set()

    def _owned_changed(self, kind: str, tps: set[TP]) -> None:
        self._status.assigned = sorted(
            f"{tp.topic}:{tp.partition}" for inbox in self._inboxes.values() for tp in inbox.owned
        )
        for topic in sorted({tp.topic for tp in tps}):
            partitions = sorted(tp.partition for tp in tps if tp.topic == topic)
            log.info("%s: %s partitions %s", topic, kind, ", ".join(map(str, partitions)))

    async def _report(self) -> None:
        """Keep the status file true: at once when joined or rebalanced, and now and then."""
        consumer = self._consumer
        last: tuple[State, list[str], dict[str, str], bool] | None = None
        written = 0.0
        given_back: list[str] = []  # for what it owned then
        while True:
            state: State = "running" if consumer.joined else "starting"
            self._stand_still()
            now = (state, self._status.assigned, self._paused(), self._status.standing)
            if now != last or time.monotonic() - written > STATUS_INTERVAL_S:
                if now == last and given_back != self._status.assigned:  # it has them for a while: they are read
                    await asyncio.to_thread(give_back)
                    given_back = self._status.assigned
                self._write_status(state)
                last, written = now, time.monotonic()
            await asyncio.sleep(0.1 if state == "starting" else 0.5)

    def _stand_still(self) -> None:
        """Begin nothing new while a command says so, or go on."""
        if self._run_dir is None:
            return
        still = stands_still(self._run_dir, self._status.started_at)
        for name, inbox in self._inboxes.items():
            if inbox.still.on != (on := still(name)):
                inbox.still.stand(on)
                log.info("agent %s %s", name, "begins nothing new, for other code" if on else "goes on")
        self._status.standing = any(inbox.still.on for inbox in self._inboxes.values())

    def _paused(self) -> dict[str, str]:
        return {name: reason for name, inbox in self._inboxes.items() if (reason := inbox.pausing.reason)}

    def _write_status(self, state: State) -> None:
        status = self._status
        status.state = state
        status.updated_at = time.time()
        status.in_flight = sum(inbox.lanes.running for inbox in self._inboxes.values())
        status.paused = self._paused()
        if self._status_file is None:
            return
        fresh = self._status_file.with_suffix(".tmp")
        fresh.write_text(json.dumps({name: getattr(status, name) for name in Status.__slots__}), encoding="utf-8")
        fresh.replace(self._status_file)


class _ReportingInbox(Inbox):
    """An inbox that tells its worker when partitions come and go."""

    def __init__(self, agent: Agent, *, owned_changed: Any, **rest: Any) -> None:
        super().__init__(agent, **rest)
        self._owned_changed = owned_changed

    async def assigned(self, starts: Mapping[TP, Start]) -> None:
        await super().assigned(starts)
        self._owned_changed("assigned", set(starts))

    async def revoked(self, tps: set[TP]) -> None:
        await super().revoked(tps)
        self._owned_changed("revoked", tps)


def main() -> int:
    """Entry point of the process; returns its exit status."""
    parser = argparse.ArgumentParser(prog="llmagentos-worker", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--deployment", required=True)
    parser.add_argument("--target", required=True, help="a .py file or a dotted name")
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--run-dir", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(
        level=os.environ.get("LLMAGENTOS_LOG", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        for chatty in _CHATTY:
            logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        settings = Settings.load()
        loaded = load(args.target)
    except LLMAgentOSError as error:
        log.error("%s", error)
        return EXIT_UNLOADABLE
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:  # not built for this platform
        runner = asyncio.Runner()
    with runner:
        return runner.run(_serve(settings, args, loaded))


async def _serve(settings: Settings, args: argparse.Namespace, loaded: LoadedModule) -> int:
    worker = Worker(settings, args.deployment, loaded, index=args.index, run_dir=args.run_dir)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    status = 0
    try:
        await worker.run()
    except LLMAgentOSError as error:
        log.error("%s", error)
        status = EXIT_REFUSED if isinstance(error, _REFUSALS) else EXIT_CRASHED
    except Exception:
        log.exception("worker %s crashed", worker.name)
        status = EXIT_CRASHED
    if worker.stuck:  # Python waits for its threads, and those would keep a drained worker for ever
        logging.shutdown()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
