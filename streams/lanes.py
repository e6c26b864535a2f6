"""Lanes: one conversation's messages are handled one at a time, different conversations' side by side.

A lane exists only while its conversation has work. *Slots* are tasks that take ready items in turn: as long as
handlers finish without waiting, one slot runs through all of them with no task made; when one waits, the next
slot, which was woken beforehand, takes over. So a quick handler costs no task, and a slow one costs one.

Which of the ready lanes is next is an *order*'s to say (:class:`Order`): what schedules by priority, cost or fairness
between tenants plugs in there, and can't break the order inside a lane, as it sees no more than one item of each.

Nothing here is bounded by itself: who calls :meth:`Lanes.put` bounds count and bytes (`agents.inbox.Room`), and what
is kept for a conversation ends with its last item.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, Protocol, TypeVar

__all__ = ["FirstCome", "Lanes", "Order", "Turns"]

T = TypeVar("T")

#: Slots kept for the next burst; further ones end when they have nothing to do. A parked task is about 1.5 kB.
IDLE_SLOTS_KEPT = 64

#: Items that one slot runs without giving the event loop a turn: at 20 microseconds each about 2 ms.
ITEMS_PER_TURN = 100


class Order(Protocol[T]):
    """The ready lanes, and which of them runs next. One entry is a lane's name and the item at its head."""

    def push(self, entry: tuple[bytes, T], /) -> None:
        """A lane became ready; it is not among the others."""
        ...

    def pop(self) -> tuple[bytes, T]:
        """Take out the one that runs next. Called only when there is one."""
        ...

    def remove(self, unwanted: Callable[[T], bool]) -> list[tuple[bytes, T]]:
        """Take out and return all whose item is *unwanted*."""
        ...

    def __len__(self) -> int:
        """How many are ready."""
        ...


