"""Deployments as a person makes them: by the command, with real workers on a real broker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmagentos.agents.cards import read_cards
from llmagentos.agents.client import Client
from llmagentos.agents.deployment import Deployments, Process, WorkerRecord
from llmagentos.streams.admin import partitions_of
from llmagentos.streams.node import Node
from llmagentos.streams.settings import Settings

#: A busy machine takes this long to start a worker, let it join, and let others drain.
DEADLINE_S = 90.0

AGENT = '''
import asyncio
from llmagentos.agents import agent

@agent("{name}")
async def handler(message, ctx):
    """Says which version it is."""
    await asyncio.sleep(0.01)
    if message.text == "fail":
        raise ValueError("told to fail")
    return "{version} " + message.text
'''


class House:
    """A data folder of this test's own, on the session's broker."""

    def __init__(self, home: Path, settings: Settings, node: Node) -> None:
        self.home = home
        self.settings = settings.model_copy(update={"home": home, "brokers": node.brokers, "redis": node.redis})
        self.environment = os.environ | {
            "LLMAGENTOS_HOME": str(home),
            "LLMAGENTOS_BROKERS": node.brokers,
            "LLMAGENTOS_REDIS": node.redis,
            "LLMAGENTOS_PREFIX": settings.prefix,
            "COLUMNS": "200",
        }
        self.deployments = Deployments(home)
        self.name = f"d{uuid.uuid4().hex[:8]}"  # groups are not prefixed
        self.agent = f"agent-{self.name}"
        self.pids: set[int] = set()

    def write(self, version: str, *, name: str | None = None, agent: str | None = None) -> Path:
        path = self.home / f"{name or self.name}.py"
        path.write_text(AGENT.format(name=agent or self.agent, version=version))
        return path

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "llmagentos.cli.main", *(str(argument) for argument in arguments)]

    def run(self, *arguments: object, status: int = 0, stdin: str = "") -> str:
        """Standard output, or of a command that is to fail standard error."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            cwd=self.home,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S * 2,
            check=False,
        )
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stderr if status else done.stdout

    def json(self, *arguments: object) -> Any:
        return json.loads(self.run(*arguments, "--output", "json"))

    def workers(self, name: str | None = None) -> list[WorkerRecord]:
        workers = self.deployments.workers(name or self.name)
        self.pids |= {worker.process.pid for worker in workers if worker.process}
        supervisor = self.deployments.supervisor()
        self.pids |= {supervisor.pid} if supervisor else set()
        return workers

    def wait(self, true: Callable[[], object], what: Callable[[], object] = lambda: "") -> None:
        end = time.monotonic() + DEADLINE_S
        while not true():
            assert time.monotonic() < end, what()
            time.sleep(0.05)

    def assigned(self) -> list[str]:
        """Of the running workers, by what they say themselves."""
        reports = [self.deployments.report(self.name, worker) for worker in self.workers()]
        return sorted(name for report in reports if report is not None for name in report.assigned)


@pytest.fixture
def house(tmp_path: Path, settings: Settings, node: Node) -> Iterator[House]:
    house = House(tmp_path, settings, node)
    yield house
    house.workers()
    house.run("undeploy", "--all")
    house.wait(lambda: house.deployments.supervisor() is None)
    house.wait(lambda: not any(Process.of(pid) for pid in house.pids), lambda: f"some of {house.pids} are left")


def test_deploy_crash_supervisor_killed_and_adopted(house: House) -> None:
    house.write("one")
    deployed = house.json("deploy", f"{house.name}.py")
    assert [agent["name"] for agent in deployed["agents"]] == [house.agent]
    assert house.run("ask", house.agent, "Ada") == "one Ada\n"
    (before,) = house.workers()
    assert before.process is not None

    os.kill(before.process.pid, signal.SIGKILL)
    house.wait(lambda: [(w.restarts, w.state) for w in house.workers()] == [(1, "running")], house.workers)
    assert house.run("ask", house.agent, "Bob") == "one Bob\n"

    supervisor = house.deployments.supervisor()
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    house.wait(lambda: house.deployments.supervisor() is None)
    assert house.run("ask", house.agent, "Cid") == "one Cid\n"  # workers don't need it
    (listed,) = house.json("ps")  # starts another, as any command does
    (worker,) = house.workers()
    assert listed["workers"][0]["pid"] == worker.process.pid  # type: ignore[union-attr]
    os.kill(worker.process.pid, signal.SIGKILL)  # type: ignore[union-attr]
    house.wait(lambda: [(w.restarts, w.state) for w in house.workers()] == [(2, "running")], house.workers)
    assert house.run("ask", house.agent, "Dan") == "one Dan\n"

    (listed,) = house.json("ps")
    assert (listed["state"], listed["running"]) == ("running", 1)
    assert len(listed["workers"][0]["assigned"]) == house.settings.partitions
    assert "llmagentos" in house.run("logs", house.name, "--lines", 5)


