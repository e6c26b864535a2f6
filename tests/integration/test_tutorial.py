"""Tutorials and how-tos work as typed: their files are made, their commands run, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"```(\w+)([^\n]*)\n(.*?)```", re.DOTALL)

#: By page: what a block's output must hold, by a part of the block's text.
FIRST = {
    "ask greeter": ["Hello, Ada!"],
    "ask desk tea": ["One tea is 3 euro.", "prices"],
    "produce --to desk": ["4"],
    "--conversation ada": ["One coffee is 4 euro."],
    "dead.prices": ["KeyError", "cake"],
    "job run analytics": ["report"],
}
KILL = {
    "deploy till.py": ["till runs with 2 workers"],
    "kill -9": ["3,000"],
    "ps till\n": ["running"],
    "python check.py": ["none lost, none twice, all in order"],
    "--conversation account-7": ["payment 1 booked", "payment 30 booked"],
}
REDRIVE = {
    "cat ledger.txt": ["8 messages to", "ada deposit +100", "bob deposit +10", "eve deposit +50"],
    "dead show --conversation ada": ["parked", "2 messages held behind it", "transfer 20", "KeyError: 'transfer'"],
    "--conversation ada --dry-run": ["1 parked message of bank would be run again, and then 2 messages held behind"],
    "grep bob": ["bob deposit +10\nbob withdraw -10\nbob deposit +7\n"],
    "tail --conversation bob": ["no dead letter waits", "withdraw ten", "ValueError", "booked: -10"],
}
BILL = {
    "deploy writer.py": ["writer runs with 1 worker"],
    "kill -9": ["a better text than 'a draft about tea, said the model.', said the model."],
    "cat bill.txt": [
        "asked: a draft about tea",
        "0.02 euro for: a draft about tea\n0.02 euro for: a better text than 'a draft about tea, said the model.'\n",
    ],
}
APPROVE = {
    "sleep 8": ["order-17", "order-18", "refund 300 euro"],
    "up\nllmagentos waiting": ["order-17", "order-18", "refund 300 euro"],
    "--wait\nllmagentos waiting": ["approved by ada: called the customer", "its handler has gone on", "nothing waits"],
    "--as bob": ["nothing was changed: it is approved already, by ada", "called the customer", "status 1"],
    "cat lookups.txt": [
        "300 euro are on their way (ada: called the customer).",
        "approved by ada",
        "rejected by ada",
        "Not paid back: ada said 'paid back in May'.",
    ],
    "--html order-17.html": ["order-17.html: "],
}
FAULTS = {
    "--fault fail=0.5": [
        "faults are on: duplicate=1,fail=0.5,seed=7",
        "Hello, Eve!",
        '"kind":"fault"',
        "FAULTS ARE ON, on purpose",
        "fault duplicate fired: agent greeter",
    ],
    "deploy hello.py\n": ["hello runs with 1 worker"],
}


@pytest.fixture
def shell() -> Iterator[dict[str, str]]:
    """The environment of a new user, and a node of its own that is gone afterwards."""
    home = tempfile.mkdtemp(prefix="llmagentos-tutorial-")
    folder = Path(sys.executable).parent
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LLMAGENTOS_") or k == "LLMAGENTOS_CACHE"}
    environment = kept | {"LLMAGENTOS_HOME": home, "PATH": f"{folder}:{os.environ['PATH']}", "COLUMNS": "200"}
    try:
        yield environment
    finally:
        for command in (["undeploy", "--all"], ["down"]):
            subprocess.run(["llmagentos", *command], env=environment, capture_output=True, check=False)
        shutil.rmtree(home, ignore_errors=True)


def follow(page: str, shell: dict[str, str], folder: Path, expected: dict[str, list[str]]) -> dict[str, str]:
    """Do what *page* says in *folder*; what was printed, by the parts of blocks in *expected*."""
    heard: dict[str, str] = {}
    for kind, rest, text in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        if name := re.search(r"file=(\S+)", rest):
            (folder / name[1]).write_text(text, encoding="utf-8")
        elif kind == "sh":
            said = typed(text, shell, folder)
            for part, words in expected.items():
                if part in text:
                    assert all(word in said for word in words), f"{text}\nsaid:\n{said}"
                    heard[part] = said
    assert heard.keys() == expected.keys()
    return heard


def typed(text: str, shell: dict[str, str], folder: Path, *, status: int = 0) -> str:
    """What *text*, typed into a shell, prints."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=shell,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == status, f"{text}\nended with {done.returncode}:\n{said}"
    return said


