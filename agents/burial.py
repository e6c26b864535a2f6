"""Burial: what becomes of a message that can't be handled: a letter for people, and perhaps a conversation that waits.

One that fails for good is parked: what comes behind it in its conversation could build on it. One that is itself to
blame is passed over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import confluent_kafka

from llmagentos.agents.assignment import Assignment
from llmagentos.agents.context import Context
from llmagentos.agents.dead_letters import DeadLetters, Death
from llmagentos.agents.outputs import Outputs
from llmagentos.agents.work import Work
from llmagentos.streams.errors import RecordError, SchemaError
from llmagentos.streams.message import Message
from llmagentos.streams.ownership import kept
from llmagentos.streams.unfinished import Entry

__all__ = ["Burial"]

#: Failures of the handler, after which the conversation may not go on; of all others the message itself is to blame,
#: and the next one is handled.
_PARKED = ("failed", "timeout", "changed-code")


class Burial:
    """Gives up messages of one agent in one worker.

    Args:
        decode: a raw record to a message; raises RecordError, SchemaError.
        context: of an attempt at a message.
        pick: gets the record of a work from the inbox; whether it is still there.
        done: releases the offset of a work.
        forget: has the journal drop what it has of a message that is still in the inbox.
        broken: told of what ends the worker.
    """

    def __init__(
        self,
        agent: str,
        outputs: Outputs,
        dead_letters: DeadLetters,
        *,
        decode: Callable[[confluent_kafka.Message], Message],
        context: Callable[[Work, Message, int], Context],
        pick: Callable[[Work], Awaitable[bool]],
        done: Callable[[Work], None],
        forget: Callable[[Work], Awaitable[None]],
        broken: Callable[[BaseException], None],
    ) -> None:
        self._agent = agent
        self._outputs = outputs
        self._settings = outputs.settings
        self._dead_letters = dead_letters
        self._decode = decode
        self._context = context
        self._pick = pick
        self._done = done
        self._forget = forget
        self._broken = broken

    async def bury(
        self,
        work: Work,
        message: Message | None,
        cause: str,
        error: BaseException,
        *,
        attempts: int,
        ctx: Context | None = None,
    ) -> None:
        """A dead letter; and where the handler failed, the conversation waits from now on."""
        if not work.assignment.open:
            return
        entry, ownership = work.entry, work.assignment.ownership
        death = Death.by(error, cause, attempts)
        if message is not None and cause in _PARKED:
            # Before the letter: one who is not the owner any more must not write one.
            fields = {
                "offset": work.offset,
                "message_id": message.message_id,
                "cause": cause,
                "record": kept(work.record, self._settings.max_message_bytes),
                "detail": death.detail(),
            }
            await ownership.write("park", fields, conversation_id=work.conversation(message))
            self._say_dead(work, message, death, ctx)
            ownership.view.told(ownership.view.entries[work.offset])
        else:
            self._say_dead(work, message, death, ctx)
            if entry is not None:  # whoever is to find nothing in the journal must find the letter
                await self._outputs.producer.delivered()
                fields = {"offset": entry.offset, "message_id": entry.message_id}
                await ownership.write("drop", fields, conversation_id=entry.conversation_id)
            else:
                await self._forget(work)
        if entry is None:
            self._done(work)

    def _say_dead(self, work: Work, message: Message | None, death: Death, ctx: Context | None) -> None:
        """Its letter, and the answer to who asked."""
        self._dead_letters.add(self._agent, work.record, message, death)
        if message is not None and message.type != "event":
            ctx = ctx or self._context(work, message, 0)
            if not ctx.reply_sent:
                ctx.send_error(death.error, death.cause)

    async def tell(self, assignment: Assignment, untold: Sequence[Entry]) -> None:
        """Write the letters of what was parked by a worker that perhaps did not live to do so."""
        try:
            payloads = await assignment.ownership.payloads(untold)
            for entry in untold:
                found = payloads.get(entry.park)
                if found is None or entry.at != entry.park or not assignment.open:
                    continue  # it was run again meanwhile, or it is another's
                work = Work.restored(assignment, entry, found["record"])
                if work.record.value() is None and not await self._pick(work):
                    continue
                try:
                    message = self._decode(work.record)
                except (RecordError, SchemaError):  # it was decoded when it was parked: not so by this release
                    message = None
                self._say_dead(work, message, Death.restored(found["cause"], found["detail"]), None)
                assignment.ownership.view.told(entry)
        except Exception as error:  # noqa: BLE001 - whatever it was, they must not go without
            self._broken(error)
