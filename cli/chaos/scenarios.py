"""The scenarios: which faults, in how much work, and what must show that they did something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmagentos.streams.errors import InputError

__all__ = ["SCENARIOS", "Scenario", "durable", "full_stop", "lasting", "named"]

#: Of the messages of every scenario, unless it says otherwise: a plain run of the workload has neither.
POISON = 0.001
DUPLICATES = 0.01

#: Of the messages to agents that wait.
TIMERS = 0.05
PEOPLE = 0.01


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run: a workload, and the faults that go on meanwhile.

    Attributes:
        faults: by name (`cli/chaos/faults.py`), side by side in threads of their own.
        messages, conversations: the size of the input.
        seconds: over which the input is produced, or until the faults are over.
        share: of the faults' full length, as far as their short form allows.
        workers: at the start.
        poison: the share of messages that can't be decoded or handled.
        duplicates: the share of messages that are produced twice.
        redelivers: whether messages must be handled again, or else the faults did nothing.
        durable: the agents are those of `durable.py`: steps, questions, waits; else those of `chain.py`.
        timers, people: of these the shares of messages that wait for a timer, or a person.
        sleep_s: how long the timers are.
        ahead: all input is sent before the faults begin, and people decide only when those are over.
    """

    name: str
    about: str
    faults: tuple[str, ...] = ()
    messages: int = 100_000
    conversations: int = 5_000
    seconds: float = 150.0
    share: float = 1.0
    workers: int = 3
    poison: float = 0.0
    duplicates: float = 0.0
    redelivers: bool = False
    durable: bool = False
    timers: float = 0.0
    people: float = 0.0
    sleep_s: float = 1.0
    ahead: bool = False


def durable(name: str, about: str, *faults: str, messages: int = 12_000, seconds: float = 150.0) -> Scenario:
    """A scenario of agents with steps, questions and waits: a message is four questions and answers and nine records
    in journals, so that there are fewer than in the others."""
    return Scenario(
        name,
        about,
        faults,
        messages=messages,
        conversations=messages // 20,
        seconds=seconds,
        redelivers=True,
        durable=True,
        timers=TIMERS,
        people=PEOPLE,
    )


def full_stop(name: str, conversations: int, seconds: float, sleep_s: float) -> Scenario:
    """A message to each of *conversations*, all of which wait when everything is stopped."""
    return Scenario(
        name,
        f"{conversations:,} suspended conversations, everything stopped and started again",
        ("full-stop",),
        messages=conversations,
        conversations=conversations,
        seconds=seconds,
        redelivers=True,
        durable=True,
        timers=0.95,
        people=0.05,
        sleep_s=sleep_s,
        ahead=True,
    )


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "kill-workers", "30 x kill -9 of workers with work in flight", ("kill-workers",), seconds=180.0, redelivers=True
    ),
    Scenario("kill-brokers", "kill -9 of each broker in turn, one down for 70 s", ("kill-brokers",)),
    Scenario(
        "freeze-worker", "SIGSTOP of a worker beyond its session, then SIGCONT", ("freeze-worker",), redelivers=True
    ),
    Scenario("partition", "60 s without a network between one worker and the brokers", ("partition",), redelivers=True),
    Scenario("redis", "Redis killed, and emptied", ("redis",)),
    Scenario("disk-full", "one broker's disk is full", ("disk-full",)),
    Scenario("kill-supervisor", "kill -9 of the supervisor, then of a worker", ("kill-supervisor",), redelivers=True),
    Scenario("duplicates", "1 % of the messages produced twice", duplicates=DUPLICATES),
    Scenario("poison", "0.1 % of the messages undecodable or failing", poison=POISON),
    Scenario("scale", "3 workers, 6, then 2", ("scale",)),
    Scenario("rollout", "every worker replaced under load", ("rollout",)),
    Scenario("clock", "one worker's clock off by 60 s", ("clock",)),
    Scenario(
        "combined",
        "all of these in one run, those on one part of the cluster in turns",
        (
            *("kill-workers", "freeze-worker", "partition", "scale", "rollout", "clock"),
            *("kill-brokers", "disk-full", "redis", "kill-supervisor"),
        ),
        seconds=300.0,
        poison=POISON,
        duplicates=DUPLICATES,
        redelivers=True,
    ),
    durable("steps", "30 x kill -9 of workers in steps, questions and waits", "kill-workers", seconds=180.0),
    durable(
        "steps-journal", "leaders of journal partitions killed, Redis emptied", "kill-leaders", "redis", "kill-workers"
    ),
    durable("steps-deploy", "changed code deployed under load, workers killed", "deploy", "kill-workers"),
    full_stop("full-stop", 10_000, seconds=60.0, sleep_s=180.0),
)


def named(names: Sequence[str]) -> list[Scenario]:
    """The scenarios of those names, in that order.

    Raises:
        InputError: there is none of a name; says which there are.
    """
    by_name = {scenario.name: scenario for scenario in SCENARIOS}
    for name in names:
        if name not in by_name:
            raise InputError(
                f"there is no scenario {name!r}; there are: {', '.join(by_name)}", fix="`llmagentos chaos list`"
            )
    return [by_name[name] for name in names]


def lasting(scenario: Scenario, seconds: float) -> Scenario:
    """*scenario* with *seconds* of work at the same rate, in conversations as long as before."""
    share = seconds / scenario.seconds
    return replace(
        scenario,
        seconds=seconds,
        share=min(1.0, share),
        messages=max(1, round(scenario.messages * share)),
        conversations=max(1, round(scenario.conversations * share)),
    )
