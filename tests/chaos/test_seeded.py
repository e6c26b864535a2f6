"""With a known bug in the engine, the judge says no, and why."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmagentos.cli.chaos.cluster import Cluster
from llmagentos.cli.chaos.faults import FAULTS, Fired
from llmagentos.cli.chaos.run import Outcome, run
from llmagentos.cli.chaos.scenarios import Scenario, durable

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

BUGGED = Path(__file__).with_name("bugs.py")
FORGETFUL = Path(__file__).with_name("forgetful.py")

PLAIN = Scenario("seeded", "no fault at all", messages=1_500, conversations=80, seconds=3, workers=1)


#: Of agents with steps: a third of the messages are suspended, and run again when their timer has ended.
STEPS = replace(
    durable("forgetful", "no fault at all", messages=60, seconds=3),
    conversations=20,
    workers=1,
    redelivers=False,
    timers=0.3,
    people=0.0,
)


def bugged(cluster: Cluster, bug: str, scenario: Scenario, **environment: str) -> dict[str, int]:
    """What does not hold with *bug* in the engine, and by how much."""
    named = {"LLMAGENTOS_TEST_BUG": bug, **environment}
    chain = FORGETFUL if scenario.durable else BUGGED
    return off(run(scenario, seed=1, cluster=cluster, chain=chain, environment=named, stall_s=8))


def off(outcome: Outcome) -> dict[str, int]:
    assert outcome.verdict is not None, outcome.trouble
    return {check.name: check.found for check in outcome.verdict.checks if not check.holds}


def test_the_gate_passes_work_in_flight(cluster: Cluster) -> None:
    assert bugged(cluster, "gate", PLAIN)["committed before they were finished"] > 10


def test_dedup_is_off(cluster: Cluster) -> None:
    assert bugged(cluster, "dedup", replace(PLAIN, duplicates=0.02))["doubled in the ledger"] > 10


def test_held_messages_run_too_early(cluster: Cluster) -> None:
    found = bugged(cluster, "held", replace(PLAIN, poison=0.02))
    assert sum(count for name, count in found.items() if name.startswith("out of order")) > 10


def test_offsets_are_committed_before_outputs_are_delivered(cluster: Cluster) -> None:
    slow = {"LLMAGENTOS_LINGER_MS": "400"}  # twice the commit interval: each output is overtaken
    assert bugged(cluster, "commit", PLAIN, **slow)["committed before they were finished"] > 10
    assert bugged(cluster, "", PLAIN, **slow) == {}


def test_recorded_results_are_not_given_to_a_rerun(cluster: Cluster) -> None:
    assert bugged(cluster, "replayed", STEPS)["recorded steps executed again"] > 5


def test_a_step_is_not_waited_for(cluster: Cluster) -> None:
    assert bugged(cluster, "awaited", STEPS)["steps executed again for no reason"] > 5


def test_the_key_of_a_step_changes_with_the_attempt(cluster: Cluster) -> None:
    assert bugged(cluster, "keyed", STEPS)["doubled in the ledger"] > 5


def test_claims_are_ignored(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker is frozen while messages fail, others park them meanwhile, and it parks them again when it wakes.

    Where that counts, the owner takes a redrive to mean a park that is over, and never runs what waits.
    """

    def freeze_later(cluster: Cluster, rng: random.Random, seconds: float) -> Iterator[Fired]:
        cluster.pause(4)  # until both workers have their share, and messages fail
        yield from FAULTS["freeze-worker"]._do(cluster, rng, seconds)

    late = replace(FAULTS["freeze-worker"], name="freeze-later", _do=freeze_later, short_s=10)
    monkeypatch.setitem(FAULTS, "freeze-later", late)
    frozen = replace(
        PLAIN, faults=("freeze-later",), poison=0.03, messages=4_000, conversations=200, seconds=8, workers=2, share=0
    )
    assert bugged(cluster, "claims", frozen)["lost"] > 0
    assert bugged(cluster, "claims-mended", frozen) == {}
