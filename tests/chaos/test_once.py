"""The judge of durable runs says yes to a run in which all is well, and no to each thing that is off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import google_crc32c
import pytest

from llmagentos.cli.chaos.evidence import Arrival, Commit, Entry, Evidence, Execution
from llmagentos.cli.chaos.once import STEPS, judge_durable
from llmagentos.cli.chaos.oracle import Verdict
from llmagentos.cli.chaos.workload import AGENTS, Line, make_input

TOPICS = {agent: f"t.agent.{agent}" for agent in AGENTS}
LINES = [Line("a0", "a", 0, "hello there"), Line("a1", "a", 1, "one table", waits="timer")]

#: When each step of a message is executed, and recorded 5 ms later.
BEGINS = {step: 100 * number for number, step in enumerate(STEPS)}


def value(line: Line, step: str) -> int:
    words, checksum = len(line.text.split()), google_crc32c.value(line.text.encode())
    return {"count": words, "think": len(line.text), "close": words + checksum}.get(step, checksum)


def executed(turn: int, step: tuple[str, str], **changes: Any) -> Execution:
    agent, name = step
    began = 1_000 * turn + BEGINS[step]
    line = LINES[turn]
    made = Execution(
        f"{line.id}/{name}", (agent, 0, turn), name, "a", turn, line.id, value(line, name), 7, began, began + 2
    )
    return made._replace(**changes)


def a_run() -> Evidence:
    """One partition, one message after the other, all by worker 7; the second one's handlers are suspended."""
    evidence = Evidence(arrivals={agent: [] for agent in AGENTS}, memory={7: [(0.0, 90 << 20), (9.0, 120 << 20)]})
    for agent in AGENTS:
        evidence.journal.append(Entry(agent, 0, 0, "claim", -1, -1, -10))
    position = 1
    for turn, line in enumerate(LINES):
        for agent in AGENTS:
            evidence.arrivals[agent].append(
                Arrival(0, turn, 1_000 * turn, f"{line.id}{agent}", "a", line.id, turn, None)
            )
        for step in STEPS:
            evidence.executions.append(executed(turn, step))
            at = 1_000 * turn + BEGINS[step] + 5
            evidence.journal.append(Entry(step[0], 0, position, "step", 0, turn, at, (step[1], 0, "result")))
            position += 1
        if line.waits:
            evidence.journal.append(Entry("first", 0, position, "suspend", 0, turn, 1_000 * turn + 50))
        for agent in AGENTS:
            evidence.journal.append(Entry(agent, 0, position + 1, "done", 0, turn, 1_000 * turn + 500))
        position += 2
    evidence.commits = [Commit(TOPICS[agent], 0, len(LINES), "", 5_000) for agent in AGENTS]
    return evidence


def verdict(evidence: Evidence, **changes: Any) -> Verdict:
    given: dict[str, Any] = {"acknowledged": {line.id for line in LINES}, "redelivers": False, "topics": TOPICS}
    return judge_durable(LINES, evidence, **given | changes)


def off(evidence: Evidence, **changes: Any) -> dict[str, int]:
    """What does not hold, and by how much."""
    return {check.name: check.found for check in verdict(evidence, **changes).checks if not check.holds}


def test_nothing_is_off_where_all_is_well() -> None:
    assert off(a_run()) == {}


THINK, CLOSE = ("second", "think"), ("first", "close")