class FirstCome(deque[tuple[bytes, T]]):
    """First come, first served."""

    __slots__ = ()

    push = deque.append
    pop = deque.popleft  # pyright: ignore[reportAssignmentType] - a deque's own pop is from the other end

    def remove(self, unwanted: Callable[[T], bool]) -> list[tuple[bytes, T]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See :class:`Order`."""
        taken = [entry for entry in self if unwanted(entry[1])]
        if taken:
            kept = [entry for entry in self if not unwanted(entry[1])]
            self.clear()
            self.extend(kept)
        return taken


class Turns(Generic[T]):
    """Groups take turns, and in a group it is first come, first served.

    With the partition as group, a partition with thousands of ready conversations holds no other one up: which is
    felt where an agent's `max_in_flight` is small against what waits.

    Args:
        group: of an item.
    """

    __slots__ = ("_count", "_group", "_groups", "_turns")

    def __init__(self, group: Callable[[T], Hashable]) -> None:
        self._group = group
        self._groups: dict[Hashable, deque[tuple[bytes, T]]] = {}
        self._turns: deque[deque[tuple[bytes, T]]] = deque()  # those that are not empty
        self._count = 0

    def push(self, entry: tuple[bytes, T], /) -> None:
        """See :class:`Order`."""
        group = self._group(entry[1])
        ready = self._groups.get(group)
        if ready is None:
            ready = self._groups[group] = deque()
        if not ready:
            self._turns.append(ready)
        ready.append(entry)
        self._count += 1

    def pop(self) -> tuple[bytes, T]:
        """See :class:`Order`."""
        turns = self._turns
        ready = turns[0]
        entry = ready.popleft()
        if ready:
            turns.rotate(-1)
        else:
            turns.popleft()
        self._count -= 1
        return entry

    def remove(self, unwanted: Callable[[T], bool]) -> list[tuple[bytes, T]]:
        """See :class:`Order`."""
        entries = [entry for ready in self._turns for entry in ready]
        self._groups.clear()  # also of the groups that are gone for good
        self._turns.clear()
        self._count = 0
        taken: list[tuple[bytes, T]] = []
        for entry in entries:
            if unwanted(entry[1]):
                taken.append(entry)
            else:
                self.push(entry)
        return taken

    def __len__(self) -> int:
        return self._count


class Lanes(Generic[T]):
    """The lanes of one agent in one worker. Used from one event loop.

    Args:
        run: handles one item. It must deal with its own failures: what it raises goes to *broken*.
        limit: how many items run at once; None: as many as there are lanes.
        broken: told of an exception that escaped from *run*, which is a defect of ours.
        order: of the ready lanes; None: first come, first served.
        ends: told of an item whose slot is about to be cancelled.
    """

    def __init__(
        self,
        run: Callable[[T], Awaitable[None]],
        *,
        limit: int | None = None,
        broken: Callable[[BaseException], None],
        order: Order[T] | None = None,
        ends: Callable[[T], None] = lambda _: None,
    ) -> None:
        self._run = run
        self._ends = ends
        self._limit = limit
        self._broken = broken
        self._lanes: dict[bytes, deque[T] | None] = {}  # None: one item ready or running, nothing behind it
        self._ready: Order[T] = FirstCome() if order is None else order
        self._idle: list[asyncio.Future[None]] = []
        self._slots: set[asyncio.Task[None]] = set()
        self._running: dict[asyncio.Task[None], tuple[bytes, T]] = {}
        self._ended: set[asyncio.Task[None]] = set()
        self._next_woken = False
        self._changed: asyncio.Future[None] | None = None

    @property
    def running(self) -> int:
        """How many items are being handled."""
        return len(self._running)

    @property
    def lanes(self) -> int:
        """How many conversations have work here."""
        return len(self._lanes)

    def put(self, lane: bytes, item: T) -> None:
        """Add *item* to the end of *lane*; it runs when all before it there are done."""
        if lane in self._lanes:
            behind = self._lanes[lane]
            if behind is None:
                self._lanes[lane] = deque((item,))
            else:
                behind.append(item)
        else:
            self._lanes[lane] = None
            self._ready.push((lane, item))
            if not self._next_woken:
                self._wake_next()

    def discard(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Take out and return all items that wait (not those that run) for which *unwanted* is true."""
        removed = self._ready.remove(unwanted)
        taken = [item for _, item in removed]
        for lane, behind in self._lanes.items():
            if behind:
                taken += [item for item in behind if unwanted(item)]
                self._lanes[lane] = deque(item for item in behind if not unwanted(item)) or None
        for lane, _ in removed:
            self._next_in(lane)
        if self._ready and not self._next_woken:
            self._wake_next()
        return taken

    def take(self, lane: bytes, wanted: Callable[[T], bool]) -> list[T]:
        """Take out and return what waits in *lane* behind what runs there, and is *wanted*; in its order."""
        behind = self._lanes.get(lane)
        if not behind:
            return []
        taken = [item for item in behind if wanted(item)]
        if taken:
            self._lanes[lane] = deque(item for item in behind if item not in taken) or None
        return taken

    async def settle(self, wanted: Callable[[T], bool], timeout: float) -> bool:
        """Wait until no running item is *wanted*; those that still run after *timeout* seconds are cancelled.

        Returns:
            Whether all ended by themselves.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        while any(wanted(item) for _, item in self._running.values()):
            left = until - loop.time()
            if left <= 0:
                late = [task for task, (_, item) in self._running.items() if wanted(item)]
                self._end(late)
                await asyncio.wait(late, timeout=1.0)  # a handler that swallows cancellation is left behind
                return False
            if self._changed is None:
                self._changed = loop.create_future()
            await asyncio.wait((self._changed,), timeout=left)
        return True

    async def stop(self) -> None:
        """Cancel every slot. Call :meth:`settle` first, to let handlers end."""
        self._ready.remove(lambda item: True)
        self._lanes.clear()
        slots = list(self._slots)
        self._end(slots)
        if slots:
            await asyncio.wait(slots, timeout=1.0)

    def lend(self) -> None:
        """A running item waits for something that may itself need a lane here: it counts no more for the limit."""
        if self._limit is not None:
            self._limit += 1
            if self._ready and not self._next_woken:
                self._wake_next()

    def reclaim(self) -> None:
        """The item that :meth:`lend` was called for goes on. For a while more may run than the limit says."""
        if self._limit is not None:
            self._limit -= 1

    def told_to_end(self) -> bool:
        """Whether the running task was cancelled by :meth:`settle` or :meth:`stop`, and not by its own handler."""
        return bool(self._ended) and asyncio.current_task() in self._ended

    def items(self) -> list[tuple[asyncio.Task[None], T]]:
        """What is being handled, and the tasks that do it."""
        return [(task, item) for task, (_, item) in self._running.items()]

    def find(self, wanted: Callable[[T], bool]) -> tuple[asyncio.Task[None], T] | None:
        """The running item that is *wanted*, and its task."""
        return next(((task, item) for task, (_, item) in self._running.items() if wanted(item)), None)

    def abandon(self, slot: asyncio.Task[None]) -> None:
        """Go on without *slot*, which can't be made to end: its item counts as done, whatever it still does."""
        if slot in self._running:
            self._ended.add(slot)
            self._ends(self._running[slot][1])
            self._finished(slot)
            self._replace(slot, ended=False)

    def _end(self, slots: list[asyncio.Task[None]]) -> None:
        for slot in slots:
            self._ended.add(slot)
            if (entry := self._running.get(slot)) is not None:
                self._ends(entry[1])
            slot.cancel()

    def _wake_next(self) -> None:
        """See that one more slot will run, if the limit allows: called when there is an item that none takes."""
        if self._idle:
            self._idle.pop().set_result(None)
            self._next_woken = True
        elif self._limit is None or len(self._slots) < self._limit:
            slot = asyncio.create_task(self._slot(), context=contextvars.Context())
            self._slots.add(slot)
            slot.add_done_callback(self._slots.discard)
            slot.add_done_callback(self._ended.discard)
            self._next_woken = True

    async def _slot(self) -> None:
        me = asyncio.current_task()
        assert me is not None
        clean = contextvars.copy_context()
        running = self._running
        ready = self._ready
        turn = 0
        woken = True
        while True:
            if woken:
                self._next_woken = woken = False
            if not ready:
                if len(self._idle) >= IDLE_SLOTS_KEPT:
                    return
                parked = asyncio.get_running_loop().create_future()
                self._idle.append(parked)
                try:
                    await parked
                except asyncio.CancelledError:
                    if parked in self._idle:
                        self._idle.remove(parked)
                    raise
                woken, turn = True, 0
                continue
            entry = ready.pop()
            if not self._next_woken and ready:
                self._wake_next()
            running[me] = entry
            try:
                await self._run(entry[1])
            except BaseException as error:
                self._finished(me)
                self._replace(me)
                if not isinstance(error, asyncio.CancelledError):  # that one is from settle() or stop()
                    self._broken(error)
                raise
            if me not in running:  # it was abandoned
                return
            self._finished(me)
            if self._limit is not None and len(self._slots) > self._limit:  # of those that reclaim() left over
                self._slots.discard(me)
                return
            if contextvars.copy_context() != clean:
                # The handler left a context variable behind, which the next conversation must not see. (Comparing
                # contexts that are the same costs one pointer.)
                self._replace(me)
                return
            turn += 1
            if turn >= ITEMS_PER_TURN:
                turn = 0
                await asyncio.sleep(0)

    def _finished(self, slot: asyncio.Task[None]) -> None:
        if (entry := self._running.pop(slot, None)) is None:
            return
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
            self._changed = None
        self._next_in(entry[0])

    def _replace(self, slot: asyncio.Task[None], *, ended: bool = True) -> None:
        """*slot* ends: what is ready needs another."""
        self._slots.discard(slot)
        if ended:
            self._ended.discard(slot)
        if self._ready and not self._next_woken:
            self._wake_next()

    def _next_in(self, lane: bytes) -> None:
        """The lane's current item is done: its next one becomes ready, or the lane ends."""
        behind = self._lanes.get(lane)
        if behind:
            self._ready.push((lane, behind.popleft()))
            if not self._next_woken and self._idle:
                self._wake_next()
        else:
            self._lanes.pop(lane, None)
