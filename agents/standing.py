"""Standing still: while a deployment is drained for other code, what is new waits, and what is under way is finished.

The command that drains says so by a file in the deployment's folder, with a time until which it holds, and renews it.
So workers go on by themselves where the command dies. A worker that was started later does not mind it: it has the new
code, or what the file has by now.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import orjson

__all__ = ["Still", "stand_still", "stands_still"]

#: What was said holds for so long, and is said again so often: a command that is killed lets workers go on within
#: the first, and one that has little of a busy machine for a while does not.
LEASE_S: Final = 10.0
RENEW_S: Final = 2.0

_FILE: Final = "standing.json"


@contextmanager
def stand_still(folder: Path, but: Iterable[str]) -> Generator[None]:
    """Have the workers of the deployment in *folder* begin nothing new, while this is open.

    Args:
        but: agents that go on, as nobody else will handle what is for them.
    """
    path, since, over = folder / _FILE, time.time(), threading.Event()

    def say() -> None:
        fresh = path.with_suffix(".tmp")
        fresh.write_bytes(orjson.dumps({"since": since, "until": time.time() + LEASE_S, "but": list(but)}))
        fresh.replace(path)

    def renew() -> None:
        while not over.wait(RENEW_S):
            with suppress(OSError):  # said again soon; where that can't be, workers go on, which harms nobody
                say()

    say()
    renewing = threading.Thread(target=renew, name="standing", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        path.unlink(missing_ok=True)


def stands_still(folder: Path, started_at: float) -> Callable[[str], bool]:
    """Whether an agent of a worker that was started at that time (seconds since the epoch) begins nothing new."""
    try:
        said: dict[str, Any] = orjson.loads((folder / _FILE).read_bytes())
        held = started_at < said["since"] and time.time() < said["until"]
        but = frozenset(said["but"])
    except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError):
        return lambda agent: False
    return lambda agent: held and agent not in but


class Still:
    """The new messages of one agent in one worker that wait for other code."""

    def __init__(self) -> None:
        self.on = False
        self._waiters: list[tuple[Any, asyncio.Future[bool]]] = []

    def stand(self, on: bool) -> None:
        """Begin nothing new from now on, or go on."""
        self.on = on
        if not on:
            self._end(lambda _: True, True)

    async def turn(self, work: object) -> bool:
        """Wait until *work* may begin; False: it may not, see :meth:`release`."""
        granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.append((work, granted))
        return await granted

    def release(self, unwanted: Callable[[Any], bool]) -> None:
        """Send waiting work that is *unwanted* away: its partition goes to another worker."""
        self._end(unwanted, False)

    def _end(self, which: Callable[[Any], bool], granted: bool) -> None:
        waiters, self._waiters = self._waiters, []
        for work, future in waiters:
            if not which(work):
                self._waiters.append((work, future))
            elif not future.done():
                future.set_result(granted)
