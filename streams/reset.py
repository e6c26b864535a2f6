"""Reset: a group's history runs again from an earlier place, or goes on from a later one, on purpose.

Workers are gone meanwhile, so this acts as an owner would. It claims the journal partition of each inbox partition,
writes again what is open of messages *below* the new offset, and then commits the new offsets, with a note that the
journal counts from that claim on. So what the journal had of messages at or above the new offset is forgotten with
the one commit: they come from the inbox again. Killed before the commit it has changed nothing; after it, it is done.

The ids of finished messages are read back from below the committed offset only, so those above run again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmagentos.streams.admin import Admin
from llmagentos.streams.errors import BrokerError, InputError, NotOwner
from llmagentos.streams.gate import CommitGate, decode_finished, decode_note
from llmagentos.streams.journal import Note
from llmagentos.streams.journal_record import Kind
from llmagentos.streams.ownership import Journal, Ownership, copies, places_of
from llmagentos.streams.position import END, Position
from llmagentos.streams.producer import Producer
from llmagentos.streams.settings import Settings
from llmagentos.streams.tail import Log
from llmagentos.streams.unfinished import Entry
from llmagentos.streams.views import Place, Served, Views
from llmagentos.streams.wire import Codec

__all__ = ["Move", "Target", "apply", "plan"]

#: Journal records under way at once: 500 of 1 kB are half a megabyte.
AT_ONCE = 500

_PARTS = re.compile(r"\d+:\d+(,\d+:\d+)*")


@dataclass(frozen=True, slots=True)
class Target:
    """Where to go: one position for all partitions, or offsets of some.

    Attributes:
        offsets: by partition; where given, the others stay.
    """

    position: Position | None = None
    offsets: Mapping[int, int] | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read what a person wrote: `-1h`, `2026-11-21T08:30`, `beginning`, `1200`, or `0:1200,3:980`.

        Raises:
            InputError: it is none of these.
        """
        if _PARTS.fullmatch(text.strip()):
            pairs = [part.split(":") for part in text.strip().split(",")]
            return cls(offsets={int(partition): int(offset) for partition, offset in pairs})
        return cls(position=Position.parse(text, "--to"))


@dataclass(frozen=True, slots=True)
class Move:
    """What a reset does to one inbox partition.

    Attributes:
        committed: the committed offset now; where the log begins, if none is.
        to: the new one.
        low, end: the first offset that is kept, and the one that comes next.
        again: messages that were handled and run again, at most: holes in the log count.
        left_out: messages that were not handled, and never will be.
        parked, held: messages at or above `to` that wait in the journal now; they run again, or are left out, too.
        waiting: messages below `to` that go on waiting in the journal.
    """

    agent: str
    topic: str
    partition: int
    committed: int
    to: int
    low: int
    end: int
    again: int
    left_out: int
    parked: int
    held: int
    waiting: int

    @property
    def changes(self) -> bool:
        """Whether anything is other than before."""
        return bool(self.again or self.left_out or self.parked or self.held or self.to != self.committed)


def plan(settings: Settings, codec: Codec, group: str, inputs: Mapping[str, str], target: Target) -> list[Move]:
    """What going to *target* would do; changes nothing.

    Args:
        inputs: the topic that each agent reads.

    Raises:
        InputError: there is no such partition, or offset. BrokerError: the cluster does not answer.
    """
    admin = Admin(settings)
    commits = admin.commits(group, list(inputs.values()))
    views = Views(settings, codec, {agent: Served(group, topic) for agent, topic in inputs.items()})
    try:
        with Log(settings) as log:
            topics = log.topics()
            places = {
                Place(agent, partition): (topic, partition)
                for agent, topic in inputs.items()
                for partition in range(topics[topic])
                if target.offsets is None or partition in target.offsets
            }
            for partition in target.offsets or ():
                if not any(place.partition == partition for place in places):
                    raise InputError(f"--to names partition {partition}, which none of these agents' topics has")
            spans = log.spans(list(places.values()), target.position or END, END)
            views.add(places, 0, log)
        views.refresh()
        moves: list[Move] = []
        for (place, where), span in zip(places.items(), spans, strict=True):
            to = span.start if target.offsets is None else target.offsets[place.partition]
            if not span.low <= to <= span.stop:
                raise InputError(
                    f"--to: {where[0]}[{where[1]}] has offsets {span.low} to {span.stop}, not {to}",
                    fix="give one of these, or a time",
                )
            committed, metadata = commits.get(where, (span.low, ""))
            moves.append(_move(place, where[0], committed, metadata, to, span.low, span.stop, _open(views, place)))
        return moves
    finally:
        views.close()


def _open(views: Views, place: Place) -> list[Entry]:
    return list(views[place].entries.values())


