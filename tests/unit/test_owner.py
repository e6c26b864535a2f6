"""Gate, journal view and dedup together, as the owners of one partition use them, under everything that can happen.

No Kafka: the machine is the inbox, the journal, the group's commit and the receiver, and its owners do with the pure
parts what agents/inbox.py does. Deliveries with gaps, handlers that end in any order, producers' duplicates, parks,
wishes of people, copies, crashes, rebalances, zombies that act on and claim again, and commits whose metadata has
room for little. docs/spec has the same protocol as a model; here it is the code that is checked, at greater lengths.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from journal_fold import Said, believed, cancelled, fold, record, step, wait

from llmagentos.streams.dedup import Dedup
from llmagentos.streams.gate import CommitGate, decode_finished, decode_note
from llmagentos.streams.journal import Note, View
from llmagentos.streams.ownership import copies, places_of

#: Characters of commit metadata: the note takes some 10 of them, so that one or two runs fit.
ROOM = 22
#: Ids that the owners remember below the committed offset: no producer here sends one again after more.
WINDOW = 1_000


class Inbox:
    """What Kafka delivers: messages at offsets with gaps between them."""

    def __init__(self) -> None:
        self.end = 0
        self.ids: dict[int, str] = {}
        self.conversations: dict[int, str] = {}
        self.poison: set[str] = set()
        self.many: set[str] = set()
        self.waits: set[str] = set()  # their handlers do a step, wait for a person, and do another

    def put(self, identity: str, conversation: str, gap: int) -> None:
        self.ids[self.end + gap] = identity
        self.conversations[self.end + gap] = conversation
        self.end += gap + 1


class Owner:
    """A worker's hold on the partition; it does what it believes to be right until it is told otherwise."""

    def __init__(self, world: World, commit: tuple[int, str]) -> None:
        offset, metadata = commit
        self.world = world
        self.commit = commit
        self.start = offset
        self.told = {n for first, last in decode_finished(offset, metadata) for n in range(first, last + 1)}
        note = Note.parse(decode_note(metadata))
        self.view = world.view_type(note.low, note.claim)
        self.gate = world.gate_type(offset, decode_finished(offset, metadata))
        self.dedup = world.dedup_type(WINDOW, lambda: world.commit[0])
        self.position = offset
        self.lanes: dict[str, deque[int]] = {}
        self.posted: deque[dict[str, Any]] = deque()  # on their way to the journal
        self.awaited: dict[int, tuple[int, str]] = {}  # journal offset -> (inbox offset, conversation)
        self.busy: set[str] = set()  # conversations whose turn waits for a record to be read back
        self.over = False
        self.claim = len(world.log)
        world.append(record("claim"))
        self.catch_up()
        self.rebuild()

    def rebuild(self) -> None:
        open_ = {entry for conversation in self.view.open.values() for entry in conversation.order}
        for offset, identity in self.world.inbox.ids.items():
            if (offset < self.start or offset in self.told) and offset not in open_:
                self.dedup.finished(identity, offset)
        self.view.cover(self.start)
        kept = open_ - {n for n in open_ if self.view.entries[n].state == "open"}
        self.journaled = {n for n in (*kept, *self.view.ended) if n >= self.start and n not in self.told}
        for entry in self.view.untold():
            self.write_letter(entry)

    # -- reading ------------------------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Read the journal to its end."""
        world = self.world
        while not self.over and self.view.position < len(world.log):
            at = self.view.position
            entry = world.log[at]
            if entry["kind"] == "claim" and at > self.claim:
                self.over = True
                return
            self.view.fold(entry, at)
            if at in self.awaited:
                self.counts(entry["kind"], *self.awaited.pop(at))

    def counts(self, kind: str, offset: int, conversation: str) -> None:
        """Its own record about *offset* was read back."""
        self.busy.discard(conversation)
        if kind == "done":
            entry = self.view.entries[offset]
            self.send_completion(entry)
        if kind == "park":
            self.write_letter(self.view.entries[offset])
        if kind == "step":
            self.advance(offset)  # the handler goes on
            return
        if kind == "drop":
            self.dedup.finished(self.world.inbox.ids[offset], offset)
        self.gate.finish(offset)

    def send_completion(self, entry: Any) -> None:
        self.world.effect(self.world.inbox.ids[entry.offset], self.world.log[entry.at]["writer"])
        self.view.sent(entry)
        self.dedup.finished(self.world.inbox.ids[entry.offset], entry.offset)

    def write_letter(self, entry: Any) -> None:
        self.world.letters.add(entry.park)
        self.view.told(entry)

    # -- acting -------------------------------------------------------------------------------------------------

    def post(self, kind: str, offset: int, **fields: Any) -> None:
        conversation = self.world.inbox.conversations.get(offset, "")
        self.posted.append(
            record(kind, self.claim, offset, **{**fields, "conversation_id": conversation, "writer": id(self)})
        )
        if kind not in ("copy", "sent"):
            self.busy.add(conversation)

    def land(self) -> None:
        """The next of its records reaches the journal, whoever owns the partition now."""
        entry = self.posted.popleft()
        at = len(self.world.log)
        self.world.append(entry)
        if entry["kind"] not in ("copy", "sent"):
            self.awaited[at] = (entry["offset"], entry["conversation_id"])

    def deliver(self, count: int) -> None:
        batch = [offset for offset in self.world.inbox.ids if offset >= self.position][:count]
        if not batch:
            self.position = max(self.position, self.world.inbox.end)
            self.gate.advance(self.position)
            return
        skipped = [offset for offset in batch if self.gate.skip(offset)]
        self.gate.delivered(batch)
        for offset in batch:
            if offset in skipped:
                self.gate.finish(offset)
            else:
                self.lanes.setdefault(self.world.inbox.conversations[offset], deque()).append(offset)
        self.position = batch[-1] + 1

    def turn(self, name: str) -> bool:
        """Whose turn it is in the conversation *name* has it; False: nobody's."""
        if name in self.busy or self.over:
            return False
        conversation = self.view.open.get(name)
        lane = self.lanes.get(name)
        first = None if conversation is None or conversation.waits else conversation.first
        if first is not None and first.state != "open" and first.offset not in self.journaled:
            self.from_journal(first)
            return True
        if lane:
            self.arrival(lane.popleft())
            return True
        return False

    def from_journal(self, entry: Any) -> None:
        identity = self.world.inbox.ids[entry.offset]
        if entry.state == "done":
            self.send_completion(entry)
        elif entry.wish == "discard" or (not entry.wish and self.dedup.twin(identity, entry.offset)):
            self.post("drop", entry.offset)
        elif entry.offset in self.view.cancels:
            self.cancelled(entry.offset)
        elif identity in self.world.inbox.poison and not entry.wish:
            self.world.runs(self, entry.offset)
            self.post("park", entry.offset)
        elif identity in self.world.inbox.waits:
            self.advance(entry.offset)
        elif self.world.records_held:
            self.world.runs(self, entry.offset)
            self.post("done", entry.offset)
        else:  # the seeded bug: it takes the fast path, and the journal doesn't hear of it
            self.world.runs(self, entry.offset)
            self.world.says(self, entry.offset)
            self.view._close(entry, entry.at)  # pyright: ignore[reportPrivateUsage]

    def cancelled(self, offset: int) -> None:
        self.world.runs(self, offset)
        self.post("done", offset, outputs=["cancelled"])

    def advance(self, offset: int) -> None:
        """The handler of one that waits goes on behind what is recorded."""
        if offset in self.view.cancels:
            self.cancelled(offset)
            return
        self.world.runs(self, offset)
        entry = self.view.entries.get(offset)
        steps = [self.world.log[at]["step"] for _, at in (entry.steps if entry is not None else None) or ()]
        results = {each["name"]: each["outcome"] for each in reversed(steps) if self.world.loads_steps}
        for name in ("first", "ok", "last"):
            if name in results:
                continue
            if name == "ok":
                record = None if entry is not None and entry.state != "open" else {"key": b"k"}
                self.post("suspend", offset, record=record, waits=[wait("approval", "ok")])
                if self.world.releases_early:
                    self.gate.finish(offset)
                return
            self.world.executes(self, offset, name)
            self.post("step", offset, step=step(name, "result"))
            if self.world.reads_back:
                return
            results[name] = "result"
        self.post("done", offset, outputs=[results["ok"]])

    def arrival(self, offset: int) -> None:
        world = self.world
        identity = world.inbox.ids[offset]
        conversation = self.view.open.get(world.inbox.conversations[offset])
        if offset in self.journaled:
            self.journaled.discard(offset)
            if offset in self.view.ended:
                self.dedup.finished(identity, offset)
            self.gate.finish(offset)
        elif conversation is not None and conversation.order[0] < offset and not world.runs_held_early:
            self.post("held", offset)
        elif self.dedup.twin(identity, offset):
            if offset in self.view.entries:
                self.post("drop", offset)
            else:
                self.gate.finish(offset)
        elif offset in self.view.cancels:
            self.cancelled(offset)
        elif identity in world.inbox.waits:
            self.advance(offset)
        elif identity in world.inbox.poison:
            world.runs(self, offset)
            self.post("park", offset)
        elif identity in world.inbox.many:
            world.runs(self, offset)
            self.post("done", offset)
            if world.releases_early:
                self.gate.finish(offset)
        else:
            world.runs(self, offset)
            world.says(self, offset)
            self.dedup.finished(identity, offset)
            self.gate.finish(offset)

    def say_sent(self) -> None:
        if self.view.news:
            self.post("sent", -1, refers=self.view.sent_below())

    def copy(self, most: int) -> None:
        for entry in self.view.movable(1 << 60, 1 << 60)[:most]:
            found = {place: self.world.log[place] for place in places_of(entry)}
            for fields in copies(entry, found):
                self.post("copy", **{k: v for k, v in fields.items() if k not in ("message_id", "at")})

    def note(self) -> tuple[int, str]:
        """What it would commit now."""
        offset = self.gate.committable()
        assert offset is not None
        self.view.cover(offset)
        low = self.view.low()
        claim = self.view.claim_below(low) if self.world.tells_claim else -1
        return offset, self.gate.metadata(ROOM, str(Note(low, claim)))


