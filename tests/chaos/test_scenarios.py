"""The short form of the chaos scenarios: every fault, several in one run, and the whole judge after each.

`llmagentos chaos run --all` is the long form.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmagentos.cli.chaos.cluster import Cluster
from llmagentos.cli.chaos.faults import FAULTS
from llmagentos.cli.chaos.run import run
from llmagentos.cli.chaos.scenarios import DUPLICATES, SCENARIOS, Scenario, durable, full_stop

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

#: Messages a second; half of what two cores do with three brokers on them.
RATE = 400

#: Of the input, so that some hundred messages have some.
POISON = 0.005


def short(name: str, *faults: str, seconds: float, redelivers: bool = False) -> Scenario:
    return Scenario(
        name,
        ", ".join(faults),
        tuple(fault for fault in faults if not FAULTS[fault].needs()),
        messages=round(RATE * seconds),
        conversations=round(RATE * seconds / 20),
        seconds=seconds,
        share=0.0,
        poison=POISON,
        duplicates=DUPLICATES,
        redelivers=redelivers,
    )


#: Faults on one part of the cluster take turns, on different parts they go on side by side.
SHORT = (
    short("killed", "kill-workers", "redis", seconds=25, redelivers=True),
    short("leaderless", "kill-brokers", "kill-supervisor", seconds=40),
    short("zombies", "freeze-worker", "partition", seconds=30, redelivers=True),
    short("changes", "scale", "rollout", "clock", "disk-full", seconds=40),
    # A message to these agents is four records in inboxes and answers, and nine in journals.
    replace(
        durable("durable", "", "kill-workers", "deploy", "kill-leaders", "redis", messages=600, seconds=15),
        share=0.0,
    ),
    full_stop("stopped", 150, seconds=2, sleep_s=15),
)


@pytest.mark.parametrize("scenario", SHORT, ids=lambda scenario: scenario.name)
def test_all_that_must_hold_holds(cluster: Cluster, scenario: Scenario) -> None:
    outcome = run(scenario, seed=1, cluster=cluster)
    assert outcome.trouble == ""
    assert outcome.verdict is not None
    assert [check for check in outcome.verdict.checks if not check.holds] == []
    assert {fired.name for fired in outcome.fired} == set(scenario.faults)


#: What SHORT tries, where it can.
TRIED = {"kill-workers", "redis", "kill-brokers", "kill-supervisor", "freeze-worker", "partition", "scale", "rollout"}
TRIED |= {"clock", "disk-full", "deploy", "kill-leaders", "full-stop"}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_tried(fault: str) -> None:
    assert fault in TRIED
    assert any(fault in scenario.faults for scenario in SCENARIOS)
    if needs := FAULTS[fault].needs():
        pytest.skip("; ".join(needs))
