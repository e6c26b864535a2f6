"""The ledger: a process outside of Kafka that records every effect as it happens, with its idempotency key.

    python -m llmagentos.cli.chaos.ledger SOCKET FILE [ONE_IN]

It answers each entry with `1` where its key is new and `0` where it was there: what an idempotent service does. With
ONE_IN, the answer to one in so many attempts is lost: the effect is there, and who wanted it does not know. Every
attempt is a line of the file, with the time by this process' clock, so that all that a worker ever did shows, also
one that was killed in the middle or whose clock is wrong. The bytes are in the file, and so in the kernel's hands,
before the answer goes out; this process isn't killed, and the machine doesn't lose power.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import orjson

__all__ = ["Ledger", "ReplyLost", "read_ledger"]

#: Of one entry: a dialogue's turn is a few hundred bytes.
LINE_LIMIT = 1024 * 1024

#: In place of an answer that is lost. (To say nothing would need a deadline, and answers with numbers.)
_LOST = b"-\n"


class ReplyLost(ConnectionError):
    """The ledger has the entry, but its answer did not come."""


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
            ReplyLost: the answer was lost.
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
            if answer.done():
                continue
            if line == _LOST:
                answer.set_exception(ReplyLost("the ledger's answer was lost"))
            else:
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


async def serve(socket: str, path: Path, one_in: int = 0) -> None:
    """Serve until cancelled."""
    seen: Counter[str] = Counter()
    with path.open("ab", buffering=0) as file:

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while line := await reader.readline():
                    entry = orjson.loads(line)
                    key = entry["key"]
                    seen[key] += 1
                    lost = one_in > 0 and google_crc32c.value(b"%s/%d" % (key.encode(), seen[key])) % one_in == 0
                    file.write(orjson.dumps({"at": time.time(), **entry, **({"lost": True} if lost else {})}) + b"\n")
                    writer.write(_LOST if lost else b"1\n" if seen[key] == 1 else b"0\n")
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
        asyncio.run(serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0))
    except KeyboardInterrupt:
        sys.exit(0)