@pytest.mark.spark
@pytest.mark.timeout(600)
def test_the_first_ten_minutes(shell: dict[str, str], tmp_path: Path) -> None:
    follow("tutorial.md", shell, tmp_path, FIRST)
    assert list((tmp_path / "report").rglob("*.html"))


@pytest.mark.timeout(300)
def test_the_bill_shows_one_call(shell: dict[str, str], tmp_path: Path) -> None:
    try:
        said = follow("tutorials/bill.md", shell, tmp_path, BILL)["cat bill.txt"]
    finally:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((tmp_path / "model.pid").read_text()), signal.SIGKILL)
    keys = re.findall(r"asked: (.*) \(key (\w+)\)", said)
    assert [what for what, _ in keys].count("a draft about tea") == 1
    assert len(keys) == 3
    assert len(set(keys)) == 2


@pytest.mark.timeout(300)
def test_killing_it_in_the_middle(shell: dict[str, str], tmp_path: Path) -> None:
    said = follow("tutorials/kill.md", shell, tmp_path, KILL)["python check.py"]
    # Nothing would be shown if the kill had come too late.
    repeated = re.search(r"^(\d+) payments were begun a second time", said, re.MULTILINE)
    assert repeated is not None, said
    assert int(repeated[1]) > 0, said
    # And the check can say no.
    for harm in ("delete from payments where place = 1500", "update payments set number = number + 1 where place = 9"):
        ledger = shutil.copytree(tmp_path, tmp_path / harm.split()[0]) / "ledger.db"
        with closing(sqlite3.connect(ledger, isolation_level=None)) as connection:
            connection.execute(harm)
        quick = typed("sed -i s/+\\ 60/+\\ 1/ check.py; python check.py", shell, ledger.parent, status=1)
        assert "1 accounts have lost, doubled or disordered payments" in quick


@pytest.mark.timeout(300)
def test_fixing_and_redriving_a_conversation(shell: dict[str, str], tmp_path: Path) -> None:
    said = follow("tutorials/redrive.md", shell, tmp_path, REDRIVE)
    assert "withdraw" not in said["cat ledger.txt"]
    ledger = ["ada deposit +100\n", "ada transfer -20\n", "ada withdraw -30\n", "ada deposit +5\n"]
    assert "".join(ledger) in said["--conversation ada --dry-run"]
    assert (tmp_path / "ledger.txt").read_text().count("\n") == 8  # the second redrive did nothing


@pytest.mark.timeout(300)
def test_waiting_for_a_person_over_a_full_stop(shell: dict[str, str], tmp_path: Path) -> None:
    follow("tutorials/approve.md", shell, tmp_path, APPROVE)
    assert (tmp_path / "lookups.txt").read_text() == "order 17\norder 18\n"
    assert (tmp_path / "payments.txt").read_text().count("\n") == 1
    assert "on their way" in (tmp_path / "order-17.html").read_text()


@pytest.mark.timeout(300)
def test_switching_faults_on(shell: dict[str, str], tmp_path: Path) -> None:
    follow("howto/faults.md", shell, tmp_path, FAULTS)
    assert "'fial=1' is none of duplicate" in typed(
        "llmagentos deploy hello.py --fault fial=1", shell, tmp_path, status=2
    )
