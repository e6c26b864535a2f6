"""The whole: a model, services and assistants as processes of their own, hundreds of users, a worker killed, a check.

Runs on the local Kafka, which it starts where none runs; topics and deployments of the run are gone afterwards.

    python examples/concierge/run.py --dialogues 100
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dialogues
import httpx
from catalogue import AGENTS
from check import check, show
from meter import Meter
from rich.console import Console
from rich.table import Table

from llmagentos.agents.deploying import deploy, undeploy
from llmagentos.agents.deployment import Deployments
from llmagentos.streams.admin import Admin
from llmagentos.streams.errors import LLMAgentOSError
from llmagentos.streams.node import Node
from llmagentos.streams.settings import Settings

HERE = Path(__file__).parent
errors = Console(stderr=True)

#: Between two looks at how far it is: short beside the shortest run, of some seconds.
LOOK_S = 0.1
#: A worker is killed when so much is answered: in the middle.
KILL_AT = 0.5


class House:
    """The deployments of one run.

    Args:
        settings: with a prefix of this run's own.
        environment: of every process, naming the same cluster.
    """

    def __init__(self, settings: Settings, environment: dict[str, str]) -> None:
        self._settings = settings
        self._label = settings.prefix.rstrip(".")  # deployments are consumer groups, which have no prefix
        self._environment = environment
        self._deployments = Deployments(settings.home)

    def deploy(self, name: str, program: str, workers: int, **environment: str) -> None:
        """Deploy *program* as *name*."""
        path = str(HERE / program)
        environment = self._environment | environment
        deploy(self._settings, path, name=f"{self._label}-{name}", workers=workers, environment=environment)

    def clear(self) -> None:
        """Undeploy all, and delete the topics."""
        for name in self._deployments.names():
            if name.startswith(self._label):
                undeploy(self._settings, name)
        admin = Admin(self._settings)
        admin.delete(list(admin.topics(self._settings.prefix)))

    def workers(self, name: str) -> list[int]:
        """Process ids of the workers of *name*."""
        found = self._deployments.workers(f"{self._label}-{name}")
        return [worker.process.pid for worker in found if worker.process is not None]

    @contextmanager
    def process(self, *command: str) -> Generator[subprocess.Popen[str]]:
        """A Python program of this folder, ended with the block."""
        process = subprocess.Popen(
            [sys.executable, *command], cwd=HERE, env=self._environment, stdout=subprocess.PIPE, text=True
        )
        try:
            yield process
        finally:
            process.terminate()
            process.communicate()

    def measure(self, meter: Meter) -> None:
        """Read the clocks of all workers, of Kafka and of Redis."""
        meter.look("assistants", self.workers("assistant"))
        for name in AGENTS:
            meter.look("services", self.workers(name))
        if not self._settings.brokers:
            for part in Node(self._settings).status().parts:
                if part.pid is not None:
                    meter.look(part.name, [part.pid])


def run(
    settings: Settings, environment: dict[str, str], *, at_once: int, assistants: int, kill: bool
) -> dict[str, Any]:
    """Play the dialogues, and compare what came of them with the file.

    Returns:
        The figures, among them `matched` and `total`.
    """
    turns = sum(map(len, dialogues.read().values()))
    house, meter = House(settings, environment), Meter()
    with ExitStack() as stack:
        model = stack.enter_context(house.process("model.py"))
        assert model.stdout is not None
        url = model.stdout.readline().strip()
        if not url:
            raise LLMAgentOSError("the model did not start; it said why above", fix="see README.md")
        stack.callback(house.clear)
        with errors.status("deploying services and assistants"), ThreadPoolExecutor() as pool:
            started = [pool.submit(house.deploy, name, "services.py", 1, CONCIERGE_DESK=name) for name in AGENTS]
            for each in started:  # before the assistant, whose questions need the services' inboxes
                each.result()
            house.deploy(
                "assistant", "assistant.py", assistants, LLMAGENTOS_MODELS=json.dumps({"recorded": {"base_url": url}})
            )
        house.measure(meter)
        began = time.monotonic()
        players = stack.enter_context(house.process("players.py", "--at-once", str(at_once)))
        killed: int | None = None
        while players.poll() is None:
            house.measure(meter)
            meter.look("users", [players.pid])
            meter.look("model", [model.pid])
            if kill and killed is None and httpx.get(f"{url}/../stats").json()["texts"] >= turns * KILL_AT:
                killed = house.workers("assistant")[0]
                os.kill(killed, signal.SIGKILL)
                errors.print(f"killed worker {killed} of the assistant")
            time.sleep(LOOK_S)
        seconds = time.monotonic() - began
        told = httpx.get(f"{url}/../stats").json()
        with errors.status("reading the topics"):
            found = check(settings)
    show(found)
    return {
        "matched": found.matched,
        "total": found.total,
        "events_s": round(found.events / seconds),
        "seconds": round(seconds, 1),
        "events": found.events,
        "twice": found.twice,
        "killed": killed,
        "model_requests": told["requests"],
        "model_repeated": told["repeated"],
        "cpu_s": {part: round(used, 1) for part, used in meter.seconds().items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, help="how many; all by default")
    parser.add_argument("--at-once", type=int, default=300, help="conversations side by side")
    parser.add_argument("--assistants", type=int, default=2, help="workers of the assistant")
    parser.add_argument("--no-kill", dest="kill", action="store_false", help="let all workers live")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # what was started is taken down again
    try:
        if options.dialogues:
            os.environ[dialogues.MOST] = str(options.dialogues)
        dialogues.file()  # said before anything is started
        settings = Settings.load(prefix=f"concierge-{uuid.uuid4().hex[:6]}.")
        if not settings.brokers:
            with errors.status("starting Kafka and Redis, where they don't run"):
                Node(settings).up()
        environment = os.environ | {"LLMAGENTOS_PREFIX": settings.prefix}
        figures = run(settings, environment, at_once=options.at_once, assistants=options.assistants, kill=options.kill)
    except LLMAgentOSError as error:
        sys.exit(f"error: {error}")
    table = Table("part", "processor time", "share", title="who used the processors")
    whole = sum(figures["cpu_s"].values()) or 1.0
    for part, used in sorted(figures["cpu_s"].items(), key=lambda each: -each[1]):
        table.add_row(part, f"{used:.1f} s", f"{used / whole:.0%}")
    errors.print(table)
    print(json.dumps(figures))
    sys.exit(figures["matched"] != figures["total"])


if __name__ == "__main__":
    main()