class World(RuleBasedStateMachine):
    """One partition. The last of `owners` is the group's; the others are zombies."""

    view_type: type[View] = View
    gate_type: type[CommitGate] = CommitGate
    dedup_type: Callable[..., Dedup] = Dedup
    records_held = True
    runs_held_early = False
    releases_early = False
    loads_steps = True
    reads_back = True
    tells_claim = True

    def __init__(self) -> None:
        super().__init__()
        self.inbox = Inbox()
        self.log: list[Mapping[str, Any]] = []
        self.commit = (0, "")
        self.effects: dict[str, int] = {}  # the first of each id, in order -> who computed it
        self.fast: set[int] = set()  # offsets whose effect came without the journal
        self.discarded: set[str] = set()
        self.executed: dict[tuple[int, int], set[str]] = {}
        self.letters: set[int] = set()  # of which parks there is a dead letter
        self.owners = [Owner(self, self.commit)]

    # -- what the world keeps, and what it must never see -----------------------------------------------------------

    def append(self, entry: dict[str, Any]) -> None:
        """A record reaches the journal."""
        if entry["kind"] == "done" and entry["claim"] >= self.newest():
            said, ended = fold(self.log)
            twins = [o for o in (*(o for o, s in said.items() if s.state == "done"), *ended) if self.done_at(o)]
            identity = self.inbox.ids[entry["offset"]]
            assert identity not in {self.inbox.ids[o] for o in twins}, "a second completion"
            if entry["outputs"] == ["cancelled"]:
                assert entry["offset"] in cancelled(self.log), "nobody cancelled it"
            elif identity in self.inbox.waits:
                assert entry["outputs"] == [self.decided(said[entry["offset"]])], "a decision that is not the first"
        self.log.append(entry)

    def recorded(self, said: Said) -> list[Mapping[str, Any]]:
        """The steps of a message, in their order."""
        return [self.log[at]["step"] for _, at in said.steps]

    def decided(self, said: Said) -> str:
        return next(each["outcome"] for each in self.recorded(said) if each["name"] == "ok")

    def executes(self, owner: Owner, offset: int, name: str) -> None:
        """A step is done."""
        if owner.claim == self.newest():
            said = fold(self.log)[0].get(offset, Said(""))
            assert name not in [each["name"] for each in self.recorded(said)], "a recorded step runs again"
            executed = self.executed.setdefault((owner.claim, offset), set())
            assert name not in executed, "a step runs twice in one worker"
            executed.add(name)

    def done_at(self, offset: int) -> bool:
        return any(e["kind"] == "done" and e["offset"] == offset for e in self.log)

    def newest(self) -> int:
        return max((at for at, entry in enumerate(self.log) if entry["kind"] == "claim"), default=-1)

    def effect(self, identity: str, by: int) -> None:
        self.effects.setdefault(identity, by)

    def says(self, owner: Owner, offset: int) -> None:
        """An output is sent without a completion in the journal."""
        if owner.claim == self.newest():
            assert offset not in fold(self.log)[0], "what is open in the journal takes effect without a completion"
        self.effect(self.inbox.ids[offset], id(owner))

    def runs(self, owner: Owner, offset: int) -> None:
        """A handler runs; of zombies anything may be expected, as nothing of theirs counts."""
        if owner.claim != self.newest():
            return
        said, ended = fold(self.log)
        assert offset not in ended, "what came to its end runs again"
        assert said.get(offset, Said("")).state != "done", "what is completed runs again"
        mine = self.inbox.conversations[offset]
        later = [o for o in self.inbox.ids if o > offset and self.inbox.conversations[o] == mine]
        # What is completed and comes again from the inbox has its turn there, behind what comes before it.
        done = {o for o, s in said.items() if s.state == "done"} - owner.journaled
        over = set(ended) - owner.journaled | done | self.known_finished(owner)
        assert not over & set(later), "a message runs after a later one of its conversation"

    def known_finished(self, owner: Owner) -> set[int]:
        return {o for o in self.inbox.ids if (o < owner.start or o in owner.told) and o not in fold(self.log)[0]}

    # -- what can happen ------------------------------------------------------------------------------------------

    @property
    def owner(self) -> Owner:
        """Whom the group calls owner."""
        return self.owners[-1]

    @rule(
        kind=st.sampled_from(["plain", "plain", "many", "poison", "waits", "waits"]),
        conversation=st.integers(0, 2),
        gap=st.integers(0, 1),
    )
    def produce(self, kind: str, conversation: int, gap: int) -> None:
        identity = f"{kind}{len(self.inbox.ids)}"
        if kind == "many":
            self.inbox.many.add(identity)
        elif kind == "poison":
            self.inbox.poison.add(identity)
        elif kind == "waits":
            self.inbox.waits.add(identity)
        self.inbox.put(identity, f"c{conversation}", gap)

    @precondition(lambda self: self.inbox.ids)
    @rule(which=st.integers(0, 1_000))
    def produce_again(self, which: int) -> None:
        offset = list(self.inbox.ids)[which % len(self.inbox.ids)]
        self.inbox.put(self.inbox.ids[offset], self.inbox.conversations[offset], 0)

    def of(self, who: int) -> Owner:
        return self.owners[-1 - who % len(self.owners)]

    @rule(who=st.integers(0, 3), count=st.integers(1, 4))
    def deliver(self, who: int, count: int) -> None:
        self.of(who).deliver(count)

    @rule(who=st.sampled_from([0, 0, 0, 1]), conversation=st.integers(0, 2), times=st.integers(1, 3))
    def work(self, who: int, conversation: int, times: int) -> None:
        for _ in range(times):
            self.of(who).turn(f"c{conversation}")

    @rule(who=st.sampled_from([0, 0, 0, 1]), reads=st.booleans())
    def land(self, who: int, reads: bool) -> None:
        owner = self.of(who)
        while owner.posted:
            owner.land()
            if not reads:
                return
        owner.catch_up()

    @rule(who=st.integers(0, 1))
    def say_sent(self, who: int) -> None:
        owner = self.of(who)
        if not owner.over and not any(entry["kind"] == "sent" for entry in owner.posted):
            owner.say_sent()

    @rule(who=st.integers(0, 1), most=st.integers(1, 3))
    def copy(self, who: int, most: int) -> None:
        owner = self.of(who)
        if not owner.over and not owner.busy:
            owner.copy(most)

    @rule(which=st.integers(0, 1_000), kind=st.sampled_from(["redrive", "redrive", "discard"]))
    def wish(self, which: int, kind: str) -> None:
        parks = [at for at, entry in enumerate(self.log) if entry["kind"] == "park"]
        if parks:
            self.wishes(parks[which % len(parks)], kind)

    def wishes(self, park: int, kind: str) -> None:
        offset = self.log[park]["offset"]
        said = fold(self.log)[0].get(offset, Said(""))
        if kind == "discard" and said.state == "parked" and said.park == park and not said.wish:
            self.discarded.add(self.inbox.ids[offset])
        self.log.append(record(kind, -1, offset, refers=park, conversation_id=self.inbox.conversations[offset]))

    @precondition(lambda self: self.inbox.waits)
    @rule(which=st.integers(0, 1_000), approve=st.booleans())
    def decide(self, which: int, approve: bool) -> None:
        """A person decides, be it early, late or once more."""
        offsets = [offset for offset, identity in self.inbox.ids.items() if identity in self.inbox.waits]
        offset = offsets[which % len(offsets)]
        kind, conversation = "approve" if approve else "reject", self.inbox.conversations[offset]
        self.log.append(record(kind, -1, offset, conversation_id=conversation, step=step("ok", kind)))

    @precondition(lambda self: self.inbox.ids)
    @rule(which=st.integers(0, 1_000))
    def cancel(self, which: int) -> None:
        """A person cancels, be it early, late or once more."""
        offset = list(self.inbox.ids)[which % len(self.inbox.ids)]
        self.log.append(record("cancel", -1, offset, conversation_id=self.inbox.conversations[offset]))

    @rule()
    def commits(self) -> None:
        if not self.owner.over:
            commit = self.owner.note()
            assert commit[0] >= self.commit[0], "the committed offset falls"
            self.commit = commit
            self.owner.commit = commit
            self.nothing_is_lost()

    @rule()
    def crash(self) -> None:
        self.owners.pop()
        self.owners.append(Owner(self, self.commit))

    @rule(clean=st.booleans())
    def rebalance(self, clean: bool) -> None:
        """Another owner. Unless it heard of it in time, the old one goes on as a zombie."""
        if clean:
            self.commits()
            self.owners.pop()
        self.owners.append(Owner(self, self.commit))
        del self.owners[:-3]

    @rule(who=st.integers(0, 2))
    def claim_again(self, who: int) -> None:
        """One that met a newer claim, and takes itself for the owner, begins again; a zombie from what it knew."""
        owner = self.of(who)
        if owner.over:
            commit = self.commit if owner is self.owner else owner.commit
            self.owners[self.owners.index(owner)] = Owner(self, commit)

    # -- what must hold -------------------------------------------------------------------------------------------

    def nothing_is_lost(self) -> None:
        offset, metadata = self.commit
        listed = {n for first, last in decode_finished(offset, metadata) for n in range(first, last + 1)}
        said, ended = fold(self.log)
        for o, identity in self.inbox.ids.items():
            if o < offset or o in listed:
                assert o not in said or said[o].state != "open", f"offset {o} is lost: there are only its steps"
                twins = {q for q, i in self.inbox.ids.items() if i == identity}
                assert identity in self.effects or twins & (said.keys() | ended.keys()), f"offset {o} is lost"

    @invariant()
    def who_reads_from_the_note_believes_what_all_believe(self) -> None:
        offset, metadata = self.commit
        note = Note.parse(decode_note(metadata))
        heir = self.view_type(note.low, note.claim)
        for at in range(note.low, len(self.log)):
            heir.fold(self.log[at], at)
        said, ended = fold(self.log)
        listed = {n for first, last in decode_finished(offset, metadata) for n in range(first, last + 1)}
        # What nobody will wait for any more is of no use to it.
        both = [{o: replace(each, early=()) for o, each in of.items()} for of in (believed(heir), said)]
        assert both[0] == both[1], "an heir believes something else"
        wanted = {
            o: place for o, place in cancelled(self.log).items() if o in said or (o >= offset and o not in listed)
        }
        known = {o: place for o, (place, _) in heir.cancels.items() if o in wanted}
        assert known == wanted, "an heir does not know what is to be cancelled"
        forgotten = {o for o in ended if o >= offset and o not in listed} - heir.ended.keys()
        assert not forgotten, f"an heir forgets that {forgotten} ended"

    @invariant()
    def effects_are_in_order(self) -> None:
        first = {identity: offset for offset, identity in reversed(self.inbox.ids.items())}
        for name in set(self.inbox.conversations.values()):
            of = [first[i] for i in self.effects if self.inbox.conversations[first[i]] == name]
            assert of == sorted(of), "outputs are out of order"

    def teardown(self) -> None:
        """Left alone, the owner does everything; what is parked is redriven."""
        owner = Owner(self, self.commit)
        self.owners = [owner]
        for _ in range(20 * len(self.inbox.ids) + 20):
            owner.catch_up()
            owner.deliver(10)
            moved = sum(owner.turn(name) for name in set(self.inbox.conversations.values())) > 0
            moved = moved or bool(owner.posted)
            while owner.posted:
                owner.land()
            owner.catch_up()
            said, _ = fold(self.log)
            for offset, each in said.items():
                if each.state == "waiting" and not each.ready:
                    fields = {"conversation_id": self.inbox.conversations[offset], "step": step("ok", "approve")}
                    self.log.append(record("approve", -1, offset, **fields))
                    moved = True
                if each.state == "parked" and not each.wish:
                    assert each.park in self.letters, "a letter is missing"
                    self.wishes(each.park, "redrive")
                    moved = True
            if not moved and owner.position >= self.inbox.end:
                break
        owner.catch_up()
        self.effects_are_in_order()
        missing = set(self.inbox.ids.values()) - self.effects.keys() - self.discarded
        assert not missing, f"{missing} are never handled"
        assert owner.gate.committable() == owner.position, "the gate waits for nothing"


