"""The judge of durable runs: whether what was recorded was done once, by the ledger and the journals.

The ledger has every execution of a step's function, the journals have every record, and both have the time. An
execution that began after its step's record was in the journal is one of a recorded step, which must not be. Of those
before it, all but one need a reason: the worker of the one before had lost the ledger's answer, had died, or was taken
for dead by its group, so that the partition was claimed anew.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import google_crc32c

from llmagentos.cli.chaos.evidence import Entry, Evidence, Execution
from llmagentos.cli.chaos.oracle import Case, Check, Verdict, earliest, some, valid
from llmagentos.cli.chaos.workload import Line

__all__ = ["STEPS", "judge_durable"]

#: The steps of the agents in `durable.py`, in the order in which those of one message to `first` begin.
STEPS = (("first", "count"), ("second", "think"), ("third", "sum"), ("second", "hand on"), ("first", "close"))

#: The beginning of the names of steps that deployments of changed code bring, and of their marks.
CHANGE = "change "
_MARK = "ctx.version change "

_ENDS = frozenset({"done", "drop"})

#: A worker may begin a step so long after another one's claim: until it has read that, on a busy machine.
HEARD_MS = 5_000


def judge_durable(
    lines: Sequence[Line],
    evidence: Evidence,
    *,
    acknowledged: Iterable[str],
    redelivers: bool,
    topics: Mapping[str, str],
) -> Verdict:
    """As :func:`~llmagentos.cli.chaos.oracle.judge`, of a run of the agents in `durable.py`."""
    case = _Durable(lines, evidence, set(acknowledged), topics)
    again, why = case.executed_again()
    moved = case.went_on_elsewhere()
    verdict = Verdict()
    verdict.checks = [
        *case.effects(),
        case.recorded_again(),
        case.behind_a_later_one(),
        again,
        *case.progress(),
        Check("dead letters", len(evidence.letters), detail=some(evidence.letters)),
        case.memory(),
    ]
    if any(line.waits for line in lines):
        verdict.checks.append(Check("suspended (or nothing waited)", case.suspended(), None))
    if redelivers:
        verdict.checks.append(Check("went on in another worker (or the faults did nothing)", len(moved), None))
    outcomes = Counter(entry.step[2] for entry in case.records if entry.kind == "step" and entry.step)
    verdict.counts = {
        "messages": len({line.id for line in lines}),
        "executions": len(evidence.executions),
        "recorded results": outcomes["result"],
        "journal entries": len(evidence.journal),
        "commits": len(evidence.commits),
        "suspensions": case.suspended(),
        "timers": outcomes["timer"],
        "decisions": sum(entry.kind in ("approve", "reject") for entry in evidence.journal),
        "marks of changed code": outcomes["version"],
        "redelivered": len(moved),
        **why,
        "most memory, MB": case.most_memory() // 2**20,
    }
    return verdict


class _Durable(Case):
    def __init__(
        self, lines: Sequence[Line], evidence: Evidence, acknowledged: set[str], topics: Mapping[str, str]
    ) -> None:
        self.records = list(valid(evidence.journal))
        super().__init__(lines, evidence, acknowledged, topics)
        self.executions = sorted(evidence.executions, key=lambda execution: execution.at)
        self.by_step: dict[tuple[str, str, str], list[Execution]] = defaultdict(list)  # root, agent, step
        for execution in self.executions:
            self.by_step[execution.root, execution.place[0], execution.step].append(execution)

    def finished_at(self) -> dict[tuple[str, int, int], int]:
        """Each handler has steps, so each message has a record of its end, or of being kept; but for a question that
        was asked again, which is dropped as soon as the first record of it is finished."""
        kept = {"park", "held", "suspend", "done", "drop"}
        return self._by_twins(
            {(e.agent, e.partition, e.offset): e.at for e in reversed(self.records) if e.kind in kept}
        )

    def _by_twins(self, own: dict[tuple[str, int, int], int]) -> dict[tuple[str, int, int], int]:
        """*own*, and for each other record of the same message the first time in it."""
        places = [
            ((agent, arrival.partition, arrival.offset), (agent, arrival.id))
            for agent, arrivals in self.evidence.arrivals.items()
            for arrival in arrivals
        ]
        first: dict[tuple[str, str], int] = {}
        for place, message in places:
            if (at := own.get(place)) is not None:
                earliest(first, message, at)
        return {place: own.get(place, first[message]) for place, message in places if message in first}

    # -- the checks

    def lost(self) -> Check:
        """Acknowledged messages without one of their effects, and records of any inbox that were not completed."""
        lost = [
            f"{line.conversation} turn {line.turn}: {agent} has no {step!r}"
            for line in self.lines.values()
            if line.id in self.acknowledged
            for agent, step in STEPS
            if (line.id, agent, step) not in self.by_step
        ]
        done = self._by_twins({(e.agent, e.partition, e.offset): e.at for e in self.records if e.kind in _ENDS})
        places = ((a, r.partition, r.offset) for a, arrivals in self.evidence.arrivals.items() for r in arrivals)
        adrift = [f"{agent} [{p}] offset {o} was not completed" for agent, p, o in places if (agent, p, o) not in done]
        return Check("lost", max(len(lost), len(adrift)), detail=some(lost + adrift))

    def wrong(self) -> Check:
        """Effects that the input doesn't ask for, or with another content; steps of changed code without a mark in
        the journal, or the mark without them."""
        bad: list[str] = []
        for execution in self.executions:
            line = self.lines.get(execution.root)
            if line is None or (execution.conversation, execution.turn) != (line.conversation, line.turn):
                bad.append(f"an effect of no message: {execution}")
            elif execution.value != _value(line, execution.step):
                bad.append(f"{line.conversation} turn {line.turn}: {execution}")
        marks = {
            (e.agent, e.partition, e.offset, e.step[0].removeprefix("ctx.version "))
            for e in self.records
            if e.step and e.step[0].startswith(_MARK)
        }
        changed = {(*e.place, e.step) for e in self.executions if e.step.startswith(CHANGE)}
        bad += [f"{agent} [{p}] offset {o}: {name}: mark and step differ" for agent, p, o, name in marks ^ changed]
        return Check("wrong or invented effects", len(bad), detail=some(bad))

    def doubled(self) -> Check:
        """Effects that stand in the ledger under two keys."""
        bad = [
            f"{of[0].conversation} turn {of[0].turn}: {step!r} of {agent}"
            for (_, agent, step), of in self.by_step.items()
            if len({execution.key for execution in of}) > 1
        ]
        return Check("doubled in the ledger", len(bad), detail=some(bad))

    def out_of_order(self, agent: str) -> Check:
        """Steps whose first execution came before one of an earlier message of their conversation, or before an
        earlier one of their own handler."""
        latest: dict[str, tuple[int, int]] = {}
        bad: list[str] = []
        for (_, _, step), of in self.by_step.items():  # in the order of their first executions
            if of[0].place[0] != agent:
                continue
            mine, seen = (of[0].turn, _index(agent, step)), latest.get(of[0].conversation, (-1, -1))
            # A new step may come behind the last one, where that was not recorded when its worker went.
            if mine < seen and not (step.startswith(CHANGE) and mine[0] == seen[0]):
                bad.append(f"{of[0].conversation} turn {mine[0]}, {step!r}, after turn {seen[0]}")
            latest[of[0].conversation] = max(mine, seen)
        return Check(f"out of order at {agent}", len(bad), detail=some(bad))

    def recorded_again(self) -> Check:
        """Executions that began after a result of their step was in the journal, and valid."""
        recorded: dict[tuple[str, int, int, str], Entry] = {}
        for entry in self.records:
            if entry.kind == "step" and entry.step and entry.step[2] == "result":
                recorded.setdefault((entry.agent, entry.partition, entry.offset, entry.step[0]), entry)
        bad: list[str] = []
        for execution in self.executions:
            entry = recorded.get((*execution.place, execution.step))
            if entry is not None and execution.began > entry.at:
                bad.append(
                    f"{execution.conversation} turn {execution.turn}: {execution.step!r} of {execution.place[0]} in"
                    f" process {execution.worker}, {execution.began - entry.at} ms after it was recorded"
                )
        return Check("recorded steps executed again", len(bad), detail=some(bad))

    def behind_a_later_one(self) -> Check:
        """Executions after a later step of the same handler was executed: it went on before the record counted."""
        first: dict[tuple[str, int, int], dict[int, Execution]] = defaultdict(dict)
        for execution in self.executions:
            first[execution.place].setdefault(_index(execution.place[0], execution.step), execution)
        bad: list[str] = []
        for execution in self.executions:
            index = _index(execution.place[0], execution.step)
            if execution is first[execution.place][index]:
                continue
            if any(later > index and of.at < execution.began for later, of in first[execution.place].items()):
                bad.append(f"{execution.conversation} turn {execution.turn}: {execution.step!r}")
        return Check("steps executed again behind a later one", len(bad), detail=some(bad))

    def executed_again(self) -> tuple[Check, dict[str, int]]:
        """Executions above one of a step: how many by which reason, and those that have none."""
        last_seen = {pid: samples[-1][0] * 1000 for pid, samples in self.evidence.memory.items() if samples}
        claims: dict[tuple[str, int], list[int]] = defaultdict(list)
        for entry in self.evidence.journal:
            if entry.kind == "claim":
                claims[entry.agent, entry.partition].append(entry.at)
        reasons = ("the answer was lost", "the worker had died", "the worker had lost the partition")
        why = {f"executed again: {reason}": 0 for reason in reasons}
        bad: list[str] = []
        for of in self.by_step.values():
            for before, after in pairwise(of):
                if before.lost:
                    why["executed again: the answer was lost"] += 1
                elif before.worker != after.worker and last_seen.get(before.worker, 0) < after.at:
                    why["executed again: the worker had died"] += 1
                elif any(_unheard(before, after) <= at <= after.began for at in claims[before.place[:2]]):
                    # A machine that does much else: the group took it for dead. No fault of these runs does that.
                    why["executed again: the worker had lost the partition"] += 1
                else:
                    bad.append(f"{after.conversation} turn {after.turn}: {after.step!r} of {after.place[0]}")
        return Check("steps executed again for no reason", len(bad), detail=some(bad)), why

    # -- what is worth knowing

    def suspended(self) -> int:
        return sum(entry.kind == "suspend" for entry in self.records)

    def went_on_elsewhere(self) -> set[tuple[str, int, int]]:
        """Messages whose handlers had steps in several processes."""
        workers: dict[tuple[str, int, int], set[int]] = defaultdict(set)
        for execution in self.executions:
            workers[execution.place].add(execution.worker)
        return {place for place, of in workers.items() if len(of) > 1}


def _unheard(before: Execution, after: Execution) -> int:
    """Since when a claim may have been made that the worker of *before* had not heard of."""
    return before.began - (HEARD_MS if before.worker != after.worker else 0)


def _value(line: Line, step: str) -> int:
    """What the input says that an effect's content is."""
    words, checksum = len(line.text.split()), google_crc32c.value(line.text.encode())
    if step.startswith(CHANGE):
        return int(step.removeprefix(CHANGE))
    return {"count": words, "think": len(line.text), "close": words + checksum}.get(step, checksum)


def _index(agent: str, step: str) -> int:
    """Which step of its handler it is; those of changed code come before the last one."""
    names = [name for of, name in STEPS if of == agent]
    if step.startswith(CHANGE):
        return len(names) * 100 + int(step.removeprefix(CHANGE))
    index = names.index(step)
    return 1_000_000 if step == "close" else index
