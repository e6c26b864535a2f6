"""The judge: what must be, by the input file alone, against what topics, committed offsets and ledger hold.

Nothing here asks the engine. How the engine keeps its word is not assumed either, but for the formats of what it
writes: an inbox record, a journal entry, a dead letter, a commit.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import google_crc32c

from llmagentos.cli.chaos.evidence import Arrival, Attempt, Commit, Entry, Evidence
from llmagentos.cli.chaos.workload import AGENTS, Line
from llmagentos.streams.gate import decode_finished

__all__ = ["Case", "Check", "Verdict", "earliest", "judge", "some", "valid"]

#: What a worker may grow by under load: the bounds of what it keeps at most (messages in flight and sends not yet
#: acknowledged, 64 MiB each; fetched ahead by librdkafka, 64 MiB), and 108 MiB for the objects around them: idle
#: growth was measured at 95 to 121 MB with none of these full.
MEMORY_GROWTH = 300 * 1024 * 1024

#: Examples of what is off that are told.
EXAMPLES = 3

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold: `found` must be `wanted`, or at least 1 where that is None."""

    name: str
    found: int
    wanted: int | None = 0
    detail: str = ""

    @property
    def holds(self) -> bool:
        return self.found > 0 if self.wanted is None else self.found == self.wanted


@dataclass(slots=True)
class Verdict:
    """What came of a run.

    Attributes:
        checks: what must hold.
        counts: what is worth knowing: records, attempts above one by cause, memory.
    """

    checks: list[Check] = field(default_factory=list[Check])
    counts: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def holds(self) -> bool:
        """Whether every check does."""
        return all(check.holds for check in self.checks)


def judge(
    lines: Sequence[Line],
    evidence: Evidence,
    *,
    acknowledged: Iterable[str],
    redelivers: bool,
    topics: Mapping[str, str],
) -> Verdict:
    """Compare the input with what is.

    Args:
        lines: the input file.
        acknowledged: ids of the messages that Kafka acknowledged to their producer.
        redelivers: whether the run's faults must have made messages be handled again.
        topics: the full name of each agent's inbox.
    """
    case = Case(lines, evidence, set(acknowledged), topics)
    again = case.handled_again()
    verdict = Verdict()
    verdict.checks = [
        *case.effects(),
        *case.progress(),
        *case.dead_letters(),
        case.memory(),
    ]
    if redelivers:
        verdict.checks.append(Check("redelivered (or the faults did nothing)", len(again), None))
    verdict.counts = {
        "messages": len({line.id for line in lines}),
        "produced twice": sum(line.again for line in lines),
        "poison": sum(bool(line.poison) and not line.again for line in lines),
        **{f"records in {agent}'s inbox": len(evidence.arrivals.get(agent, ())) for agent in AGENTS},
        "journal entries": len(evidence.journal),
        "commits": len(evidence.commits),
        "dead letters": len(evidence.letters),
        "ledger attempts": len(evidence.attempts),
        "redelivered": len(again),
        **case.attempts_by_cause(),
        "most memory, MB": case.most_memory() // 2**20,
    }
    return verdict


