"""Workers' logs: the last lines merged by time, and followed across rotation and cutting."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from llmagentos.agents.deployment import Deployments
from llmagentos.agents.logs import Line, Places, follow, last_lines


@pytest.fixture
def deployments(tmp_path: Path) -> Deployments:
    deployments = Deployments(tmp_path)
    deployments.run_dir("d").mkdir(parents=True)
    return deployments


def texts(lines: list[Line]) -> list[str]:
    return [line.text for line in lines]


def quiet(lines: Generator[Line | None]) -> list[str]:
    """What comes until nothing does."""
    found: list[str] = []
    while (line := next(lines)) is not None:
        found.append(line.text)
    return found


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_last_lines_are_merged_by_time_and_keep_tracebacks_whole(deployments: Deployments) -> None:
    append(
        deployments.log_file("d", 0),
        "2026-11-21 10:00:00,000 INFO a\n2026-11-21 10:00:03,000 ERROR c\nTraceback\n  x\n",
    )
    append(deployments.log_file("d", 1), "2026-11-21 10:00:01,000 INFO b\n2026-11-21 10:00:04,000 INFO d\n")
    merged = texts(last_lines(deployments, ["d"], 50))
    assert [line.split()[-1] for line in merged] == ["a", "b", "c", "Traceback", "x", "d"]
    assert texts(last_lines(deployments, ["d"], 1)) == ["  x", "2026-11-21 10:00:04,000 INFO d"]
    assert texts(last_lines(deployments, ["d"], 50, worker=1))[0].endswith("b")
    assert last_lines(deployments, ["d"], 0) == []


def test_last_lines_reach_before_a_rotation(deployments: Deployments) -> None:
    path = deployments.log_file("d", 0)
    append(path.with_name(path.name + ".1"), "one\ntwo\n")
    append(path, "three\n")
    assert texts(last_lines(deployments, ["d"], 2)) == ["two", "three"]


def test_last_lines_of_a_long_log(deployments: Deployments) -> None:
    append(deployments.log_file("d", 0), "".join(f"{n:06d} {'x' * 90}\n" for n in range(20_000)))
    assert [t[:6] for t in texts(last_lines(deployments, ["d"], 3))] == ["019997", "019998", "019999"]


def test_follow_goes_on_after_the_last_lines(deployments: Deployments) -> None:
    path = deployments.log_file("d", 0)
    append(path, "one\ntwo\nhal")
    places: Places = {}
    assert texts(last_lines(deployments, ["d"], 10, places=places)) == ["one", "two"]
    append(path, "f\n")
    lines = follow(deployments, lambda: ["d"], places=places)
    assert quiet(lines) == ["half"]
    append(path, "three\nfo")
    assert quiet(lines) == ["three"]
    append(path, "ur\n")
    assert quiet(lines) == ["four"]
    lines.close()


def test_follow_across_replacing_cutting_and_new_workers(deployments: Deployments) -> None:
    path = deployments.log_file("d", 0)
    names = ["d"]
    lines = follow(deployments, lambda: names)
    assert quiet(lines) == []
    append(path, "a\n")
    assert quiet(lines) == ["a"]
    append(path, "b\n")
    path.replace(path.with_name(path.name + ".1"))
    append(path, "c\n")
    assert quiet(lines) == ["b", "c"]
    os.truncate(path, 0)
    assert quiet(lines) == []
    append(path, "d\n")
    append(deployments.log_file("d", 1), "e\n")
    assert quiet(lines) == ["d", "e"]
    append(path, "last\n")
    names.clear()
    assert [line.text for line in lines if line is not None] == ["last"]


def test_follow_ends_with_what_a_stopping_reader_has_not_seen(deployments: Deployments) -> None:
    append(deployments.log_file("d", 0), "a\n")
    lines = follow(deployments, lambda: ["d"], stop=lambda: True)
    assert [line.text for line in lines if line is not None] == ["a"]


def test_a_line_without_an_end_is_bounded(deployments: Deployments) -> None:
    append(deployments.log_file("d", 0), "x" * 200_000)
    lines = follow(deployments, lambda: ["d"])
    assert sum(map(len, quiet(lines))) >= 65_536
    lines.close()
