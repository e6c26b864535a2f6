"""A model for tests: it answers from a list, one entry a question, in order, and keeps what it was asked.

An entry is text, or a mapping with `text`, `calls` (each with `name` and `arguments`), `chunks` (the text as it is to
come, piece by piece), `tokens_in` and `tokens_out`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from llmagentos.agents.models.provider import Call, Request, Turn
from llmagentos.agents.models.window import estimate
from llmagentos.streams.errors import ModelFailure, SettingsError

__all__ = ["Scripted"]

Entry = str | Mapping[str, Any]


class Scripted:
    """See the module.

    Attributes:
        asked: the questions so far.
    """

    def __init__(self, entries: Sequence[Entry], *, name: str = "scripted") -> None:
        self.asked: list[Request] = []
        self._name = name
        self._entries = list(entries)

    @classmethod
    def read(cls, path: Path, name: str) -> Scripted:
        """A model that answers from a file: a JSON list of entries.

        Raises:
            SettingsError: there is no such file, or it is none.
        """
        try:
            entries = orjson.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"the script of model {name!r} can't be read: {error}", fix=f"correct models.{name}.script"
            ) from error
        if not isinstance(entries, list):
            raise SettingsError(f"{path}, the script of model {name!r}, is no list", fix="write a JSON list of answers")
        return cls(entries, name=name)

    async def ask(self, request: Request) -> AsyncGenerator[str | Turn]:
        """See :class:`~llmagentos.agents.models.provider.Provider`."""
        number = len(self.asked)
        self.asked.append(request)
        if number >= len(self._entries):
            raise ModelFailure(
                f"scripted model {self._name!r} was asked {number + 1} times, and has {len(self._entries)} answers",
                "refused",
                fix="add an answer to its script",
            )
        entry = self._entries[number]
        said: Mapping[str, Any] = {"text": entry} if isinstance(entry, str) else entry
        chunks = said.get("chunks") or ([said["text"]] if said.get("text") else [])
        for chunk in chunks:
            yield chunk
            await asyncio.sleep(0)
        calls = tuple(
            Call(call.get("id", f"call_{number}_{i}"), call["name"], _json(call["arguments"]))
            for i, call in enumerate(said.get("calls", ()))
        )
        finish = said.get("finish") or ("tool_calls" if calls else "stop")
        yield Turn("".join(chunks), calls, said.get("tokens_in", -1), said.get("tokens_out", -1), finish)

    def count(self, request: Request) -> int:
        """An estimate: which vocabulary the model has, nobody says."""
        return estimate(request)

    async def close(self) -> None:
        """See :class:`~llmagentos.agents.models.provider.Provider`."""


def _json(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
