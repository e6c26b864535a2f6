"""A process whose clock is off: libfaketime, mended for librdkafka.

librdkafka waits with C11's cnd_timedwait until a moment that it computes from the clock. libfaketime 0.9.10 changes the
clock, but not that wait: a clock ahead then waits a minute too long, one behind not at all, and neither happens on a
machine whose clock is off. So a small library goes in front of it, that makes of that wait a pthread_cond_timedwait,
which libfaketime knows. (glibc's types of both are the same: nptl's cnd_t is a pthread_cond_t.)
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from llmagentos.cli.chaos.doctor import faketime_library
from llmagentos.streams.errors import NodeError

__all__ = ["off_by"]

_SOURCE = """\
#include <errno.h>
#include <pthread.h>
#include <threads.h>

int cnd_timedwait(cnd_t *cond, mtx_t *mutex, const struct timespec *until) {
    int error = pthread_cond_timedwait((pthread_cond_t *) cond, (pthread_mutex_t *) mutex, until);
    return error == 0 ? thrd_success : error == ETIMEDOUT ? thrd_timedout : thrd_error;
}
"""


def off_by(seconds: int, folder: Path) -> str:
    """Words of shell to put before a command, whose time of day is then *seconds* ahead (or behind).

    Monotonic clocks stay right, as they do where somebody sets the clock of a machine.

    Args:
        folder: where the small library is made.

    Raises:
        NodeError: it can't be.
    """
    source, library = folder / "cnd_timedwait.c", folder / "cnd_timedwait.so"
    source.write_text(_SOURCE, encoding="ascii")
    command = ["cc", "-shared", "-fPIC", "-O", "-o", str(library), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NodeError(
            f"`{' '.join(command)}` failed: {done.stderr.strip()}",
            fix="`apt-get install gcc libc6-dev` (Debian, Ubuntu)",
        )
    preload = shlex.quote(f"{library}:{faketime_library()}")
    return f"env FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME={seconds:+d}s LD_PRELOAD={preload}"