class Case:
    """The input and the evidence of one run, and the checks that can be made of them."""

    def __init__(
        self, lines: Sequence[Line], evidence: Evidence, acknowledged: set[str], topics: Mapping[str, str]
    ) -> None:
        self.lines = {line.id: line for line in lines if not line.again}
        self.evidence = evidence
        self.acknowledged = acknowledged
        self.agent_of = {topic: agent for agent, topic in topics.items()}
        self.by_key: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in evidence.attempts:
            self.by_key[attempt.key].append(attempt)
        self.root_of = {
            (agent, arrival.id): arrival.root for agent, arrivals in evidence.arrivals.items() for arrival in arrivals
        }
        self.finished = self.finished_at()

    # -- what became of each record

    def finished_at(self) -> dict[tuple[str, int, int], int]:
        """When each (agent, partition, offset) was first safe: its output or effect was there, or its dead letter,
        or its entry in the journal. Absent: never."""
        evidence = self.evidence
        handled: dict[tuple[str, str], int] = {}  # (agent, message id) -> when its output was first there
        for sender, receiver in pairwise(AGENTS):
            for arrival in evidence.arrivals.get(receiver, ()):
                if arrival.cause is not None:
                    earliest(handled, (sender, arrival.cause), arrival.at)
        for attempt in evidence.attempts:
            earliest(handled, (AGENTS[-1], attempt.key), attempt.at)
        kept: dict[tuple[str, int, int], int] = {}
        for letter in evidence.letters:
            earliest(kept, (letter.agent, letter.partition, letter.offset), letter.at)
        for entry in valid(evidence.journal):
            if entry.kind in ("park", "held", "suspend", "done", "drop"):
                earliest(kept, (entry.agent, entry.partition, entry.offset), entry.at)
        finished: dict[tuple[str, int, int], int] = {}
        for agent, arrivals in evidence.arrivals.items():
            for arrival in arrivals:
                place = (agent, arrival.partition, arrival.offset)
                for at in (handled.get((agent, arrival.id)), kept.get(place)):
                    if at is not None:
                        earliest(finished, place, at)
        return finished

    # -- the checks

    def effects(self) -> list[Check]:
        """Of what the messages did."""
        each = (self.unacknowledged(), self.lost(), self.wrong(), self.doubled())
        return [*each, *(self.out_of_order(agent) for agent in AGENTS)]

    def progress(self) -> list[Check]:
        """Of what was committed."""
        return [self.fell(), self.passed_unfinished(), self.uncovered()]

    def unacknowledged(self) -> Check:
        missing = [line for line in self.lines.values() if line.id not in self.acknowledged]
        return Check("not acknowledged to the producer", len(missing), detail=some(missing))

    def lost(self) -> Check:
        """Acknowledged messages without an effect (or dead letter, where they can't be decoded), and records of any
        inbox that nothing became of."""
        done = {attempt.root for attempt in self.evidence.attempts}
        letters = {letter.id for letter in self.evidence.letters}
        lost = [
            f"{line.conversation} turn {line.turn}"
            for line in self.lines.values()
            if line.id in self.acknowledged and line.id not in (letters if line.poison == "undecodable" else done)
        ]
        places = ((a, r.partition, r.offset) for a, arrivals in self.evidence.arrivals.items() for r in arrivals)
        adrift = [f"{agent} [{p}] offset {o}" for agent, p, o in places if (agent, p, o) not in self.finished]
        return Check("lost", max(len(lost), len(adrift)), detail=some(lost + adrift))

    def wrong(self) -> Check:
        """Effects that the input doesn't ask for, or with another content."""
        bad: list[str] = []
        for attempt in self.evidence.attempts:
            line = self.lines.get(attempt.root)
            if line is None or line.poison == "undecodable":
                bad.append(f"an effect of no message: {attempt}")
            elif (attempt.conversation, attempt.turn, attempt.words, attempt.checksum) != (
                line.conversation,
                line.turn,
                len(line.text.split()),
                google_crc32c.value(line.text.encode()),
            ):
                bad.append(f"{line.conversation} turn {line.turn}: {attempt}")
        return Check("wrong or invented effects", len(bad), detail=some(bad))

    def doubled(self) -> Check:
        """Effects of one message under two keys; and a key that two records of the inbox led to: a repeat of the
        same record is a redelivery, which the key makes harmless, but a second record is a duplicate that was run."""
        bad: list[str] = []
        keys: dict[str, set[str]] = defaultdict(set)
        for key, attempts in self.by_key.items():
            places = {attempt.place for attempt in attempts}
            if len(places) > 1:
                bad.append(f"{attempts[0].conversation} turn {attempts[0].turn} from offsets {sorted(places)}")
            keys[attempts[0].root].add(key)
        bad += [f"{self.lines[root].conversation}: two keys" for root, of in keys.items() if len(of) > 1]
        return Check("doubled in the ledger", len(bad), detail=some(bad))

    def out_of_order(self, agent: str) -> Check:
        """First outputs (of the last agent: effects) that came before an earlier one's of their conversation."""
        latest: dict[str, int] = {}
        seen: set[str] = set()
        bad: list[str] = []
        for conversation, turn, root in self._first_results(agent):
            if root in seen:
                continue
            seen.add(root)
            if turn < latest.get(conversation, -1):
                bad.append(f"{conversation} turn {turn} after {latest[conversation]}")
            latest[conversation] = max(turn, latest.get(conversation, -1))
        return Check(f"out of order at {agent}", len(bad), detail=some(bad))

    def _first_results(self, agent: str) -> Iterable[tuple[str, int, str]]:
        place = AGENTS.index(agent) + 1
        if place == len(AGENTS):
            return ((a.conversation, a.turn, a.root) for a in self.evidence.attempts)
        arrivals = sorted(self.evidence.arrivals.get(AGENTS[place], ()), key=lambda a: (a.partition, a.offset))
        return ((a.conversation, a.turn, a.root) for a in arrivals)

    def fell(self) -> Check:
        latest: dict[tuple[str, int], int] = {}
        bad: list[str] = []
        for commit in self.evidence.commits:
            place = (commit.topic, commit.partition)
            if commit.offset < latest.get(place, 0):
                bad.append(f"{commit.topic} [{commit.partition}] from {latest[place]} to {commit.offset}")
            latest[place] = commit.offset
        return Check("committed offsets that fell", len(bad), detail=some(bad))

    def passed_unfinished(self) -> Check:
        """Messages that a commit said were finished (below its offset, or in its metadata) when they were not."""
        commits: dict[tuple[str, int], list[Commit]] = defaultdict(list)
        for commit in self.evidence.commits:
            agent = self.agent_of.get(commit.topic)
            if agent is not None:
                commits[agent, commit.partition].append(commit)
        arrivals: dict[tuple[str, int], list[Arrival]] = defaultdict(list)
        for agent, of in self.evidence.arrivals.items():
            for arrival in of:
                arrivals[agent, arrival.partition].append(arrival)
        bad: list[str] = []
        for place, of in commits.items():
            finished = {a.offset: self.finished.get((*place, a.offset)) for a in arrivals[place]}
            bad += [f"{place[0]} [{place[1]}] offset {offset}" for offset in _passed(arrivals[place], finished, of)]
        return Check("committed before they were finished", len(bad), detail=some(bad))

    def uncovered(self) -> Check:
        """Records that no committed offset covers at the end."""
        committed: dict[tuple[str, int], int] = {}
        for commit in self.evidence.commits:
            agent = self.agent_of.get(commit.topic)
            if agent is not None:
                committed[agent, commit.partition] = commit.offset
        bad = [
            f"{agent} [{arrival.partition}] offset {arrival.offset}"
            for agent, arrivals in self.evidence.arrivals.items()
            for arrival in arrivals
            if arrival.offset >= committed.get((agent, arrival.partition), 0)
        ]
        return Check("not covered by a commit at the end", len(bad), detail=some(bad))

    def dead_letters(self) -> list[Check]:
        """There are dead letters of exactly the poison, with its causes."""
        wanted = {
            (AGENTS[0] if line.poison == "undecodable" else line.poison, line.id): (
                "undecodable" if line.poison == "undecodable" else "failed"
            )
            for line in self.lines.values()
            if line.poison and line.id in self.acknowledged
        }
        found: dict[tuple[str, str], str] = {}
        strange: list[str] = []
        for letter in self.evidence.letters:
            place = (letter.agent, self.root_of.get((letter.agent, letter.id), letter.id))
            found[place] = letter.cause
            if wanted.get(place) != letter.cause:
                strange.append(f"{letter.agent} [{letter.partition}] offset {letter.offset}: {letter.cause}")
        missing = [
            f"{self.lines[root].conversation} at {agent}" for agent, root in wanted if (agent, root) not in found
        ]
        return [
            Check("dead letters that are not the poison", len(strange), detail=some(strange)),
            Check("poison without its dead letter", len(missing), detail=some(missing)),
        ]

    def memory(self) -> Check:
        """Workers that grew beyond the bounds of what they keep, over their least."""
        bad = [
            f"pid {pid} from {min(sizes) // 2**20} to {max(sizes) // 2**20} MB"
            for pid, samples in self.evidence.memory.items()
            if (sizes := [size for _, size in samples]) and max(sizes) - min(sizes) > MEMORY_GROWTH
        ]
        return Check("workers whose memory grew beyond bounds", len(bad), detail=some(bad))

    # -- what is worth knowing

    def most_memory(self) -> int:
        return max((size for samples in self.evidence.memory.values() for _, size in samples), default=0)

    def handled_again(self) -> set[str]:
        """Ids of messages that were handled more than once: their output stands in the log twice, or their effect
        was wanted twice."""
        again = {key for key, attempts in self.by_key.items() if len(attempts) > 1}
        for agent in AGENTS[1:]:
            seen = Counter(arrival.id for arrival in self.evidence.arrivals.get(agent, ()))
            again |= {a.cause for a in self.evidence.arrivals.get(agent, ()) if a.cause is not None and seen[a.id] > 1}
        return again

    def attempts_by_cause(self) -> dict[str, int]:
        """Attempts above one of a key, by why: what became of the worker that made the attempt before."""
        last_seen = {pid: samples[-1][0] * 1000 for pid, samples in self.evidence.memory.items() if samples}
        causes: Counter[str] = Counter()
        for attempts in self.by_key.values():
            for before, after in pairwise(attempts):
                if before.place != after.place:
                    causes["attempts again: a second record of the message"] += 1
                elif before.worker == after.worker:
                    causes["attempts again: by the same worker"] += 1
                elif last_seen.get(before.worker, 0) < after.at:
                    causes["attempts again: the worker before was gone"] += 1
                else:
                    causes["attempts again: the partition had moved"] += 1
        return dict(sorted(causes.items()))


