"""An assignment: one time that an inbox partition was this worker's, and what it must know before it handles any."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, cast

import confluent_kafka
from faust.types import TP

from llmagentos.agents.answers import Answers
from llmagentos.agents.steps import Steps
from llmagentos.agents.waiting import Waiting
from llmagentos.streams.dedup import Dedup, identity_in
from llmagentos.streams.errors import NotOwner, RecordError, SchemaError
from llmagentos.streams.journal import Note
from llmagentos.streams.message import Message, asker_of
from llmagentos.streams.mirror import Mirror
from llmagentos.streams.ownership import Journal, Ownership
from llmagentos.streams.transport.sink import Start
from llmagentos.streams.unfinished import Conversation, Entry

__all__ = ["Assignment"]

log = logging.getLogger(__name__)

#: A worker that met a newer claim claims again after this, if the group still calls it owner: long enough for the
#: group to tell the other one, a heartbeat away, that it is not.
RECLAIM_S = 0.5


class Assignment:
    """One time that an inbox partition was this worker's.

    Attributes:
        open: whether it is still; once it is over, what finishes of it changes nothing.
        taken: messages of it that are in lanes.
        view: what the journal says is open, by conversation; entries: the same by offset; cancels: as of
            :class:`View`.
        waiting: takes what comes for messages in the journal.
        steps: of messages whose handlers run, by offset.
        dedup: the ids that are finished.
        memory: what its agent remembers of the conversations of this partition, where it does.
        journaled: offsets that the transport brings again though the journal has them: they are only to be released.
    """

    def __init__(
        self,
        tp: TP,
        start: Start,
        *,
        journal: Journal,
        journal_topic: str,
        answers: Answers,
        answers_topic: str,
        dedup_window: int,
        committed: Callable[[], int],
    ) -> None:
        self.tp = tp
        self.open = True
        self.taken = 0
        self.start = start
        self.dedup = Dedup(dedup_window, committed)
        self._committed = committed
        self.journaled: set[int] = set()
        self.view: Mapping[str, Conversation] = {}
        self.entries: Mapping[int, Entry] = {}
        self.cancels: Mapping[int, tuple[int, Mapping[str, Any]]] = {}
        self.waiting: Waiting | None = None
        self.steps: dict[int, Steps] = {}
        self.memory: Mirror | None = None
        self._journal = journal
        self._journal_topic = journal_topic
        self._answers = answers
        self._answers_topic = answers_topic
        self._window = dedup_window
        self._ownership: Ownership | None = None
        self._note = Note.parse(start.note)
        self._asking: dict[int, int] = {}  # offsets whose handlers asked -> where their answers can begin
        self._closed_at: int | None = None  # the position of its answers when it was over
        self._began_at = -1  # where the reading of answers began
        self._recovered_at = 0  # what lies below was in the inbox when it came here

    @property
    def ownership(self) -> Ownership:
        """The hold on its journal partition."""
        assert self._ownership is not None
        return self._ownership

    async def begin(
        self,
        superseded: Callable[[], None],
        decode: Callable[[confluent_kafka.Message], Message] | None,
        wait: Callable[[Ownership], Waiting],
    ) -> None:
        """Claim the journal, read it, and read back what finished lately.

        Args:
            superseded: called when a newer claim was met.
            wait: makes what takes the answers to messages in the journal.
            decode: reads records that bring no id in their headers; None: ids are made of places, so there are no
                twins.

        Raises:
            TopicError, BrokerError, DeliveryError: the journal can't be read or written.
        """
        tp, start = self.tp, self.start
        while True:
            try:
                self._ownership = await self._journal.claim(
                    self._journal_topic, tp.partition, self._note, lambda: superseded() if self.open else None
                )
                break
            except NotOwner:  # a late claim of one that is not owner any more
                if not self.open:
                    return
                await asyncio.sleep(RECLAIM_S)
        view = self._ownership.view
        self.view, self.entries, self.cancels = view.open, view.entries, view.cancels
        self.waiting = wait(self._ownership)
        self._answers.route(self._answers_topic, tp.partition, self._answered)
        await self._follow_answers()
        for entry in view.entries.values():
            if entry.state == "waiting":
                self.waiting.watch(entry)
        if start.offset is not None and decode is not None:
            await asyncio.to_thread(self._read_back, start.offset, decode)
        begin = start.offset or 0
        view.cover(begin)
        # One whose handler only recorded steps is still in the inbox, and handled when it comes from there. One of
        # which a newer release wrote may be there, too.
        open_ = (entry.offset for entry in view.entries.values() if entry.state not in ("open", "unknown"))
        # What ended, too: where a commit's metadata had no room for it, it would run again.
        self.journaled = {n for n in (*open_, *view.ended) if n >= begin and not self._listed(n)}

    async def _follow_answers(self) -> None:
        """Handlers that asked may run again here, and ask again: their answers may be there already.

        A note that says nothing was written before anybody asked: so whatever there is, is newer.
        """
        topic, partition = self._answers_topic, self.tp.partition
        at = self._note.answers
        if at < 0:
            at, end = await asyncio.to_thread(self._journal.spans.ends, topic, partition)
            if at == end and not any(entry.waits for entry in self.entries.values()):
                return  # who is suspended asked, though no commit has said so since
        self._began_at = at
        self._recovered_at = (await asyncio.to_thread(self._journal.spans.ends, self.tp.topic, partition))[1]
        await self._answers.follow(topic, partition, at)

    def _read_back(self, committed: int, decode: Callable[[confluent_kafka.Message], Message]) -> None:
        """Learn the ids of what is finished: below the committed offset, or listed beside it, and not open."""
        place = (self.tp.topic, self.tp.partition)
        opened = self.entries.keys()
        last = max((last for _, last in self.start.finished), default=-1)
        spans = [(max(0, committed - self._window), committed)]
        spans += [(first, last + 1) for first, last in self.start.finished]
        if last - committed < self._window:  # one reading is quicker than many
            spans = [(spans[0][0], max(committed, last + 1))]
        for span in spans:
            for batch in self._journal.spans.read({place: span}):
                for record in batch:
                    offset = cast(int, record.offset())
                    above = offset >= committed
                    if offset in opened or (above and not self._listed(offset)):
                        continue
                    headers: Any = record.headers()
                    identity = identity_in(headers) or _decoded_id(record, decode)
                    if identity is not None:
                        self.dedup.finished(identity, offset)

    def _listed(self, offset: int) -> bool:
        return any(first <= offset <= last for first, last in self.start.finished)

    def close(self) -> None:
        """It is over. Its note for the next owner is still to be had."""
        self.open = False
        if self._closed_at is None:
            self._closed_at = self._position()
        if self.waiting is not None:
            self.waiting.stop()
        if self._ownership is not None:
            self._ownership.end()
        self.close_memory()

    def close_memory(self) -> None:
        """No message begins any more: those that wait for what is remembered are told so."""
        if self.memory is not None:
            self.memory.close()

    def _answered(self, answer: Message, at: int) -> bool:
        """Whether an answer goes by the journal, or nowhere, as the message of who asked is finished."""
        assert self.waiting is not None
        if self.waiting.answered(answer, at):
            return True
        asker = asker_of(answer.caused_by or "")
        return asker is not None and asker < self._committed() and asker not in self.entries

    # -- the note for the next owner ----------------------------------------------------------------------------

    def _position(self) -> int:
        """Below this offset every answer was read, and is in the journal where that has to be."""
        if self._closed_at is not None:
            return self._closed_at
        position = self._answers.position(self._answers_topic, self.tp.partition)
        lowest = None if self.waiting is None else self.waiting.lowest
        return position if lowest is None else min(position, lowest)

    def asks(self, offset: int) -> None:
        """The handler of *offset* is about to ask: its answers come from here on."""
        if offset not in self._asking:
            self._asking[offset] = self._position()

    def asked(self, offset: int) -> None:
        """The handler of *offset* has ended."""
        self._asking.pop(offset, None)

    def note(self, committable: int) -> Note:
        """What a next owner needs to know, once *committable* is committed."""
        if self._ownership is None:
            return self._note
        answers = self._position()
        if self._asking:
            answers = min(answers, *self._asking.values())
        if self._began_at >= 0 and committable < self._recovered_at:
            answers = self._began_at  # what ran elsewhere before may ask again
        return self._ownership.note(committable, answers)


def _decoded_id(record: confluent_kafka.Message, decode: Callable[[confluent_kafka.Message], Message]) -> str | None:
    """The id of a message from a producer that puts none into the headers."""
    try:
        return decode(record).message_id
    except (RecordError, SchemaError):  # such a record became a dead letter when its turn came
        return None
