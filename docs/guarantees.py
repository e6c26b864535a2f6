"""Writes docs/guarantees.md: what is promised, how, proven by which tests, with the last figures (`make guarantees`).

The figures are outputs of the suite, taken from `out/` and kept, shortened, in docs/figures:

    .venv/bin/python -m pytest --junitxml out/tests.xml
    .venv/bin/llmagentos chaos run --all --output json > out/chaos.json
    make bench NAME=failover | tail -n 1 > out/failover.json      # and lanes, many, guaranteed, rollout, redrive

What is not in `out/` stays as it was taken last. A guarantee that names a test that does not exist is refused.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "guarantees.md"
FIGURES = ROOT / "docs" / "figures"
BENCHES = ("lanes", "many", "guaranteed", "failover", "rollout", "redrive")


@dataclass(frozen=True, slots=True)
class Guarantee:
    """One promise.

    Attributes:
        number: in the design.
        tests: node ids; one without `::` is a whole file.
        checks: of the chaos runs, by the beginnings of their names.
        benches: whose figures belong to it.
    """

    number: int
    name: str
    promise: str
    limits: str
    how: str
    tests: tuple[str, ...]
    checks: tuple[str, ...] = ()
    benches: tuple[str, ...] = ()


SEEDED = "tests/chaos/test_seeded.py::"
PARKING = "tests/integration/agents/test_parking.py::"
OWNERSHIP = "tests/integration/agents/test_ownership.py::"
REBALANCE = "tests/integration/transport/test_rebalance.py::"
STEPS = "tests/integration/agents/test_steps.py::"
ASSIGNMENTS = "tests/integration/agents/test_assignments.py::"
HANDLING = "tests/integration/agents/test_handling.py::"
DEAD = "tests/integration/dead/test_dead.py::"
SCENARIOS = "tests/chaos/test_scenarios.py::test_all_that_must_hold_holds"
SPEC = "tests/integration/test_spec.py::test_the_protocol_holds_and_each_seeded_bug_is_found"
OWNERS = "tests/unit/test_owner.py"

GUARANTEES = (
    Guarantee(
        1,
        "Acknowledged is kept",
        "Every message whose producer was told of success is handled at least once.",
        "As durable as the topic: on one broker, or with `min.insync.replicas` 1, a lost disk loses messages. What"
        " retention takes before it is read is an error that names the range, not silence.",
        "An idempotent producer with acks=all; an offset is committed only when the message's effects are"
        " acknowledged or recorded.",
        (SCENARIOS, "tests/integration/test_producer.py::test_failures_are_told_to_all_who_wait",
         SEEDED + "test_offsets_are_committed_before_outputs_are_delivered", OWNERS, SPEC),
        ("not acknowledged", "lost", "not covered"),
    ),
    Guarantee(
        2,
        "Order",
        "Messages of one conversation to one agent are handled one at a time in the order of the log, across"
        " restarts, rebalances, retries and redrives.",
        "Between conversations there is none. A message that runs again after a crash (its commit was not written)"
        " runs before what is behind it, though that may have run before the crash too. Records without a key"
        " have no conversation.",
        "A lane for each conversation; a parked message opens its conversation, and later ones are held in the"
        " journal until it is redriven or dropped.",
        (SCENARIOS, "tests/unit/test_lanes.py::test_each_lane_runs_in_order_one_at_a_time",
         PARKING + "test_a_failed_message_parks_its_conversation_and_a_redrive_keeps_the_order",
         SEEDED + "test_held_messages_run_too_early", OWNERS, SPEC),
        ("out of order",),
        ("redrive",),
    ),
    Guarantee(
        3,
        "Commit gate",
        "The committed offset never falls and never passes a message that is neither finished nor in the journal.",
        "What finished above it fits into 4,096 characters of commit metadata, the nearest first; of what does not"
        " fit, messages that wrote nothing to the journal run again after a crash.",
        "A watermark over delivered offsets, so that markers and compaction holes hold nothing back; what finished"
        " above it travels in the commit; a partition that was revoked is never committed again.",
        ("tests/unit/test_gate.py", SCENARIOS, SEEDED + "test_the_gate_passes_work_in_flight",
         REBALANCE + "test_a_gate_that_passes_work_in_flight_is_seen", OWNERS, SPEC),
        ("committed offsets that fell", "committed before"),
    ),
    Guarantee(
        4,
        "Recorded is once",
        "A step's recorded result is given to every rerun; a handler whose outputs are recorded is not run again; a"
        " message whose id finished at another offset is dropped.",
        "A step that was under way when its worker died runs again, with the same idempotency key; with"
        " `at_most_once=True` it does not, and the handler is told `StepUnknown`. What a handler does outside of steps"
        " can happen again. A duplicate later than `dedup_window` finished messages of its partition runs again. A"
        " handler must come by its steps in the same order on every run; one that doesn't is parked.",
        "A result counts when its journal record was read back with no newer claim before it. Handlers with steps,"
        " several outputs or a changed memory are completed by one record before anything is sent. Ids of outputs,"
        " questions and keys follow from the message's.",
        ("tests/integration/agents/test_kills.py::test_no_recorded_step_runs_again_whenever_workers_are_killed",
         STEPS + "test_another_worker_goes_on_behind_the_last_recorded_step",
         STEPS + "test_changed_code_is_parked_with_both_names_and_goes_on_once_it_is_mended",
         STEPS + "test_the_first_answer_of_who_was_asked_counts",
         "tests/integration/agents/test_memory.py::test_a_recorded_change_counts_though_its_worker_died",
         OWNERSHIP + "test_outputs_that_are_recorded_are_sent_and_the_handler_is_not_run",
         PARKING + "test_a_message_that_comes_twice_is_handled_once_and_so_after_a_restart",
         HANDLING + "test_ids_of_outputs_follow_from_the_message", "tests/unit/test_dedup.py",
         SEEDED + "test_dedup_is_off", SEEDED + "test_recorded_results_are_not_given_to_a_rerun",
         SEEDED + "test_a_step_is_not_waited_for", SEEDED + "test_the_key_of_a_step_changes_with_the_attempt", SPEC),
        ("doubled", "wrong or invented", "recorded steps", "steps executed"),
    ),
    Guarantee(
        5,
        "Nothing dropped in silence",
        "A message that can't be handled becomes a dead letter with its cause; one that fails for good parks its"
        " conversation until a person redrives or drops it, and a redrive keeps the order and counts once.",
        "Dead letters are kept for 30 days; what is parked stays in the journal beyond that. Undecodable, invalid,"
        " expired and too large messages don't park: their conversations go on.",
        "Retries in the lane, then a dead letter, then a park record. A redrive is a command in the journal that"
        " names the park it means, and the owner carries it out. A circuit breaker pauses an agent of which most"
        " handlers fail for one reason, instead of parking everybody.",
        (SCENARIOS, PARKING + "test_a_discarded_message_is_not_run_and_its_conversation_goes_on",
         DEAD + "test_redriven_conversations_are_whole_once_and_in_order",
         DEAD + "test_what_two_people_redrive_runs_once",
         "tests/unit/test_journal.py", SPEC),
        ("dead letters that are not", "poison without"),
        ("redrive",),
    ),
    Guarantee(
        6,
        "Waiting is free",
        "A handler that waits for an answer, a time or a person gives its slot back at once; one that waits for long"
        " is suspended: its offset is released, and it goes on on any worker when what it waits for has come.",
        "Suspended handlers cost their owner an index entry of about a kilobyte. A handler is ended where it waits and"
        " run again from its beginning, so that a `finally` runs too. Timers go by the owner's clock.",
        "The lane lends its slot to others. A suspension is a journal record with the message and what it waits for;"
        " answers to what is in the journal are in the journal before the position in the answers passes them.",
        (STEPS + "test_a_handler_that_waits_long_is_suspended_and_goes_on",
         STEPS + "test_a_handler_waits_for_several_things_over_a_restart_of_all_workers",
         STEPS + "test_a_deadline_that_passes_while_suspended_is_the_answer_of_every_run",
         ASSIGNMENTS + "test_an_answer_that_comes_while_its_asker_leaves_with_its_partition_is_kept",
         ASSIGNMENTS + "test_who_regains_a_partition_hears_again_what_was_answered_before",
         HANDLING + "test_agents_that_ask_each_other_do_not_stand_in_each_others_way", SCENARIOS, SPEC),
        ("suspended",),
    ),
    Guarantee(
        7,
        "Failover",
        "A killed worker's conversations go on with others within about the session timeout; others don't stop.",
        "As quick as the session timeout that the broker permits: see `group.min.session.timeout.ms`. A worker that"
        " hangs without dying counts as alive while its client's threads send heartbeats.",
        "The shortest session that brokers allow, cooperative rebalances, a supervisor that sees a dead child at"
        " once; a roll-out starts the new worker before the old one leaves.",
        (REBALANCE + "test_a_killed_worker_loses_and_reorders_nothing",
         PARKING + "test_parked_and_held_messages_go_on_with_another_worker",
         "tests/integration/test_deployments.py::test_rollout_has_no_gap_and_a_broken_module_changes_nothing",
         SCENARIOS),
        ("redelivered",),
        ("failover", "rollout"),
    ),
    Guarantee(
        8,
        "No zombies",
        "A worker that wakes after it lost its partition can't have a commit or a journal record accepted, nor an"
        " output that rests on one.",
        "An output of the fast path, which rests on no record, goes out with the same id as the owner's, and its"
        " receiver drops the second; an effect outside of Kafka is not fenced.",
        "Claims in the journal: what carries an older claim behind a newer one is void for every reader, and a"
        " writer acts on its own record only when it has read it back. Commits are fenced by the group.",
        (REBALANCE + "test_a_frozen_worker_that_wakes_up_breaks_nothing",
         OWNERSHIP + "test_a_worker_that_meets_a_late_claim_claims_again_and_loses_nothing",
         SEEDED + "test_claims_are_ignored", OWNERS, SPEC),
        ("doubled", "committed before"),
    ),
    Guarantee(
        9,
        "Bounded",
        "What a worker has in flight is bounded by count and bytes, and nothing in it grows with the number of"
        " conversations that are idle.",
        "An open conversation, parked or with held messages, costs an index entry for each of its messages in its"
        " owner; payloads are in the journal. A handler's own memory is its own.",
        "Fetching pauses by partition; idle lanes are dropped; the journal is cleaned by copying forward, so that a"
        " new owner reads only its end.",
        ("tests/unit/test_lanes.py::test_thousands_wait_at_once_and_slots_do_not_pile_up",
         "tests/integration/test_producer.py::test_memory_is_bounded",
         OWNERSHIP + "test_a_journal_is_cleaned_and_the_next_owner_reads_only_its_end", SCENARIOS),
        ("workers whose memory",),
        ("many", "lanes", "guaranteed"),
    ),
    Guarantee(
        10,
        "Kafka is the truth",
        "Nothing that decides about delivery is in Redis: it may be killed and emptied.",
        "Handlers with a memory wait while Redis is out of reach; others don't notice.",
        "The view of memories carries the offset that it reflects, written in the same transaction, and is made anew"
        " from the topic from there, or from its beginning. Ownership, holding and dedup are read from Kafka alone.",
        ("tests/chaos/test_faults.py::test_redis_is_killed_and_emptied",
         "tests/integration/agents/test_memory_redis.py::test_redis_is_emptied_in_the_middle",
         "tests/integration/agents/test_memory_redis.py::test_memory_that_believes_an_empty_redis_is_seen"),
    ),
)  # fmt: skip

#: What peers promise, read in their documentation; by hand.
PEERS = FIGURES / "peers.md"


def page() -> str:
    """The page, of the figures that were taken."""
    chaos, tests, benches = (_kept(name) for name in ("chaos", "tests", "bench"))
    lines = [
        "# Guarantees",
        "",
        "Made by `make guarantees` from what the tests, `llmagentos chaos run --all` and the benchmarks said last. How",
        "it works is told in [delivery](explanation/delivery.md), the protocol is [model-checked](spec/README.md), and",
        "[chaos](howto/chaos.md) says how to see it yourself.",
        "",
        "| | promise |",
        "|---|---|",
        *(f"| {g.number}. {g.name} | {g.promise} |" for g in GUARANTEES),
        "",
        *_scenarios(chaos),
    ]
    for guarantee in GUARANTEES:
        lines += [
            f"## {guarantee.number}. {guarantee.name}",
            "",
            guarantee.promise,
            "",
            f"*Limits.* {guarantee.limits}",
            "",
            f"*How.* {guarantee.how}",
            "",
            "*Proven by*",
            "",
            *(f"- `{test}`{_result(test, tests)}" for test in guarantee.tests),
            "",
        ]
        figures = [*_checks(guarantee, chaos), *_benches(guarantee, benches)]
        if figures:
            lines += ["*Last figures*", "", *figures, ""]
    return "\n".join(lines) + "\n" + PEERS.read_text(encoding="utf-8")


def _scenarios(chaos: dict[str, Any]) -> Iterator[str]:
    yield "## The last chaos runs"
    yield ""
    if not chaos:
        yield "None was taken yet."
        yield ""
        return
    yield "| scenario | when, UTC | seed | messages | faults | redelivered | lost | doubled | out of order | all held |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|---|"
    for name, run in chaos.items():
        found = {check: value["found"] for check, value in run["checks"].items()}
        disorder = sum(value for check, value in found.items() if check.startswith("out of order"))
        held = "yes" if run["holds"] else "could not run" if run["trouble"] else "no"
        cells = [name, run["started_at"].replace("T", " ").rstrip("Z"), run["seed"], f"{run['messages']:,}"]
        cells += [sum(run["faults"].values()), f"{run['counts'].get('redelivered', 0):,}"]
        cells += [found.get("lost", ""), found.get("doubled in the ledger", ""), disorder if found else "", held]
        yield "| " + " | ".join(str(cell) for cell in cells) + " |"
    yield ""


def _checks(guarantee: Guarantee, chaos: dict[str, Any]) -> Iterator[str]:
    names = [n for run in chaos.values() for n in run["checks"] if n.startswith(guarantee.checks)] if chaos else []
    for name in dict.fromkeys(names):
        runs = {scenario: run["checks"][name] for scenario, run in chaos.items() if name in run["checks"]}
        off = [f"{scenario}: {check['found']:,}" for scenario, check in runs.items() if not check["holds"]]
        wanted = next(iter(runs.values()))["wanted"]
        must = "above 0" if wanted is None else wanted
        least = min(check["found"] for check in runs.values())
        said = (
            f"off in {', '.join(off)}"
            if off
            else f"held in all, {least:,} at least"
            if wanted is None
            else "held in all"
        )
        yield f"- {name} (must be {must}): {len(runs)} scenarios, {said}"


def _benches(guarantee: Guarantee, benches: dict[str, Any]) -> Iterator[str]:
    for name in guarantee.benches:
        if name in benches:
            figures = ", ".join(f"{key} {value:,}" for key, value in benches[name]["figures"].items())
            yield f"- `make bench NAME={name}`: {figures} ({benches[name]['at']})"


def _result(test: str, tests: dict[str, Any]) -> str:
    found = tests.get(test)
    if not found:
        return ""
    said = ", ".join(f"{count} {word}" for word, count in found["cases"].items())
    return f": {said} ({found['at']})"


def _kept(name: str) -> dict[str, Any]:
    path = FIGURES / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


# -- taking figures -------------------------------------------------------------------------------------------------


def take(out: Path) -> list[str]:
    """Keep what is in *out*; the names of what was taken."""
    taken = []
    if (path := out / "chaos.json").exists():
        _keep("chaos", {run["scenario"]: _short(run) for run in json.loads(path.read_text(encoding="utf-8"))})
        taken.append(path.name)
    if (path := out / "tests.xml").exists():
        _keep("tests", _cases(path))
        taken.append(path.name)
    for name in BENCHES:
        if (path := out / f"{name}.json").exists():
            figures = json.loads(path.read_text(encoding="utf-8").strip().splitlines()[-1])
            _keep("bench", {name: {"at": _day(path), "figures": figures}})
            taken.append(path.name)
    return taken


def _short(run: dict[str, Any]) -> dict[str, Any]:
    faults: dict[str, int] = {}
    for fault in run["faults"]:
        faults[fault["name"]] = faults.get(fault["name"], 0) + 1
    checks = {check["name"]: {key: check[key] for key in ("found", "wanted", "holds")} for check in run["checks"]}
    kept = ("seed", "holds", "trouble", "started_at", "seconds", "messages", "conversations", "counts")
    return {**{key: run[key] for key in kept}, "faults": faults, "checks": checks}


def _cases(path: Path) -> dict[str, Any]:
    """What became of the tests that a guarantee names."""
    wanted = {test for guarantee in GUARANTEES for test in guarantee.tests}
    found: dict[str, dict[str, int]] = {}
    for case in ET.parse(path).iter("testcase"):
        parts = (case.get("classname") or "").split(".")
        file = next((f"{'/'.join(parts[:n])}.py" for n in range(len(parts), 0, -1)
                     if (ROOT / f"{'/'.join(parts[:n])}.py").exists()), "")  # fmt: skip
        name = f"{file}::{(case.get('name') or '').partition('[')[0]}"
        gone = {child.tag for child in case}
        word = "failed" if gone & {"failure", "error"} else "skipped" if "skipped" in gone else "passed"
        for test in {file, name} & wanted:
            cases = found.setdefault(test, {})
            cases[word] = cases.get(word, 0) + 1
    return {test: {"at": _day(path), "cases": dict(sorted(cases.items()))} for test, cases in found.items()}


def _day(path: Path) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(path.stat().st_mtime))


def _keep(name: str, new: dict[str, Any]) -> None:
    FIGURES.mkdir(exist_ok=True)
    text = json.dumps({**_kept(name), **new}, indent=1) + "\n"
    (FIGURES / f"{name}.json").write_text(text, encoding="utf-8")


def missing() -> list[str]:
    """The tests that guarantees name and that don't exist."""
    gone = []
    for test in dict.fromkeys(test for guarantee in GUARANTEES for test in guarantee.tests):
        file, _, name = test.partition("::")
        path = ROOT / file
        names = _names(path) if path.exists() else set()
        if not names or (name and name not in names):
            gone.append(test)
    return gone


def _names(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test")
    }


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--take", type=Path, metavar="FOLDER", help="first keep the outputs that lie there")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is stale")
    options = parser.parse_args()
    if gone := missing():
        print("tests that do not exist: " + ", ".join(gone))
        return 1
    if options.take is not None:
        print("taken: " + (", ".join(take(options.take)) or "nothing"))
    text = page()
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    if options.check:
        print("stale: guarantees.md (run `make guarantees`)")
        return 1
    PAGE.write_text(text, encoding="utf-8")
    print("written: guarantees.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
