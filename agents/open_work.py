"""What is under way in the agents of a deployment, as a bystander reads it: for a look before its code is replaced.

Nothing is claimed, and nothing joins the group. The messages themselves, with what their handlers recorded, are read
only when they are asked for.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import confluent_kafka

from llmagentos.streams.admin import Admin
from llmagentos.streams.errors import RecordError
from llmagentos.streams.lag import lag
from llmagentos.streams.message import Message, asker_of
from llmagentos.streams.ownership import places_of, restored
from llmagentos.streams.settings import Settings
from llmagentos.streams.tail import Log
from llmagentos.streams.unfinished import Entry
from llmagentos.streams.views import Place, Served, Views
from llmagentos.streams.wire import Codec

__all__ = ["Loaded", "OpenWork", "Underway"]

#: States of messages whose handler goes on by itself, once what it waits for has come.
_LIVE: Final = frozenset({"open", "waiting", "held"})


@dataclass(frozen=True, slots=True)
class Underway:
    """One message whose handler has recorded something.

    Attributes:
        parked: it waits for a redrive, and nobody has asked for that yet.
        way: names of the recorded steps, in the order in which they were.
    """

    place: Place
    entry: Entry
    parked: bool
    way: tuple[str, ...]

    @property
    def id(self) -> tuple[str, int, int]:
        """Agent, partition, offset."""
        return self.place.agent, self.place.partition, self.entry.offset


@dataclass(slots=True)
class Loaded:
    """A message under way with all that a rerun of its handler is given.

    Attributes:
        record: as it was in the inbox; None: it is gone.
        steps: the journal records of its steps, in their order.
        missing: how many of them are gone.
        answers: to its questions, by their ids, that are not in the journal.
    """

    record: confluent_kafka.Message | None
    steps: list[Mapping[str, Any]] = field(default_factory=list["Mapping[str, Any]"])
    missing: int = 0
    answers: dict[str, Message] = field(default_factory=dict[str, Message])


class OpenWork:
    """What is under way in some agents. Blocks; one thread at a time.

    Args:
        deployment: whose consumer group it is.
        topics: what each agent reads, by its name.
    """

    def __init__(self, settings: Settings, codec: Codec, deployment: str, topics: Mapping[str, str]) -> None:
        self._settings = settings
        self._codec = codec
        self._deployment = deployment
        self._topics = topics
        self._ways: dict[tuple[Place, int], list[str]] = defaultdict(list)
        self._answers: dict[Place, dict[int, dict[str, Message]]] = {}
        self._log = Log(settings)
        served = {agent: Served(deployment, topic) for agent, topic in topics.items()}
        self._views = Views(settings, codec, served, self._heard)

    def read(self) -> None:
        """Read the journals as they are now.

        Raises:
            BrokerError: the cluster does not answer.
        """
        there = self._log.topics()
        agents = [agent for agent in self._topics if self._views.topic(agent) in there]
        self._places = [Place(agent, n) for agent in agents for n in range(there[self._views.topic(agent)])]
        self._views.add(self._places, time.time_ns() // 1_000_000, self._log)
        self._views.refresh()

    @property
    def agents(self) -> list[str]:
        """Their names."""
        return list(self._topics)

    def backlog(self, agents: Iterable[str]) -> dict[str, int]:
        """How many messages in the inboxes of *agents* are not finished, those under way among them."""
        topics = {self._topics[agent]: agent for agent in agents}
        found = dict.fromkeys(topics.values(), 0)
        for part in lag(self._log, Admin(self._settings), [self._deployment], {self._deployment: topics}):
            found[topics[part.topic]] += part.behind
        return found

    def kept(self, agent: str) -> tuple[int, int]:
        """How many messages its journal keeps that its inbox has released, and how many dead letters beside them."""
        entries = [e for place in self._places if place.agent == agent for e in self._views[place].entries.values()]
        parked = sum(_parked(entry) for entry in entries)
        return sum(entry.state != "open" for entry in entries) - parked, parked

    def under_way(self, agent: str) -> list[Underway]:
        """Messages whose handler has recorded something, or is suspended."""
        found: list[Underway] = []
        for place in self._places:
            if place.agent != agent:
                continue
            view = self._views[place]
            for entry in view.entries.values():
                if entry.offset in view.cancels:
                    continue  # its handler is only to clean up, wherever it is by then
                parked = _parked(entry)
                going = entry.state in _LIVE or (entry.state == "parked" and entry.wish == "redrive")
                if entry.state == "unknown" or ((going or parked) and (entry.steps or entry.state == "waiting")):
                    way = tuple(self._ways.get((place, entry.offset), ()))
                    found.append(Underway(place, entry, parked, way))
        return found

    def load(self, wanted: Sequence[Underway]) -> list[Loaded]:
        """The messages *wanted*, and what their handlers recorded; in that order.

        Raises:
            BrokerError: the cluster does not answer.
        """
        by_place: dict[Place, list[Underway]] = defaultdict(list)
        for each in wanted:
            by_place[each.place].append(each)
        found: dict[tuple[str, int, int], Loaded] = {}
        for place, several in by_place.items():
            needed = {at for each in several for at in places_of(each.entry)}
            picked = self._views.spans.pick(self._views.topic(place.agent), place.partition, needed)
            records = {at: self._codec.decode(record.value() or b"") for at, record in picked.items()}
            inbox = self._topics[place.agent]
            loaded = {each.entry.offset: self._loaded(each, records, inbox) for each in several}
            away = [offset for offset, one in loaded.items() if one.record is None]
            for offset, record in self._views.spans.pick(inbox, place.partition, away).items():
                loaded[offset].record = record
            answers = self._answered(place)
            for offset, one in loaded.items():
                one.answers = answers.get(offset, {})
                found[place.agent, place.partition, offset] = one
        return [found[each.id] for each in wanted]

    def close(self) -> None:
        """Let the clients go."""
        self._views.close()
        self._log.__exit__()

    def _heard(self, place: Place, record: Mapping[str, Any], at: int) -> None:
        if (step := record["step"]) is not None:
            self._ways[place, record["offset"]].append(step["name"])
        elif record["kind"] in ("done", "drop"):
            self._ways.pop((place, record["offset"]), None)

    def _loaded(self, each: Underway, records: Mapping[int, Mapping[str, Any]], inbox: str) -> Loaded:
        entry = each.entry
        payload = records.get(entry.payload_at, {}).get("record")
        at = [now for _, now in entry.steps or ()]
        steps = [records[place] for place in at if place in records]
        kept = None
        if payload is not None and payload["value"] is not None:
            kept = restored(payload, inbox, each.place.partition, entry.offset)
        return Loaded(kept, steps, len(at) - len(steps))

    def _answered(self, place: Place) -> dict[int, dict[str, Message]]:
        """Answers that may not be in the journal, by the offset of the message whose handler asked."""
        known = self._answers.get(place)
        if known is not None:
            return known
        known = self._answers[place] = {}
        topic = self._settings.topic(f"answers.{place.agent}")
        low, end = self._views.spans.ends(topic, place.partition)
        begin = max(low, self._views.note(place).answers)
        entries = self._views[place].entries
        for batch in self._views.spans.read({(topic, place.partition): (begin, end)}):
            for record in batch:
                try:
                    answer = self._codec.read(record)
                except RecordError:  # its reader passes it over too
                    continue
                question = answer.caused_by or ""
                if (asker := asker_of(question)) is not None and asker in entries:
                    known.setdefault(asker, {}).setdefault(question, answer)
        return known


def _parked(entry: Entry) -> bool:
    """Whether it waits for a person to say what is to become of it."""
    return entry.state == "parked" and not entry.wish
