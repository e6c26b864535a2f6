"""Answers of a form that was asked for: the form is a Pydantic model, the answer JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from llmagentos.agents.models.provider import Turn
from llmagentos.streams.errors import BadAnswer

__all__ = ["asked_for", "parsed"]

M = TypeVar("M", bound=BaseModel)

#: Models like to put JSON into a Markdown block, though they are told not to.
_BLOCK = re.compile(r"\A\s*```\w*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
#: How much of an answer, and how many of its mistakes, an error shows.
_SHOWN = 300
_MISTAKES = 5


def asked_for(schema: Mapping[str, Any]) -> str:
    """What a model is told of the form, as not every endpoint takes it as a parameter."""
    return f"Answer with JSON of this schema, and nothing else: {orjson.dumps(schema).decode()}"


def parsed(response: type[M], turn: Turn) -> M:
    """The value that *turn* says.

    Raises:
        BadAnswer: it is no JSON, or not of the form; names each mistake.
    """
    block = _BLOCK.match(turn.text)
    try:
        return response.model_validate_json(block[1] if block else turn.text)
    except ValidationError as error:
        mistakes = [
            f"{'.'.join(map(str, each['loc'])) or 'the answer'}: {each['msg']}" for each in error.errors()[:_MISTAKES]
        ]
        cut = " (it ran into its limit of tokens)" if turn.finish == "length" else ""
        raise BadAnswer(
            f"the model's answer is no {response.__name__}{cut}: {'; '.join(mistakes)}; it said {turn.text[:_SHOWN]!r}",
            kept="the answer, in the journal",
            fix="say the form in simpler words, allow more tokens, or ask another model",
        ) from error
