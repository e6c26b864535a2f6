"""Cancelling from outside: what of a conversation's cause tree is not finished, and telling its owners to end it.

Unfinished is what is in an inbox and not committed as finished, and what is open in a journal. Both are read whole,
from where the groups' commits say: which other conversations a handler asked in is known to nobody else.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import confluent_kafka

from llmagentos.streams.admin import Admin
from llmagentos.streams.conversations import Tree, kinds
from llmagentos.streams.entries import Decoder
from llmagentos.streams.errors import InputError, RecordError, SchemaError
from llmagentos.streams.gate import decode_finished
from llmagentos.streams.message import Message, child_id
from llmagentos.streams.position import BEGINNING, END
from llmagentos.streams.producer import MESSAGE_ID, Producer
from llmagentos.streams.saying import say
from llmagentos.streams.settings import Settings
from llmagentos.streams.tail import Log
from llmagentos.streams.views import Place, Served, Views
from llmagentos.streams.wire import Codec

__all__ = ["Cancellation", "Outcome", "Unfinished", "tells_error"]

#: The error that answers a message: its place among what an agent sends (agents/context.py).
_ERROR: Final = -1

#: cancelled; completed: its handler was done before; parked: it failed before; ended: it was a duplicate, or refused.
Outcome = Literal["cancelled", "completed", "parked", "ended"]


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A message that is not finished.

    Attributes:
        state: new: in its inbox, and nothing is known of its handler; open: its handler has recorded steps; waiting:
            suspended; held: behind others; parked: a dead letter, which is not to be cancelled.
        since: when it came, or was put in the journal; milliseconds since the epoch.
    """

    agent: str
    partition: int
    offset: int
    conversation_id: str
    root: str
    message_id: str
    state: str
    since: int

    @property
    def place(self) -> Place:
        """The inbox and journal partition that it is in."""
        return Place(self.agent, self.partition)


def tells_error(record: Mapping[str, Any], agent: str) -> bool:
    """Whether a completion of *agent*, as the journal has it, answers with an error: it was cancelled, or too late."""
    error = child_id(record["message_id"], agent, _ERROR).encode()
    sent = (header for output in record["outputs"] for header in output["headers"])
    return any(header["name"] == MESSAGE_ID and header["value"] == error for header in sent)


