"""The supervisor: one process per data folder that makes the workers be as the deployments want them.

It is a loop that compares and acts: read what is wanted, look at what is, take the next step, wait until something
changes. It keeps nothing in memory that it can't read again, so that killing it at any point costs nothing: the
workers live on in sessions of their own, and the next supervisor adopts them by pid and start time.

    python -m llmagentos.agents.supervisor --home DIR [--detach]

A roll-out replaces the workers of other generations one at a time: a new one starts, and only when it has its
partitions is an old one told to leave; the next begins when that one is gone. So at least as many serve as are wanted,
and at most one more. A new worker that can't start stops the roll-out there, with the old ones still serving.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import random
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from llmagentos.agents.deployment import Deployment, Deployments, Process, WorkerRecord
from llmagentos.streams.errors import DeploymentError

__all__ = ["EXIT_IMPORT", "EXIT_REFUSED", "Supervisor", "main"]

#: A worker's exit status: its module failed to import, and trying again changes nothing; or it refused to start,
#: and somebody may mend what it refused (a topic, an ACL), so that it is tried again at the longest wait.
EXIT_IMPORT, EXIT_REFUSED = 3, 4

#: Wait before a worker that crashed again starts again: none after the first crash, then doubled with each in a row,
#: up to the most, times a random factor of 0.5 to 1.5 so that workers felled together don't come back together
#: (kubelet: 10 s, doubled, up to 5 min; here a start costs a second or two, not an image). A crash after it ran this
#: long counts as the first: ten starts, so that one that crashes for ever costs a tenth of a core at most.
BACKOFF_S, BACKOFF_MAX_S, RAN_WELL_S = 0.5, 30.0, 15.0

#: An old worker leaves when the new one has partitions; where there are none for it, after this time. They come in two
#: rounds of the group, and librdkafka takes part in one a second at most (its join interval): the partitions of a
#: worker that leaves in the midst of them would stand still until they are over.
SETTLE_S = 2.5

#: A worker told to leave is killed this long after its drain timeout: it also commits and leaves its group.
LEAVE_S = 5.0

#: Looks at what is wanted at least this often, should a wake-up be lost; and while workers start or leave, at
#: what they say of themselves.
REST_S, BUSY_S = 1.0, 0.1

#: A log is kept in two parts, `worker-I.log` and `worker-I.log.1`, each at most about this long.
LOG_BYTES = 16 * 1024 * 1024

#: What of a dead worker's last words is kept as the reason.
REASON_LINES, REASON_BYTES = 30, 8_192

log = logging.getLogger("llmagentos.supervisor")


class Supervisor:
    """Makes workers be as the deployments of one data folder want them.

    Args:
        home: the data folder.
        stay: go on when there is no deployment left, in place of ending.
    """

    def __init__(self, home: Path, *, stay: bool = False) -> None:
        self.deployments = Deployments(home)
        self.stay = stay
        self._lock: IO[str] | None = None
        self._workers: dict[str, list[WorkerRecord]] = {}
        self._saved: dict[str, str] = {}
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._watched: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        self._stopping = False

    # -- life ------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Supervise until told to stop (SIGTERM, SIGINT; the workers stay), or no deployment is left.

        Returns:
            False where another supervisor holds the data folder already.
        """
        self.deployments.folder.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        mine = (signal.SIGHUP, signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
        before = {number: signal.getsignal(number) for number in mine}
        before_fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self._selector.register(ours, selectors.EVENT_READ)
        try:
            signal.signal(signal.SIGHUP, lambda *_: None)  # only wakes; before the lock says whom to wake
            signal.signal(signal.SIGCHLD, lambda *_: None)  # wakes too, where there are no pidfds: see _watch
            signal.signal(signal.SIGTERM, self._stop)
            signal.signal(signal.SIGINT, self._stop)
            if not self._take_lock():
                return False
            self._adopt()
            log.info("supervising %s", self.deployments.folder)
            while not self._stopping:
                self.step()
                if self._idle():
                    log.info("no deployment left, leaving")
                    break
                self._wait(ours)
            else:
                log.info("told to stop; the workers stay")
            return True
        finally:
            signal.set_wakeup_fd(before_fd)
            for number, handler in before.items():
                signal.signal(number, handler)
            for descriptor in self._watched.values():
                os.close(descriptor)
            self._selector.close()
            ours.close()
            theirs.close()
            if self._lock is not None:
                self._lock.close()

    def step(self) -> None:
        """Look at every deployment once, and take each one's next step."""
        for name in sorted({*self.deployments.names(), *self._workers}):
            try:
                wanted = self.deployments.find(name)
            except DeploymentError as error:
                log.error("%s", error)
                continue
            workers = self._workers.setdefault(name, [])
            try:
                self._look(name, wanted, workers)
                self._act(name, wanted, workers)
            except OSError as error:  # disk full, no more processes: the next step tries again
                log.error("%s: %s", name, error)
            self._save(name, workers)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _take_lock(self) -> bool:
        """One supervisor per data folder. The lock ends with the process (and with a child between its fork and
        its exec, so that a successor's look at the processes can't miss one that is being born)."""
        lock = (self.deployments.folder / "supervisor.lock").open("a+")
        for _ in range(20):  # 2 s: somebody may just be looking whether it is held
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        else:
            lock.close()
            return False
        lock.truncate(0)
        lock.write(Process.this().model_dump_json())
        lock.flush()
        self._lock = lock
        return True

    def _idle(self) -> bool:
        """Whether to leave. Under the lock of the commands: one that deploys now finds us gone, and starts another."""
        if self.stay or self.deployments.names() or any(self._workers.values()):
            return False
        with self.deployments.changing():
            if self.deployments.names() or self._lock is None:
                return False
            self._lock.close()
            self._lock = None
            return True

    def _wait(self, wakeup: socket.socket) -> None:
        now = time.time()
        until = REST_S
        for worker in (worker for workers in self._workers.values() for worker in workers):
            if worker.state in ("starting", "draining") or now - worker.since < SETTLE_S:
                until = min(until, BUSY_S)
            if worker.due:
                until = min(until, max(worker.due - now, 0.0))
        for key, _ in self._selector.select(until):
            if key.fileobj is wakeup:
                with suppress(BlockingIOError):
                    while wakeup.recv(4096):
                        pass

    # -- what is -----------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Find the workers that an earlier supervisor started: those it wrote down, and by their command line the
        one that it may have been starting when it was killed."""
        self.deployments.sweep()
        found: dict[tuple[str, int], Process] = {}
        for running in psutil.process_iter(["cmdline"]):
            place = self._place(running.info["cmdline"] or [])
            process = Process.of(running.pid) if place is not None else None
            if place is not None and process is not None:
                found[place] = process
        for name in {*self.deployments.names(), *(name for name, _ in found)}:
            workers = self.deployments.workers(name)
            known = {worker.index for worker in workers}
            workers += [
                WorkerRecord(index=index, generation=0, process=process, since=time.time())
                for (other, index), process in found.items()
                if other == name and index not in known
            ]
            for worker in list(workers):
                if worker.state in ("waiting", "failed"):
                    continue
                if worker.process is None or not worker.process.alive():
                    worker.process = found.get((name, worker.index))
                if worker.process is None:
                    self._ended(name, worker, "it ended while no supervisor ran")
                    if worker.state == "draining":
                        workers.remove(worker)
                else:
                    log.info("%s worker %d: adopted, pid %d", name, worker.index, worker.process.pid)
                    self._watch(worker.process.pid)
            self._workers[name] = workers

    def _place(self, command: list[str]) -> tuple[str, int] | None:
        """The deployment and index of a process that is a worker of this data folder."""
        try:
            folder = Path(command[command.index("--run-dir") + 1])
            index = int(command[command.index("--index") + 1])
        except (ValueError, IndexError):
            return None
        return (folder.name, index) if folder.parent == self.deployments.folder else None

    def _look(self, name: str, wanted: Deployment | None, workers: list[WorkerRecord]) -> None:
        """Note who died, and what the living say."""
        for worker in list(workers):
            if worker.process is None:
                continue
            ended, status = self._exit_status(worker.process)
            if ended:
                self._ended(name, worker, _how_it_ended(status), status)
                if worker.state == "draining":
                    workers.remove(worker)
                continue
            if worker.state == "starting" and wanted is not None:
                report = self.deployments.report(name, worker)
                if report is not None and report.state == "running":
                    log.info("%s worker %d: running", name, worker.index)
                    worker.state, worker.since = "running", time.time()
            if worker.state == "draining" and worker.due and time.time() >= worker.due:
                log.error(
                    "%s worker %d: pid %d did not leave in time and is killed; its unfinished messages come again",
                    name,
                    worker.index,
                    worker.process.pid,
                )
                self._signal(worker.process, signal.SIGKILL)
                worker.due = 0.0
            elif worker.state == "running":
                self._bound_log(name, worker)

    def _exit_status(self, process: Process) -> tuple[bool, int | None]:
        """(whether it ended, its exit status; None for one that is not our child)."""
        child = self._children.get(process.pid)
        if child is None:
            ended, status = not process.alive(), None
        else:
            status = child.poll()
            ended = status is not None
        if ended:
            self._children.pop(process.pid, None)
            self._unwatch(process.pid)
        return ended, status

    def _ended(self, name: str, worker: WorkerRecord, how: str, status: int | None = None) -> None:
        """Note the end of a worker's process, and what becomes of the worker."""
        now = time.time()
        ran_s = now - worker.since if worker.state == "running" else 0.0
        worker.process, worker.exit_code, worker.due = None, status, 0.0
        worker.reason = "\n".join(filter(None, (how, self._last_words(name, worker))))
        if worker.state == "draining":
            log.info("%s worker %d: left (%s)", name, worker.index, how)
            return
        worker.since = now
        if status == EXIT_IMPORT:
            worker.state = "failed"
            log.error("%s worker %d: %s; it is not started again", name, worker.index, how)
            return
        if status == EXIT_REFUSED and not ran_s:
            worker.state, worker.due = "failed", now + BACKOFF_MAX_S * random.uniform(0.5, 1.5)
            log.error("%s worker %d: %s; tried again in %.0f s", name, worker.index, how, worker.due - now)
            return
        worker.crashes = 1 if ran_s >= RAN_WELL_S else worker.crashes + 1
        wait_s = 0.0
        if worker.crashes > 1:
            wait_s = min(BACKOFF_S * 2 ** (min(worker.crashes, 32) - 2), BACKOFF_MAX_S) * random.uniform(0.5, 1.5)
        worker.state, worker.due = "waiting", now + wait_s
        log.warning("%s worker %d: %s; starts again in %.1f s", name, worker.index, how, wait_s)

    def _last_words(self, name: str, worker: WorkerRecord) -> str:
        try:
            with self.deployments.log_file(name, worker.index).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(min(worker.log_start, size), size - REASON_BYTES))
                return "\n".join(file.read().decode(errors="replace").strip().splitlines()[-REASON_LINES:])
        except FileNotFoundError:
            return ""

    # -- what to do --------------------------------------------------------------------------------------------

    def _act(self, name: str, wanted: Deployment | None, workers: list[WorkerRecord]) -> None:
        """The next step from what is to what is wanted."""
        if wanted is not None and wanted.owner is not None and not wanted.owner.alive():
            log.info("%s: the session that deployed it has ended", name)
            wanted = wanted.model_copy(update={"removed": True})
        if wanted is None or wanted.removed:
            workers[:] = [worker for worker in workers if worker.process is not None]
            for worker in workers:
                self._tell_to_leave(name, worker, wanted)
            if not workers:
                self._forget(name)
            return

        workers[:] = [w for w in workers if w.process is not None or w.generation == wanted.generation]
        new = [w for w in workers if w.generation == wanted.generation and w.state != "draining"]
        old = [w for w in workers if w.generation != wanted.generation and w.state != "draining"]
        leaving = any(w.state == "draining" for w in workers)

        # Too many: those that don't run go first, then the highest index.
        for worker in sorted(new, key=lambda w: (w.process is None, w.index))[wanted.workers :]:
            new.remove(worker)
            if worker.process is None:
                workers.remove(worker)
            else:
                self._tell_to_leave(name, worker, wanted)

        for worker in new:
            if worker.state in ("waiting", "failed") and worker.due and time.time() >= worker.due:
                worker.restarts += 1
                self._start(wanted, worker)

        # One more than wanted while old ones serve; the room that old ones who died left is filled at once.
        room = wanted.workers + (1 if old else 0) - len(new) - len(old) - (1 if old and leaving else 0)
        for _ in range(min(room, wanted.workers - len(new))):
            taken = {w.index for w in workers}
            index = next(i for i in range(len(taken) + 1) if i not in taken)
            worker = WorkerRecord(index=index, generation=wanted.generation)
            workers.append(worker)
            new.append(worker)
            self._start(wanted, worker)

        if old and not leaving and sum(self._settled(name, w) for w in new) + len(old) > wanted.workers:
            # Whoever does not serve yet goes first.
            self._tell_to_leave(name, min(old, key=lambda w: (w.state == "running", w.index)), wanted)

    def _settled(self, name: str, worker: WorkerRecord) -> bool:
        """Whether it has the partitions that are for it."""
        if worker.state != "running":
            return False
        report = self.deployments.report(name, worker)
        return bool(report is not None and report.assigned) or time.time() - worker.since >= SETTLE_S

    def _start(self, wanted: Deployment, worker: WorkerRecord) -> None:
        folder = self.deployments.run_dir(wanted.name)
        self.deployments.report_file(wanted.name, worker.index).unlink(missing_ok=True)
        path = self.deployments.log_file(wanted.name, worker.index)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_name(path.name + ".1"))
        worker.process, worker.state, worker.due = None, "starting", 0.0
        worker.since = worker.started_at = time.time()
        worker.log_start = path.stat().st_size if path.exists() else 0
        self._save(wanted.name, self._workers[wanted.name])  # first, so that a successor knows whom to look for
        command = [
            *wanted.command,
            *("--deployment", wanted.name, "--target", wanted.target),
            *("--index", str(worker.index), "--run-dir", str(folder)),
        ]
        environment = self.deployments.environment(wanted.name)
        environment |= {"LLMAGENTOS_HOME": str(self.deployments.home), "PYTHONUNBUFFERED": "1"}
        try:
            with path.open("ab") as output:
                child = subprocess.Popen(
                    command,
                    cwd=wanted.cwd,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a terminal's Ctrl-C is not for it
                )
        except OSError as error:  # its folder or its Python is gone: wait as after a crash
            self._ended(wanted.name, worker, f"it could not be started: {error}")
            return
        worker.process = Process.of(child.pid) or Process(pid=child.pid, born="")  # dead already: poll() will say
        self._children[child.pid] = child
        self._watch(child.pid)
        log.info("%s worker %d: started, pid %d", wanted.name, worker.index, child.pid)

    def _tell_to_leave(self, name: str, worker: WorkerRecord, wanted: Deployment | None) -> None:
        if worker.state == "draining" or worker.process is None:
            return
        drain_s = wanted.drain_timeout_s if wanted is not None else LEAVE_S
        now = time.time()
        worker.state, worker.since, worker.due = "draining", now, now + drain_s + LEAVE_S
        log.info("%s worker %d: told to leave, pid %d", name, worker.index, worker.process.pid)
        self._save(name, self._workers[name])
        self._signal(worker.process, signal.SIGTERM)

    def _signal(self, process: Process, number: signal.Signals) -> None:
        if process.pid in self._children or process.alive():
            with suppress(ProcessLookupError):  # it ended meanwhile, as we want
                os.kill(process.pid, number)

    def _forget(self, name: str) -> None:
        with self.deployments.changing():
            wanted = self.deployments.find(name)
            if wanted is not None and not wanted.removed and (wanted.owner is None or wanted.owner.alive()):
                return  # deployed again meanwhile
            if self.deployments.run_dir(name).exists():
                self.deployments.delete(name)
                log.info("%s: removed", name)
        self._workers.pop(name, None)
        self._saved.pop(name, None)

    def _bound_log(self, name: str, worker: WorkerRecord) -> None:
        """Keep a living worker's log within bounds. It appends to the same open file, which is therefore copied
        and cut; the few lines that it prints in between are lost, against a disk that fills up."""
        path = self.deployments.log_file(name, worker.index)
        with suppress(FileNotFoundError):
            if path.stat().st_size > 4 * LOG_BYTES:
                shutil.copyfile(path, path.with_name(path.name + ".1"))
                os.truncate(path, 0)
                worker.log_start = 0

    def _save(self, name: str, workers: list[WorkerRecord]) -> None:
        if name not in self._workers or not self.deployments.run_dir(name).is_dir():
            return
        content = "\n".join(worker.model_dump_json() for worker in workers)
        if self._saved.get(name) != content:
            self.deployments.write_workers(name, workers)
            self._saved[name] = content

    # -- death watch -------------------------------------------------------------------------------------------

    def _watch(self, pid: int) -> None:
        """Wake up when *pid* ends, be it our child or adopted (pidfd_open(2); elsewhere SIGCHLD wakes for children,
        and others are looked at each second)."""
        if hasattr(os, "pidfd_open"):
            with suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                self._watched[pid] = descriptor
                self._selector.register(descriptor, selectors.EVENT_READ)

    def _unwatch(self, pid: int) -> None:
        descriptor = self._watched.pop(pid, None)
        if descriptor is not None:
            self._selector.unregister(descriptor)
            os.close(descriptor)


def _how_it_ended(status: int | None) -> str:
    if status is None:
        return "it ended (an earlier supervisor started it: its exit status is unknown)"
    if status == EXIT_IMPORT:
        return "its module failed to import"
    if status == EXIT_REFUSED:
        return "it refused to start"
    if status < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-status).name}"
        return f"killed by signal {-status}"
    return f"exit status {status}"


def main() -> None:
    """Run a supervisor; with --detach in the background, apart from whoever started it."""
    parser = argparse.ArgumentParser(description="Keep the workers of a data folder's deployments running.")
    parser.add_argument("--home", type=Path, required=True, help="data folder")
    parser.add_argument("--detach", action="store_true", help="leave the process that started it")
    parser.add_argument("--stay", action="store_true", help="go on when no deployment is left")
    arguments = parser.parse_args()
    if arguments.detach and os.fork():
        os._exit(0)  # the orphan belongs to init, which reaps it
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s")
    sys.exit(0 if Supervisor(arguments.home, stay=arguments.stay).run() else 1)


if __name__ == "__main__":
    main()
