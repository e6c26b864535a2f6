"""The warm process: it has imported the tools' module, and forks for each call; a program of its own.

It is started clean (see `isolation.py`), never forked from a worker, whose event loop and Kafka threads a fork would
copy as they stand. Whoever started it speaks to it over a socket: first it is told what to import, then with each byte
it is handed the socket of one call. For that it forks a keeper, which forks the process that runs the function,
watches it, and ends it and whatever it left.

    worker --FD--> warm process --fork--> keeper --fork--> function
       '----------- socket of the call ------'
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import inspect
import io
import json
import os
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Final

from llmagentos.agents.tools.confine import Limits, adopt, confine, die_with_parent

__all__ = ["LENGTH", "main"]

#: In front of each message: its length in bytes.
LENGTH: Final = struct.Struct("!I")

#: Of what a function printed, the end is kept: some pages.
PRINTS: Final = 64 * 1024

#: What the environment of a call has, beside what the tool was granted: where it may write, and how text is written.
PLACES: Final = ("HOME", "TMPDIR", "TMP", "TEMP")

#: A process that is told to end by SIGKILL has ended after this, unless the kernel itself hangs.
ENDED_S: Final = 5.0


def main() -> None:
    """Serve calls until the other end of the socket closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the worker says when it ends
    told = json.loads(_read(control))
    try:
        _load(told)
    except BaseException:  # noqa: BLE001 - whatever the module raises, SystemExit too, is told
        _send(control, {"failed": traceback.format_exc()})
        return
    gc.collect()
    gc.freeze()  # so that the collector writes to no page that the calls share
    _send(control, {})
    while True:
        byte, fds, _, _ = socket.recv_fds(control, 1, 1)
        if not byte:
            break
        sys.stdout.flush()
        if not os.fork():
            control.close()
            _exit_after(_keep, socket.socket(fileno=fds[0]), told)
        os.close(fds[0])
        _reap()
    with contextlib.suppress(ChildProcessError):  # those that are under way may end
        while True:
            os.wait()


def _load(told: dict[str, Any]) -> None:
    sys.path += [each for each in told["path"] if each not in sys.path]
    name = told["module"]
    if not told["file"]:
        importlib.import_module(name)
        return
    spec = importlib.util.spec_from_file_location(name, told["file"])  # a script, which runs as `__main__`
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _exit_after(function: Any, *args: Any) -> None:
    """Call *function* in a forked process, which goes no further."""
    status = 1
    try:
        function(*args)
        status = 0
    except BaseException:  # noqa: BLE001 - nobody above is there to hear of it
        traceback.print_exc()
    finally:
        os._exit(status)


# -- the keeper -----------------------------------------------------------------------------------------------------


def _keep(call: socket.socket, told: dict[str, Any]) -> None:
    """Have one call done, and answer with what became of it; see `isolation._Warm.call` for the fields."""
    die_with_parent(signal.SIGKILL)
    adopt()
    asked = json.loads(_read(call))
    limits = Limits(**asked["limits"])
    private = Path(tempfile.mkdtemp(prefix="tool-"))
    try:
        answer = _watch(call, asked, limits, private, told)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    if answer is not None:
        _send(call, answer)


