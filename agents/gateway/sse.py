"""Server-sent events to a client that may read slowly, or vanish."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["EventStream", "event"]

#: A comment is sent where nothing was for so long: proxies end a connection that says nothing for 30 to 60 s.
PING_S: Final = 15.0
#: A client that takes nothing for so long has gone, whatever its socket says: some 100 kB wait for it in buffers.
STALLED_S: Final = 60.0


def event(kind: str, data: Mapping[str, Any], place: str | None = None) -> bytes:
    """One server-sent event; *place* is what a client sends as `Last-Event-ID` to go on behind it."""
    head = f"event: {kind}\n" if place is None else f"id: {place}\nevent: {kind}\n"
    return head.encode() + b"data: " + orjson.dumps(data) + b"\n\n"


class EventStream(Response):
    """Sends *chunks* as they come, until they end or the client has gone.

    Args:
        chunks: each some whole events; closed when nobody reads them any more.
    """

    media_type = "text/event-stream"

    def __init__(
        self, chunks: AsyncGenerator[bytes], headers: Mapping[str, str] | None = None, status_code: int = 200
    ) -> None:
        # nginx would hold the events back until its buffer is full.
        super().__init__(
            status_code=status_code, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})}
        )
        del self.headers["content-length"]  # of an empty body, which Response takes it for
        self._chunks = chunks
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.create_task(self._write(send))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait((writing, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writing, gone):
                if not task.done():
                    task.cancel()
            results = await asyncio.gather(writing, gone, return_exceptions=True)
        # A client that has gone, or takes nothing, is nobody to tell anything.
        if isinstance(results[0], Exception) and not isinstance(results[0], OSError):
            raise results[0]

    async def _write(self, send: Send) -> None:
        lock = asyncio.Lock()
        async with aclosing(self._chunks):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            pinging = asyncio.create_task(self._ping(send, lock))
            try:
                async for chunk in self._chunks:
                    await self._send(send, lock, chunk)
            finally:
                pinging.cancel()
            async with lock:
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, lock: asyncio.Lock, chunk: bytes) -> None:
        async with lock, asyncio.timeout(STALLED_S):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._sent_at = time.monotonic()

    async def _ping(self, send: Send, lock: asyncio.Lock) -> None:
        self._sent_at = time.monotonic()
        while True:
            await asyncio.sleep(max(0.0, self._sent_at + PING_S - time.monotonic()))
            if time.monotonic() - self._sent_at >= PING_S:
                await self._send(send, lock, b": still here\n\n")


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
