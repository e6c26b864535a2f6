"""The merge: time order over all, the partition's own order inside, whatever the batches; nothing held too long."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from llmagentos.streams.merge import Merge

#: A partition's records: (timestamp, wanted). Few distinct times, so that equal and backward ones are common.
partitions = st.lists(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=15), min_size=1, max_size=6)

Item = tuple[int, int]  # source, offset


def reference(sources: list[list[tuple[int, bool]]]) -> list[Item]:
    """Sorted at the end: by the running maximum of the time, then source, then offset."""
    timed: list[tuple[int, int, int]] = []
    for index, records in enumerate(sources):
        latest = -1
        for offset, (timestamp, wanted) in enumerate(records):
            latest = max(latest, timestamp)
            if wanted:
                timed.append((latest, index, offset))
    return [(index, offset) for _, index, offset in sorted(timed)]


def feed(merge: Merge[Item], sources: list[list[tuple[int, bool]]], data: st.DataObject) -> list[Item]:
    """Bring all records in batches of one source each, in any order, and take what is ready after each."""
    at = [0] * len(sources)
    merged: list[Item] = []
    while left := [index for index, records in enumerate(sources) if at[index] <= len(records)]:
        index = data.draw(st.sampled_from(left))
        records = sources[index]
        if at[index] == len(records):
            merge.finish(index)
            at[index] += 1
        else:
            for _ in range(data.draw(st.integers(1, len(records) - at[index]))):
                timestamp, wanted = records[at[index]]
                if wanted:
                    merge.push(index, timestamp, (index, at[index]))
                else:
                    merge.advance(index, timestamp)
                at[index] += 1
        merged += merge.ready()
    return merged


@given(partitions, st.data())
def test_the_result_is_that_of_sorting_all_however_it_arrives(
    sources: list[list[tuple[int, bool]]], data: st.DataObject
) -> None:
    merge: Merge[Item] = Merge()
    for index in range(len(sources)):
        merge.add(index)
    merged = feed(merge, sources, data)
    assert merged == reference(sources)
    assert merge.held == 0


@given(partitions, st.data())
def test_the_order_inside_a_partition_never_changes(sources: list[list[tuple[int, bool]]], data: st.DataObject) -> None:
    merge: Merge[Item] = Merge()
    for index in range(len(sources)):
        merge.add(index)
    merged = feed(merge, sources, data)
    for index in range(len(sources)):
        offsets = [offset for source, offset in merged if source == index]
        assert all(a < b for a, b in pairwise(offsets))


@given(partitions, st.data())
def test_following_loses_nothing_and_waits_no_longer_than_the_lateness(
    sources: list[list[tuple[int, bool]]], data: st.DataObject
) -> None:
    """All sources are at their end and live on: whatever is held has been there for less than the lateness."""
    merge: Merge[Item] = Merge(lateness_s=1.0)
    for index in range(len(sources)):
        merge.add(index)
        merge.reached(index, True)
    arrived: dict[Item, float] = {}
    merged: list[Item] = []
    now = 0.0
    at = [0] * len(sources)
    while left := [index for index, records in enumerate(sources) if at[index] < len(records)]:
        now += data.draw(st.sampled_from((0.0, 0.4, 2.0)))
        index = data.draw(st.sampled_from(left))
        item = (index, at[index])
        merge.push(index, sources[index][at[index]][0], item, arrival_s=now)
        arrived[item] = now
        at[index] += 1
        merged += merge.ready(now)
        # What is behind an item that is held comes out after it, so only each source's first one counts.
        firsts = [min(item for item in arrived if item[0] == i and item not in merged) for i in
                  {item[0] for item in arrived if item not in merged}]  # fmt: skip
        assert not firsts or any(now - arrived[item] < 1.0 for item in firsts)
    merged += merge.ready(now + 1.0)
    assert sorted(merged) == sorted(arrived)


def test_a_silent_partition_that_lags_behind_holds_the_others_back() -> None:
    merge: Merge[str] = Merge()
    merge.add(0)
    merge.add(1)
    merge.push(0, 10, "a")
    assert list(merge.ready()) == []
    merge.advance(1, 9)
    assert list(merge.ready()) == []
    merge.advance(1, 11)
    assert list(merge.ready()) == ["a"]


def test_a_silent_partition_at_its_end_holds_a_record_for_the_lateness_only() -> None:
    merge: Merge[str] = Merge(lateness_s=0.5)
    for index in (0, 1):
        merge.add(index)
        merge.reached(index, True)
    merge.push(0, 10, "a", arrival_s=100.0)
    assert list(merge.ready(100.4)) == []
    merge.push(1, 9, "earlier", arrival_s=100.4)
    assert list(merge.ready(100.4)) == ["earlier"]
    assert list(merge.ready(100.5)) == ["a"]


def test_it_tells_what_it_holds() -> None:
    merge: Merge[str] = Merge()
    merge.add(0)
    merge.add(1)
    merge.push(0, 1, "a", size=100)
    merge.push(0, 2, "b", size=50)
    assert (merge.count(0), merge.size(0), merge.count(1), merge.held) == (2, 150, 0, 2)
    merge.finish(1)
    assert list(merge.ready()) == ["a", "b"]
    assert (merge.count(0), merge.size(0), merge.held) == (0, 0, 0)
