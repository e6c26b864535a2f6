"""The Avro records of the data plane: one `.avsc` file each, and the loader.

This package knows nothing else of the project; everything else may import it.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

__all__ = ["NAMES", "load"]

#: Every record by the name of its file. A record's registry subject is its topic's name plus `-value`
#: (Confluent's TopicNameStrategy), so a name here is no subject.
NAMES: tuple[str, ...] = ("message", "dead_letter", "card", "event", "journal", "memory", "key")


@cache
def load(name: str) -> dict[str, Any]:
    """Return the Avro schema *name* as parsed JSON.

    Args:
        name: one of :data:`NAMES`, for example ``"message"``.

    Raises:
        KeyError: there is no such schema; the message lists those that there are.
    """
    if name not in NAMES:
        raise KeyError(f"no schema {name!r}; there are {', '.join(NAMES)}")
    return json.loads(files("llmagentos.schemas").joinpath(f"{name}.avsc").read_text(encoding="utf-8"))
