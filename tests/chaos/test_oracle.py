"""The judge of chaos runs says yes to a run in which all is well, and no to each thing that is off."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import google_crc32c
import pytest

from llmagentos.cli.chaos.evidence import Arrival, Attempt, Commit, Entry, Evidence, Letter, parse_commit
from llmagentos.cli.chaos.oracle import MEMORY_GROWTH, Verdict, judge
from llmagentos.cli.chaos.scenarios import SCENARIOS, lasting, named
from llmagentos.cli.chaos.workload import AGENTS, Line, make_input, read_input, write_input
from llmagentos.streams.errors import InputError

TOPICS = {agent: f"t.agent.{agent}" for agent in AGENTS}

#: Two conversations of three turns, interleaved; the second one's middle turn is produced twice.
LINES = [
    Line("a0", "a", 0, "hello there"),
    Line("b0", "b", 0, "good day"),
    Line("a1", "a", 1, "one table"),
    Line("b1", "b", 1, "two tables please"),
    Line("b1", "b", 1, "two tables please", again=True),
    Line("a2", "a", 2, "thanks"),
    Line("b2", "b", 2, "bye"),
]


def a_run(lines: Sequence[Line] = LINES) -> Evidence:
    """What a run without any fault leaves: everything in one partition, 10 ms from each thing to the next."""
    evidence = Evidence(arrivals={agent: [] for agent in AGENTS}, memory={7: [(0.0, 90 << 20), (9.0, 120 << 20)]})
    for offset, line in enumerate(lines):
        evidence.arrivals["first"].append(
            Arrival(0, offset, 10 * offset, line.id, line.conversation, line.id, line.turn, None)
        )
    whole = [line for line in lines if not line.again]
    for agent, before, start in (("second", "", 1_000), ("third", "2", 2_000)):
        suffix = before + ("2" if agent == "second" else "3")
        for offset, line in enumerate(whole):
            evidence.arrivals[agent].append(
                Arrival(
                    0,
                    offset,
                    start + 10 * offset,
                    line.id + suffix,
                    line.conversation,
                    line.id,
                    line.turn,
                    line.id + before,
                )
            )
    for offset, line in enumerate(whole):
        evidence.attempts.append(an_attempt(line, offset, 3_000 + 10 * offset))
    evidence.commits = [
        Commit(TOPICS["first"], 0, 3, "", 1_500),
        *(Commit(TOPICS[agent], 0, len(evidence.arrivals[agent]), "", 4_000) for agent in AGENTS),
    ]
    return evidence


def an_attempt(line: Line, offset: int, at: int, *, worker: int = 7, key: str = "") -> Attempt:
    words, checksum = len(line.text.split()), google_crc32c.value(line.text.encode())
    return Attempt(
        key or line.id + "23", line.conversation, line.turn, line.id, words, checksum, worker, (0, offset), at
    )


def verdict(evidence: Evidence, lines: Sequence[Line] = LINES, **changes: Any) -> Verdict:
    given: dict[str, Any] = {"acknowledged": {line.id for line in lines}, "redelivers": False, "topics": TOPICS}
    return judge(lines, evidence, **given | changes)


def off(evidence: Evidence, lines: Sequence[Line] = LINES, **changes: Any) -> dict[str, int]:
    """What does not hold, and by how much."""
    return {check.name: check.found for check in verdict(evidence, lines, **changes).checks if not check.holds}


def test_nothing_is_off_where_all_is_well() -> None:
    assert off(a_run()) == {}
    assert verdict(a_run()).counts["redelivered"] == 0


class TestOneThingOff:
    """Each of these runs has one thing wrong."""

    def test_a_message_that_was_not_acknowledged(self) -> None:
        assert off(a_run(), acknowledged={line.id for line in LINES} - {"a1"}) == {
            "not acknowledged to the producer": 1
        }

    def test_a_lost_effect(self) -> None:
        run = a_run()
        lost = run.attempts.pop(2)
        run.arrivals["third"] = [a for a in run.arrivals["third"] if a.id != lost.key]
        found = off(run)
        assert found["lost"] == 1
        assert found["committed before they were finished"] == 1  # at second: nothing came of it, and it was passed

    def test_an_effect_that_nobody_asked_for(self) -> None:
        run = a_run()
        run.attempts.append(an_attempt(Line("x0", "x", 0, "boo"), 9, 3_500))
        assert off(run)["wrong or invented effects"] == 1

    def test_an_effect_with_another_content(self) -> None:
        run = a_run()
        run.attempts[3] = run.attempts[3]._replace(words=99)
        assert off(run) == {"wrong or invented effects": 1}

    def test_an_effect_by_a_duplicate_in_the_inbox(self) -> None:
        run = a_run()
        run.attempts.append(run.attempts[1]._replace(place=(0, 6), at=3_700))
        assert off(run) == {"doubled in the ledger": 1}

    def test_an_effect_under_two_keys(self) -> None:
        run = a_run()
        run.attempts.append(run.attempts[1]._replace(key="another"))
        assert off(run) == {"doubled in the ledger": 1}

    def test_effects_out_of_order(self) -> None:
        run = a_run()
        run.attempts[0], run.attempts[2] = run.attempts[2], run.attempts[0]
        assert off(run) == {"out of order at third": 1}

    def test_outputs_out_of_order(self) -> None:
        run = a_run()
        arrivals = run.arrivals["second"]
        arrivals[0], arrivals[2] = arrivals[2]._replace(offset=0), arrivals[0]._replace(offset=2)
        assert off(run) == {"out of order at first": 1}

    def test_a_commit_that_falls(self) -> None:
        run = a_run()
        run.commits.insert(1, Commit(TOPICS["first"], 0, 1, "", 1_600))
        assert off(run) == {"committed offsets that fell": 1}

    def test_a_commit_before_the_output_was_there(self) -> None:
        run = a_run()
        run.commits[0] = run.commits[0]._replace(at=1_005)  # the outputs of offsets 1 and 2 came 5 and 15 ms later
        assert off(run) == {"committed before they were finished": 2}

    def test_metadata_that_says_too_much(self) -> None:
        run = a_run()
        run.commits[0] = Commit(TOPICS["first"], 0, 1, "f1:1+0", 1_005)  # offset 2 is said to be finished
        assert off(run) == {"committed before they were finished": 1}
        run.commits[0] = Commit(TOPICS["first"], 0, 1, "f1:1+0", 1_025)
        assert off(run) == {}

    def test_an_offset_that_is_never_committed(self) -> None:
        run = a_run()
        run.commits[-1] = run.commits[-1]._replace(offset=4)
        assert off(run) == {"not covered by a commit at the end": 2}

    def test_a_dead_letter_of_a_good_message(self) -> None:
        run = a_run()
        run.letters.append(Letter("second", 0, 1, "failed", "b02", 1_500))
        assert off(run) == {"dead letters that are not the poison": 1}

    def test_a_worker_that_grows(self) -> None:
        run = a_run()
        run.memory[7].append((10.0, (90 << 20) + MEMORY_GROWTH + 1))
        assert off(run) == {"workers whose memory grew beyond bounds": 1}

    def test_faults_that_did_nothing(self) -> None:
        assert off(a_run(), redelivers=True) == {"redelivered (or the faults did nothing)": 0}


class TestPoison:
    """`b1` fails at the second agent, is parked there with `b2` held behind it, and is redriven."""

    LINES = [replace(line, poison="second" if line.id == "b1" else "") for line in LINES if not line.again]

    def run(self, change: Callable[[Evidence], object] = lambda _: None) -> dict[str, int]:
        run = a_run(self.LINES)
        run.letters.append(Letter("second", 0, 3, "failed", "b12", 1_100))
        run.journal = [
            Entry("second", 0, 0, "claim", -1, -1, 900),
            Entry("second", 0, 1, "park", 0, 3, 1_110),
            Entry("second", 0, 2, "held", 0, 5, 1_120),
        ]
        run.commits.insert(1, Commit(TOPICS["second"], 0, 6, "", 2_045))  # before the outputs of b1 and b2
        late = {"b123": 4, "b223": 5}
        third = [
            a._replace(offset=late.get(a.id, n), at=2_000 if a.id not in late else 9_000)
            for n, a in enumerate(sorted(run.arrivals["third"], key=lambda a: (a.id in late, a.offset)))
        ]
        run.arrivals["third"] = third
        run.attempts = [an_attempt(line, a.offset, 9_500) for a in third for line in self.LINES if line.id == a.root]
        run.commits[-1] = run.commits[-1]._replace(at=9_900)
        change(run)
        return off(run, self.LINES)

    def test_parked_and_held_messages_may_be_passed(self) -> None:
        assert self.run() == {}

    def test_a_held_one_must_be_in_the_journal_first(self) -> None:
        assert self.run(lambda run: run.journal.pop()) == {"committed before they were finished": 1}

    def test_records_behind_a_newer_claim_are_void(self) -> None:
        def change(run: Evidence) -> None:
            run.journal.insert(2, Entry("second", 0, 2, "claim", -1, -1, 1_115))
            run.journal[3] = run.journal[3]._replace(position=3)

        assert self.run(change) == {"committed before they were finished": 1}

    def test_a_held_one_that_runs_too_early(self) -> None:
        def change(run: Evidence) -> None:
            third = run.arrivals["third"]
            third[4], third[5] = third[5]._replace(offset=4), third[4]._replace(offset=5)

        assert self.run(change)["out of order at second"] == 1

    def test_poison_without_a_dead_letter(self) -> None:
        assert self.run(lambda run: run.letters.clear()) == {"poison without its dead letter": 1}

    def test_another_cause(self) -> None:
        def change(run: Evidence) -> None:
            run.letters[0] = run.letters[0]._replace(cause="timeout")

        assert self.run(change) == {"dead letters that are not the poison": 1}

    def test_what_cant_be_decoded_needs_its_dead_letter_and_no_effect(self) -> None:
        lines = [replace(line, poison="undecodable" if line.id == "a1" else "") for line in self.LINES]
        run = a_run(lines)
        run.arrivals["first"][2] = run.arrivals["first"][2]._replace(decodable=False, turn=-1)
        for agent in ("second", "third"):
            run.arrivals[agent] = [a for a in run.arrivals[agent] if a.root != "a1"]
        run.attempts = [a for a in run.attempts if a.root != "a1"]
        assert off(run, lines)["lost"] == 1
        run.letters.append(Letter("first", 0, 2, "undecodable", "a1", 500))
        assert off(run, lines) == {}


class TestAttemptsAgain:
    """A key that is entered again by the same record is no fault, and is told by its cause."""

    def again(self, worker: int, at: int) -> dict[str, int]:
        run = a_run()
        run.memory[8] = [(3.2, 90 << 20)]
        run.attempts[0] = run.attempts[0]._replace(worker=8)
        run.attempts.append(run.attempts[0]._replace(worker=worker, at=at))
        assert off(run) == {}
        counts = verdict(run, redelivers=True).counts
        assert counts["redelivered"] == 1
        return {name: count for name, count in counts.items() if name.startswith("attempts again")}

    def test_the_worker_was_gone(self) -> None:
        assert self.again(7, 3_900) == {"attempts again: the worker before was gone": 1}

    def test_the_partition_had_moved(self) -> None:
        assert self.again(7, 3_100) == {"attempts again: the partition had moved": 1}

    def test_the_same_worker(self) -> None:
        assert self.again(8, 3_100) == {"attempts again: by the same worker": 1}


class TestCommitRecords:
    """`__consumer_offsets` as Kafka writes it: OffsetCommitKey version 1, OffsetCommitValue versions 1, 3 and 4."""

    KEY = struct.pack(">h2s", 1, b"\0\5") + b"chain" + b"\0\4" + b"name" + struct.pack(">i", 6)

    @pytest.mark.parametrize(
        "value",
        [
            struct.pack(">hqh", 1, 42, 4) + b"f1:x" + struct.pack(">qq", 5, 6),
            struct.pack(">hqih", 3, 42, 9, 4) + b"f1:x" + struct.pack(">q", 5),
            struct.pack(">hqi", 4, 42, 9) + b"\x05f1:x" + struct.pack(">q", 5) + b"\0",
        ],
    )
    def test_a_commit(self, value: bytes) -> None:
        assert parse_commit(self.KEY, value, 77) == ("chain", Commit("name", 6, 42, "f1:x", 77))

    def test_others(self) -> None:
        assert parse_commit(self.KEY, None, 77) is None
        assert parse_commit(struct.pack(">h", 2) + self.KEY[2:], b"", 77) is None


class TestInput:
    SCENARIO = lasting(named(["combined"])[0], 30.0)

    def test_the_same_seed_gives_the_same_input(self, tmp_path: Any) -> None:
        lines = make_input(self.SCENARIO, 5, None)
        assert lines == make_input(self.SCENARIO, 5, None)
        assert lines != make_input(self.SCENARIO, 6, None)
        write_input(tmp_path / "input", lines)
        assert list(read_input(tmp_path / "input")) == lines

    def test_it_has_the_size_and_the_shares_that_the_scenario_says(self) -> None:
        lines = make_input(self.SCENARIO, random.randrange(1_000), None)
        once = [line for line in lines if not line.again]
        assert len({line.id for line in lines}) == len(once)
        assert abs(len(once) - self.SCENARIO.messages) < self.SCENARIO.messages * 0.01
        assert len({line.conversation for line in lines}) == self.SCENARIO.conversations
        assert 0.007 < sum(line.again for line in lines) / len(once) < 0.013
        assert 0 < sum(bool(line.poison) for line in lines if not line.again) < len(once) * 0.003

    def test_conversations_are_in_order_and_mixed(self) -> None:
        turns: dict[str, int] = {}
        seen: set[str] = set()
        changes = 0
        last = ""
        for line in make_input(self.SCENARIO, 1, None):
            if line.again:
                assert line.id in seen
                continue
            seen.add(line.id)
            assert line.turn == turns.get(line.conversation, -1) + 1
            turns[line.conversation] = line.turn
            changes += line.conversation != last
            last = line.conversation
        assert changes > self.SCENARIO.messages * 0.9

    def test_scenarios_have_names_of_their_own(self) -> None:
        assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
        with pytest.raises(InputError, match="there is no scenario 'fire'"):
            named(["fire"])