def _watch(
    call: socket.socket, asked: dict[str, Any], limits: Limits, private: Path, told: dict[str, Any]
) -> dict[str, Any] | None:
    result_in, result_out = os.pipe()
    prints_in, prints_out = os.pipe()
    keeper = os.getpid()
    pid = os.fork()
    if not pid:
        call.close()
        os.close(result_in)
        os.close(prints_in)
        _exit_after(_run, asked, limits, private, told, keeper, result_out, prints_out)
    os.close(result_out)
    os.close(prints_out)
    ended = os.pidfd_open(pid)
    result, prints = bytearray(), bytearray()
    until = time.monotonic() + asked["timeout"]
    open_ends = {result_in, prints_in}
    why = ""
    while not why:
        left = until - time.monotonic()
        ready = select.select([*open_ends, ended, call], [], [], max(0.0, left))[0] if left > 0 else []
        for end in open_ends.intersection(ready):
            if not _drain(end, result if end == result_in else prints):
                open_ends.discard(end)
        del prints[:-PRINTS]
        if len(result) > limits.output_bytes * 2 + PRINTS:  # in JSON a character may take more
            why = "output"
        elif ended in ready:
            why = "ended"
        elif call in ready:  # nobody waits for it any more
            why = "given up"
        elif left <= 0:
            why = "timeout"
    status = _end(pid)
    for end in open_ends:  # what was written before it ended; nobody is left who could write more
        os.set_blocking(end, False)
        with contextlib.suppress(BlockingIOError):
            while _drain(end, result if end == result_in else prints):
                pass
    del prints[:-PRINTS]
    if why == "given up":
        return None
    answer: dict[str, Any] = {"prints": prints.decode(errors="replace")}
    if why == "ended" and result:
        try:
            return answer | json.loads(result)
        except ValueError:  # it was killed while it wrote
            answer["cut"] = True
    return answer | {"why": why, "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0}


def _drain(end: int, into: bytearray) -> bool:
    data = os.read(end, 1 << 16)
    into += data
    return bool(data)


def _end(pid: int) -> int:
    """End the process of a function, and all that came of it; its status.

    Its orphans become children of this one, so that none is missed that moved to a group or a session of its own.
    """
    status = 0
    until = time.monotonic() + ENDED_S
    while time.monotonic() < until:
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            one, how = os.waitpid(-1, 0)
        except ChildProcessError:
            break
        if one == pid:
            status = how
    return status


def _children() -> list[int]:
    me = os.getpid()
    return [int(each) for each in Path(f"/proc/{me}/task/{me}/children").read_text().split()]


# -- the function's process -----------------------------------------------------------------------------------------


def _run(
    asked: dict[str, Any],
    limits: Limits,
    private: Path,
    told: dict[str, Any],
    keeper: int,
    result: int,
    prints: int,
) -> None:
    die_with_parent(signal.SIGKILL)
    if os.getppid() != keeper:  # it ended before it could be told so
        return
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(prints, 1)
    os.dup2(prints, 2)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True, errors="backslashreplace")
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True, errors="backslashreplace")
    os.chdir(private)
    for name in PLACES:
        os.environ[name] = str(private)
    tempfile.tempdir = None  # it is looked up anew
    with contextlib.suppress(OSError):  # short of memory, the kernel is to end this one before all others
        Path("/proc/self/oom_score_adj").write_text("1000")
    confine(limits, asked["cpu_s"], private, told["hidden"])
    answer = _outcome(told["module"], asked, limits)
    data = memoryview(json.dumps(answer).encode())
    while data:
        data = data[os.write(result, data) :]
    os.close(result)


def _outcome(module: str, asked: dict[str, Any], limits: Limits) -> dict[str, Any]:
    from llmagentos.agents.tools.tool import Tool, as_text, tool

    try:
        found: Any = sys.modules[module]
        for part in asked["function"].split("."):
            found = getattr(found, part)
        made_of: Tool = found if isinstance(found, Tool) else tool(asked["tool"], key_as=asked["key_as"])(found)
        values = made_of.check(asked["arguments"])
        made: Any = made_of(**values, **asked["extra"])
        text = as_text(asyncio.run(made) if inspect.iscoroutine(made) else made)
    except MemoryError:
        return {"why": "memory"}
    except BaseException as error:  # noqa: BLE001 - whatever it is, the worker is told
        said = "".join(traceback.format_exception(error))[-PRINTS:]
        return {"failed": f"{type(error).__name__}: {error}"[:PRINTS], "traceback": said}
    return {"why": "output"} if len(text.encode(errors="replace")) > limits.output_bytes else {"text": text}


# -- messages -------------------------------------------------------------------------------------------------------


def _read(end: socket.socket) -> bytes:
    (length,) = LENGTH.unpack(_exactly(end, LENGTH.size))
    return _exactly(end, length)


def _exactly(end: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = end.recv(count - len(data))
        if not more:
            raise EOFError("the worker has gone")
        data += more
    return data


def _send(end: socket.socket, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # nobody waits for it any more
        end.sendall(LENGTH.pack(len(data)) + data)
