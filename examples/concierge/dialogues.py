"""The recorded dialogues: who said what, and which service was called with what result."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from llmagentos.streams.errors import InputError

__all__ = ["MOST", "Call", "Exchange", "file", "read"]

#: The folder with the file.
FOLDER = "LLMAGENTOS_DATA"
NAME = "sgd_dev.ndjson.gz"
#: How many dialogues take part, evenly spread over the file; unset: all.
MOST = "CONCIERGE_DIALOGUES"


class Call(NamedTuple):
    """A call of a service, and what came back."""

    service: str
    method: str
    parameters: dict[str, str]
    results: list[dict[str, Any]]

    @property
    def request(self) -> str:
        """What is asked, the same text however its parameters are ordered."""
        asked = {"service": self.service, "method": self.method, "parameters": self.parameters}
        return orjson.dumps(asked, option=orjson.OPT_SORT_KEYS).decode()


class Exchange(NamedTuple):
    """What the user says, and what the assistant does and says to it: two turns."""

    user: str
    calls: tuple[Call, ...]
    text: str


def file() -> Path:
    """Where the dialogues are.

    Raises:
        InputError: nobody said, or they aren't there.
    """
    folder = os.environ.get(FOLDER)
    path = Path(folder or ".") / NAME
    if not folder or not path.is_file():
        raise InputError(
            f"{FOLDER} is {folder!r}: there is no {NAME} in it" if folder else f"{FOLDER} is not set",
            fix=f"point {FOLDER} at the folder with {NAME} (Schema-Guided Dialogue, one line a turn; see README.md)",
        )
    return path


def read() -> dict[str, list[Exchange]]:
    """The dialogues that take part, by conversation, in the file's order."""
    found: dict[str, list[Exchange]] = {}
    user = ""
    with gzip.open(file()) as lines:
        for line in lines:
            turn = orjson.loads(line)
            if turn["speaker"] == "user":
                user = turn["text"]
                continue
            calls = (Call(c["service"], c["method"], c["parameters"], c["results"]) for c in turn.get("calls", ()))
            found.setdefault(turn["conversation"], []).append(Exchange(user, tuple(calls), turn["text"]))
    most = int(os.environ.get(MOST) or len(found))
    names = list(found)
    return {name: found[name] for name in names[:: max(1, len(names) // max(1, most))][:most]}
