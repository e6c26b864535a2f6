"""Room: bounded by count and bytes, fair between partitions, and not held by an agent that is paused."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from llmagentos.agents.room import RESERVED, Room, Share


@dataclass(eq=False)
class Partition:
    taken: int = 0


class Worker:
    """A room, one inbox's share of it, and partitions."""

    def __init__(self, messages: int, partitions: int) -> None:
        self.wakes = 0
        self.room = Room(messages, 1_000_000, self._freed)
        self.share = Share(self.room)
        self.partitions = [Partition() for _ in range(partitions)]
        for partition in self.partitions:
            self.share.join(partition)

    def _freed(self) -> None:
        self.wakes += 1

    def take(self, partition: Partition, most: int = 10**6) -> int:
        """Take what there is room for, as the transport does: up to 100 in a turn."""
        taken = 0
        while taken < most and (count := min(100, most - taken, self.share.left(partition))) > 0:
            partition.taken += count
            taken += count
            for _ in range(count):
                self.share.take(1)
        return taken

    def finish(self, partition: Partition) -> None:
        partition.taken -= 1
        self.share.give(1)


def test_one_partition_can_not_take_it_all() -> None:
    worker = Worker(1_000, 8)
    hot, other, *_ = worker.partitions
    assert worker.take(hot) == 1_000 - 7 * (1_000 // RESERVED // 8)
    assert worker.take(other, 10) == 10
    assert worker.take(hot) == 0
    assert worker.wakes == 0
    worker.finish(hot)
    assert worker.wakes == 1, "whoever waited is told"
    assert worker.take(hot) == 1


def test_all_of_it_is_used_where_all_have_work() -> None:
    worker = Worker(1_000, 8)
    for _ in range(20):
        for partition in worker.partitions:
            worker.take(partition, 10)
    assert worker.room.messages == 0


def test_an_only_partition_takes_all() -> None:
    worker = Worker(1_000, 1)
    assert worker.take(worker.partitions[0]) == 1_000


def test_one_that_left_keeps_nothing() -> None:
    worker = Worker(1_000, 2)
    worker.share.leave(worker.partitions[1])
    assert worker.take(worker.partitions[0]) == 1_000


def test_a_paused_inbox_leaves_its_room_to_others() -> None:
    worker = Worker(100, 1)
    worker.take(worker.partitions[0])
    worker.share.step_aside(True)
    assert worker.room.messages == 100
    assert worker.share.left(worker.partitions[0]) == 0, "it holds as much as it may"
    other = Share(worker.room)
    assert other.left() == 100
    other.take(1)
    worker.share.step_aside(False)
    assert worker.room.messages == -1, "for a while there is more than its bound"
    assert other.left() == 0
    for _ in range(100):
        worker.finish(worker.partitions[0])
    assert worker.room.messages == 99


def test_a_paused_inbox_goes_on_taking_in_a_room_of_its_own() -> None:
    worker = Worker(1_000, 8)
    failing, other, *_ = worker.partitions
    worker.take(failing, 5)
    worker.share.step_aside(True)
    assert worker.take(failing) == 1_000 - 7 * (1_000 // RESERVED // 8) - 5, "it keeps no other partition's part"
    assert worker.take(other, 10) == 10
    assert worker.share.left(failing) == 0
    wakes = worker.wakes
    worker.finish(failing)
    assert worker.wakes == wakes + 1, "whoever waited is told"
    assert worker.share.left(failing) == 1
    assert worker.room.messages == 1_000, "no other agent's"


@given(
    bound=st.integers(1, 200),
    partitions=st.integers(1, 6),
    moves=st.lists(st.tuples(st.integers(0, 5), st.integers(-20, 20)), max_size=80),
)
def test_it_is_never_overdrawn_and_never_stuck(bound: int, partitions: int, moves: list[tuple[int, int]]) -> None:
    worker = Worker(bound, partitions)
    for number, change in moves:
        partition = worker.partitions[number % partitions]
        if change > 0:
            worker.take(partition, change)
        for _ in range(min(-change, partition.taken)):
            worker.finish(partition)
        held = sum(each.taken for each in worker.partitions)
        assert worker.room.messages == bound - held
        assert held <= bound
        if not held:
            assert all(worker.share.left(each) > 0 for each in worker.partitions)