def play(world: type[World], examples: int) -> None:
    """Let it happen."""
    run_state_machine_as_test(
        world,
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, database=None, print_blob=False,
            report_multiple_bugs=False,
        ),
    )  # fmt: skip


def test_owners_lose_nothing_repeat_nothing_and_keep_the_order() -> None:
    play(World, 120)


# -- the seeded bugs ----------------------------------------------------------------------------------------------


class PassingGate(CommitGate):
    """It passes work that is in flight."""

    def committable(self) -> int | None:
        return self._next


class BlindDedup(Dedup):
    """It knows no twin."""

    def twin(self, identity: str, offset: int) -> bool:
        return False


class BlindView(View):
    """A copy counts whatever came before it."""

    def fold(self, record: Mapping[str, Any], at: int) -> Any:
        entry = self.entries.get(record["offset"])
        if record["kind"] == "copy" and entry is not None and record["claim"] >= self.claim:
            self.position = at + 1
            self._place(entry, record["state"], at, record["refers"])
            return entry
        return super().fold(record, at)


class TrustingView(View):
    """Void records count."""

    def fold(self, record: Mapping[str, Any], at: int) -> Any:
        void = record["kind"] != "claim" and record["claim"] < self.claim
        return super().fold({**record, "claim": self.claim} if void else record, at)


