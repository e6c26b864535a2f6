"""Ownership: one worker's hold on the journal partitions of its inboxes, from its claim to a newer one.

A record counts for its own writer only once it was read back with no newer claim before it. So a worker that was
frozen while another took over learns that its records are void before it has released, sent or started anything
because of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import confluent_kafka

from llmagentos.streams.delivery import Delivery
from llmagentos.streams.errors import BrokerError, DeliveryError, NotOwner, RecordError, RecordTooLarge, SchemaError
from llmagentos.streams.follower import Follower
from llmagentos.streams.journal import Note, View
from llmagentos.streams.journal_record import BLANK, COMMANDS, KINDS, SUBJECT, Kind
from llmagentos.streams.producer import Producer
from llmagentos.streams.settings import Settings
from llmagentos.streams.spans import Spans
from llmagentos.streams.topology import named
from llmagentos.streams.unfinished import Entry
from llmagentos.streams.wire import Codec

__all__ = ["Journal", "Ownership", "copies", "kept", "places_of", "restored"]

log = logging.getLogger(__name__)

#: How often completions that were sent are said to be; what was not said is sent again after a crash.
SENT_S = 0.2
#: How often a look is taken at what should be copied forward: a partition writes a few thousand records meanwhile.
CLEAN_S = 1.0
#: A journal this long is cleaned, once it is four times as long as what is open in it: then each record is copied
#: less than once for three that were written. A new owner reads 10,000 records in a quarter of a second (`make bench
#: NAME=recover`); with 50,000 it was above a second late.
CLEAN_RECORDS = 10_000
CLEAN_FACTOR = 4
#: Entries that are copied at once, and seconds from one copy to the next, so that handlers get their turn.
CLEAN_BATCH, CLEAN_PAUSE_S = 500, 0.1
#: What has been in the journal for half of its retention is written again.
CLEAN_AGE_MS = (named("journal.NAME").retention_ms or 0) // 2
#: How often a look is taken for such: retention is days.
CLEAN_AGE_S = 60.0
#: The rest of a journal record beside what it keeps: 2,000 bytes for its own fields, and a park's detail.
RECORD_ROOM = 6_000


class Ownership:
    """One worker's hold on one journal partition. Made by :meth:`Journal.claim`.

    Attributes:
        view: what the journal says, up to what was read back.
    """

    def __init__(
        self, journal: Journal, topic: str, partition: int, note: Note, superseded: Callable[[], None]
    ) -> None:
        self._journal = journal
        self.topic = topic
        self.partition = partition
        self._claim = -1
        self._writer = f"{journal.writer}#{uuid.uuid4().hex[:8]}"
        self._superseded = superseded
        self._over = False
        self._reading = False  # whether a record of this following of the partition came
        self._waiting: dict[int, asyncio.Future[None]] = {}  # by the journal offset that is to be read back
        self.view = View(note.low, note.claim)

    @property
    def epoch(self) -> int:
        """The offset of its claim: higher than that of every earlier owner."""
        return self._claim

    @property
    def over(self) -> bool:
        """Whether it has ended: given up, or superseded by a newer claim."""
        return self._over

    async def claim(self) -> None:
        """Append the claim, and read the journal up to it.

        Raises:
            NotOwner: another worker's newer claim came between. DeliveryError: Kafka did not take it.
        """
        await self._journal.follow(self)
        await self._append("claim", {}, key=None)

    async def write(self, kind: Kind, entry: Mapping[str, Any], *, conversation_id: str) -> int:
        """Append a record, and wait until it was read back.

        Args:
            entry: fields of journal.avsc.

        Returns:
            Its offset in the journal.

        Raises:
            NotOwner: it is void, as another worker owns the partition now.
            RecordTooLarge: it was not written. DeliveryError: Kafka did not take it.
        """
        return await self._append(kind, entry, key=conversation_id)

    async def _append(self, kind: Kind, entry: Mapping[str, Any], key: str | None) -> int:
        if self._over:
            raise self._not_owner()
        at = (await self._journal.post(self, kind, self._claim, entry, key)).offset
        if at < 0:
            raise self._journal.nowhere(self)
        if not self._over and self.view.position <= at:  # what ended while Kafka took it is read back by nobody
            future = self._waiting[at] = asyncio.get_running_loop().create_future()
            await future
        if self._over:
            raise self._not_owner()
        return at

    def read(self, record: Mapping[str, Any], at: int) -> None:
        """The follower brought the record at *at*."""
        position = self.view.position
        if self._over or at < position or (at > position and not self._reading):  # of an earlier following
            return
        self._reading = True
        if at > position:
            log.error(
                "%s[%d]: the records %d to %d are missing from the log. What they said is unknown: a message whose"
                " steps were among them runs again, or is parked where it is known to have had some",
                self.topic, self.partition, position, at - 1,
            )  # fmt: skip
            self.view.position = at
            self._missing(at)
        if record.get("kind") == "claim":
            if record["writer"] == self._writer:
                self._claim = at
            elif self._claim >= 0:
                self._end()
                log.warning("%s[%d]: %s claimed it too", self.topic, self.partition, record["writer"])
                self._superseded()
                return
        entry = self.view.fold(record, at)
        if record["kind"] not in KINDS:
            log.error(
                "%s[%d]@%d, by %s, is a journal record of kind %r, which this release does not know: %s waits until a"
                " release that knows it serves the agent; all others go on",
                self.topic, self.partition, at, record["writer"], record["kind"],
                f"conversation {record['conversation_id']}" if entry is not None else "nobody",
            )  # fmt: skip
        waiting = self._waiting.pop(at, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        if record["kind"] == "cancel":
            if at == self.view.cancels.get(record["offset"], (-1,))[0]:
                self.cancelled(record["offset"])
        elif entry is not None and (entry.ready or record["kind"] in COMMANDS):
            self.noticed(entry, record)

    def _missing(self, below: int) -> None:
        """Own records that lie below will not be read back, though Kafka acknowledged them."""
        for place in [place for place in self._waiting if place < below]:
            future = self._waiting.pop(place)
            if not future.done():
                future.set_exception(
                    BrokerError(
                        f"{self.topic}[{self.partition}]@{place} was acknowledged, and is missing from the log",
                        fix="see the brokers' logs for an unclean election of a leader",
                    )
                )

    #: Told of what lets a message go on: a person's command, or the result that its handler waited for. Set by the
    #: inbox.
    noticed: Callable[[Entry, Mapping[str, Any]], None] = staticmethod(lambda entry, record: None)
    #: Told of offsets in the inbox that are to be cancelled. Set by the inbox.
    cancelled: Callable[[int], None] = staticmethod(lambda offset: None)

    def end(self) -> None:
        """Give it up: the partition is another worker's."""
        if not self._over:
            self._end()

    def _end(self) -> None:
        self._over = True
        self._journal.unfollow(self)
        for future in self._waiting.values():
            if not future.done():
                future.set_result(None)  # they look at `over`
        self._waiting.clear()

    def _not_owner(self) -> NotOwner:
        return NotOwner(
            f"{self._journal.writer} does not own {self.topic}[{self.partition}] any more",
            kept="the message: its owner handles it",
        )

    def note(self, committable: int, answers: int) -> Note:
        """What a next owner needs to know; travels with the commit of *committable*."""
        self.view.cover(committable)
        low = self.view.low()
        return Note(low, self.view.claim_below(low), answers)

    async def payloads(self, entries: Sequence[Entry]) -> dict[int, dict[str, Any]]:
        """The journal records that have the payloads and steps of *entries*, by their journal offsets."""
        return await self._journal.payloads(self, [place for entry in entries for place in places_of(entry)])