async def test_rollout_has_no_gap_and_a_broken_module_changes_nothing(house: House) -> None:
    house.write("one")
    await asyncio.to_thread(house.run, "deploy", f"{house.name}.py", "--workers", 2)
    answers: list[str] = []
    slowest = 0.0
    stop = asyncio.Event()

    async def keep_asking(client: Client) -> None:
        nonlocal slowest
        while not stop.is_set():
            asked = time.monotonic()
            answers.append((await client.ask(house.agent, "x", timeout=60)).text)
            slowest = max(slowest, time.monotonic() - asked)

    async with Client(house.settings) as client:
        asking = [asyncio.create_task(keep_asking(client)) for _ in range(4)]
        path = house.write("two")
        await asyncio.to_thread(house.run, "deploy", path.name)
        assert {worker.generation for worker in house.workers()} == {2}
        assert len(house.workers()) == 2  # as many as it had

        pids = [worker.process for worker in house.workers()]
        path.write_text("from llmagentos.agents import agent\nimport not_there\n")
        said = await asyncio.to_thread(house.run, "deploy", path.name, status=1)
        assert "ModuleNotFoundError: No module named 'not_there'" in said
        assert f'File "{path}", line 2' in said
        assert [worker.process for worker in house.workers()] == pids

        house.write("three")
        await asyncio.to_thread(house.run, "rollout", house.name)
        assert (await client.ask(house.agent, "x")).text == "three x"
        stop.set()
        await asyncio.gather(*asking)
    order = [version for i, version in enumerate(answers) if i == 0 or answers[i - 1] != version]
    assert order[0] == "one x"
    assert order[-1] == "three x"
    assert {*order} == {"one x", "two x", "three x"}
    assert slowest < 15, f"an answer took {slowest:.1f} s"


def test_scale_up_and_down(house: House) -> None:
    house.write("one")
    house.run("deploy", f"{house.name}.py")
    topic = house.settings.topic(f"agent.{house.agent}")
    all_of_them = sorted(f"{topic}:{n}" for n in range(house.settings.partitions))
    house.wait(lambda: house.assigned() == all_of_them, house.assigned)
    house.run("scale", house.name, 3)
    house.wait(
        lambda: house.assigned() == all_of_them and all(report_of(house, w) for w in house.workers()),
        lambda: [report_of(house, w) for w in house.workers()],
    )
    house.run("scale", house.name, 1)
    house.wait(lambda: house.assigned() == all_of_them, house.assigned)
    house.run("scale", house.name, 0)
    assert house.workers() == []
    assert "scaled to 0" in house.run("ps")
    assert "within 1.0 s" in house.run("ask", house.agent, "kept", "--timeout", 1, status=1)
    house.run("scale", house.name, 1)
    assert house.run("ask", house.agent, "x") == "one x\n"

    planned = house.json("reset", house.name, "--to", "beginning", "--dry-run")
    assert (planned["done"], planned["workers"], sum(p["again"] for p in planned["partitions"])) == (False, 1, 2)
    assert "--yes" in house.run("reset", house.name, "--to", "beginning", status=1)
    assert sum(p["again"] for p in house.json("reset", house.name, "--to", "beginning", "--yes")["partitions"]) == 2
    assert [worker.state for worker in house.workers()] == ["running"]


def report_of(house: House, worker: WorkerRecord) -> list[str]:
    report = house.deployments.report(house.name, worker)
    return report.assigned if report is not None else []


