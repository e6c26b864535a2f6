"""Dedup against a list of all that finished."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmagentos.streams.dedup import Dedup, identity_in

#: What happens: (id, how far behind the newest offset the commit is).
FINISHES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30)), max_size=120)


def compare(finishes: list[tuple[int, int]], window: int, dedup_type: type[Dedup]) -> None:
    """What finished within the window, or above the committed offset, is known; nothing else is invented."""
    committed = 0
    dedup = dedup_type(window, lambda: committed)
    first: dict[str, int] = {}  # as far as a perfect memory goes
    order: list[str] = []
    most = 0  # that had to be known at any time
    for offset, (name, behind) in enumerate(finishes):
        identity = f"m{name}"
        committed = max(committed, offset - behind)
        if dedup.twin(identity, offset):
            assert identity in first, "a twin is invented"
            continue
        recent = order[-window:] if window else []
        must = {i for i, at in first.items() if at >= committed} | set(recent)
        assert identity not in must, "a twin is forgotten"
        dedup.finished(identity, offset)
        assert not dedup.twin(identity, offset), "its own twin"
        first[identity] = offset
        order = [i for i in order if i != identity] + [identity]
        most = max(most, window, sum(1 for at in first.values() if at >= committed))
        assert len(dedup) <= 1.25 * most + 2, "grows without bounds"


@given(FINISHES, st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_what_finished_lately_is_known_and_nothing_else(finishes: list[tuple[int, int]], window: int) -> None:
    compare(finishes, window, Dedup)


class Eager(Dedup):
    """The seeded bug: its window ends above the committed offset."""

    def __init__(self, window: int, committed: object) -> None:
        super().__init__(window, lambda: 1 << 60)


class Hoarder(Dedup):
    """The seeded bug: it forgets nothing."""

    def _forget(self) -> None:
        pass


@pytest.mark.parametrize(("bug", "shows"), [(Eager, "is forgotten"), (Hoarder, "without bounds")])
def test_the_list_sees_a_bug(bug: type[Dedup], shows: str) -> None:
    finishes = [(name, 100) for name in range(40)] + [(0, 100)]
    if bug is Hoarder:
        finishes = [(name, 0) for name in range(100)]
    compare(finishes, 3, Dedup)
    with pytest.raises(AssertionError, match=shows):
        compare(finishes, 3, bug)


def test_a_redrive_has_the_identity_of_its_letter() -> None:
    headers: list[tuple[str, bytes | str | None]] = [("message-id", b"m1"), ("redrive", b"dead.a/0/7")]
    assert identity_in(headers) == "dead.a/0/7"
    assert identity_in(headers[:1]) == "m1"
    assert identity_in([]) is None
    assert identity_in(None) is None
