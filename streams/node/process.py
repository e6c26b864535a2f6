"""A process that outlives the command that started it, known by its pid file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from llmagentos.streams.errors import NodeError

__all__ = ["Daemon"]

#: A log of a process' own output is moved aside at its next start once it is over this.
_LOG_BYTES = 8 * 1024 * 1024

#: A killed process ends at once, unless it sits in the kernel: on a disk that hangs.
_KILLED_S = 10.0

#: Started by this very Python process: they must be reaped here, or stay zombies.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class Daemon:
    """One background process, found again by `pid_file`.

    A pid is only ever trusted, and signalled, when the process of that number is `program` and has `marker`
    (a path inside the data folder) on its command line: the number may have gone to somebody else's since.

    Attributes:
        name: for people.
        program: file name of what is executed.
        marker: a whole word of the command line that no other process of that program has.
        pid_file: holds `{"pid": N, "started": seconds since 1970}`.
        log: where its output goes.
    """

    name: str
    program: str
    marker: str
    pid_file: Path
    log: Path

    def process(self) -> psutil.Process | None:
        """The running process, or None."""
        try:
            pid = int(json.loads(self.pid_file.read_text(encoding="utf-8"))["pid"])
        except FileNotFoundError:
            return self._orphan()
        except (ValueError, KeyError, TypeError):  # cut short by a full disk or a power failure
            return self._orphan()
        return self._ours(pid)

    def start(self, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> psutil.Process:
        """Start *command* in a session of its own, its output going to `log`.

        Raises:
            NodeError: it can't be executed, or the data folder can't be written.
        """
        assert self._is(list(map(str, command))), "a process that could not be found again"
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.pid_file.parent.mkdir(parents=True, exist_ok=True)
            if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
                self.log.replace(self.log.with_name(self.log.name + ".1"))
            with self.log.open("ab") as log:
                child = subprocess.Popen(
                    [str(word) for word in command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=None if env is None else {**os.environ, **env},
                )
        except OSError as error:
            raise NodeError(
                f"{self.name} can't be started: {error.strerror}: {error.filename or command[0]}",
                fix="`llmagentos doctor` looks for the cause",
            ) from error
        _children[child.pid] = child
        process = psutil.Process(child.pid)
        self._remember(process)
        return process

    def exited(self) -> bool:
        """Whether it has ended; reaps it."""
        return self.process() is None

    def stop(self, timeout_s: float, force: bool = True) -> bool:
        """End it: SIGTERM, then SIGKILL after *timeout_s* if *force*. True if it ended (or did not run)."""
        process = self.process()
        if process is not None and not _ended(process, signal.SIGTERM, timeout_s):
            if not force:
                return False
            _ended(process, signal.SIGKILL, _KILLED_S)
        self.pid_file.unlink(missing_ok=True)
        return True

    def kill(self) -> int | None:
        """End it by SIGKILL, as a fault would; returns the pid that died of it, None where it did not run."""
        process = self.process()
        if process is None:
            return None
        child = _children.get(process.pid)
        if not _ended(process, signal.SIGKILL, _KILLED_S) or (child and child.returncode != -signal.SIGKILL):
            raise NodeError(f"{self.name} (pid {process.pid}) did not die of SIGKILL")
        return process.pid

    def terminate(self) -> None:
        """Ask it to end, without waiting."""
        process = self.process()
        if process is not None:
            _signal(process, signal.SIGTERM)

    def tail(self, lines: int = 8) -> str:
        """The last *lines* of its own output."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _remember(self, process: psutil.Process) -> None:
        content = json.dumps({"pid": process.pid, "started": process.create_time()})
        scratch = self.pid_file.with_name(self.pid_file.name + ".new")
        scratch.write_text(content, encoding="utf-8")
        scratch.replace(self.pid_file)

    def _ours(self, pid: int) -> psutil.Process | None:
        child = _children.get(pid)
        try:
            if child is not None:
                if child.poll() is None:  # ours for sure; it has no command line yet while it is being executed
                    return psutil.Process(pid)
                del _children[pid]
                return None
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE and self._is(process.cmdline()):
                return process
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # another user's process is not ours either
            pass
        return None

    def _orphan(self) -> psutil.Process | None:
        """A process of ours whose starter died before it wrote the pid file."""
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            if self._is(words) and self._ours(process.pid):
                return process
        return None

    def _is(self, command: list[str]) -> bool:
        return bool(command) and Path(command[0]).name == self.program and self.marker in command


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)  # psutil compares the start time first: never a successor's pid
    except psutil.NoSuchProcess:
        return


def _ended(process: psutil.Process, number: signal.Signals, timeout_s: float) -> bool:
    _signal(process, number)
    deadline = time.monotonic() + timeout_s
    child = _children.get(process.pid)
    while time.monotonic() < deadline:
        if child is not None and child.poll() is not None:
            _children.pop(process.pid, None)
            return True
        if child is None and _gone(process):
            return True
        time.sleep(0.02)
    return False


def _gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
