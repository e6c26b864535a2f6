"""The seam behind which models are: what is asked of one, and what it gives.

A provider is anything with the two methods of :class:`Provider`. What all of them must hold is in
tests/integration/models/test_providers.py, which runs over each.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Call", "Provider", "Request", "ToolLike", "Turn", "Usage"]


class ToolLike(Protocol):
    """What the tool loop needs of a tool."""

    @property
    def name(self) -> str:
        """As the model is to call it."""
        ...

    @property
    def description(self) -> str:
        """What it does, for the model."""
        ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The JSON schema of its arguments."""
        ...

    def invoke(self, ctx: Any, arguments: str | dict[str, Any], /) -> Awaitable[str]:
        """Run it; awaited, what the model is to read. A durable step."""
        ...


@dataclass(frozen=True, slots=True)
class Usage:
    """What answers cost.

    Attributes:
        model: by its name here; of several, the last.
        cost: US dollars.
    """

    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            other.model or self.model,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.cost + other.cost,
        )

    def record(self) -> dict[str, Any]:
        """As a message carries it."""
        return {
            "model": self.model,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "cost": self.cost,
        }


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model.

    Attributes:
        messages: as the OpenAI protocol has them: role, content, tool_calls, tool_call_id.
        tools: as the protocol has functions: name, description, parameters.
        schema: JSON schema that the answer is to have; None: text.
        max_tokens: of the answer; 0: as many as the model likes.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 0
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that a model wants called.

    Attributes:
        arguments: JSON, as the model wrote it: not checked.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Turn:
    """What a model answered.

    Attributes:
        tokens_in, tokens_out: as the provider counted them; -1: it did not.
        finish: `stop`, `length` where it ran into the limit of tokens, `tool_calls`, or as the provider says.
    """

    text: str
    calls: tuple[Call, ...] = ()
    tokens_in: int = -1
    tokens_out: int = -1
    finish: str = "stop"


class Provider(Protocol):
    """Asks one model."""

    def ask(self, request: Request) -> AsyncGenerator[str | Turn]:
        """The answer's text as it comes, piece by piece, and last the whole turn.

        Raises:
            ModelFailure: there is no answer, or no end of it. ContextTooLong: the question is longer than it takes.
        """
        ...

    def count(self, request: Request) -> int:
        """How many tokens *request* has, rather too many than too few."""
        ...

    async def close(self) -> None:
        """Let connections and memory go."""
        ...
