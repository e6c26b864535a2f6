"""A PostgreSQL for the peers that need one: a data folder of its own, on a free loopback port, gone afterwards.

Takes Debian's `postgresql` package. PostgreSQL does not run as root: there it runs as the user `postgres`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["postgres"]

#: A server on a busy machine starts within seconds.
START_S = 60.0


@contextmanager
def postgres() -> Generator[str]:
    """The URL of its database, with the settings that the package has (so with fsync)."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        raise SystemExit("the peer needs PostgreSQL: apt install postgresql")
    bin_ = found[-1]
    home = Path(tempfile.mkdtemp(prefix="llmagentos-postgres-"))
    user: dict[str, str] = {}
    if os.geteuid() == 0:
        shutil.chown(home, "postgres", "postgres")
        user = {"user": "postgres", "group": "postgres"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = home / "data"
    quiet = {"stdout": subprocess.DEVNULL, "cwd": home}
    subprocess.run([bin_ / "initdb", "-D", data, "-U", "bench", "-A", "trust"], check=True, **quiet, **user)
    server = subprocess.Popen(
        [bin_ / "postgres", "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", str(home)],
        stderr=subprocess.DEVNULL,
        **quiet,
        **user,
    )
    try:
        until = time.monotonic() + START_S
        ready = [bin_ / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q"]
        while subprocess.run(ready, check=False).returncode:
            if server.poll() is not None or time.monotonic() > until:
                raise SystemExit("PostgreSQL did not start")
            time.sleep(0.1)
        yield f"postgresql://bench@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()  # which lets connections end; then it writes what it has
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(home, ignore_errors=True)