def test_undeploy_leaves_nothing_and_names_are_taken_once(house: House) -> None:
    house.write("one")
    house.run("deploy", f"{house.name}.py")
    other = f"{house.name}-other"
    house.write("two", name=other, agent=house.agent)
    said = house.run("deploy", f"{other}.py", status=1)
    assert house.name in said
    assert house.agent in said
    assert house.run("ask", house.agent, "x") == "one x\n"
    assert house.deployments.names() == [house.name]

    workers, supervisor = house.workers(), house.deployments.supervisor()
    assert supervisor is not None
    said = house.run("undeploy", house.name)
    assert "kept" in said
    assert not any(worker.process and worker.process.alive() for worker in workers)
    assert not house.deployments.run_dir(house.name).exists()
    house.wait(lambda: not supervisor.alive())
    assert house.agent not in read_cards(house.settings)
    assert partitions_of(house.settings, house.settings.topic(f"agent.{house.agent}")) == house.settings.partitions
    assert house.run("ask", house.agent, "x", status=1).startswith("error: no agent is named")

    house.run("deploy", f"{other}.py")
    assert house.run("ask", house.agent, "x") == "two x\n"
    assert "there is no deployment" in house.run("undeploy", "nobody", status=1)


def test_first_deployment_that_can_not_start_leaves_nothing(house: House) -> None:
    """Its import works on trial and then fails in the worker."""
    path = house.write("one")
    source = path.read_text()
    path.write_text(
        source + f"\nimport pathlib\nmark = pathlib.Path('{house.home}/mark')\n"
        "assert not mark.exists(), 'second import'\nmark.touch()\n"
    )
    said = house.run("deploy", path.name, status=1)
    assert "second import" in said
    assert house.deployments.names() == []
    assert house.agent not in read_cards(house.settings)

    path.write_text(source)  # the same, for one that is deployed already
    house.run("deploy", path.name)
    before = read_cards(house.settings)[house.agent]
    (house.home / "mark").unlink(missing_ok=True)
    other = source.replace(house.agent, f"{house.agent}-other")
    path.write_text(other + f"\nfrom pathlib import Path\nmark = Path('{house.home}/mark')\n"
                    "assert not mark.exists(), 'second import'\nmark.touch()\n")  # fmt: skip
    assert "second import" in house.run("deploy", path.name, status=1)
    cards = read_cards(house.settings)
    assert cards[house.agent] == before
    assert f"{house.agent}-other" not in cards


def test_ask_and_chat(house: House) -> None:
    house.write("one")
    house.run("deploy", f"{house.name}.py")
    answer = house.json("ask", house.agent, "Ada", "--conversation", "c-1")
    assert (answer["content"], answer["conversation"]) == ("one Ada", "c-1")
    assert house.run("ask", house.agent, "-", stdin="from stdin") == "one from stdin\n"
    assert "no agent is named 'nobody'" in house.run("ask", "nobody", "x", status=1)
    assert "told to fail" in house.run("ask", house.agent, "fail", status=1)
    assert house.run("chat", house.agent, stdin="Ada\n\nBob\n") == "one Ada\none Bob\n"
    assert "told to fail" in house.run("chat", house.agent, stdin="fail\n", status=1)


def test_dev_reloads_on_save_and_ends_with_its_session(house: House) -> None:
    path = house.write("one")
    errors = house.home / "dev.err"
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(
            house.command("dev", path.name, "--name", house.name),
            env=house.environment,
            cwd=house.home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as dev,
    ):
        try:
            assert dev.stdin is not None
            assert dev.stdout is not None

            def ask(text: str) -> str:
                dev.stdin.write(text + "\n")  # type: ignore[union-attr]
                dev.stdin.flush()  # type: ignore[union-attr]
                # What the worker prints, if anything, comes behind a bar.
                return next(line for line in dev.stdout if "│" not in line).strip()  # type: ignore[union-attr]

            assert ask("Ada") == "one Ada"
            house.workers()
            path.write_text("def broken(\n")
            house.wait(lambda: "was never closed" in errors.read_text(), errors.read_text)
            assert ask("Bob") == "one Bob"
            house.write("two")
            house.wait(lambda: "runs (" in errors.read_text(), errors.read_text)
            assert ask("Cid") == "two Cid"
            assert "dev` session" in house.run("deploy", path.name, "--name", house.name, status=1)
            house.workers()
            dev.kill()  # even so, its deployment goes
            house.wait(lambda: house.deployments.names() == [], house.workers)
            assert house.agent in read_cards(house.settings)  # a killed session can't take it back
            other = f"{house.name}-other"
            house.write("other", name=other, agent=house.agent)
            house.run("deploy", f"{other}.py")  # but its name is free
            assert house.run("ask", house.agent, "Dan") == "other Dan\n"
        finally:
            with suppress(psutil.NoSuchProcess):
                dev.kill()
            dev.communicate()
