"""The jobs there are, and the record that each run of one leaves."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, Field

from llmagentos.jobs.store import write_json
from llmagentos.streams.errors import JobError, LLMAgentOSError
from llmagentos.streams.message import new_id
from llmagentos.streams.settings import Settings

__all__ = ["JOBS", "Run", "recorded", "runs"]

#: What there is to run, by name, with what it does.
JOBS: dict[str, str] = {
    "analytics": "what agents did: traffic, latency, cost, errors, slowest conversations; Parquet and an HTML report",
}


class Run(BaseModel):
    """One run of a job: what it read, what it wrote, how it ended. Enough to do it again.

    Attributes:
        status: running, done, failed; `died` is one that says running whose process is gone.
        inputs: topic to partition to [first offset, offset after the last].
        lost: inputs that were gone, in the same form, where the run was allowed to go on.
        rows: records read in this run.
        rows_total: records that the result is made from, with those of earlier runs.
        undecodable: of `rows`, those that couldn't be decoded; they are kept aside in `out`.
    """

    id: str
    job: str
    status: str = "running"
    started_at: datetime
    seconds: float = 0.0
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, dict[str, list[int]]] = Field(default_factory=dict)
    lost: dict[str, dict[str, list[int]]] = Field(default_factory=dict)
    out: str = ""
    outputs: list[str] = Field(default_factory=list)
    report: str = ""
    rows: int = 0
    rows_total: int = 0
    undecodable: int = 0
    error: str = ""
    summary: dict[str, Any] = Field(default_factory=dict)
    pid: int = 0
    pid_started_at: float = 0.0


@contextlib.contextmanager
def recorded(settings: Settings, job: str, out: Path, parameters: dict[str, Any]) -> Generator[Run]:
    """A run whose record is written when it begins and when it ends; it has *out* to itself.

    Raises:
        JobError: another run uses *out*, or it can't be written.
    """
    process = psutil.Process()
    run = Run(
        id=new_id(),
        job=job,
        started_at=datetime.now(UTC),
        parameters=parameters,
        out=str(out),
        pid=process.pid,
        pid_started_at=process.create_time(),
    )
    path = _folder(settings) / f"{run.id}.json"
    began = time.monotonic()
    with _alone(out):
        _write(path, run)
        try:
            yield run
            run.status = "done"
        except BaseException as error:
            run.status = "failed"
            run.error = error.what if isinstance(error, LLMAgentOSError) else f"{type(error).__name__}: {error}"
            raise
        finally:
            run.seconds = round(time.monotonic() - began, 3)
            _write(path, run)


def runs(settings: Settings, limit: int = 20) -> list[Run]:
    """The last *limit* runs of all jobs on this data folder, newest first."""
    found: list[Run] = []
    for path in sorted(_folder(settings).glob("*.json"), reverse=True)[:limit]:  # ids are in order of time
        run = Run.model_validate(json.loads(path.read_text(encoding="utf-8")))
        if run.status == "running" and not _lives(run):
            run.status = "died"
        found.append(run)
    return found


def _folder(settings: Settings) -> Path:
    return settings.home / "jobs" / "runs"


def _write(path: Path, run: Run) -> None:
    write_json(path, run.model_dump(mode="json"))


def _lives(run: Run) -> bool:
    try:
        return abs(psutil.Process(run.pid).create_time() - run.pid_started_at) < 1
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def _alone(out: Path) -> Generator[None]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise JobError(
            f"can't write into {out}: {error.strerror}", fix="make it writable, or give another folder with --out"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobError(
                f"another run of a job writes into {out}",
                kept="it goes on",
                fix="wait for it (`llmagentos job status`), or give another folder with --out",
            ) from None
        yield
    finally:
        os.close(lock)