class HastyView(View):
    """A completion that is not sent is needed no more."""

    def low(self) -> int:
        return min((place for place in self._needed if place not in self._unsent), default=self.position)


class SilentView(View):
    """Nobody looks for parks whose letters are not written."""

    def untold(self) -> list[Any]:
        return []


class SpentView(View):
    """Steps are needed no more once they were read."""

    def low(self) -> int:
        steps = {at for entry in self.entries.values() for _, at in entry.steps or ()}
        return min((place for place in self._needed if place not in steps), default=self.position)


class LateView(View):
    """What was decided before the suspension is waited for, still."""

    def _suspend(self, entry: Any, record: Mapping[str, Any], at: int) -> None:
        entry.early = ()
        super()._suspend(entry, record, at)


class DoublingView(View):
    """A step's copy is one more step."""

    def _copy_step(self, record: Mapping[str, Any], at: int) -> None:
        super()._copy_step({**record, "refers": at}, at)


class ForgetfulView(View):
    """What has ended is forgotten at once."""

    def cover(self, committed: int) -> None:
        super().cover(1 << 60)


class CarelessView(View):
    """Where a cancellation is needs not stay."""

    def low(self) -> int:
        places = {at for at, _ in self.cancels.values()}
        return min((place for place in self._needed if place not in places), default=self.position)


