"""Suspending: how the handlers of one inbox come to their steps, wait, and leave the worker's memory meanwhile.

A handler that has waited for long is let go: its message, the answers that it has in hand and what it waits for go to
the journal, and its offset is released. When something of that has come, it runs again, with all that is recorded.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from llmagentos.agents.answers import Answers
from llmagentos.agents.assignment import Assignment
from llmagentos.agents.blobs import Blobs
from llmagentos.agents.outputs import Outputs
from llmagentos.agents.steps import DEADLINE, Steps, Suspended
from llmagentos.agents.waiting import Waiting, step_of_answer
from llmagentos.agents.work import Work
from llmagentos.streams.errors import NotOwner, RecordTooLarge, ResultError
from llmagentos.streams.journal_record import DECISIONS, Wait
from llmagentos.streams.message import Message
from llmagentos.streams.ownership import Ownership, kept
from llmagentos.streams.unfinished import Entry

__all__ = ["Suspending"]

log = logging.getLogger(__name__)


class Suspending:
    """The steps and waits of one agent's handlers in one worker.

    Args:
        waits: told when the handler of a work begins (True) and ends (False) to wait.
        asked: told that the handler of a work asks.
        done: releases the offset of a work.
        consider: has a conversation of an assignment brought on from the journal, if it can go on.
        spawn: runs a coroutine until the inbox stops.
        broken: told of what ends the worker.
    """

    def __init__(
        self,
        agent: str,
        outputs: Outputs,
        answers: Answers,
        *,
        waits: Callable[[Work, bool], None],
        asked: Callable[[Work], None],
        done: Callable[[Work], None],
        consider: Callable[[Assignment, str], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        broken: Callable[[BaseException], None],
    ) -> None:
        self._agent = agent
        self._outputs = outputs
        self._answers = answers
        self._settings = outputs.settings
        self._blobs = Blobs(outputs.settings)
        self._waits = waits
        self._asked = asked
        self._done = done
        self._consider = consider
        self._spawn = spawn
        self._broken = broken

    def steps(self, work: Work, message: Message) -> Steps:
        """The steps of a message; made when its handler has the first, or an earlier run had some."""
        if work.steps is None:
            work.steps = work.assignment.steps[work.offset] = Steps(
                self._agent,
                message,
                self._outputs.clock,
                record=partial(self._record, work, message),
                decode=self._answers.decode,
                blobs=self._blobs,
                asks=partial(self._asks, work),
                waits=partial(self._waits, work),
                suspend=lambda: self._spawn(self._suspend(work, message)),
                suspend_after_s=self._settings.suspend_after_s if work.cause < 0 else None,
                keep=partial(self._keep, work, message),
                over=lambda: work.over,
            )
            work.steps.load(work.recorded)
            if work.entry is not None:
                work.steps.dues = {wait.about: wait.due for wait in work.entry.waits if wait.kind == "answer"}
            if work.ending is not None and work.ending.delivered:
                work.steps.clean_up()
        return work.steps

    async def resume(self, work: Work, message: Message) -> None:
        """Its handler ran before: have the steps that it recorded ready.

        Raises:
            ResultError: one of them is not to be had, so that a run could do again what was done.
        """
        if work.missing:
            place = f"{work.assignment.ownership.topic}[{work.tp.partition}]"
            raise ResultError(
                f"{len(work.missing)} of {len(work.missing) + len(work.recorded)} recorded steps of message"
                f" {message.message_id}, conversation {message.conversation_id}, are missing from {place}: offsets"
                f" {min(work.missing)} to {max(work.missing)}",
                kept="the message, and its other steps",
                fix="find out what was done, then redrive it edited, which begins anew, or drop it: `llmagentos dead"
                f" redrive --agent {self._agent}`",
            )
        recorded: list[Mapping[str, Any]] = []
        for record in work.recorded:
            step = record["step"]
            if step["blob"] and step["outcome"] == "answer":  # results are read when their turn comes
                record = {**record, "step": {**step, "body": await self._blobs.read(step["blob"])}}
            recorded.append(record)
        work.recorded = recorded
        self.steps(work, message)

    async def _record(self, work: Work, message: Message, step: Mapping[str, Any], at: int) -> None:
        fields = {"offset": work.offset, "message_id": message.message_id, "at": at, "step": step}
        await work.assignment.ownership.write("step", fields, conversation_id=work.conversation(message))

    async def _keep(self, work: Work, message: Message) -> None:
        """Write the answers that its handler has in hand; one that no record takes stays in hand.

        Raises:
            NotOwner: another worker owns the partition now.
        """
        steps = work.steps
        assert steps is not None

        async def write(question: str, answer: Message) -> None:
            try:
                await self._write(work, message, answer)
            except (RecordTooLarge, ResultError) as error:
                log.warning("an answer to message %s is not kept yet: %s", message.message_id, error)
            else:
                steps.in_hand.pop(question, None)

        await asyncio.gather(*(write(question, answer) for question, answer in list(steps.in_hand.items())))

    async def _write(self, work: Work, message: Message, answer: Message) -> None:
        step = await step_of_answer(answer, self._outputs.encode(answer), self._blobs)
        await self._record(work, message, step, time.time_ns() // 1_000_000)

    def _asks(self, work: Work) -> None:
        """Its answers are read again by a next owner; of one that is in the journal they are in the journal."""
        if work.entry is None and not work.asked:
            work.asked = True
            work.assignment.asks(work.offset)
        self._asked(work)

    def waiting(self, partition: int, ownership: Ownership) -> Waiting:
        """What takes what comes for messages of a partition that are in the journal."""

        def late(conversation: str, question: str, name: str) -> None:
            asked = name.rpartition(" ")[2]
            self._outputs.send(self._outputs.late(self._agent, partition, conversation, question, asked))

        return Waiting(
            ownership,
            clock=self._outputs.clock,
            encode=self._outputs.encode,
            blobs=self._blobs,
            late=late,
            hand=self._answers.hand,
            broken=self._broken,
        )

    async def _suspend(self, work: Work, message: Message) -> None:
        """Its handler has waited for long: keep what it needs in the journal, and let it go."""
        steps, assignment = work.steps, work.assignment
        if steps is None or not assignment.open or (waits := steps.freeze()) is None:
            return
        if message.deadline is not None:
            waits.append(Wait("deadline", *DEADLINE, "", message.deadline))
        conversation_id = work.conversation(message)
        fields = {
            "offset": work.offset,
            "message_id": message.message_id,
            "record": kept(work.record, self._settings.max_message_bytes) if work.entry is None else None,
            "waits": [wait._asdict() for wait in waits],
        }
        try:
            await self._outputs.producer.delivered()  # a next run doesn't ask again what it waits for
            await asyncio.gather(*(self._write(work, message, answer) for answer in steps.in_hand.values()))
            try:
                await assignment.ownership.write("suspend", fields, conversation_id=conversation_id)
            except RecordTooLarge:  # with all that it waits for; the message is in the inbox, too
                await assignment.ownership.write("suspend", fields | {"record": None}, conversation_id=conversation_id)
            # Read while the suspension was under way; from here on answers go to the journal as they are read.
            await asyncio.gather(*(self._write(work, message, answer) for answer in steps.come()))
        except NotOwner as error:
            steps.give_up(error)
            return
        except (RecordTooLarge, ResultError) as error:
            log.warning("message %s stays in memory while its handler waits: %s", message.message_id, error)
            steps.thaw()
            return
        except Exception as error:  # noqa: BLE001 - a send that failed
            self._broken(error)
            return
        entry = assignment.entries[work.offset]
        for wait in waits:
            if wait.kind == "answer":
                self._answers.forget(wait.about)
        if assignment.waiting is not None:
            assignment.waiting.watch(entry)
        if work.entry is None:
            self._done(work)
        if work.asked:
            work.assignment.asked(work.offset)
        steps.give_up(Suspended())

    def noticed(self, assignment: Assignment, entry: Entry, record: Mapping[str, Any]) -> None:
        """The journal says something that lets a message go on."""
        steps = assignment.steps.get(entry.offset)
        if steps is None:
            self._consider(assignment, entry.conversation_id)
        elif record["kind"] in DECISIONS:
            steps.decide(record)
