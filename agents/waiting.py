"""Waiting: what comes for messages of an assignment that are in the journal: answers, and the ends of timers.

A message in the inbox is handled again where its worker dies, and its answers are read again from where it first
asked. One in the journal has released its offset, so nothing holds the position in the answers back for it. What is
answered to it is therefore written to the journal, whether its handler runs or is suspended, and the position passes
an answer only when that counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from heapq import heappop, heappush
from typing import Any, Final

from llmagentos.agents.answers import comes_from
from llmagentos.agents.blobs import Blobs
from llmagentos.agents.steps import RESERVED
from llmagentos.streams.clock import Clock
from llmagentos.streams.errors import NotOwner, ResultError
from llmagentos.streams.journal_record import Wait, step_record
from llmagentos.streams.message import JSON, Message, asker_of, child_id
from llmagentos.streams.ownership import Ownership
from llmagentos.streams.unfinished import Entry

__all__ = ["Waiting", "step_of_answer"]

log = logging.getLogger(__name__)

#: The clock is looked at this often though nothing is due: it may have been set.
LOOK_S: Final = 1.0

#: States of messages that are in the journal and not in the inbox.
_JOURNALED: Final = frozenset({"waiting", "held", "parked"})


class Waiting:
    """What those of one assignment wait for.

    Args:
        encode: a message to Confluent wire bytes.
        blobs: where answers are that a journal record has no room for.
        late: says to who waits for an answer that its deadline has passed: (conversation, question, asked agent).
        hand: gives an answer to a handler that runs and waits for it, if any.
        broken: told of what ends the worker.
    """

    def __init__(
        self,
        ownership: Ownership,
        *,
        clock: Clock,
        encode: Callable[[Message], bytes],
        blobs: Blobs,
        late: Callable[[str, str, str], None],
        hand: Callable[[Message], None],
        broken: Callable[[BaseException], None],
    ) -> None:
        self._ownership = ownership
        self._clock = clock
        self._encode = encode
        self._blobs = blobs
        self._late = late
        self._hand = hand
        self._broken = broken
        self._due: list[tuple[int, int]] = []  # a heap: when, and the message's offset
        self._sooner = asyncio.Event()
        self._writing: set[int] = set()  # offsets of answers that are on their way to the journal
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Task[None] | None = None

    def watch(self, entry: Entry) -> None:
        """*entry* is suspended: have its waits end in time."""
        for wait in entry.waits:
            if wait.due:
                heappush(self._due, (wait.due, entry.offset))
        if self._due and self._timer is None:
            self._timer = asyncio.create_task(self._run())
        self._sooner.set()

    @property
    def lowest(self) -> int | None:
        """The lowest offset of an answer that is to be in the journal and may not be; None: there is none."""
        return min(self._writing, default=None)

    def answered(self, answer: Message, at: int) -> bool:
        """An answer was read at offset *at*; whether it goes by the journal."""
        asker = asker_of(answer.caused_by or "")
        entry = None if asker is None else self._ownership.view.entries.get(asker)
        if entry is None or entry.state not in _JOURNALED:
            return False
        wait = next((wait for wait in entry.waits if wait.about == answer.caused_by), None)
        if wait is not None and not comes_from(answer, wait.name.removeprefix(f"{RESERVED}ask ")):
            log.warning(
                "an answer from %r to question %s, which was for %r, is passed over",
                answer.sender,
                wait.about,
                wait.name,
            )
            return True
        self._writing.add(at)
        self._spawn(self._keep(entry, answer, at))
        return True

    def stop(self) -> None:
        """Wait for nothing more."""
        for task in self._tasks:
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()

    async def _keep(self, entry: Entry, answer: Message, at: int) -> None:
        try:
            step = await step_of_answer(answer, self._encode(answer), self._blobs)
        except ResultError as error:
            log.error("an answer to question %s of %s can't be kept: %s", answer.caused_by, entry.message_id, error)
            answer = _refused(answer, error)
            step = await step_of_answer(answer, self._encode(answer), self._blobs)
        await self._write(entry, step)
        self._writing.discard(at)
        self._hand(answer)

    async def _write(self, entry: Entry, step: Mapping[str, Any]) -> None:
        fields = {"offset": entry.offset, "message_id": entry.message_id, "step": step}
        await self._ownership.write("step", fields, conversation_id=entry.conversation_id)

    async def _run(self) -> None:
        due = self._due
        while True:
            self._sooner.clear()
            wait_s = due[0][0] / 1_000 - self._clock.time() if due else None
            if wait_s is not None and wait_s <= 0:
                over = heappop(due)
                while due and due[0] == over:  # two waits end at once, or it was suspended again
                    heappop(due)
                self._end(*over)
                continue
            sleeps = [asyncio.create_task(self._sooner.wait())]
            if wait_s is not None:
                sleeps += [asyncio.create_task(self._clock.sleep(wait_s)), asyncio.create_task(asyncio.sleep(LOOK_S))]
            try:
                await asyncio.wait(sleeps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for sleep in sleeps:
                    sleep.cancel()

    def _end(self, due: int, offset: int) -> None:
        """The time of what the message at *offset* waits for until *due* is over, if it still does."""
        entry = self._ownership.view.entries.get(offset)
        if entry is not None and entry.state == "waiting":
            for wait in entry.waits:
                if wait.due == due:
                    self._over(entry, wait)

    def _over(self, entry: Entry, wait: Wait) -> None:
        if wait.kind == "answer":
            self._late(entry.conversation_id, wait.about, wait.name)
        else:
            outcome = "result" if wait.kind == "timer" else "expired"
            step = step_record(wait.name, wait.number, outcome, content_type=JSON, body=b"null")
            self._spawn(self._write(entry, step))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except NotOwner:  # its owner does the same
                return
            except Exception as error:  # noqa: BLE001 - a send that failed, say
                self._broken(error)

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def step_of_answer(answer: Message, encoded: bytes, blobs: Blobs) -> dict[str, Any]:
    """The step record of an answer: known by its question.

    Raises:
        ResultError: it is too large for a record, and can't be kept elsewhere.
    """
    blob = await blobs.keep(encoded)
    return step_record(
        f"{RESERVED}ask {answer.sender}",
        0,
        "answer",
        about=answer.caused_by or "",
        content_type="llmagentos.Message",
        **({"blob": blob} if blob else {"body": encoded}),
    )


def _refused(answer: Message, error: ResultError) -> Message:
    """What the asker is told in place of an answer that can't be kept."""
    told = Message.create(
        {"error": f"its answer can't be kept while the asker is suspended: {error}", "cause": "too-large"},
        to=answer.recipient,
        conversation=answer.conversation_id,
        message_id=child_id(answer.message_id, answer.sender, "refused"),
        sender=answer.sender,
        type="error",
    )
    told.record["caused_by"] = answer.caused_by
    return told
