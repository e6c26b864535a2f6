"""The demo holds what it promises, on a folder large enough to kill a worker in the middle; its judge can say no."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import orjson
import pytest

from llmagentos.cli.demo.measure import Measures
from llmagentos.cli.demo.oracle import Kill, Verdict, judge
from llmagentos.cli.demo.sources import Expected, find_sources, survey
from llmagentos.streams.admin import ensure_topics
from llmagentos.streams.errors import InputError
from llmagentos.streams.settings import Settings
from llmagentos.streams.topology import named


@pytest.mark.timeout(300)
def test_the_demo_ends_well(tmp_path: Path) -> None:
    folder = Path(sysconfig.get_paths()["stdlib"]) / "test"
    sample = tmp_path / "sources"
    sample.mkdir()
    for number, path in enumerate(sorted(folder.glob("test_[a-e]*.py"))):
        (sample / f"file_{number}.py").write_bytes(path.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "llmagentos.cli.main", "demo", str(sample), "--no-report", "--output", "json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "LLMAGENTOS_BROKERS"},
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = orjson.loads(done.stdout)
    assert said["failures"] == []
    assert said["redelivered"] > 0
    assert said["lost"] == said["out_of_order"] == 0
    assert said["unequal"] == []
    assert 0 < said["failover_s"] < 30


def test_a_folder_without_python_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no Python file"):
        find_sources(tmp_path, limit_bytes=1000)
    (tmp_path / "large.py").write_text("x = 1\n" * 1000)
    (tmp_path / "small.py").write_text("def f(): pass\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "bytes.py").write_bytes(b"x = '\xff'\n")
    sources, left_out = find_sources(tmp_path, limit_bytes=1000)
    assert [source.path for source in sources] == ["broken.py", "small.py"]
    assert [reason.split(":")[0] for reason in left_out] == ["bytes.py", "large.py"]
    assert dict(survey(sources)) == {"broken.py": Expected(None, 0), "small.py": Expected(Measures(1, 0, 0, 1), 1)}


class TestTheJudgeSaysNo:
    """Each of these ledgers has one thing wrong."""

    EXPECTED = {"a.py": Expected(Measures(2, 1, 0, 3), 2)}

    @pytest.fixture
    def verdict(self, settings: Settings, tmp_path: Path):
        ensure_topics(settings, [named("agent.NAME").of(name) for name in ("parser", "measurer", "compiler")])
        ensure_topics(settings, [named("replies")])

        def of(*changes: dict[str, Any]) -> Verdict:
            entries = [{"path": "a.py", "pid": 1, "at": 0.0, **entry} for entry in changes]
            ledger = tmp_path / "ledger"
            ledger.write_bytes(b"".join(orjson.dumps(entry) + b"\n" for entry in entries))
            kill = Kill(1, 0.0, frozenset())
            return judge(settings, "nobody", ledger, self.EXPECTED, kill, seconds=1.0)

        return of

    F = {"message_id": "1", "index": 0, "piece": "f", "functions": 1, "branches": 1, "docstrings": 0, "longest": 3}
    G = {"message_id": "2", "index": 1, "piece": "g", "functions": 1, "branches": 0, "docstrings": 0, "longest": 1}
    END = {"message_id": "3", "index": 2, "end": True}

    def test_to_nothing_where_all_is_well(self, verdict) -> None:
        found = verdict(self.F, self.G, self.END)
        assert (found.lost, found.out_of_order, found.twice, found.unequal) == (0, 0, 0, [])

    def test_to_a_lost_entry(self, verdict) -> None:
        found = verdict(self.F, self.END)
        assert found.lost == 1
        assert found.unequal == ["a.py"]

    def test_to_entries_out_of_order(self, verdict) -> None:
        found = verdict(self.G, self.F, self.END)
        assert found.out_of_order == 1
        assert found.unequal == []

    def test_to_an_entry_made_twice_but_counts_it_as_redelivered(self, verdict) -> None:
        found = verdict(self.F, self.G, self.F, self.END)
        assert found.twice == 1
        assert found.redelivered == 1
        assert found.out_of_order == 0

    def test_to_another_measure(self, verdict) -> None:
        assert verdict(self.F | {"branches": 2}, self.G, self.END).unequal == ["a.py"]

    def test_to_a_kill_that_redelivered_nothing(self) -> None:
        failures = Verdict(failover_s=1.0).failures()
        assert failures == ["the kill redelivered nothing, so it proves nothing"]
        assert len(Verdict(lost=1, out_of_order=1, twice=1, unequal=["a.py"]).failures()) == 6
