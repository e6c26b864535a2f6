"""What docs/spec says that a reader of a journal believes: a fold written from the protocol alone, slow and plain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmagentos.streams.journal import View
from llmagentos.streams.journal_record import BLANK

#: What people write, and so without a claim.
WISHES, DECISIONS = ("redrive", "discard"), ("approve", "reject")
#: The kinds of this release that say what became of a message.
STATES = {"park": "parked", "held": "held", "done": "done", "suspend": "waiting"}


@dataclass(frozen=True)
class Said:
    """What is said of one open message.

    Attributes:
        place: of its payload; said: of what it waits for, if that is elsewhere.
        steps: where each was written first, and is now.
        waits: what it is suspended for and has not come; ready: something of it has.
        early: what came from outside since it was suspended last.
    """

    state: str
    place: int = -1
    park: int = -1
    wish: str = ""
    wish_at: int = -1
    said: int = -1
    steps: tuple[tuple[int, int], ...] = ()
    waits: tuple[tuple[Any, ...], ...] = ()
    ready: bool = False
    early: tuple[tuple[Any, ...], ...] = field(default=())

    @property
    def needed(self) -> set[int]:
        """Where in the journal is what a next owner must read."""
        return {n for n in (self.place, self.wish_at, self.said, *(now for _, now in self.steps)) if n >= 0}

    @property
    def can_go_on(self) -> bool:
        """Whether it may have its turn."""
        stopped = {"parked": not self.wish, "waiting": not self.ready, "unknown": True}
        return not stopped.get(self.state, False)


def record(kind: str, claim: int = -1, offset: int = -1, **fields: Any) -> dict[str, Any]:
    """A journal record. Offsets lie in conversations by their last bit."""
    of = {"conversation_id": f"c{offset % 2}", "message_id": f"m{offset}"} if offset >= 0 else {"conversation_id": ""}
    return {**BLANK, "kind": kind, "claim": claim, "offset": offset, "writer": "", "at": 0, **of, **fields}


def step(name: str, outcome: str) -> dict[str, Any]:
    """What a record says of a step. The name of a question is its id."""
    return {"name": name, "number": 0, "outcome": outcome, "about": name if outcome == "answer" else ""}


def wait(kind: str, name: str) -> dict[str, Any]:
    """What a suspended one waits for."""
    return {"kind": kind, "name": name, "number": 0, "about": name if kind == "answer" else "", "due": 0}


def ends(waits: tuple[Any, ...], step: Mapping[str, Any]) -> bool:
    """Whether *step* is what is waited for."""
    kind, name, number, about = waits[:4]
    if kind == "answer":
        return about == step["about"]
    return step["outcome"] != kind and (step["name"], step["number"]) == (name, number)


def _with_step(said: Said, step: Mapping[str, Any], at: int) -> Said:
    left = tuple(waits for waits in said.waits if not ends(waits, step))
    said = replace(said, steps=(*said.steps, (at, at)))
    if len(left) < len(said.waits):
        said = replace(said, waits=left, ready=True)
    if step["outcome"] in ("answer", *DECISIONS):
        return replace(said, early=(*said.early, tuple(step[k] for k in ("name", "number", "outcome", "about"))))
    return said


def _suspended(said: Said, entry: Mapping[str, Any], at: int, cancelled: bool) -> Said:
    waits = tuple(tuple(each.values()) for each in entry["waits"])
    came = [dict(zip(("name", "number", "outcome", "about"), each, strict=True)) for each in said.early]
    left = tuple(each for each in waits if not any(ends(each, step) for step in came))
    if entry["record"] is not None or said.state == "open":
        said = replace(said, place=at, park=-1, wish="", wish_at=-1, said=-1)
    elif said.state != "waiting":
        said = replace(said, park=-1, wish="", said=at)
    else:
        said = replace(said, said=at)
    return replace(said, state="waiting", waits=left, ready=cancelled or len(left) < len(waits), early=())


def _copied(said: Said | None, entry: Mapping[str, Any], at: int, cancelled: bool) -> Said:
    waits = tuple(tuple(each.values()) for each in entry["waits"])
    if said is None or said.state == "open":
        said = replace(said or Said("open"), waits=waits)
    elif said.wish or said.ready or (said.state, said.park) != (entry["state"], entry["refers"]):
        return said
    return replace(
        said, state=entry["state"], place=at, park=entry["refers"], said=-1,
        wish="", wish_at=-1, ready=entry["state"] == "waiting" and cancelled,
    )  # fmt: skip


def fold(log: Sequence[Mapping[str, Any]], start: int = 0, claim: int = -1) -> tuple[dict[int, Said], dict[int, int]]:
    """What docs/spec says that a reader believes: of open messages, and the places of the ends of others."""
    return _folded(log, start, claim)[:2]


def cancelled(log: Sequence[Mapping[str, Any]], start: int = 0, claim: int = -1) -> dict[int, int]:
    """The same of what is to be cancelled: where the first word of it is."""
    return _folded(log, start, claim)[2]


def _folded(
    log: Sequence[Mapping[str, Any]], start: int, claim: int
) -> tuple[dict[int, Said], dict[int, int], dict[int, int]]:
    said: dict[int, Said] = {}
    ended: dict[int, int] = {}
    cancels: dict[int, int] = {}
    for at in range(start, len(log)):
        entry = log[at]
        kind, offset = entry["kind"], entry["offset"]
        known = said.get(offset)
        if kind == "claim":
            claim = at
        elif kind == "reset":
            ended.clear()
            cancels = {o: place for o, place in cancels.items() if o in said}
        elif kind == "cancel":
            state = "" if known is None else "wished" if known.wish else known.state
            if offset not in ended and offset not in cancels and state not in ("done", "parked"):
                cancels[offset] = at
                if known is not None and known.state == "waiting":
                    said[offset] = replace(known, ready=True)
        elif kind in WISHES:
            if known is not None and (known.state, known.park, known.wish) == ("parked", entry["refers"], ""):
                if entry["record"] is not None:  # its steps were another message's
                    known = replace(known, steps=(), waits=(), ready=False, early=())
                said[offset] = replace(known, wish=kind, wish_at=at)
        elif kind in DECISIONS:
            if known is not None and known.state != "done" and (known.state != "parked" or known.wish):
                said[offset] = _with_step(known, entry["step"], at)
        elif entry["claim"] < claim:
            continue
        elif kind == "sent":
            for done in [o for o, s in said.items() if s.state == "done" and s.place < entry["refers"]]:
                ended[done] = said.pop(done).place
                cancels.pop(done, None)
        elif kind == "drop":
            said.pop(offset, None)
            cancels.pop(offset, None)
            ended[offset] = at
        elif kind not in (*STATES, "copy", "step") or (
            known is not None and known.state == "unknown" and kind != "done"
        ):
            if offset >= 0 and offset not in ended:
                known = known or Said("unknown")
                said[offset] = replace(known, state="unknown", ready=False, steps=(*known.steps, (at, at)))
        elif kind == "copy" and entry["step"] is not None:
            if offset not in ended and (known is None or known.state != "done"):
                steps = dict((known := known or Said("open")).steps)
                steps[entry["refers"]] = at
                said[offset] = replace(known, steps=tuple(sorted(steps.items())))
        elif kind == "copy":
            said[offset] = _copied(known, entry, at, offset in cancels)
        elif kind == "step":
            if offset not in ended and (known is None or known.state != "done"):
                said[offset] = _with_step(known or Said("open"), entry["step"], at)
        elif kind == "suspend":
            said[offset] = _suspended(known or Said("open"), entry, at, offset in cancels)
        else:
            if kind != "held":
                cancels.pop(offset, None)
            kept = known if kind != "done" and known is not None else Said("")
            said[offset] = replace(
                kept, state=STATES[kind], place=at, park=at if kind == "park" else -1, wish="", wish_at=-1, said=-1
            )
    return said, ended, cancels


def believed(view: View) -> dict[int, Said]:
    """The same of a view."""
    return {
        entry.offset: Said(
            entry.state,
            entry.at,
            entry.park,
            entry.wish,
            entry.wish_at,
            entry.waits_at,
            tuple(entry.steps or ()),
            tuple(map(tuple, entry.waits)),
            entry.ready,
            tuple(tuple(each[k] for k in ("name", "number", "outcome", "about")) for each in entry.early),
        )
        for conversation in view.open.values()
        for entry in conversation
    }