class TestOneThingOff:
    def test_an_effect_that_is_missing(self) -> None:
        run = a_run()
        run.executions = [e for e in run.executions if (e.turn, e.step) != (1, "sum")]
        assert off(run) == {"lost": 1}

    def test_a_message_that_was_not_completed(self) -> None:
        run = a_run()
        run.journal = [e for e in run.journal if (e.agent, e.kind, e.offset) != ("second", "done", 1)]
        found = off(run)
        assert found["lost"] == 1
        assert found["committed before they were finished"] == 1

    def test_a_recorded_step_that_ran_again(self) -> None:
        run = a_run()
        run.executions.append(executed(0, THINK, worker=8, began=110, at=112))
        run.memory[7] = [(0.0, 90 << 20), (0.105, 90 << 20)]
        assert off(run) == {"recorded steps executed again": 1}

    def test_one_whose_record_was_void(self) -> None:
        run = a_run()
        run.executions.append(executed(0, THINK, worker=8, began=110, at=112))
        run.memory[7] = [(0.0, 90 << 20), (0.105, 90 << 20)]
        run.journal = [
            entry._replace(position=entry.position + 1, claim=1)
            if entry.agent == "second" and entry.position
            else entry
            for entry in run.journal
        ]
        run.journal = [e for e in run.journal if e.step is None or e.step[0] != "think" or e.offset != 0]
        run.journal.append(Entry("second", 0, 1, "claim", -1, -1, 107))
        run.journal.append(Entry("second", 0, 3, "step", 1, 0, 115, ("think", 0, "result")))
        assert off(run) == {}

    def test_a_step_that_ran_again_behind_the_next(self) -> None:
        run = a_run()
        run.executions.append(executed(0, THINK, worker=8, began=350, at=352))
        found = off(run)
        assert found["steps executed again behind a later one"] == 1
        assert found["recorded steps executed again"] == 1

    def test_another_key_for_the_same_effect(self) -> None:
        run = a_run()
        run.executions.append(executed(0, THINK, key="another", began=103, at=104))
        assert off(run) == {"doubled in the ledger": 1, "steps executed again for no reason": 1}

    def test_steps_out_of_order(self) -> None:
        run = a_run()
        run.executions = [
            e._replace(at=e.at + 5_000) if (e.turn, e.step) == (0, "close") else e for e in run.executions
        ]
        assert off(run) == {"out of order at first": 1}

    def test_another_content(self) -> None:
        run = a_run()
        run.executions[2] = run.executions[2]._replace(value=1)
        assert off(run) == {"wrong or invented effects": 1}

    @pytest.mark.parametrize("which", ["mark", "step"])
    def test_a_change_that_is_only_half_there(self, which: str) -> None:
        run = a_run()
        if which == "mark":
            run.journal.append(Entry("first", 0, 90, "step", 0, 0, 350, ("ctx.version change 2", 0, "version")))
        else:
            run.executions.append(executed(0, CLOSE, value=2, key="c", began=350, at=352)._replace(step="change 2"))
        assert off(run) == {"wrong or invented effects": 1}

    def test_nothing_waited(self) -> None:
        run = a_run()
        run.journal = [entry for entry in run.journal if entry.kind != "suspend"]
        assert off(run) == {"suspended (or nothing waited)": 0}

    def test_faults_that_did_nothing(self) -> None:
        assert off(a_run(), redelivers=True) == {"went on in another worker (or the faults did nothing)": 0}


def test_a_step_of_changed_code_may_come_behind_the_last_one_that_was_not_recorded() -> None:
    run = a_run()
    run.memory[7] = [(0.0, 90 << 20), (0.403, 90 << 20)]
    run.executions = [e for e in run.executions if e.turn == 0]
    run.executions.append(executed(0, CLOSE, value=2, key="c", worker=8, began=420, at=422)._replace(step="change 2"))
    run.executions.append(executed(0, CLOSE, worker=8, began=430, at=432))
    run.journal = [e for e in run.journal if e.offset < 1 and (e.step is None or e.step[0] != "close")]
    run.journal.append(Entry("first", 0, 90, "step", 0, 0, 419, ("ctx.version change 2", 0, "version")))
    run.arrivals = {agent: arrivals[:1] for agent, arrivals in run.arrivals.items()}
    run.commits = [commit._replace(offset=1) for commit in run.commits]
    found = judge_durable(LINES[:1], run, acknowledged=["a0"], redelivers=True, topics=TOPICS)
    assert [check for check in found.checks if not check.holds] == []


class TestExecutedAgain:
    """Before it is recorded a step may run again, for a reason, which is counted."""

    def counts(self, change: Callable[[Evidence], object], **again: Any) -> dict[str, int]:
        run = a_run()
        run.executions.append(executed(0, THINK, **{"began": 103, "at": 104, **again}))
        change(run)
        assert off(run) == {}
        return {name: n for name, n in verdict(run).counts.items() if name.startswith("executed again") and n}

    def test_the_answer_was_lost(self) -> None:
        def lose(run: Evidence) -> None:
            run.executions[1] = run.executions[1]._replace(lost=True)

        assert self.counts(lose) == {"executed again: the answer was lost": 1}

    def test_its_worker_had_died(self) -> None:
        def die(run: Evidence) -> None:
            run.memory[7] = [(0.0, 90 << 20), (0.102, 90 << 20)]

        assert self.counts(die, worker=8) == {"executed again: the worker had died": 1}

    def test_its_partition_was_taken(self) -> None:
        def take(run: Evidence) -> None:
            run.journal = [
                e._replace(position=e.position + 2, claim=1) if e.agent == "second" and e.position else e
                for e in run.journal
            ]
            run.journal.append(Entry("second", 0, 1, "claim", -1, -1, 102))

        assert self.counts(take, worker=8) == {"executed again: the worker had lost the partition": 1}


def test_a_question_that_was_asked_again_is_finished_with_the_first() -> None:
    run = a_run()
    run.arrivals["second"].append(run.arrivals["second"][0]._replace(offset=2, at=2_000))
    run.commits[1] = run.commits[1]._replace(offset=3)
    assert off(run) == {}
    run.journal = [e for e in run.journal if (e.agent, e.kind, e.offset) != ("second", "done", 0)]
    assert off(run)["lost"] == 2


def test_messages_wait_as_the_scenario_says() -> None:
    from llmagentos.cli.chaos.scenarios import durable

    scenario = replace(durable("x", "x"), messages=4_000, conversations=200)
    lines = make_input(scenario, 3, None)
    assert 0.03 < sum(line.waits == "timer" for line in lines) / len(lines) < 0.07
    assert 0.003 < sum(line.waits == "person" for line in lines) / len(lines) < 0.02
