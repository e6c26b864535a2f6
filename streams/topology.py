"""The topics, as data: what there is, by which key, how long it is kept, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["FORGOTTEN_MS", "TOPICS", "Topic", "named"]

DAY_MS = 86_400_000

#: That a conversation was forgotten is to be read for so long: who read the topic later than that reads all of it.
FORGOTTEN_MS = 7 * DAY_MS


@dataclass(frozen=True, slots=True)
class Topic:
    """One kind of topic. `NAME` in `name` stands for an agent's.

    Attributes:
        name: without the prefix of the settings.
        key: what the Kafka key is.
        cleanup: Kafka's cleanup.policy.
        retention_ms: Kafka's retention.ms; None where cleanup is compact.
        partitions: None: the settings' count; 1 where one order over all is needed.
        holds: in words, for people.
        more: further topic configuration of Kafka's.
    """

    name: str
    key: str
    cleanup: Literal["delete", "compact"]
    retention_ms: int | None
    partitions: int | None
    holds: str
    more: tuple[tuple[str, str], ...] = ()

    def of(self, agent: str) -> Topic:
        """This kind for one agent."""
        return replace(self, name=self.name.replace("NAME", agent))

    @property
    def config(self) -> dict[str, str]:
        """Kafka's topic configuration."""
        config = {"cleanup.policy": self.cleanup, **dict(self.more)}
        if self.retention_ms is not None:
            config["retention.ms"] = str(self.retention_ms)
        return config


TOPICS: tuple[Topic, ...] = (
    Topic("agent.NAME", "conversation", "delete", 7 * DAY_MS, None, "the inbox of an agent"),
    Topic("answers.NAME", "question id", "delete", 7 * DAY_MS, None, "answers to the agent's questions"),
    Topic(
        "journal.NAME",
        "conversation",
        "delete",
        30 * DAY_MS,
        None,
        "who owns the agent's partitions, and what is parked, held or completed in them",
    ),
    Topic(
        "dead.NAME",
        "conversation",
        "delete",
        30 * DAY_MS,
        None,
        "what the agent could not handle, with cause",
    ),
    Topic(
        "memory.NAME",
        "conversation",
        "compact",
        None,
        None,
        "what the agent remembers of each conversation",
        # Not at once: a record that came late from a worker that had lost its partition must not be all that is left
        # of a conversation, before the owner has written again what counts.
        (("delete.retention.ms", str(FORGOTTEN_MS)), ("min.compaction.lag.ms", str(DAY_MS))),
    ),
    Topic("replies", "conversation", "delete", DAY_MS, None, "answers and tokens to clients"),
    Topic("events", "conversation", "delete", 7 * DAY_MS, None, "lifecycle and audit"),
    Topic("cards", "name", "compact", None, 1, "what each agent says of itself"),
    Topic("keys", "key id", "compact", None, 1, "API keys of the gateways, hashed"),
    Topic("schemas", "subject", "compact", None, 1, "the log-backed schema registry"),
)


def named(name: str) -> Topic:
    """The kind *name* of :data:`TOPICS`, for example ``agent.NAME`` or ``replies``.

    Raises:
        KeyError: there is none.
    """
    for topic in TOPICS:
        if topic.name == name:
            return topic
    raise KeyError(name)
