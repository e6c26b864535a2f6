"""The topics, as data: what there is, by which key, how long it is kept, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["TOPICS", "Topic", "named"]

DAY_MS = 86_400_000


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
    """

    name: str
    key: str
    cleanup: Literal["delete", "compact"]
    retention_ms: int | None
    partitions: int | None
    holds: str

    def of(self, agent: str) -> Topic:
        """This kind for one agent."""
        return Topic(
            self.name.replace("NAME", agent),
            self.key,
            self.cleanup,
            self.retention_ms,
            self.partitions,
            self.holds,
        )

    @property
    def config(self) -> dict[str, str]:
        """Kafka's topic configuration."""
        config = {"cleanup.policy": self.cleanup}
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
    Topic("replies", "conversation", "delete", DAY_MS, None, "answers and tokens to clients"),
    Topic("events", "conversation", "delete", 7 * DAY_MS, None, "lifecycle and audit"),
    Topic("cards", "name", "compact", None, 1, "what each agent says of itself"),
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