#: Steps of the world, by the names of its rules.
Steps = Sequence[tuple[Any, ...]]
PARKED: Steps = [("produce", "poison", 0, 0), ("deliver", 0, 1), ("work", 0, 0, 1), ("land", 0, True)]
HELD: Steps = [*PARKED, ("produce", "plain", 0, 0), ("deliver", 0, 1), ("work", 0, 0, 1), ("land", 0, True)]
SAID: Steps = [("say_sent", 0), ("land", 0, True)]
COMPLETING: Steps = [("produce", "many", 0, 0), ("deliver", 0, 1), ("work", 0, 0, 1)]
#: Four runs of finished offsets, which fill the metadata, and one parked behind them.
CROWDED: Steps = [
    *([("produce", "plain", 1, 0), ("produce", "plain", 2, 0)] * 4),
    *[("deliver", 0, 4), ("deliver", 0, 4), *([("work", 0, 2, 3)] * 2), ("produce", "plain", 1, 0), ("deliver", 0, 1)],
    *PARKED,
]
ZOMBIE: Steps = [*COMPLETING, ("rebalance", False), ("land", 1, False)]

BEGUN: Steps = [("produce", "waits", 0, 0), ("deliver", 0, 1), ("work", 0, 0, 1), ("land", 0, True)]
SUSPENDED: Steps = [*BEGUN, ("land", 0, True)]

