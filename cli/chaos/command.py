"""The commands `llmagentos chaos run`, `list` and `doctor`."""

from __future__ import annotations

import signal
from pathlib import Path

import typer

from llmagentos.cli.output import Output, OutputOption

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="Faults in a cluster of three brokers under load, and a judge that counts from outside.")
    group.command()(run)
    group.command("list")(list_scenarios)
    group.command()(doctor)
    app.add_typer(group, name="chaos", no_args_is_help=True)


def run(
    scenarios: list[str] = typer.Argument(None, metavar="[SCENARIO ...]", help="As `chaos list` names them."),
    every: bool = typer.Option(False, "--all", help="All of them; one that can't run here counts as failed."),
    seed: int = typer.Option(1, min=0, help="The same seed gives the same input and the same schedule of faults."),
    minutes: float | None = typer.Option(
        None, min=0.1, help="Of work for each scenario, at the same rate; by default 100,000 messages."
    ),
    keep: Path | None = typer.Option(None, help="Folder for each run's input, ledger and logs."),
    agents: Path | None = typer.Option(None, hidden=True, help="Another file with the chain's agents."),
    output: Output = OutputOption,
) -> None:
    """Do faults to a cluster under load, and say whether every message was kept, in order, and handled once.

    Starts three brokers, Redis and workers of its own in a temporary folder, and removes them at the end. Every
    effect is recorded by a process outside of Kafka. Exits with 1 where anything is off, or could not run.

    Examples:

        llmagentos chaos run kill-workers

        llmagentos chaos run --all --seed 7

        llmagentos chaos run combined --minutes 1 --output json
    """
    from llmagentos.cli.chaos.report import as_json, print_outcome, print_summary
    from llmagentos.cli.chaos.scenarios import SCENARIOS, lasting, named
    from llmagentos.cli.chaos.showing import shown

    if bool(scenarios) == every:
        raise typer.BadParameter("name scenarios, or give --all; `llmagentos chaos list` lists them")
    chosen = list(SCENARIOS) if every else named(scenarios)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was started is ended first
    if minutes is not None:
        chosen = [lasting(scenario, minutes * 60) for scenario in chosen]
    outcomes = []
    for scenario in chosen:
        outcomes.append(shown(scenario, seed, chain=agents, keep=keep))
        if output is Output.pretty:
            print_outcome(outcomes[-1])
    if output is Output.json:
        as_json(outcomes)
    else:
        print_summary(outcomes)
    if not all(outcome.holds for outcome in outcomes):
        raise typer.Exit(1)


def list_scenarios(output: Output = OutputOption) -> None:
    """List the scenarios, and what each still needs on this machine.

    Examples:

        llmagentos chaos list
    """
    from llmagentos.cli.chaos.faults import FAULTS
    from llmagentos.cli.chaos.scenarios import SCENARIOS
    from llmagentos.cli.output import print_rows

    print_rows(
        [
            {
                "scenario": scenario.name,
                "what": scenario.about,
                "messages": scenario.messages,
                "needs": ", ".join({n.partition(":")[0]: 0 for f in scenario.faults for n in FAULTS[f].needs()}),
            }
            for scenario in SCENARIOS
        ],
        ("scenario", "what", "messages", "needs"),
        output=output,
        wrap=("what",),
    )


def doctor(output: Output = OutputOption) -> None:
    """Say what the scenarios need of this machine, and how to get what is missing; exits with 1 where something is.

    Examples:

        llmagentos chaos doctor
    """
    from llmagentos.cli.chaos.doctor import NEEDS
    from llmagentos.cli.output import print_rows

    rows = [
        {"need": need.name, "there": "yes" if need.there() else "no", "for": need.what_for, "fix": need.fix}
        for need in NEEDS.values()
    ]
    print_rows(rows, ("need", "there", "for", "fix"), output=output, wrap=("for", "fix"))
    if any(row["there"] == "no" for row in rows):
        raise typer.Exit(1)
