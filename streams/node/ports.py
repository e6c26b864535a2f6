"""Free ports on 127.0.0.1, and who holds one that isn't free."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection
from pathlib import Path

import psutil

from llmagentos.streams.errors import NodeError

__all__ = ["free", "holder", "is_free"]

#: Below these are the ports of well-known services.
_LOWEST = 20_000
#: Linux' own default for the begin of ephemeral ports, where /proc doesn't say.
_EPHEMERAL = 32_768


def free(count: int, taken: Collection[int] = ()) -> list[int]:
    """*count* ports that nobody listens on, other than *taken*.

    They lie below the ephemeral range: a remembered port in it is taken, sooner or later, as some outgoing
    connection's own, and a client that retries on a closed port of it may connect to itself.

    Raises:
        NodeError: no free port was found.
    """
    found: list[int] = []
    candidates = range(_LOWEST, max(_ephemeral(), _LOWEST + 1_000))
    for port in random.sample(candidates, min(len(candidates), 1_000)):
        if len(found) == count:
            return found
        if port not in taken and is_free(port):
            found.append(port)
    raise NodeError(
        f"no {count} free ports were found on 127.0.0.1 between {candidates.start} and {candidates.stop}",
        fix="stop what listens there, or give one with `llmagentos up --port P`",
    )


def is_free(port: int) -> bool:
    """Whether a server could listen on *port* of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def holder(port: int) -> str:
    """Who listens on *port*, for people; other users' processes can't be seen."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return "another process"
    for connection in connections:
        if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
            if connection.pid is None:
                return "another user's process"
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.NoSuchProcess:
                break
    return "another process"


def _ephemeral() -> int:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
        return int(text.split()[0])
    except (OSError, ValueError, IndexError):
        return _EPHEMERAL
