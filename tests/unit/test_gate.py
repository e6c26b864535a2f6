"""The commit gate against a model that keeps everything: deliveries with gaps, finishes in any order, restarts."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmagentos.streams.gate import METADATA_LIMIT, CommitGate, decode_finished


class Log(RuleBasedStateMachine):
    """One partition, its committed offset at the broker, and the worker that owns it.

    `log` is what Kafka would deliver; the offsets between are markers and compaction holes. `finished` is what a
    handler has completed in any life of the worker: a loss is a committed offset with something unfinished below.
    """

    gate_type = CommitGate

    def __init__(self) -> None:
        super().__init__()
        self.end = 0
        self.log: list[int] = []
        self.finished: set[int] = set()
        self.committed: tuple[int, str] | None = None
        self.start_worker()

    def start_worker(self) -> None:
        if self.committed is None:
            self.gate = self.gate_type(None)
            self.position = 0
        else:
            offset, metadata = self.committed
            self.gate = self.gate_type(offset, decode_finished(offset, metadata))
            self.position = offset
        self.running: list[int] = []
        #: What this life knows to be finished; an earlier one that crashed may have finished more.
        self.known: set[int] = set()
        if self.committed is not None:
            told = {o for first, last in decode_finished(*self.committed) for o in range(first, last + 1)}
            self.known = {o for o in self.finished if o < self.committed[0] or o in told}

    @rule(gap=st.integers(0, 3), count=st.integers(1, 8))
    def produce(self, gap: int, count: int) -> None:
        self.end += gap
        self.log += range(self.end, self.end + count)
        self.end += count

    @rule(marker=st.integers(1, 3))
    def write_markers(self, marker: int) -> None:
        self.end += marker

    @rule(count=st.integers(1, 12))
    def deliver(self, count: int) -> None:
        batch = [offset for offset in self.log if offset >= self.position][:count]
        if not batch:
            return
        skipped = [offset for offset in batch if self.gate.skip(offset)]
        self.gate.delivered(batch)
        for offset in skipped:
            assert offset in self.finished, "an unfinished message is skipped"
            self.gate.finish(offset)
        run = [offset for offset in batch if offset not in skipped]
        assert not self.known & set(run), "what is known to be finished runs again"
        self.running += run
        self.position = batch[-1] + 1

    @rule()
    def idle_poll(self) -> None:
        if not any(offset >= self.position for offset in self.log):
            self.position = max(self.position, self.end)
            self.gate.advance(self.position)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(self.running))
        self.running.remove(offset)
        self.finished.add(offset)
        self.known.add(offset)
        self.gate.finish(offset)

    @precondition(lambda self: self.finished)
    @rule(data=st.data())
    def finish_again(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.finished)))
        if offset not in self.running:
            self.gate.finish(offset)

    @rule()
    def commit(self) -> None:
        offset = self.gate.committable()
        if offset is None:
            return
        if self.committed is not None:
            assert offset >= self.committed[0], "the committed offset goes back"
        self.committed = (offset, self.gate.metadata())

    @rule()
    def crash(self) -> None:
        self.start_worker()

    @rule()
    def restart_cleanly(self) -> None:
        """Nothing that finished before a clean stop runs again (the metadata has room for this small log)."""
        self.commit()
        known = set(self.known)
        self.start_worker()
        assert self.known == known
        self.deliver(len(self.log) + 1)

    @invariant()
    def never_passes_unfinished(self) -> None:
        offset = self.gate.committable()
        if offset is not None:
            unfinished = [o for o in self.log if o < offset and o not in self.finished]
            assert not unfinished, f"{offset} passes {unfinished}"

    @invariant()
    def gaps_hold_nothing_back(self) -> None:
        offset = self.gate.committable()
        if offset is None or self.running:
            return
        assert offset == self.position, "nothing runs, and the gate still waits"

    @invariant()
    def counts(self) -> None:
        assert self.gate.unfinished == len(self.running)


class SeededGate(CommitGate):
    """The seeded bug: passes work that is still in flight."""

    def committable(self) -> int | None:
        return self._next


TestGate = Log.TestCase
TestGate.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


def test_the_model_sees_a_gate_that_passes_work_in_flight() -> None:
    class Seeded(Log):
        gate_type = SeededGate

    case = Seeded.TestCase
    case.settings = settings(max_examples=200, stateful_step_count=50, deadline=None, database=None, derandomize=True)
    with pytest.raises(AssertionError, match=r"passes|skipped|runs again|goes back|rerun"):
        case("runTest").runTest()


def test_in_order_and_out_of_order() -> None:
    gate = CommitGate(10)
    assert gate.committable() == 10
    gate.delivered([10, 11, 12, 15])
    gate.finish(12)
    gate.finish(11)
    assert gate.committable() == 10
    assert decode_finished(10, gate.metadata()) == [(11, 12)]
    gate.finish(10)
    assert gate.committable() == 15
    assert gate.metadata() == ""
    gate.finish(15)
    assert gate.committable() == 16
    gate.advance(19)
    assert gate.committable() == 19


def test_a_message_delivered_again_is_refused() -> None:
    gate = CommitGate(0)
    gate.delivered([0, 1])
    with pytest.raises(ValueError, match="again"):
        gate.delivered([1])


def test_earlier_finished_offsets_stay_in_the_metadata_until_passed() -> None:
    gate = CommitGate(5, [(7, 8), (20, 30)])
    assert decode_finished(5, gate.metadata()) == [(7, 8), (20, 30)]
    gate.delivered([5, 6])
    gate.finish(5)
    assert decode_finished(6, gate.metadata()) == [(7, 8), (20, 30)]


@given(st.sets(st.integers(0, 20_000), max_size=3000), st.integers(20, METADATA_LIMIT))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_metadata_is_bounded_and_never_claims_too_much(finished: set[int], limit: int) -> None:
    gate = CommitGate(0)
    gate.delivered(range(20_001))
    for offset in finished:
        gate.finish(offset)
    text = gate.metadata(limit)
    assert len(text) <= limit
    committed = gate.committable()
    assert committed is not None
    told = {offset for first, last in decode_finished(committed, text) for offset in range(first, last + 1)}
    assert told <= finished
    if len(gate.metadata(10**9)) <= limit:
        assert told == {offset for offset in finished if offset > committed}


@given(st.text(max_size=60), st.integers(0, 10**12))
def test_damaged_metadata_is_as_good_as_none(text: str, committed: int) -> None:
    for metadata in (text, "f1:" + text):
        for first, last in decode_finished(committed, metadata):
            assert committed <= first <= last
