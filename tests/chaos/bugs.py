"""The chain of a chaos run with a known bug in the engine beneath it: deployed by tests that must see the judge say no.

`LLMAGENTOS_TEST_BUG` names the bug. The patches are made in the worker's process, where this module is imported; the
engine itself knows nothing of them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from llmagentos.agents import inbox
from llmagentos.cli.chaos import chain
from llmagentos.cli.chaos.ledger import Ledger
from llmagentos.streams.dedup import Dedup
from llmagentos.streams.gate import CommitGate
from llmagentos.streams.journal import View
from llmagentos.streams.ownership import Ownership
from llmagentos.streams.transport.consumer import Consumer
from llmagentos.streams.unfinished import Entry

#: Effects of the gate's bug take so long: longer than two commits, so that one of them passes each effect.
SLOW_S = 0.5

#: For the bug of the claims a failing message is tried for so long: the worker is frozen in the middle of some, and
#: others have parked them by the time that it wakes (10 s, less a session of 3 s).
BACKOFF_S = 3.0

first, second, third = chain.first, chain.second, chain.third


def gate() -> None:
    """The gate passes messages in flight."""
    enter = Ledger.enter

    async def enter_slowly(self: Ledger, entry: Mapping[str, Any]) -> bool:
        await asyncio.sleep(SLOW_S)
        return await enter(self, entry)

    Ledger.enter = enter_slowly
    CommitGate.committable = lambda self: self.position


def dedup() -> None:
    """What finished at another offset runs again."""
    Dedup.twin = lambda self, identity, offset: False


def held() -> None:
    """Messages of a conversation that waits run at once."""

    async def run_early(self: Any, work: Any, message: Any) -> None:
        outputs = await self._attempts.run(work, message, partial(self._context, work, message))
        for output in outputs if isinstance(outputs, list) else ():
            self._outputs.send(output)
        self._done(work)

    inbox.Inbox._hold = run_early


def claims() -> None:
    """Records behind a newer claim count, and nobody stops because of one."""
    fold, read = View.fold, Ownership.read

    def fold_all(self: View, record: Mapping[str, Any], at: int) -> Entry | None:
        claimed = record["kind"] in ("claim", "redrive", "discard")
        return fold(self, record if claimed else {**record, "claim": self.claim}, at)

    def never_end(self: Ownership, record: Mapping[str, Any], at: int) -> None:
        ended, self._end = self._end, lambda: None
        told, self._superseded = self._superseded, lambda: None
        try:
            read(self, record, at)
        finally:
            self._end, self._superseded = ended, told

    View.fold = fold_all
    Ownership.read = never_end


def commit() -> None:
    """Offsets are committed before what was sent is acknowledged."""

    async def dont_wait(self: Consumer) -> None:
        return

    Consumer._sent_until_now = dont_wait


BUGS = {bug.__name__: bug for bug in (gate, dedup, held, claims, commit)}

name = os.environ.get("LLMAGENTOS_TEST_BUG", "")
if name.startswith("claims"):
    first, second, third = (replace(agent, backoff_s=BACKOFF_S) for agent in (first, second, third))
if name in BUGS:
    BUGS[name]()

__all__ = ["BUGS", "first", "second", "third"]