#: What is changed, and how it comes to show.
SEEDS: dict[str, tuple[dict[str, Any], Steps]] = {
    "the gate passes work in flight": ({"gate_type": PassingGate}, [*COMPLETING, ("commits",)]),
    "dedup is off": ({"dedup_type": BlindDedup}, [*COMPLETING, ("land", 0, True), ("produce_again", 0)]),
    "held messages run too early": ({"runs_held_early": True}, HELD),
    "claims are ignored": ({"view_type": TrustingView}, ZOMBIE),
    "released before the completion is in the journal": ({"releases_early": True}, [*COMPLETING, ("commits",)]),
    "held messages complete without a record": ({"records_held": False}, HELD),
    "copies are not compared": (
        {"view_type": BlindView},
        [*PARKED, *SAID, ("copy", 0, 1), ("wish", 0, "redrive"), ("land", 0, True)],
    ),
    "letters of the dead are not written": ({"view_type": SilentView}, [*PARKED[:-1], ("land", 0, False), ("crash",)]),
    "the note passes what is not sent": ({"view_type": HastyView}, [*COMPLETING, ("land", 0, True), ("commits",)]),
    "ends are forgotten before a commit covers them": (
        {"view_type": ForgetfulView},
        [*CROWDED, ("wish", 0, "discard"), ("land", 0, True), ("work", 0, 0, 1), ("land", 0, True), ("commits",)],
    ),
    "steps are not loaded": ({"loads_steps": False}, [*BEGUN, ("crash",)]),
    "a handler goes on before its step counts": ({"reads_back": False}, [*SUSPENDED, ("decide", 0, True)]),
    "suspended before that is in the journal": (
        {"releases_early": True}, [*BEGUN, ("commits",)],
    ),
    "steps are needed no more": ({"view_type": SpentView}, [*SUSPENDED, ("copy", 0, 1), ("commits",)]),
    "what was decided early is forgotten": (
        {"view_type": LateView}, [*BEGUN, ("decide", 0, True), ("land", 0, True), ("commits",)],
    ),
    "a step's copy is one more": (
        {"view_type": DoublingView}, [*SUSPENDED, ("copy", 0, 1), ("land", 0, True), ("commits",)],
    ),
    "the note passes a cancellation": (
        {"view_type": CarelessView},
        [*COMPLETING, ("produce", "many", 1, 0), ("deliver", 0, 1), ("cancel", 1), ("land", 0, True), ("commits",)],
    ),
    "the note doesn't tell the claim": ({"tells_claim": False}, [*ZOMBIE, ("commits",)]),
}  # fmt: skip


def drive(world: World, steps: Steps) -> None:
    """Take these steps, and let it come to its end."""
    for name, *arguments in steps:
        getattr(world, name)(*arguments)
        world.effects_are_in_order()
        world.who_reads_from_the_note_believes_what_all_believe()
    world.teardown()


@pytest.mark.parametrize("bug", SEEDS)
def test_a_seeded_bug_is_seen(bug: str) -> None:
    changed, steps = SEEDS[bug]
    drive(World(), steps)
    with pytest.raises(AssertionError, match=r"^(a|an|offset|outputs|what) "):
        drive(type("Seeded", (World,), changed)(), steps)
