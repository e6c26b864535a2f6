"""Deployments on disk, their import on trial, and how they are listed."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from llmagentos.agents.checking import check
from llmagentos.agents.deployment import Deployment, Deployments, Process, Served, check_name, running_deployments
from llmagentos.agents.listing import listing, partitions
from llmagentos.streams.errors import DeploymentError

GOOD = """
import beside.neighbour
from llmagentos.agents import agent
print("noise on stdout")

@agent("one")
async def one(message, ctx):
    "Does one thing."

@agent("two", topic="orders")
async def two(message, ctx):
    pass
"""


def wanted(name: str = "d", agent: str = "a") -> Deployment:
    return Deployment(
        name=name,
        target="/nowhere.py",
        cwd="/",
        workers=1,
        version="v",
        agents=[Served(name=agent, topic=f"agent.{agent}")],
        command=["true"],
    )


@pytest.mark.parametrize("name", ["hello", "a", "a.b-c_1", "0", "x" * 100])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a b", "x" * 101, "é", "a\n"])
def test_wrong_names_never_reach_the_disk(name: str, tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="can't name a deployment"):
        Deployments(tmp_path).write(wanted(name))
    with pytest.raises(DeploymentError, match="no deployment"):
        Deployments(tmp_path).get(name)
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_read(tmp_path: Path) -> None:
    deployments = Deployments(tmp_path)
    assert deployments.names() == []
    assert deployments.find("d") is None
    deployments.write(wanted(), {"KEY": "secret"})
    assert deployments.get("d").agents == wanted().agents
    assert deployments.environment("d") == {"KEY": "secret"}
    mode = stat.S_IMODE((deployments.run_dir("d") / "environment.json").stat().st_mode)
    assert mode == 0o600
    deployments.write(deployments.get("d").model_copy(update={"workers": 3}))
    assert deployments.get("d").workers == 3
    assert deployments.environment("d") == {"KEY": "secret"}
    assert running_deployments(tmp_path) == []
    deployments.delete("d")
    assert deployments.names() == []
    assert [path.name for path in deployments.folder.iterdir()] == []


def test_unknown_deployment_says_which_there_are(tmp_path: Path) -> None:
    deployments = Deployments(tmp_path)
    deployments.write(wanted("hello"))
    with pytest.raises(DeploymentError, match="there are: hello"):
        deployments.get("helo")


def test_two_deployments_with_one_agent(tmp_path: Path) -> None:
    deployments = Deployments(tmp_path)
    deployments.write(wanted("first", "clerk"))
    assert deployments.conflict(wanted("first", "clerk")) is None
    assert deployments.conflict(wanted("second", "other")) is None
    error = deployments.conflict(wanted("second", "clerk"))
    assert error is not None
    assert "'first'" in error.what
    assert "'second'" in error.what


def test_changes_are_made_one_at_a_time(tmp_path: Path) -> None:
    deployments = Deployments(tmp_path)
    deployments.write(wanted())

    def raise_workers() -> None:
        for _ in range(25):
            with deployments.changing():
                now = deployments.get("d")
                deployments.write(now.model_copy(update={"workers": now.workers + 1}))

    threads = [threading.Thread(target=raise_workers) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert deployments.get("d").workers == 101


def test_deletion_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    deployments = Deployments(tmp_path)
    rest = deployments.folder / ".removed-x" / "d"
    rest.mkdir(parents=True)
    (rest / "deployment.json").write_text("{}")
    assert deployments.names() == []
    deployments.sweep()
    assert list(deployments.folder.iterdir()) == []


def test_process() -> None:
    this = Process.this()
    assert this.alive()
    assert not Process(pid=this.pid, born="another").alive()
    assert Process.of(2**22 + 1) is None  # over the kernel's largest pid


def test_check_imports_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "neighbour.py").write_text("")
    path = tmp_path / "good.py"
    path.write_text(GOOD)
    found = check("good", str(path), cwd=str(tmp_path), environment=os.environ, provision=False)
    assert [(a.name, a.topic, a.description) for a in found.agents] == [
        ("one", "llmagentos.agent.one", "Does one thing."),
        ("two", "orders", ""),
    ]
    assert found.folders == [tmp_path, tmp_path / "beside"]
    assert len(found.version) == 12


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import not_there", "No module named 'not_there'"),
        ("def f(", "SyntaxError"),
        ("x = 1", "defines no agent"),
        ("from llmagentos.agents import agent\n@agent('a')\ndef a(m, c): pass", "is not async"),
        ("import os\nprint('bye')\nos._exit(7)", "exit status 7.*bye"),
        ("import sys\nsys.exit(0)", "SystemExit"),
    ],
)
def test_check_says_what_is_wrong(tmp_path: Path, source: str, said: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(source)
    with pytest.raises(DeploymentError, match=f"(?s){said}"):
        check("bad", str(path), cwd=str(tmp_path), environment=os.environ, provision=False)


def test_check_of_an_import_that_does_not_end(tmp_path: Path) -> None:
    path = tmp_path / "slow.py"
    path.write_text("print('reading the model', flush=True)\nimport time\ntime.sleep(100)")
    with pytest.raises(DeploymentError, match=r"(?s)still importing after 3 s.*reading the model"):
        check("slow", str(path), cwd=str(tmp_path), environment=os.environ, provision=False, timeout_s=3)


def test_listing_of_a_deployment_without_supervisor(tmp_path: Path) -> None:
    assert listing(tmp_path) == []
    Deployments(tmp_path).write(wanted().model_copy(update={"workers": 0}))
    (listed,) = listing(tmp_path)
    assert (listed.deployment, listed.state, listed.workers) == ("d", "scaled to 0", [])


def test_partitions_for_people() -> None:
    assert partitions([]) == ""
    assert partitions(["b:1", "a:0", "a:2", "a:1", "a:5"]) == "a 0-2,5  b 1"