def valid(journal: Iterable[Entry]) -> Iterable[Entry]:
    """Entries of an owner that met no newer claim than its own before them."""
    claim: dict[tuple[str, int], int] = {}
    for entry in sorted(journal, key=lambda entry: (entry.agent, entry.partition, entry.position)):
        place = (entry.agent, entry.partition)
        if entry.kind == "claim":
            claim[place] = entry.position
        elif entry.claim == claim.get(place):
            yield entry


def _passed(arrivals: Sequence[Arrival], finished: Mapping[int, int | None], commits: Sequence[Commit]) -> list[int]:
    """The offsets of one partition that a commit said were finished when they were not.

    Goes through the partition's history in time; within a millisecond arrivals and results come before commits, so
    that what can't be told apart isn't held against anybody.
    """
    events: list[tuple[int, int, int]] = []
    for arrival in arrivals:
        events.append((arrival.at, 0, arrival.offset))
        at = finished[arrival.offset]
        if at is not None:  # (of a message that was produced twice, that was before the second one arrived)
            events.append((max(at, arrival.at), 1, arrival.offset))
    events += [(commit.at, 2, number) for number, commit in enumerate(commits)]
    open_offsets: list[int] = []
    passed: set[int] = set()
    for _, kind, value in sorted(events):
        if kind == 0:
            insort(open_offsets, value)
        elif kind == 1:
            del open_offsets[bisect_left(open_offsets, value)]
        else:
            commit = commits[value]
            passed.update(open_offsets[: bisect_left(open_offsets, commit.offset)])
            for first, last in decode_finished(commit.offset, commit.metadata):
                passed.update(open_offsets[bisect_left(open_offsets, first) : bisect_left(open_offsets, last + 1)])
    return sorted(passed)


def earliest(known: dict[K, int], key: K, at: int) -> None:
    if at < known.get(key, at + 1):
        known[key] = at


def some(things: Sequence[object]) -> str:
    more = f" and {len(things) - EXAMPLES} more" if len(things) > EXAMPLES else ""
    return "; ".join(map(str, things[:EXAMPLES])) + more
