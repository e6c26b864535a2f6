"""What to read for names that a person gives: topics or agents, a conversation, and from where to where."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

from confluent_kafka import Message as KafkaMessage

from llmagentos.streams.conversations import Tree, kinds
from llmagentos.streams.entries import Decoder, Entry
from llmagentos.streams.errors import InputError
from llmagentos.streams.partition import murmur2_partition
from llmagentos.streams.position import END, Position
from llmagentos.streams.settings import Settings
from llmagentos.streams.tail import Log, Span

__all__ = ["agents", "resolve", "select"]


def agents(settings: Settings, topics: Iterable[str]) -> list[str]:
    """The agents that have an inbox among *topics*."""
    inbox = settings.topic("agent.")
    return [topic.removeprefix(inbox) for topic in topics if topic.startswith(inbox)]


def resolve(settings: Settings, names: Sequence[str], topics: Mapping[str, int]) -> list[str]:
    """The topics of *names*: a topic's full name, its name without the prefix, or an agent for all of its topics.

    Without names: every inbox, `replies` and the dead letters.

    Raises:
        InputError: there is no such topic or agent; names those that are closest.
    """
    if not names:
        answers = settings.topic("answers.")
        return [topic for topic in kinds(settings, topics) if not topic.startswith(answers)]
    found: dict[str, None] = {}
    for name in names:
        of_agent = [settings.topic(f"{kind}.{name}") for kind in ("agent", "answers", "dead")]
        if name in topics:
            found[name] = None
        elif settings.topic(name) in topics:
            found[settings.topic(name)] = None
        elif any(topic in topics for topic in of_agent):  # an agent over a foreign topic has the others alone
            found |= dict.fromkeys(topic for topic in of_agent if topic in topics)
        else:
            known = [*agents(settings, topics), *(topic.removeprefix(settings.prefix) for topic in topics)]
            close = difflib.get_close_matches(name, known, 3)
            raise InputError(
                f"there is no topic or agent {name!r}" + (f"; close to it: {', '.join(close)}" if close else ""),
                fix="`llmagentos topics` and `llmagentos agents` list them",
            )
    return list(found)


def select(
    log: Log,
    decoder: Decoder,
    names: Sequence[str] = (),
    *,
    conversation: str | None = None,
    start: Position,
    stop: Position = END,
    follow: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[Entry | None]:
    """The records of *names* in time order, decoded.

    With a conversation and no names: all of its tree, across all agents. With both: just its own records in those
    topics. Only partitions that can hold them are read.

    Args:
        follow: go on past the end for ever; yields None now and then while nothing comes.
        note: told what a person should know, as that retention has taken a part.

    Raises:
        InputError: as :func:`resolve`; BrokerError, AccessError: the cluster is out of reach, or refuses.
    """
    settings = log.settings
    topics = log.topics()
    if conversation is not None and not names:
        tree = Tree(settings, conversation, {topic: topics[topic] for topic in kinds(settings, topics)})
        yield from tree.follow(log, decoder, start) if follow else tree.read(log, decoder, start, stop)
        return

    answers = settings.topic("answers.")
    key = None if conversation is None else conversation.encode()
    read: set[str] = set()

    def spans(there: Mapping[str, int]) -> list[Span]:
        new = [topic for topic in resolve(settings, names, there) if topic not in read]
        read.update(new)
        return log.spans([place for topic in new for place in _places(settings, topic, there[topic], key)], start, stop)

    def grow() -> list[Span]:
        there = None if names else log.look()
        return spans(there) if there else []

    def keep(record: KafkaMessage) -> bool:
        if record.key() == key:
            return True
        if not cast(str, record.topic()).startswith(answers):
            return False
        value = record.value()
        return value is not None and key is not None and key in value

    found = spans(topics)
    for span in found:
        if start.kind == "offset" and 0 <= start.value < span.low:
            taken = f"{start.value} to {span.low - 1}"
            note(f"{span.topic}[{span.partition}] begins at offset {span.low}: retention has taken {taken}")
    for record in log.read(found, None if key is None else keep, follow=follow, grow=grow):
        entry = None if record is None else decoder.entry(record)
        if entry is None or conversation is None or entry.conversation == conversation:
            yield entry


def _places(settings: Settings, topic: str, partitions: int, key: bytes | None) -> list[tuple[str, int]]:
    """Where in *topic* the records of *key* can be.

    Anywhere in topics of others, whose partitioner isn't known, and among answers: those lie where the asker read,
    which may have been in another conversation.
    """
    if key is None or not topic.startswith(settings.prefix) or topic.startswith(settings.topic("answers.")):
        return [(topic, partition) for partition in range(partitions)]
    return [(topic, murmur2_partition(key, partitions))]
