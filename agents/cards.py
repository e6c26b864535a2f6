"""Cards: what each agent says of itself, in the compacted topic `cards`; the last one for a name counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.spans import Spans
from llmagentos.streams.wire import Codec

__all__ = ["Card", "read_cards"]


@dataclass(frozen=True, slots=True)
class Card:
    """One agent's card; the fields are those of card.avsc."""

    name: str
    deployment: str
    description: str
    topic: str
    partitions: int
    module: str
    version: str
    deployed_at: int

    def record(self) -> dict[str, Any]:
        """The fields as the Avro record."""
        return {name: getattr(self, name) for name in self.__slots__}


def read_cards(settings: Settings, codec: Codec | None = None) -> dict[str, Card]:
    """All cards by agent name; none where nothing was ever deployed.

    Raises:
        BrokerError: the cluster does not answer.
    """
    spans = Spans(settings, name="cards-reader")
    cards: dict[str, Card] = {}
    try:
        for batch in spans.whole(settings.topic("cards")):
            codec = codec or Codec(open_registry(settings))
            for record in batch:
                name = (record.key() or b"").decode()
                value = record.value()
                if value is None:
                    cards.pop(name, None)
                else:
                    cards[name] = Card(**codec.decode(value))
        return cards
    finally:
        spans.close()