def _move(
    place: Place, topic: str, committed: int, metadata: str, to: int, low: int, end: int, waiting: Sequence[Entry]
) -> Move:
    finished = [(first, last + 1) for first, last in decode_finished(committed, metadata)]
    above = [entry for entry in waiting if entry.offset >= to]
    below = {entry.offset for entry in waiting}
    if to < committed:
        handled = committed - max(to, low) + sum(last - first for first, last in finished)
        again = handled - sum(entry.state != "done" for entry in above)
        left_out = 0
    else:
        again = 0
        done = sum(max(0, min(last, to) - first) for first, last in finished)
        left_out = max(0, to - max(committed, low)) - done - sum(committed <= offset < to for offset in below)
    return Move(
        agent=place.agent,
        topic=topic,
        partition=place.partition,
        committed=committed,
        to=to,
        low=low,
        end=end,
        again=again,
        left_out=left_out,
        parked=sum(entry.state == "parked" for entry in above),
        held=sum(entry.state == "held" for entry in above),
        waiting=len(waiting) - len(above),
    )


async def apply(settings: Settings, codec: Codec, group: str, moves: Sequence[Move], writer: str) -> None:
    """Do it. Nobody may be a member of the group.

    Args:
        writer: who asks for it, for the journal.

    Raises:
        BrokerError: the cluster does not answer, or the group has a member; then nothing has changed.
    """
    admin = Admin(settings)
    commits = await asyncio.to_thread(admin.commits, group, {move.topic for move in moves})
    broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(error: BaseException) -> None:
        if not broken.done():
            broken.set_exception(error)

    async with Producer(settings) as producer:
        journal = Journal(settings, producer, codec, writer=writer, broken=fail)
        try:
            work = asyncio.ensure_future(_offsets(settings, journal, commits, moves))
            await asyncio.wait((work, broken), return_when=asyncio.FIRST_COMPLETED)
            if broken.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                broken.result()
            await asyncio.to_thread(admin.commit, group, work.result())
        finally:
            await journal.stop()
            broken.cancel()


async def _offsets(
    settings: Settings, journal: Journal, commits: Mapping[tuple[str, int], tuple[int, str]], moves: Sequence[Move]
) -> dict[tuple[str, int], tuple[int, str]]:
    """Take the journals over; returns what is to be committed then."""
    offsets: dict[tuple[str, int], tuple[int, str]] = {}
    for move in moves:
        committed, metadata = commits.get((move.topic, move.partition), (move.low, ""))
        note = Note.parse(decode_note(metadata))
        topic = settings.topic(f"journal.{move.agent}")
        try:
            ownership = await journal.claim(topic, move.partition, note, lambda: None)
            began = ownership.view.claim
            ended = [(offset, offset) for offset in ownership.view.ended]
            await _keep(journal, ownership, move.to)
        except NotOwner as error:
            raise BrokerError(
                f"a worker took {move.topic}[{move.partition}] over meanwhile",
                fix="stop all workers of the deployment, on other machines too, and reset again",
                kept="the committed offsets, as they were",
            ) from error
        # Forwards, what finished beyond it stays finished; backwards, all is to run again.
        finished = sorted([*decode_finished(committed, metadata), *ended]) if move.to >= committed else []
        gate = CommitGate(move.to, [(max(first, move.to), last) for first, last in finished if last >= move.to])
        # A handler that asked before asks again with the same id: the answer that it got then is to be found.
        carried = Note(began, -1, 0 if note.answers >= 0 else -1)
        offsets[move.topic, move.partition] = (move.to, gate.metadata(note=str(carried)))
    return offsets


async def _keep(journal: Journal, ownership: Ownership, below: int) -> None:
    """Write again what is open of messages below the offset *below*, with what people want of it."""
    entries = ownership.view.entries.values()
    kept = sorted((entry for entry in entries if entry.offset < below), key=lambda entry: entry.offset)
    for first in range(0, len(kept), AT_ONCE):
        some = kept[first : first + AT_ONCE]
        wishes: list[tuple[Entry, Kind, int]] = [(entry, entry.wish, entry.wish_at) for entry in some if entry.wish]
        places = [place for entry in some for place in (*places_of(entry), entry.wish_at) if place >= 0]
        found = await journal.payloads(ownership, places)
        await asyncio.gather(*[_again(ownership, entry, found) for entry in some])
        for entry, wish, at in wishes:
            if at in found:
                fields = {name: found[at][name] for name in ("offset", "message_id", "refers", "record", "detail")}
                await journal.post(ownership, wish, -1, fields, entry.conversation_id)


async def _again(ownership: Ownership, entry: Entry, found: Mapping[int, Mapping[str, Any]]) -> None:
    fields: dict[str, Any] = {"offset": entry.offset, "message_id": entry.message_id}
    if entry.state == "done":
        outputs = found[entry.at]["outputs"] if entry.at in found else []
        await ownership.write("done", fields | {"outputs": outputs}, conversation_id=entry.conversation_id)
    elif entry.state == "open":  # it lies in the inbox below where all goes on
        await ownership.write("drop", fields, conversation_id=entry.conversation_id)
    else:
        for copy in copies(entry, found):
            await ownership.write("copy", copy, conversation_id=entry.conversation_id)
