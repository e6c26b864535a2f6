"""What commands that read journals begin with: the cluster's log, and which agents are served from it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from llmagentos.streams.entries import Decoder
    from llmagentos.streams.settings import Settings
    from llmagentos.streams.tail import Log
    from llmagentos.streams.views import Served

__all__ = ["Journals", "open_journals"]


class Journals(NamedTuple):
    """What is to be read, and with what."""

    settings: Settings
    decoder: Decoder
    log: Log
    served: dict[str, Served]


@contextmanager
def open_journals() -> Generator[Journals]:
    """Reach the cluster, and read the agents' cards.

    Raises:
        BrokerError, AccessError: Kafka is out of reach, or refuses.
    """
    from llmagentos.agents.cards import read_cards
    from llmagentos.streams.entries import Decoder
    from llmagentos.streams.settings import Settings
    from llmagentos.streams.tail import Log
    from llmagentos.streams.views import Served

    settings = Settings.load()
    decoder = Decoder(settings)
    with Log(settings) as log:
        log.topics()  # the shortest way to a clear error where Kafka is out of reach
        cards = read_cards(settings, decoder.codec)
        yield Journals(
            settings, decoder, log, {name: Served(card.deployment, card.topic) for name, card in cards.items()}
        )
