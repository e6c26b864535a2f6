"""The journal of one inbox partition: what is under way in it, as a fold over its records.

An agent's journal topic has as many partitions as its inbox, and partition p is written by the owner of inbox
partition p. A message that fails for good is *parked*, and its conversation is open from then on: later messages of
it are *held*, so that their offsets can be released while they wait, in order. A person's *redrive* or *discard* is
a wish, which the owner answers: it runs the parked message, or drops it, and then those that are held. What was
held, or sends several outputs, is completed by a *done* record that has the outputs, before they are sent. A park
has what its dead letter says, for the same reason. *sent* says that all outputs and letters of records below an offset
are sent.

A handler's effects are *steps*: each one's result is recorded, so that a rerun takes it from here. One that waits for
long is *suspended*: the message is kept with what it waits for, and its offset released. An answer, the end of a timer
or a person's *approve* or *reject* is a step's result too, and has the handler run again. A *cancel* is a wish for any
message that is not finished: its owner interrupts the handler, lets it clean up, and completes the message.

Who owns a partition says so by a *claim*; the claim's offset is its epoch. Records carry their writer's claim, and
behind a newer claim they are void. So whoever folds the same records has the same view, and a worker that lost its
partition without noticing can change nothing.

The journal is cleaned as a log-structured store is (Rosenblum and Ousterhout, 1992): what has stayed open for long is
written again at the end by a *copy*, and :meth:`View.low` says below which offset nothing is needed any more. That
offset travels with each commit of the inbox partition, and the next owner reads from there.

docs/spec/ has the protocol as a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from llmagentos.streams.journal_record import COMMANDS, DECISIONS, FROM_OUTSIDE, KINDS, Kind, waits_of
from llmagentos.streams.unfinished import Conversations, Entry, State

__all__ = ["Note", "View"]


@dataclass(frozen=True, slots=True)
class Note:
    """What travels with the commits of an inbox partition for its next owner; as text, in the commit's metadata.

    Attributes:
        low: the journal offset to read from.
        claim: the newest claim below it; -1: none.
        answers: the offset of the agent's answers partition below which no open question has its answer; -1: none
            was ever asked.
    """

    low: int = 0
    claim: int = -1
    answers: int = -1

    def __str__(self) -> str:
        return f"{self.low:x}.{self.claim + 1:x}.{self.answers + 1:x}"

    @classmethod
    def parse(cls, text: str) -> Note:
        """The note in *text*; where it is none, one that says to read everything."""
        try:
            low, claim, answers = (int(part, 16) for part in text.split("."))
        except ValueError:
            return cls()
        return cls(low, claim - 1, answers - 1)


class View:
    """What a reader of a journal partition believes, having folded its records from *start* up to `position`.

    Args:
        start, claim: from the note of an earlier owner; 0 and -1: from the beginning.

    Attributes:
        open: the conversations with something in them, by id.
        entries: all that is in them, by the offset in the inbox.
        ended: inbox offsets of what was closed, until :meth:`cover` says that a commit covers them; to the place in
            the journal that says so. The commit's metadata may have no room for them.
        cancels: what is to be cancelled and is not finished, by the offset in the inbox, whether the journal has
            anything else of it or not; with the place in the journal that says so, and who and why as it has them.
        position: the next journal offset to fold.
        claim: the newest claim; its offset.
    """

    def __init__(self, start: int = 0, claim: int = -1) -> None:
        self.open = Conversations()
        self.entries: Mapping[int, Entry] = self.open.entries
        self.ended: dict[int, int] = {}
        self.cancels: dict[int, tuple[int, Mapping[str, Any]]] = {}
        self.position = start
        self.claim = claim
        self._claims: list[int] = [claim]  # ascending; those that low() may still need
        self._unsent: dict[int, Entry] = {}  # completions and parks by their place in the journal, ascending
        self._sent_here: set[int] = set()  # of them, those that this worker has sent
        self._left: set[int] = set()  # inbox offsets of what was sent here, and not yet said to be
        self._covered = -1  # the inbox is committed up to here; -1: nobody said
        self._needed: set[int] = set()  # places in the journal that must stay; of an entry, the lowest
        self._lowest: list[int] = []  # a heap of them, with some that are needed no more

    def __len__(self) -> int:
        """How many messages are open."""
        return len(self.entries)

    # -- the fold -----------------------------------------------------------------------------------------------

    def fold(self, record: Mapping[str, Any], at: int) -> Entry | None:
        """Take in the next record.

        Args:
            record: as in journal.avsc.
            at: its offset in the journal.

        Returns:
            The entry that it opened or changed, if any; one that it closed is not returned.
        """
        self.position = at + 1
        kind: Kind = record["kind"]
        if kind == "claim":
            self.claim = at
            self._claims.append(at)
            return None
        offset: int = record["offset"]
        if kind == "reset":
            self._forget_ended(lambda _: True)  # history is run again: what ended before counts no more
            self._left.clear()
            self._covered = min(self._covered, 0)
            self._forget_cancels(lambda _: True)
            return None
        if kind == "cancel":
            return self._cancel(record, at)
        if kind in DECISIONS:
            return self._decision(record, at)
        if kind in COMMANDS:
            return self._wish(kind, record, at)
        if record["claim"] < self.claim:
            return None
        self.claim = record["claim"]  # where reading began behind it
        if kind == "sent":
            while self._unsent and (place := next(iter(self._unsent))) < record["refers"]:
                entry = self._unsent[place]
                if entry.state == "done":
                    self._close(entry, place)
                else:
                    self._say(place)
            return None
        entry = self.entries.get(offset)
        if kind not in KINDS or (entry is not None and entry.state == "unknown" and kind not in ("done", "drop")):
            return self._set_aside(record, at)
        if kind == "copy" and record.get("step") is not None:
            self._copy_step(record, at)
            return None
        if kind == "drop":
            if entry is None:  # reading began here, for the end is all that was needed
                entry = Entry(offset, record["conversation_id"], record["message_id"], "held", at)
            self._close(entry, at)
            return None
        if kind == "copy" and entry is not None:
            self._copy(entry, record, at)
            return None
        if kind == "step" and (self._over(offset) if entry is None else entry.state == "done"):
            return None  # what it was for is over
        if entry is None:
            entry = self._new(record)
        if kind == "step":
            self._add_step(entry, record["step"], at)
            return entry
        entry.since = record["at"]
        if kind == "copy":
            self._place(entry, record["state"], at, record["refers"])
            entry.waits = waits_of(record)
            entry.ready = entry.state == "waiting" and offset in self.cancels
        elif kind == "suspend":
            self._suspend(entry, record, at)
        elif kind == "park":
            self._uncancel(offset)  # a person is to say what becomes of it
            self._place(entry, "parked", at, at)
            self._unsent[at] = entry
        elif kind == "held":
            self._place(entry, "held", at, -1)
        else:
            self._uncancel(offset)
            self._place(entry, "done", at, -1)
            self._forget_steps(entry)
            self._unsent[at] = entry
        return entry

    def _set_aside(self, record: Mapping[str, Any], at: int) -> Entry | None:
        """A newer release wrote something of a message: it is left to that, with all that is in the journal of it."""
        offset = record["offset"]
        if offset < 0 or offset in self.ended:
            return None
        entry = self.entries.get(offset) or self._new(record)
        entry.state, entry.ready = "unknown", False
        entry.add_step(at)
        self._keep(entry)
        return entry

    def _copy(self, entry: Entry, record: Mapping[str, Any], at: int) -> None:
        """The payload is at the end of the journal now."""
        # What a person wants, or it waited for, may have come before it in the log: then all stays where it was.
        if entry.wish or entry.ready:
            return
        if entry.state == "open":  # reading began at the copies of its steps
            entry.waits = waits_of(record)
        elif entry.state != record["state"] or entry.park != record["refers"]:
            return
        self._place(entry, record["state"], at, record["refers"])
        entry.ready = entry.state == "waiting" and entry.offset in self.cancels
        entry.since = record["at"]

    def _copy_step(self, record: Mapping[str, Any], at: int) -> None:
        """A step is at the end of the journal now. Its first place tells its order among the others."""
        entry = self.entries.get(record["offset"])
        if record["offset"] in self.ended or (entry is not None and entry.state == "done"):
            return
        if entry is None:
            entry = self._new(record)
        entry.move_step(record["refers"], at)
        self._keep(entry)

    def _new(self, record: Mapping[str, Any]) -> Entry:
        entry = Entry(record["offset"], record["conversation_id"], record["message_id"], "open", -1)
        self.open.add(entry)
        return entry

    def _add_step(self, entry: Entry, step: Mapping[str, Any], at: int) -> None:
        entry.add_step(at)
        if entry.low < 0:  # what it needed before lies lower
            self._keep(entry)
        left = tuple(wait for wait in entry.waits if not wait.ends_by(step))
        if len(left) < len(entry.waits):
            entry.waits, entry.ready = left, True
        if step["outcome"] in FROM_OUTSIDE:
            entry.early += ({name: step[name] for name in ("name", "number", "outcome", "about")},)

    def _decision(self, record: Mapping[str, Any], at: int) -> Entry | None:
        """A person approved or rejected. Of several such, the first counts."""
        entry = self.entries.get(record["offset"])
        step = record["step"]
        if entry is None or step is None or entry.state == "done" or (entry.state == "parked" and not entry.wish):
            return None
        self._add_step(entry, step, at)
        return entry

    def _suspend(self, entry: Entry, record: Mapping[str, Any], at: int) -> None:
        if record["record"] is not None or entry.state == "open":
            self._place(entry, "waiting", at, -1)
        else:  # it was suspended before, or held: its payload stays where it is
            if entry.state != "waiting":
                entry.state, entry.park, entry.wish = "waiting", -1, ""
            entry.waits_at = at
            self._keep(entry)
        waits = waits_of(record)
        entry.waits = tuple(wait for wait in waits if not any(map(wait.ends_by, entry.early)))
        entry.ready, entry.early = len(entry.waits) < len(waits) or entry.offset in self.cancels, ()

    def _cancel(self, record: Mapping[str, Any], at: int) -> Entry | None:
        """A person wants it to end. Of several such, the first counts; what is over, or parked, is left as it is."""
        offset = record["offset"]
        entry = self.entries.get(offset)
        if offset in self.ended or offset in self.cancels:
            return None
        if entry is not None and (entry.state == "done" or (entry.state == "parked" and not entry.wish)):
            return None
        self.cancels[offset] = (at, record["step"] or {})
        self._need(at)
        if entry is not None and entry.state == "waiting":
            entry.ready = True
        return entry

    def _uncancel(self, offset: int) -> None:
        if (cancel := self.cancels.pop(offset, None)) is not None:
            self._needed.discard(cancel[0])

    def _forget_cancels(self, which: Callable[[int], bool]) -> None:
        """Those of what has come to its end with nothing in the journal, or is to run again."""
        for offset in [offset for offset in self.cancels if offset not in self.entries and which(offset)]:
            self._uncancel(offset)

    def _wish(self, kind: Any, record: Mapping[str, Any], at: int) -> Entry | None:
        entry = self.entries.get(record["offset"])
        if entry is None or entry.state != "parked" or entry.park != record["refers"] or entry.wish:
            return None  # that park is over, or somebody has said it already
        entry.wish, entry.wish_at, entry.edited = kind, at, record["record"] is not None
        if entry.edited:
            self._forget_steps(entry)  # they were another message's
            entry.message_id = record["message_id"] or entry.message_id
        self._keep(entry)
        return entry

    def _place(self, entry: Entry, state: State, at: int, park: int) -> None:
        self._say(entry.at)
        entry.state, entry.at, entry.park = state, at, park
        entry.wish, entry.wish_at, entry.waits_at, entry.edited = "", -1, -1, False
        self._keep(entry)

    def _close(self, entry: Entry, at: int) -> None:
        self._say(entry.at)
        self._needed.discard(entry.low)
        self._uncancel(entry.offset)
        self.ended[entry.offset] = at
        self._left.discard(entry.offset)
        self._need(at)
        self._leave(entry)

    def _over(self, offset: int) -> bool:
        """Whether a message that is not open has come to its end. (An answer may be on its way to the journal yet.)"""
        return offset in self.ended or offset in self._left or offset < self._covered

    def _leave(self, entry: Entry) -> None:
        if self.entries.get(entry.offset) is entry:
            self.open.remove(entry)

    # -- completions and letters, at the owner ------------------------------------------------------------------

    def sent(self, entry: Entry) -> None:
        """The owner has sent the outputs of *entry*: what comes behind it in its conversation may run."""
        self._sent_here.add(entry.at)
        self._left.add(entry.offset)
        self._leave(entry)

    def told(self, entry: Entry) -> None:
        """The owner has sent the dead letter of *entry*, which it parked."""
        if entry.at in self._unsent:
            self._sent_here.add(entry.at)

    def untold(self) -> list[Entry]:
        """What is parked, and its dead letter perhaps not sent."""
        unsent = self._unsent.items()
        return [entry for at, entry in unsent if entry.state == "parked" and at not in self._sent_here]

    def sent_below(self) -> int:
        """What records below this journal offset say is to be sent was sent by this owner, or by an earlier one."""
        for place in self._unsent:
            if place not in self._sent_here:
                return place
        return self.position

    @property
    def news(self) -> bool:
        """Whether a *sent* record would say anything new."""
        return bool(self._sent_here) and next(iter(self._unsent)) in self._sent_here

    def cover(self, committed: int) -> None:
        """The inbox is committed up to *committed*, or is about to be with what is read of this view now."""
        if self._covered < 0:
            # Reading began behind the end of some: only steps were read that came too late. What is under way is above,
            # and what was released has its payload in the journal.
            for entry in [e for e in self.entries.values() if e.state == "open" and e.offset < committed]:
                self._needed.discard(entry.low)
                self._leave(entry)
        self._covered = max(self._covered, committed)
        self._forget_ended(lambda offset: offset < committed)
        self._forget_cancels(lambda offset: offset < committed)

    def _forget_ended(self, which: Callable[[int], bool]) -> None:
        for offset in [offset for offset in self.ended if which(offset)]:
            self._needed.discard(self.ended.pop(offset))

    # -- what is needed -----------------------------------------------------------------------------------------

    def _need(self, at: int) -> None:
        self._needed.add(at)
        heappush(self._lowest, at)

    def _keep(self, entry: Entry) -> None:
        """The places that *entry* needs have changed."""
        low = entry.lowest()
        if low != entry.low:
            self._needed.discard(entry.low)
            entry.low = low
            if low >= 0:
                self._need(low)

    def _forget_steps(self, entry: Entry) -> None:
        entry.drop_steps()
        entry.waits, entry.ready, entry.early = (), False, ()
        self._keep(entry)

    def _say(self, at: int) -> None:
        self._unsent.pop(at, None)
        self._sent_here.discard(at)

    def low(self) -> int:
        """Below this journal offset there is nothing that a next owner needs.

        Places of payloads of what is open, of completions that may not have been sent, and of what ended and is not
        covered by a commit.
        """
        heap = self._lowest
        while heap and heap[0] not in self._needed:
            heappop(heap)
        return heap[0] if heap else self.position

    def claim_below(self, low: int) -> int:
        """The newest claim below *low*; -1: none. What is below that is forgotten: ask with ascending offsets."""
        claims = self._claims
        while len(claims) > 1 and claims[1] < low:
            del claims[0]
        return claims[0]

    def movable(self, below: int, before_ms: int) -> list[Entry]:
        """What a copy may move now: the entries that lie below the journal offset *below*, or are older; lowest first.

        Only of conversations that wait: nothing of them is under way, so that no record of what became of an entry
        can come before its copy.
        """
        found = [
            entry
            for entry in self.entries.values()
            if (entry.low < below or entry.since < before_ms)
            and entry.at not in self._unsent
            and entry.state != "unknown"
            and self.open[entry.conversation_id].waits
        ]
        return sorted(found, key=lambda entry: entry.low)
