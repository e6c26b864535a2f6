"""The view of a journal against a fold that is written from the protocol alone, over any records in any order.

tests/unit/test_owner.py has owners that write what they may, and read from the note of a commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from journal_fold import DECISIONS, Said, believed, cancelled, fold, record, step, wait

from llmagentos.streams.journal import Note, View
from llmagentos.streams.unfinished import Entry

OFFSETS = st.integers(0, 5)
#: Places to refer to; a log has some thirty.
PLACES = st.integers(0, 30)
#: How far behind the newest claim a writer's own is.
STALE = st.sampled_from([0, 0, 0, 1, 2])
OWNERS = st.sampled_from(
    [
        *("park", "held", "done", "drop", "sent", "copy-parked", "copy-held", "copy-waiting", "copy-step"),
        *("step", "step", "answer", "suspend", "suspend", "folded"),
    ]
)
#: What a handler waits for, and what ends it.
WAITS = [wait("answer", "q"), wait("approval", "ok"), wait("timer", "nap"), wait("answer", "r")]
STEPS = st.one_of(
    st.tuples(st.sampled_from(["claim", "claim", "claim", "reset"]), st.just(0), st.just(0), st.just(0)),
    st.tuples(OWNERS, OFFSETS, STALE, PLACES),
    st.tuples(st.sampled_from(["redrive", "discard", "cancel", *DECISIONS]), OFFSETS, st.just(0), PLACES),
)


def written(steps: Sequence[tuple[str, int, int, int]]) -> list[dict[str, Any]]:
    """A log of *steps*. Nobody writes of what has come to its end; references mostly hit."""
    log: list[dict[str, Any]] = []
    claims = [-1]
    for kind, offset, stale, place in steps:
        claim = claims[max(0, len(claims) - 1 - stale)]
        said, ended = fold(log)
        known = said.get(offset, Said(""))
        park = known.park if offset in said and place % 4 else place
        if kind == "claim":
            claims.append(len(log))
            log.append(record("claim"))
        elif kind == "reset":
            log.append(record("reset"))
        elif kind == "sent":
            log.append(record("sent", claim, refers=place))
        elif offset in ended:
            continue
        elif kind == "copy-step":
            firsts = [first for first, _ in known.steps] or [min(place, len(log) - 1)]  # what it copies was before
            log.append(record("copy", claim, offset, refers=firsts[place % len(firsts)], step=step("a", "result")))
        elif kind.startswith("copy"):
            state = kind.removeprefix("copy-")
            waits = WAITS[: place % 3] if state == "waiting" else []
            refers = park if state == "parked" else -1
            log.append(record("copy", claim, offset, state=state, refers=refers, waits=waits))
        elif kind == "step":
            log.append(record("step", claim, offset, step=step("nap" if place % 3 == 0 else f"s{place % 3}", "result")))
        elif kind == "answer":
            log.append(record("step", claim, offset, step=step("qr"[place % 2], "answer")))
        elif kind == "suspend":
            payload = {"key": b"k"} if known.state in ("", "open") and place % 3 else None
            waits = [each for bit, each in enumerate(WAITS) if (place + 1) >> bit & 1]
            log.append(record("suspend", claim, offset, record=payload, waits=waits))
        elif kind == "cancel":
            log.append(record(kind, -1, offset))
        elif kind in DECISIONS:
            log.append(record(kind, -1, offset, step=step("ok", kind)))
        elif kind in ("redrive", "discard"):
            edited = {"key": b"k", "value": b"v", "headers": [], "timestamp": 0} if place % 2 else None
            log.append(record(kind, -1, offset, refers=park, record=edited))
        else:
            log.append(record(kind, claim, offset))
    return log


def compare(log: Sequence[Mapping[str, Any]], view_type: type[View]) -> None:
    """Every prefix of *log* reads the same."""
    view = view_type()
    for at, entry in enumerate(log):
        view.fold(entry, at)
        said, ended = fold(log[: at + 1])
        assert believed(view) == said, "believes something else"
        assert view.ended == ended, "remembers other ends"
        cancels = cancelled(log[: at + 1])
        assert {o: place for o, (place, _) in view.cancels.items()} == cancels, "remembers other cancellations"
        assert len(view) == len(said)
        assert view.position == at + 1
        needed = {place for each in said.values() for place in each.needed}
        assert view.low() == min([*needed, *ended.values(), *cancels.values()], default=at + 1), "needs something else"
        for name, conversation in view.open.items():
            assert [*conversation.order] == sorted(entry.offset for entry in conversation), (
                "is not in the order of the inbox"
            )
            assert conversation.order
            assert conversation.waits is not said[conversation.first.offset].can_go_on, "believes it can go on"
            assert {entry.conversation_id for entry in conversation} == {name}


@given(st.lists(STEPS, max_size=30).map(written))
@example(
    [
        record("claim"),
        record("park", 0, 2),
        record("redrive", offset=2, refers=1),
        record("copy", 0, 2, state="parked", refers=1),
    ]
)
@example([record("claim"), record("done", 0, 2), record("done", 0, 2), record("sent", 0, refers=3)])
@settings(max_examples=300, deadline=None)
def test_a_view_believes_what_the_protocol_says(log: list[dict[str, Any]]) -> None:
    compare(log, View)


class Blind(View):
    """The seeded bug: a copy counts whatever came before it."""

    def fold(self, record: Mapping[str, Any], at: int) -> Any:
        entry = self.entries.get(record["offset"])
        if record["kind"] == "copy" and entry is not None and record["claim"] >= self.claim:
            self.position = at + 1
            self._place(entry, record["state"], at, record["refers"])
            return entry
        return super().fold(record, at)


class Trusting(View):
    """The seeded bug: void records count."""

    def fold(self, record: Mapping[str, Any], at: int) -> Any:
        void = record["kind"] != "claim" and record["claim"] < self.claim
        return super().fold({**record, "claim": self.claim} if void else record, at)


class AnyPark(View):
    """The seeded bug: a wish counts for whatever park there is."""

    def fold(self, record: Mapping[str, Any], at: int) -> Any:
        entry = self.entries.get(record["offset"])
        if record["kind"] in ("redrive", "discard") and entry is not None:
            record = {**record, "refers": entry.park}
        return super().fold(record, at)


class Forgetful(View):
    """The seeded bug: what is completed and not yet sent is not needed any more."""

    def low(self) -> int:
        return min((p for p in self._needed if p not in self._unsent), default=self.position)


class Late(View):
    """The seeded bug: what came before the suspension is waited for, still."""

    def _suspend(self, entry: Entry, record: Mapping[str, Any], at: int) -> None:
        entry.early = ()
        super()._suspend(entry, record, at)


class Trustful(View):
    """The seeded bug: who goes on because of an answer is believed to have it, though it is suspended for it again."""

    def _add_step(self, entry: Entry, step: Mapping[str, Any], at: int) -> None:
        early, waits = entry.early, entry.waits
        super()._add_step(entry, step, at)
        if len(entry.waits) < len(waits):
            entry.early = early


class Spent(View):
    """The seeded bug: once its message is kept elsewhere, steps are needed no more."""

    def low(self) -> int:
        steps = {at for entry in self.entries.values() for _, at in entry.steps or ()}
        return min((place for place in self._needed if place not in steps), default=self.position)


class Heirloom(View):
    """The seeded bug: an edited message has the steps of the one that it takes the place of."""

    def _forget_steps(self, entry: Entry) -> None:
        if not entry.edited:
            super()._forget_steps(entry)


class Bold(View):
    """The seeded bug: what a newer release says is passed over."""

    def _set_aside(self, record: Mapping[str, Any], at: int) -> Entry | None:
        return None


class Rash(View):
    """The seeded bug: a person decides for one that is parked."""

    def _decision(self, record: Mapping[str, Any], at: int) -> Entry | None:
        entry = self.entries.get(record["offset"])
        if entry is not None and entry.state != "done":
            self._add_step(entry, record["step"], at)
        return entry


class Deaf(View):
    """The seeded bug: what is suspended after a cancellation waits, still."""

    def _suspend(self, entry: Entry, record: Mapping[str, Any], at: int) -> None:
        cancels, self.cancels = self.cancels, {}
        super()._suspend(entry, record, at)
        self.cancels = cancels


class Careless(View):
    """The seeded bug: where a cancellation is needs not stay."""

    def low(self) -> int:
        places = {at for at, _ in self.cancels.values()}
        return min((place for place in self._needed if place not in places), default=self.position)


class Merciless(View):
    """The seeded bug: a cancellation outlives the park of what it was for."""

    def _uncancel(self, offset: int) -> None:
        if offset not in self.entries or self.entries[offset].state == "done":
            super()._uncancel(offset)


class Doubling(View):
    """The seeded bug: a copied step is one more."""

    def _copy_step(self, record: Mapping[str, Any], at: int) -> None:
        super()._copy_step({**record, "refers": at}, at)


BUGS = [
    Blind,
    Trusting,
    AnyPark,
    Forgetful,
    Late,
    Trustful,
    Spent,
    Heirloom,
    Bold,
    Rash,
    Doubling,
    Deaf,
    Careless,
    Merciless,
]


@pytest.mark.parametrize("bug", BUGS)
def test_the_fold_sees_a_bug(bug: type[View]) -> None:
    @given(st.lists(STEPS, max_size=30).map(written))
    @settings(max_examples=20_000, deadline=None, database=None, derandomize=True, report_multiple_bugs=False)
    def seeded(log: list[dict[str, Any]]) -> None:
        compare(log, bug)

    with pytest.raises(AssertionError, match="believes|needs|remembers"):
        seeded()


@given(st.integers(0, 2**40), st.integers(-1, 2**40), st.integers(-1, 2**40))
def test_a_note_comes_back_from_its_text(low: int, claim: int, answers: int) -> None:
    assert Note.parse(str(Note(low, claim, answers))) == Note(low, claim, answers)


@given(st.text(max_size=20))
def test_what_is_no_note_says_to_read_everything_or_is_one(text: str) -> None:
    note = Note.parse(text)
    assert note == Note() or Note.parse(str(note)) == note


class TestAnswersThatComeTooLate:
    """An answer that is read twice may be written once more behind the end of what waited for it: it opens nothing."""

    def log(self) -> list[dict[str, Any]]:
        late = record("step", 0, 3, step=step("q", "answer"))
        suspended = record("suspend", 0, 3, waits=[wait("answer", "q")])
        return [record("claim"), suspended, late, record("done", 0, 3), record("sent", 0, refers=4), late]

    def folded(self, start: int = 0, sent: bool = False) -> View:
        view = View(start)
        for at, entry in enumerate(self.log()):
            if at < start or (sent and entry["kind"] == "sent"):
                continue
            view.fold(entry, at)
            if sent and entry["kind"] == "done":
                view.sent(view.entries[3])
        return view

    def test_its_owner_has_sent_the_outputs_and_not_said_so_yet(self) -> None:
        assert not self.folded(sent=True).entries

    def test_the_end_was_committed(self) -> None:
        view = View()
        view.cover(0)
        for at, entry in enumerate(self.log()):
            if at == 5:
                view.cover(4)
            view.fold(entry, at)
        assert not view.entries
        assert view.low() == 6

    def test_reading_began_behind_the_end(self) -> None:
        view = self.folded(start=4)
        view.cover(4)
        assert not view.entries
        assert view.low() == 6
