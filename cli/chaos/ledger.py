"""The ledger: a process outside of Kafka that records every effect as it happens, with its idempotency key.

    python -m llmagentos.cli.chaos.ledger SOCKET FILE

It answers each entry with `1` where its key is new and `0` where it was there: what an idempotent service does. Every
attempt is a line of the file, with the time by this process' clock, so that all that a worker ever did shows, also
one that was killed in the middle or whose clock is wrong. The bytes are in the file, and so in the kernel's hands,
before the answer goes out; this process isn't killed, and the machine doesn't lose power.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

__all__ = ["Ledger", "read_ledger"]

#: Of one entry: a dialogue's turn is a few hundred bytes.
LINE_LIMIT = 1024 * 1024


class Ledger:
    """A worker's connection to the ledger; many entries may be under way at once. For one event loop."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._opening = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._asked: deque[asyncio.Future[bool]] = deque()

    async def enter(self, entry: Mapping[str, Any]) -> bool:
        """Record *entry*; returns whether its `key` is new.

        Raises:
            ConnectionError: the ledger is gone.
        """
        if self._writer is None:
            async with self._opening:
                if self._writer is None:
                    reader, self._writer = await asyncio.open_unix_connection(self._socket, limit=LINE_LIMIT)
                    self._reading = asyncio.create_task(self._read(reader))
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        self._writer.write(orjson.dumps(entry) + b"\n")
        await self._writer.drain()
        return await answer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            answer = self._asked.popleft()
            if not answer.done():
                answer.set_result(line == b"1\n")
        self._writer = None
        while self._asked:
            answer = self._asked.popleft()
            if not answer.done():
                answer.set_exception(ConnectionError("the ledger is gone"))


def read_ledger(path: Path) -> Iterator[dict[str, Any]]:
    """All attempts, in order."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield orjson.loads(line)


async def serve(socket: str, path: Path, ready: Iterable[None] = ()) -> None:
    """Serve until cancelled."""
    seen: set[str] = set()
    with path.open("ab", buffering=0) as file:

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while line := await reader.readline():
                    entry = orjson.loads(line)
                    key = entry["key"]
                    fresh = key not in seen
                    seen.add(key)
                    file.write(orjson.dumps({"at": time.time(), **entry}) + b"\n")
                    writer.write(b"1\n" if fresh else b"0\n")
                    await writer.drain()
            except ConnectionError:
                return  # the worker was killed: what it sent whole is recorded
            finally:
                writer.close()

        server = await asyncio.start_unix_server(connected, socket, limit=LINE_LIMIT)
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    try:
        asyncio.run(serve(sys.argv[1], Path(sys.argv[2])))
    except KeyboardInterrupt:
        sys.exit(0)