class Journal:
    """The journals of one worker's agents: one reader for all their partitions, and the way to write.

    Args:
        writer: the worker's name.
        broken: told of what ends the worker.
    """

    def __init__(
        self,
        settings: Settings,
        producer: Producer,
        codec: Codec,
        *,
        writer: str,
        broken: Callable[[BaseException], None],
    ) -> None:
        self.writer = writer
        self._producer = producer
        self._codec = codec
        self._broken = broken
        self._encode = codec.writer(SUBJECT, "journal")
        self._limit = settings.max_message_bytes
        self._owned: dict[tuple[str, int], Ownership] = {}
        self._follower = Follower(settings, self._deliver, name=f"{writer}-journal")
        self._spans = Spans(settings, name=f"{writer}-spans")
        self._tasks = [asyncio.create_task(self._say_sent()), asyncio.create_task(self._clean())]

    @property
    def spans(self) -> Spans:
        """The worker's reader of stretches."""
        return self._spans

    async def claim(self, topic: str, partition: int, note: Note, superseded: Callable[[], None]) -> Ownership:
        """Own the journal partition from now on; returns when the journal was read up to the claim.

        Args:
            note: of the commit with which the inbox partition was assigned.
            superseded: called once, when a newer claim was met.

        Raises:
            NotOwner: a newer claim was met meanwhile.
            TopicError, BrokerError, DeliveryError: the journal can't be read or written.
        """
        place = (topic, partition)
        earlier = self._owned.get(place)
        if earlier is not None:
            earlier.end()
        ownership = self._owned[place] = Ownership(self, topic, partition, note, superseded)
        await ownership.claim()
        return ownership

    async def follow(self, ownership: Ownership) -> None:
        """Read the partition of *ownership* from where its view begins, or the log."""

        view = ownership.view

        def starting(offset: int) -> None:
            if offset > view.position > 0:
                log.warning(
                    "%s[%d]: the records %d to %d are gone, by retention most likely: what was still open in them is"
                    " forgotten",
                    ownership.topic, ownership.partition, view.position, offset - 1,
                )  # fmt: skip
            view.position = offset

        await self._follower.follow(ownership.topic, ownership.partition, view.position, starting=starting)

    def unfollow(self, ownership: Ownership) -> None:
        """Read it no more."""
        place = (ownership.topic, ownership.partition)
        if self._owned.get(place) is ownership:
            del self._owned[place]
            self._follower.unfollow([place])

    def post(self, ownership: Ownership, kind: Kind, claim: int, entry: Mapping[str, Any], key: str | None) -> Delivery:
        """Append a record; its delivery is to be awaited."""
        value = self._encode(
            {
                "kind": kind,
                "writer": ownership._writer,  # pyright: ignore[reportPrivateUsage]
                "at": time.time_ns() // 1_000_000,
                **BLANK,
                **entry,
                "claim": claim,
                "conversation_id": key or "",
            }
        )
        if len(value) > self._limit:
            raise RecordTooLarge(
                f"the {kind} record of message {entry.get('message_id')} in conversation {key} is {len(value):,} bytes;"
                f" the limit is {self._limit:,}",
                cause="too-large",
                fix="send less from one handler, or raise LLMAGENTOS_MAX_MESSAGE_BYTES and the topic's"
                " max.message.bytes",
            )
        return self._producer.post(
            ownership.topic, value, None if key is None else key.encode(), ownership.partition, kind=Delivery
        )

    async def payloads(self, ownership: Ownership, places: Iterable[int]) -> dict[int, dict[str, Any]]:
        """The records at *places* of the partition, by offset."""
        found = await asyncio.to_thread(self._spans.pick, ownership.topic, ownership.partition, places)
        return {at: self._codec.decode(record.value() or b"") for at, record in found.items()}

    async def say_sent(self, owned: Iterable[Ownership]) -> None:
        """Say of completions and parks that what they tell is sent; waits until it is.

        Raises:
            DeliveryError: a send failed.
        """
        below = [(each, each.view.sent_below()) for each in owned if each.view.news]
        if not below:
            return
        await self._producer.delivered()
        for each, place in below:
            if not each.over:
                self.post(each, "sent", each._claim, {"refers": place}, None)  # pyright: ignore[reportPrivateUsage]

    def nowhere(self, ownership: Ownership) -> NotOwner:
        """Kafka has a record and does not say where, so that nobody can tell when it was read back: end the worker.

        The next owner reads it with all others.
        """
        place = f"{ownership.topic}[{ownership.partition}]"
        self._broken(DeliveryError(f"{place}: a record is there, but its offset was lost with a broker's answer"))
        return NotOwner(f"{self.writer} gives up {place}, as it can't tell where its last record is", kept="all of it")

    async def quiesce(self) -> None:
        """Do nothing any more of its own accord; what is owned may still write."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def stop(self) -> None:
        """End everything that is owned, and the readers."""
        await self.quiesce()
        for ownership in list(self._owned.values()):
            ownership.end()
        await self._follower.stop()
        await asyncio.to_thread(self._spans.close)

    def _deliver(self, records: Sequence[confluent_kafka.Message]) -> None:
        for record in records:
            ownership = self._owned.get((record.topic() or "", record.partition() or 0))
            if ownership is None:
                continue
            at = record.offset() or 0
            try:
                entry: Mapping[str, Any] = self._codec.decode(record.value() or b"")
            except RecordError as error:  # nobody else may write here
                log.critical("%s[%d]@%d is no journal record and is passed over: %s", record.topic(),
                             ownership.partition, at, error)  # fmt: skip
                entry = {"kind": "sent", "claim": -1, "refers": -1, "offset": -1}
            except SchemaError as error:
                self._broken(error)
                return
            ownership.read(entry, at)

    # -- in the background --------------------------------------------------------------------------------------

    async def _say_sent(self) -> None:
        """Say of completions that their outputs were sent, so that a next owner need not send them again."""
        while True:
            await asyncio.sleep(SENT_S)
            try:
                await self.say_sent(self._owned.values())
            except Exception as error:  # noqa: BLE001 - a send that failed
                self._broken(error)
                return

    async def _clean(self) -> None:
        """Copy what stays open to the end of the journal, so that what lies before it is needed no more."""
        age_at = time.monotonic()
        while True:
            await asyncio.sleep(CLEAN_S)
            aged = time.monotonic() > age_at
            if aged:
                age_at = time.monotonic() + CLEAN_AGE_S
            for owned in list(self._owned.values()):
                view = owned.view
                below = view.position - max(CLEAN_RECORDS, CLEAN_FACTOR * len(view))
                if view.low() >= below and not aged:
                    continue
                entries = view.movable(below, time.time_ns() // 1_000_000 - CLEAN_AGE_MS)
                try:
                    for first in range(0, len(entries), CLEAN_BATCH):
                        await self._copy(owned, entries[first : first + CLEAN_BATCH])
                        await asyncio.sleep(CLEAN_PAUSE_S)
                        if owned.over:
                            break
                except Exception as error:  # noqa: BLE001
                    self._broken(error)
                    return

    async def _copy(self, owned: Ownership, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        found = await owned.payloads(entries)
        last: Delivery | None = None
        for entry in entries:
            conversation = owned.view.open.get(entry.conversation_id)
            # Looked at again, with no await before it is handed to the producer: see View.movable.
            if owned.over or conversation is None or not conversation.waits:
                continue
            if owned.view.entries.get(entry.offset) is entry and found.keys() >= places_of(entry):
                for fields in copies(entry, found):
                    last = self.post(owned, "copy", owned._claim, fields, entry.conversation_id)  # pyright: ignore[reportPrivateUsage]
        if last is not None:
            await last


def places_of(entry: Entry) -> set[int]:
    """Where in the journal the payload, an edited one too, and the steps of *entry* are."""
    return {place for place in (entry.at, entry.payload_at, *(at for _, at in entry.steps or ())) if place >= 0}


def copies(entry: Entry, found: Mapping[int, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The fields of the copies of *entry*: its steps, and then its payload.

    With the last of them what was before is needed no more; who begins to read at the first has all of it.

    Args:
        found: the records at :func:`places_of` it; of one that is gone, the message is then looked for in the inbox.
    """
    same = {"offset": entry.offset, "message_id": entry.message_id}
    for first, place in entry.steps or ():
        if place in found:
            yield same | {"refers": first, "step": found[place]["step"], "at": found[place]["at"]}
    # With an edited message comes the wish to run it, and that is copied by itself.
    payload = found.get(entry.at if entry.wish else entry.payload_at, {})
    yield same | {
        "state": entry.state,
        "refers": entry.park,
        "cause": payload.get("cause", ""),
        "record": payload.get("record"),
        "detail": payload.get("detail", {}),
        "waits": [wait._asdict() for wait in entry.waits],
    }


def kept(record: confluent_kafka.Message, limit: int) -> dict[str, Any] | None:
    """A Kafka record as the journal keeps it; None where a journal record of *limit* bytes has no room for it."""
    headers = [
        {"name": name, "value": value.encode() if isinstance(value, str) else value}
        for name, value in record.headers() or ()
    ]
    size = len(record) + len(record.key() or b"")
    if size + sum(len(name) + len(value or b"") for name, value in record.headers() or ()) > limit - RECORD_ROOM:
        return None
    return {
        "key": record.key(),
        "value": record.value(),
        "headers": headers,
        "timestamp": record.timestamp()[1],
    }


def restored(entry: Mapping[str, Any], topic: str, partition: int, offset: int) -> confluent_kafka.Message:
    """The Kafka record that :func:`kept` made *entry* of, as it was read."""
    return confluent_kafka.Message(
        topic=topic,
        partition=partition,
        offset=offset,
        key=entry["key"],
        value=entry["value"],
        headers=[(h["name"], h["value"]) for h in entry["headers"]],
        timestamp=(1, entry["timestamp"]),
    )