class Cancellation:
    """What is unfinished of the cause tree of one conversation. Blocks; one thread at a time.

    Args:
        served: by agent's name, as for :class:`Views`.

    Attributes:
        root: the conversation that the tree began with.
        views: of all journals.
        found: what was unfinished at first, by time.

    Raises:
        InputError: there is no such conversation, or it belongs to several trees.
        BrokerError, AccessError: the cluster is out of reach, or refuses; also by every method.
    """

    def __init__(
        self, settings: Settings, decoder: Decoder, served: Mapping[str, Served], log: Log, conversation: str
    ) -> None:
        self._settings = settings
        self._decoder = decoder
        self._log = log
        self._served = dict(served) | self._undeployed(served)
        self._open(conversation)
        found = list(self._all())
        self.root = self._root(conversation, found)
        if self.root != conversation:
            self.close()
            self._open(self.root)
            found = list(self._all())
        self.found = self._of_tree(found)

    @property
    def codec(self) -> Codec:
        """What it is decoded with."""
        return self._decoder.codec

    def close(self) -> None:
        """Let the client go."""
        self.views.close()

    def unfinished(self) -> list[Unfinished]:
        """All of it now, by time."""
        return self._of_tree(self._all())

    async def cancel(self, producer: Producer, each: Unfinished, *, by: str, why: str) -> None:
        """Tell the owner of *each* to end it.

        Raises:
            InputError: *why* is too long. DeliveryError: Kafka did not take it.
        """
        topic = self.views.topic(each.agent)
        await say(producer, self.codec, topic, each, "cancel", name="ctx.cancel", number=0, by=by, why=why)

    def outcomes(self, asked: Sequence[Unfinished]) -> dict[Unfinished, Outcome]:
        """What became of those of *asked* that are over."""
        self.views.refresh()
        found: dict[Unfinished, Outcome] = {}
        loose: dict[str, list[Unfinished]] = {}
        for each in asked:
            entry = self.views[each.place].entries.get(each.offset)
            end = self._ends.get((each.place, each.offset))
            if end is not None:
                found[each] = end
            elif entry is not None and entry.state == "parked" and not entry.wish:
                found[each] = "parked"
            elif entry is None or entry.state == "open":
                loose.setdefault(each.agent, []).append(each)
        for agent, several in loose.items():
            done = self.views.finished(agent, [(each.partition, each.offset) for each in several])
            for each in several:
                if (each.partition, each.offset) in done:
                    found[each] = self._ends.get((each.place, each.offset), "completed")
        return found

    # -- inside -------------------------------------------------------------------------------------------------

    def _of_tree(self, found: Iterable[Unfinished]) -> list[Unfinished]:
        mine = (each for each in found if each.root == self.root)
        return sorted(mine, key=lambda each: (each.since, each.agent, each.partition, each.offset))

    def _open(self, text: str) -> None:
        """Read what has *text* in it."""
        self._text = text.encode(errors="replace")
        self._kept: dict[tuple[Place, int], Message] = {}
        self._ends: dict[tuple[Place, int], Outcome] = {}
        self.views = Views(self._settings, self._decoder.codec, self._served, self._heard)
        stem = self._settings.topic("journal.")
        there = {name.removeprefix(stem): n for name, n in self._log.topics().items() if name.startswith(stem)}
        places = [Place(agent, number) for agent, count in there.items() for number in range(count)]
        self.views.add(places, time.time_ns() // 1_000_000, self._log)
        self._places = places

    def _heard(self, place: Place, record: Mapping[str, Any], at: int) -> None:
        subject = (place, record["offset"])
        kept = record["record"]
        if kept is not None and kept["value"] is not None and self._text in kept["value"]:
            topic = self.views.inbox(place.agent)
            message = self._message(kept["value"], topic, place.partition, record["offset"], kept["timestamp"])
            if message is not None:
                self._kept[subject] = message
        if record["kind"] not in ("done", "drop") or record["claim"] < self.views[place].claim:
            return
        told = tells_error(record, place.agent)
        self._ends[subject] = "ended" if record["kind"] == "drop" else "cancelled" if told else "completed"

    def _all(self) -> Iterator[Unfinished]:
        self.views.refresh()
        for place in self._places:
            for entry in self.views[place].entries.values():
                if entry.state not in ("waiting", "held", "parked"):
                    continue
                message = self._kept.get((place, entry.offset))
                if message is None and entry.conversation_id.encode(errors="replace") == self._text:
                    message = self._picked(place, entry.offset)
                root = entry.conversation_id if message is None else message.root_conversation
                if message is not None or self._foreign(place.agent):
                    state = "open" if entry.wish else entry.state
                    yield Unfinished(
                        *place, entry.offset, entry.conversation_id, root, entry.message_id, state, entry.since
                    )
        topics = self._log.topics()
        inboxes = {a: topics[of.topic] for a, of in self._served.items() if of.topic in topics and not self._foreign(a)}
        commits = self.views.commits(inboxes)
        for agent, partitions in inboxes.items():
            yield from self._inbox(agent, partitions, commits[agent])

    def _inbox(self, agent: str, partitions: int, commits: Mapping[int, tuple[int, str]]) -> Iterator[Unfinished]:
        """What is in the inbox of *agent* and not finished."""
        topic = self._served[agent].topic
        spans: dict[tuple[str, int], tuple[int, int]] = {}
        runs: dict[int, list[tuple[int, int]]] = {}
        for partition in range(partitions):
            offset, metadata = commits.get(partition, (0, ""))  # nothing is committed before the first is done
            low, end = self.views.spans.ends(topic, partition)
            runs[partition] = list(decode_finished(offset, metadata))
            if (start := max(low, offset)) < end:
                spans[topic, partition] = (start, end)
        for batch in self.views.spans.read(spans):
            for record in batch:
                if self._text not in (record.value() or b""):
                    continue
                partition, at = cast(int, record.partition()), cast(int, record.offset())
                view = self.views[Place(agent, partition)]
                entry = view.entries.get(at)
                if any(first <= at <= last for first, last in runs[partition]) or at in view.ended:
                    continue
                if (entry is not None and entry.state != "open") or (message := self._read(record)) is None:
                    continue
                yield Unfinished(
                    agent,
                    partition,
                    at,
                    message.conversation_id,
                    message.root_conversation,
                    message.message_id,
                    "new" if entry is None else "open",
                    message.timestamp,
                )

    def _undeployed(self, served: Mapping[str, Served]) -> dict[str, Served]:
        """Agents that have an inbox and no card: whoever deploys them again goes on with what lies there.

        Which group served one is told by its commits; where there are none, all of its inbox is unfinished.
        """
        stem = self._settings.topic("agent.")
        left = {t for t in self._log.topics() if t.startswith(stem) and t.removeprefix(stem) not in served}
        found = dict.fromkeys(left, "")
        admin = Admin(self._settings)
        for group in admin.groups() if left else ():
            found |= {topic: group for topic, _ in admin.commits(group, left)}
        return {topic.removeprefix(stem): Served(group, topic) for topic, group in found.items()}

    def _picked(self, place: Place, offset: int) -> Message | None:
        """One that was too large for the journal."""
        found = self.views.spans.pick(self.views.inbox(place.agent), place.partition, [offset])
        return self._read(found[offset]) if offset in found else None

    def _read(self, record: confluent_kafka.Message) -> Message | None:
        at = cast(int, record.offset())
        value = record.value() or b""
        return self._message(value, cast(str, record.topic()), record.partition() or 0, at, record.timestamp()[1])

    def _message(self, value: bytes, topic: str, partition: int, offset: int, timestamp: int) -> Message | None:
        try:
            return self._decoder.codec.message(value, topic, partition, offset, timestamp)
        except (RecordError, SchemaError):  # it becomes a dead letter when its turn comes
            return None

    def _foreign(self, agent: str) -> bool:
        """Whether it reads a topic of others, whose records don't say which conversation they belong to."""
        return self.views.inbox(agent) != self._settings.topic(f"agent.{agent}")

    def _root(self, conversation: str, found: Sequence[Unfinished]) -> str:
        roots = {each.root for each in found if each.conversation_id == conversation}
        if conversation in roots or any(each.root == conversation for each in found):
            return conversation
        if not roots:
            topics = self._log.topics()
            tree = Tree(self._settings, conversation, {name: topics[name] for name in kinds(self._settings, topics)})
            messages = (entry.message for entry in tree.read(self._log, self._decoder, BEGINNING, END))
            roots = {m.root_conversation for m in messages if m is not None and m.conversation_id == conversation}
        if not roots:
            raise InputError(
                f"no message of conversation {conversation!r} is in any agent's inbox or journal",
                fix="`llmagentos conversations` lists the recent ones",
            )
        if len(roots) > 1 and conversation not in roots:
            raise InputError(
                f"conversation {conversation} belongs to several: {', '.join(sorted(roots)[:10])}",
                fix="name the one that is meant",
            )
        return conversation if conversation in roots else roots.pop()
