"""History: the dialogue of a conversation up to a message, as far as topics have it.

It is read anew from the partitions that can hold the conversation, and kept nowhere. A rerun is given the same
messages: their places are recorded as a step's result, some 60 bytes each, where their bodies would be written to the
journal again and again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Final

from llmagentos.streams.conversations import Tree, kinds
from llmagentos.streams.entries import Decoder
from llmagentos.streams.message import Message
from llmagentos.streams.position import BEGINNING, END
from llmagentos.streams.settings import Settings
from llmagentos.streams.spans import Spans
from llmagentos.streams.tail import Log
from llmagentos.streams.wire import Codec

__all__ = ["MOST", "History", "Place"]

#: Messages that a call gives at most: their places are within a journal record of 100 kB.
MOST: Final = 1_000

#: What a dialogue consists of; tokens are parts of a result, and events and control are about it.
_SAID: Final = frozenset({"command", "task", "result", "error"})

#: Topic, partition, offset.
Place = tuple[str, int, int]


class History:
    """One worker's reader of dialogues. Blocking, thread-safe, one reading at a time: a client costs threads."""

    def __init__(self, settings: Settings, codec: Codec) -> None:
        self._settings = settings
        self._codec = codec
        self._decoder: Decoder | None = None
        self._log: Log | None = None
        self._spans: Spans | None = None
        self._lock = threading.Lock()

    def before(self, message: Message, limit: int) -> list[Message]:
        """The last *limit* messages of the conversation before *message*, each followed by what came of it.

        Raises:
            InputError: the conversation, with all that came of it, is too large to be sorted.
            BrokerError, SchemaError: the cluster, or the registry, does not answer.
        """
        with self._lock:
            if self._log is None or self._decoder is None:
                self._log = Log(self._settings)
                self._decoder = Decoder(self._settings, self._codec)
            topics = self._log.topics()
            names = [topic for topic in kinds(self._settings, topics) if not self._is_letters(topic)]
            tree = Tree(self._settings, message.conversation_id, {name: topics[name] for name in names})
            entries = tree.read(self._log, self._decoder, BEGINNING, END)
        return dialogue((entry.message for entry in entries if entry.message is not None), message)[-limit:]

    def at(self, places: Sequence[Place]) -> list[Message]:
        """The messages at *places*, in that order; without those that retention has taken."""
        wanted: dict[tuple[str, int], list[int]] = {}
        for topic, partition, offset in places:
            wanted.setdefault((topic, partition), []).append(offset)
        found: dict[Place, Message] = {}
        with self._lock:
            self._spans = self._spans or Spans(self._settings, name="history")
            for (topic, partition), offsets in wanted.items():
                low, _ = self._spans.ends(topic, partition)
                there = [offset for offset in offsets if offset >= low]
                for offset, record in self._spans.pick(topic, partition, there).items():
                    found[topic, partition, offset] = self._codec.read(record)
        return [found[t, p, o] for t, p, o in places if (t, p, o) in found]

    def close(self) -> None:
        """Let its clients go."""
        with self._lock:
            if self._log is not None:
                self._log.__exit__()
            if self._spans is not None:
                self._spans.close()

    def _is_letters(self, topic: str) -> bool:
        return topic.startswith(self._settings.topic("dead."))


def dialogue(said: Iterable[Message], message: Message) -> list[Message]:
    """Of what was *said* in time order: what comes before *message*, each with what came of it behind it."""
    known: dict[str, Message] = {}
    for one in said:
        if one.conversation_id != message.conversation_id or one.type not in _SAID or one.message_id in known:
            continue
        if one.message_id == message.message_id:
            continue
        if (one.topic, one.partition) == (message.topic, message.partition):
            earlier = one.offset < message.offset  # in the order in which they are handled
        else:  # an answer to an earlier message may be younger than this one, which waited its turn
            earlier = one.timestamp < message.timestamp or one.record["caused_by"] in known
        if earlier:
            known[one.message_id] = one
    came_of: dict[str, list[Message]] = {}
    roots: list[Message] = []
    for one in known.values():
        cause = one.record["caused_by"]
        (came_of.setdefault(cause, []) if cause in known else roots).append(one)
    ordered: list[Message] = []
    rest = roots[::-1]
    while rest:
        one = rest.pop()
        ordered.append(one)
        rest += came_of.pop(one.message_id, [])[::-1]
    return ordered
