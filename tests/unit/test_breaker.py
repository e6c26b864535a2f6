"""The circuit breaker: what opens it, what doesn't, how it tries, and that it always closes again."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from llmagentos.streams.breaker import FEW, FIRST_PAUSE_S, MAX_PAUSE_S, OPENS_AT, WINDOW, Breaker, Reason, reason_of

DOWN = Reason("ConnectionError", "shop.py:12")
SLOW = Reason("TimeoutError", "")
POISON = Reason("ValueError", "shop.py:20")


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A breaker, its clock, and what happens to messages."""

    def __init__(self, kind: type[Breaker] = Breaker) -> None:
        self.clock = Clock()
        self.changes: list[str] = []
        self.breaker = kind(self.clock, lambda: self.changes.append(self.breaker.state))

    def fail(self, reason: Reason, conversation: object, *, final: bool = True) -> bool:
        """One message fails; whether it was kept."""
        return self.breaker.failed(self.turn(), reason, str(conversation), final=final)

    def succeed(self) -> None:
        self.breaker.succeeded(self.turn())

    def turn(self) -> int:
        turn = self.breaker.admit()
        assert turn is not None
        return turn

    def open(self) -> None:
        """As in an outage: all are under way already and fail one after the other."""
        kept = [self.breaker.failed(0, DOWN, f"c{n}", final=True) for n in range(OPENS_AT)]
        assert kept == [False] * (OPENS_AT - 1) + [True]

    def pass_time(self) -> None:
        self.clock.now += self.breaker.wait_s()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_an_outage_parks_a_handful_and_keeps_all_others(bench: Bench) -> None:
    for _ in range(100):
        bench.succeed()
    kept = [bench.breaker.failed(0, DOWN, f"c{n}", final=True) for n in range(1_000)]
    assert kept.count(False) == WINDOW // 2
    assert all(kept[WINDOW // 2 :])
    assert bench.breaker.state == "open"
    assert bench.breaker.admit() is None


def one_conversation_opens_it(kind: type[Breaker]) -> bool:
    bench = Bench(kind)
    for _ in range(100):
        bench.fail(POISON, "the poisoned one")
        if bench.breaker.state != "closed":
            return True
    return False


def test_one_conversation_does_not_open_it() -> None:
    assert not one_conversation_opens_it(Breaker)


def test_seeded_failures_counted_without_their_conversations() -> None:
    class Seeded(Breaker):
        def _met_by(self, reason: Reason) -> list[str]:
            return [f"{n}" for n, _ in enumerate(super()._met_by(reason))]

    assert one_conversation_opens_it(Seeded)


def test_half_of_all_messages_failing_does_not_open_it(bench: Bench) -> None:
    for number in range(500):
        bench.succeed()
        assert not bench.fail(DOWN, number)
    assert bench.breaker.state == "closed"


def test_different_reasons_do_not_open_it(bench: Bench) -> None:
    for number in range(100):
        assert not bench.fail(Reason("ValueError", f"shop.py:{number}"), number)
    assert bench.breaker.state == "closed"


def test_failures_that_are_retried_do_not_count(bench: Bench) -> None:
    for number in range(100):
        assert not bench.fail(DOWN, number, final=False)
    assert bench.breaker.state == "closed"


def test_one_tries_then_a_few_then_all(bench: Bench) -> None:
    bench.open()
    assert bench.breaker.wait_s() == FIRST_PAUSE_S
    bench.pass_time()
    first = bench.turn()
    assert bench.breaker.state == "half-open"
    assert bench.breaker.admit() is None
    bench.breaker.succeeded(first)
    few = [bench.turn() for _ in range(FEW)]
    assert bench.breaker.admit() is None
    for turn in few:
        assert bench.breaker.state == "half-open"
        bench.breaker.succeeded(turn)
    assert bench.breaker.state == "closed"
    assert bench.changes == ["open", "half-open", "closed"]


def test_a_trial_that_fails_doubles_the_pause_up_to_its_bound(bench: Bench) -> None:
    bench.open()
    pauses = [bench.breaker.wait_s()]
    for number in range(8):
        bench.pass_time()
        assert bench.fail(DOWN, number, final=False), "its first failure says enough"
        pauses.append(bench.breaker.wait_s())
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert pauses[-1] == MAX_PAUSE_S


def test_a_poisonous_trial_is_parked_and_the_next_tries_at_once(bench: Bench) -> None:
    bench.open()
    bench.pass_time()
    assert not bench.fail(POISON, "the poisoned one")
    assert bench.breaker.state == "half-open"
    bench.succeed()
    assert bench.breaker.wait_s() == 0


def test_another_face_of_the_outage_joins(bench: Bench) -> None:
    bench.open()
    kept = [bench.breaker.failed(0, SLOW, f"s{n}", final=True) for n in range(100)]
    assert kept == [False] * (OPENS_AT - 1) + [True] * (101 - OPENS_AT)
    assert bench.breaker.reasons == [DOWN, SLOW]
    bench.pass_time()
    assert bench.fail(SLOW, "s1", final=False)
    assert bench.breaker.state == "open"


def test_an_abandoned_trial_makes_place_for_the_next(bench: Bench) -> None:
    bench.open()
    bench.pass_time()
    bench.breaker.abandoned(bench.turn())
    bench.succeed()


def test_a_trial_that_hangs_does_not_hang_the_agent(bench: Bench) -> None:
    bench.open()
    bench.pass_time()
    bench.turn()
    assert bench.breaker.wait_s() == MAX_PAUSE_S
    bench.pass_time()
    bench.succeed()


def test_one_that_opens_again_soon_pauses_longer_and_later_as_at_first(bench: Bench) -> None:
    def close() -> None:
        bench.pass_time()
        for _ in range(FEW + 1):
            bench.succeed()
        assert bench.breaker.state == "closed"

    bench.open()
    close()
    bench.open()
    assert bench.breaker.wait_s() == 2 * FIRST_PAUSE_S
    close()
    bench.clock.now += 2 * FIRST_PAUSE_S
    bench.open()
    assert bench.breaker.wait_s() == FIRST_PAUSE_S


def test_the_outcome_of_an_earlier_opening_counts_for_nothing(bench: Bench) -> None:
    bench.open()
    bench.pass_time()
    late = bench.turn()
    bench.clock.now += MAX_PAUSE_S
    assert bench.fail(DOWN, "c1")
    bench.pass_time()
    now = bench.turn()
    assert bench.breaker.failed(late, DOWN, "c2", final=True), "kept, but"
    assert bench.breaker.state == "half-open"
    bench.breaker.succeeded(now)


class Machine(RuleBasedStateMachine):
    """Any history of turns and outcomes; and from each point on, success closes it within bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.breaker = self.bench.breaker
        self.running: list[int] = []
        self.failed_since: dict[Reason, set[str]] = {}  # final failures since it was closed
        self.was = "closed"

    @rule()
    def start(self) -> None:
        wait_s = self.breaker.wait_s()
        turn = self.breaker.admit()
        assert (turn is None) == (wait_s > 0)
        if turn is not None:
            self.running.append(turn)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        self.breaker.succeeded(self.take(data))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        self.breaker.abandoned(self.take(data))

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(),
        reason=st.sampled_from([DOWN, DOWN, DOWN, SLOW, POISON]),
        number=st.integers(0, 8),
        final=st.booleans(),
    )
    def fail(self, data: st.DataObject, reason: Reason, number: int, final: bool) -> None:
        before = self.breaker.state
        if final and before == "closed":
            self.failed_since.setdefault(reason, set()).add(f"c{number}")
        kept = self.breaker.failed(self.take(data), reason, f"c{number}", final=final)
        if kept:
            assert self.breaker.state != "closed"
            assert reason in self.breaker.reasons
        if before == "closed" and self.breaker.state == "open":
            assert kept
            assert len(self.failed_since[reason]) >= OPENS_AT

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.bench.clock.now += seconds

    def take(self, data: st.DataObject) -> int:
        return self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))

    @invariant()
    def bounded(self) -> None:
        if self.was != "closed" and self.breaker.state == "closed":
            self.failed_since.clear()
        self.was = self.breaker.state
        assert 0 <= self.breaker.wait_s() <= MAX_PAUSE_S
        assert len(self.breaker._window) <= WINDOW
        assert len(self.breaker.reasons) <= 3
        if self.breaker.state != "closed":
            assert FIRST_PAUSE_S <= self.breaker.pause_s <= MAX_PAUSE_S

    def teardown(self) -> None:
        for _ in range(2 * (FEW + 1)):
            self.bench.pass_time()
            self.bench.succeed()
        assert self.breaker.state == "closed"


def test_any_history() -> None:
    run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=50, deadline=None))


def test_a_reason_is_the_class_and_the_line_that_raised() -> None:
    def connect() -> None:
        raise ConnectionRefusedError("no one there")

    with pytest.raises(ConnectionRefusedError) as caught:
        connect()
    line = caught.traceback[-1].lineno + 1
    assert reason_of(caught.value) == Reason("ConnectionRefusedError", f"test_breaker.py:{line}")
    caught.value.raised_at = "shop.py:3"  # type: ignore[attr-defined]
    assert str(reason_of(caught.value)) == "ConnectionRefusedError at shop.py:3"
    assert str(reason_of(TimeoutError())) == "TimeoutError"
