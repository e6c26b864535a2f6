"""What docs/spec says that a reader of a journal believes: a fold written from the protocol alone, slow and plain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmagentos.streams.journal import BLANK, View

#: What is said of one open message: state, place of its payload, of its park, the wish, and its place.
Said = tuple[str, int, int, str, int]


def record(kind: str, claim: int = -1, offset: int = -1, **fields: Any) -> dict[str, Any]:
    """A journal record. Offsets lie in conversations by their last bit."""
    of = {"conversation_id": f"c{offset % 2}", "message_id": f"m{offset}"} if offset >= 0 else {"conversation_id": ""}
    return {**BLANK, "kind": kind, "claim": claim, "offset": offset, "writer": "", "at": 0, **of, **fields}


def fold(log: Sequence[Mapping[str, Any]], start: int = 0, claim: int = -1) -> tuple[dict[int, Said], dict[int, int]]:
    """What docs/spec says that a reader believes: of open messages, and the places of the ends of others."""
    said: dict[int, Said] = {}
    ended: dict[int, int] = {}
    for at in range(start, len(log)):
        entry = log[at]
        kind, offset = entry["kind"], entry["offset"]
        if kind == "claim":
            claim = at
        elif kind == "reset":
            ended.clear()
        elif kind in ("redrive", "discard"):
            state, place, park, wish, _ = said.get(offset, ("", -1, -1, "", -1))
            if state == "parked" and park == entry["refers"] and not wish:
                said[offset] = (state, place, park, kind, at)
        elif entry["claim"] < claim:
            continue
        elif kind == "sent":
            for done in [o for o, (state, place, *_) in said.items() if state == "done" and place < entry["refers"]]:
                ended[done] = said.pop(done)[1]
        elif kind == "drop":
            said.pop(offset, None)
            ended[offset] = at
        elif kind == "copy":
            known = said.get(offset)
            if known is None or (known[0] == entry["state"] and known[2] == entry["refers"] and not known[3]):
                said[offset] = (entry["state"], at, entry["refers"], "", -1)
        else:
            state = {"park": "parked", "held": "held", "done": "done"}[kind]
            said[offset] = (state, at, at if kind == "park" else -1, "", -1)
    return said, ended


def believed(view: View) -> dict[int, Said]:
    """The same of a view."""
    return {
        entry.offset: (entry.state, entry.at, entry.park, entry.wish, entry.wish_at)
        for conversation in view.open.values()
        for entry in conversation
    }
