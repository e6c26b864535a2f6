"""What becomes of a record that is on its way when its writer's hold on the journal ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmagentos.streams.errors import NotOwner
from llmagentos.streams.journal import Note
from llmagentos.streams.ownership import Ownership


class Slow:
    """A journal that takes a record when it is told to."""

    writer = "worker-0"

    def __init__(self) -> None:
        self.taken: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def post(self, *_: object) -> Any:
        return await self.taken

    def unfollow(self, ownership: Ownership) -> None:
        """Nothing is read of it any more."""


async def test_a_record_that_is_acknowledged_after_the_end_is_waited_for_by_nobody() -> None:
    journal = Slow()
    ownership = Ownership(cast(Any, journal), "journal.a", 0, Note(), lambda: None)
    writing = asyncio.create_task(ownership.write("step", {"offset": 1}, conversation_id="c"))
    await asyncio.sleep(0)
    ownership.end()
    journal.taken.set_result(SimpleNamespace(offset=7))
    with pytest.raises(NotOwner):
        await asyncio.wait_for(writing, 5)
