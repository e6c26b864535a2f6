"""Tools that try to get out; the tests import this module, and so do the processes that the tools run in."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmagentos.agents.tools import Limits, Tool, tool
from llmagentos.agents.tools.isolation import Isolation


def fine(number: int) -> dict[str, Any]:
    print("what a tool prints")
    print("and what it says", file=sys.stderr)
    return {"number": number, "pid": os.getpid()}


async def waits() -> str:
    return "an async one"


def sleeps() -> None:
    time.sleep(3600)


def computes() -> None:
    while True:
        pass


def eats() -> None:
    kept: list[bytes] = []
    while True:
        kept.append(bytes(range(256)) * 65_536)


def forks() -> None:
    for _ in range(100):
        if not os.fork():
            time.sleep(3600)


def starts() -> str:
    return subprocess.run(["true"], check=True, capture_output=True, text=True).stdout


def leaves() -> int:
    """A process that goes on, in a session of its own, whose parent ends at once."""
    script = (
        "import os, sys, time\nif os.fork(): sys.exit()\nos.setsid()\nprint(os.getpid(), flush=True)\ntime.sleep(3600)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    return int(child.stdout.readline())


def writes(path: str) -> str:
    Path(path).write_text("x")
    return str(Path(path).resolve())


def fills() -> None:
    with Path("large").open("wb") as file:
        for _ in range(3):
            file.write(bytes(1_000_000))


def opens() -> None:
    kept = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]
    assert kept


def talks() -> str:
    return "x" * 2_000


def tells() -> dict[str, str]:
    """All that it can learn of environments: its own, and that of all processes that it sees."""
    seen = {"own": str(dict(os.environ))}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            seen[process.name] = (
                (process / "environ").read_text(errors="replace") if process.name != str(os.getpid()) else ""
            )
        except OSError as error:
            seen[process.name] = str(error.strerror)
    return seen


def reads(path: str) -> str:
    return Path(path).read_text()


def connects(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), 5):
        return "connected"


def kills(pid: int) -> None:
    os.kill(pid, 9)


def aborts() -> None:
    os.abort()


def exits() -> None:
    os._exit(0)


def raises() -> None:
    raise LookupError("nothing of that name")


ALL: tuple[Callable[..., Any], ...] = (
    fine, waits, sleeps, computes, eats, forks, starts, writes, fills, opens, talks, tells, reads, connects, kills,
    aborts, exits, raises,
)  # fmt: skip


def _made(level: Isolation) -> dict[str, Tool]:
    limits = Limits(memory_mb=200, cpu_s=2, file_mb=1, open_files=50, output_bytes=1_000_000)
    # So long, that none but the one that sleeps is ended for it on a busy machine.
    tools = {one.__name__: tool(isolation=level, timeout=60, limits=limits)(one) for one in ALL}
    tools["sleeps"] = tool(isolation=level, timeout=2, limits=limits)(sleeps)
    tools["talks"] = tool(isolation=level, limits=Limits(output_bytes=1_000))(talks)
    tools["leaves"] = tool(isolation=level, limits=Limits(fork=True))(leaves)
    return tools


LEVELS: dict[str, dict[str, Tool]] = {"process": _made("process"), "sandbox": _made("sandbox")}
