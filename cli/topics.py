"""What there is and how it goes: `topics`, `agents`, `lag` and `conversations`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from llmagentos.cli.output import Output, OutputOption, print_json, print_rows

if TYPE_CHECKING:
    from llmagentos.streams.admin import Admin
    from llmagentos.streams.lag import PartitionLag
    from llmagentos.streams.settings import Settings
    from llmagentos.streams.tail import Log

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the four commands."""

    @app.command(epilog="Example: llmagentos topics -o json")
    def topics(output: Output = OutputOption) -> None:  # pyright: ignore[reportUnusedFunction]
        """Show every topic: key, partitions, messages, how long they are kept, and what it holds."""
        from llmagentos.cli.output import errors
        from llmagentos.streams.admin import Admin
        from llmagentos.streams.settings import Settings
        from llmagentos.streams.tail import Log

        settings = Settings.load()
        with Log(settings) as log:
            rows = list(_topics(settings, log, Admin(settings)))
        if output is Output.pretty:
            said = ""
            for row in rows:
                row["topic"] = row["topic"].removeprefix(settings.prefix)
                row["kept"] = _kept(row["retention_ms"])
                said, row["holds"] = row["holds"], "" if row["holds"] == said else row["holds"]  # once for each kind
        columns = ["topic", "partitions", "messages", "kept", "key", "holds"]
        print_rows(rows, columns, output=output, wrap=["holds"])
        if output is Output.pretty and settings.prefix:
            errors.print(f"in front of each name: {settings.prefix}")

    @app.command(epilog="Example: llmagentos agents -o json")
    def agents(output: Output = OutputOption) -> None:  # pyright: ignore[reportUnusedFunction]
        """Show every agent that was deployed, and the workers that read its topic now."""
        from llmagentos.agents.cards import read_cards
        from llmagentos.streams.admin import Admin
        from llmagentos.streams.settings import Settings

        settings = Settings.load()
        cards = sorted(read_cards(settings).values(), key=lambda card: card.name)
        members = Admin(settings).members(sorted({card.deployment for card in cards}))
        rows: list[dict[str, Any]] = []
        for card in cards:
            reading = [{p for t, p in places if t == card.topic} for places in members[card.deployment]]
            read = {partition for partitions in reading for partition in partitions}
            rows.append(
                card.record() | {"agent": card.name, "workers": sum(map(bool, reading)), "partitions_read": len(read)}
            )
        if output is Output.pretty:
            for row in rows:
                row["partitions"] = f"{row['partitions_read']} of {row['partitions']} read"
                row["deployed"] = _ago(row["deployed_at"])
                row["description"] = row["description"].strip().partition("\n")[0]
        print_rows(
            rows,
            ["agent", "deployment", "workers", "partitions", "version", "deployed", "description"],
            output=output,
            wrap=["description"],
            empty="no agents: `llmagentos deploy FILE` brings some",
        )

    @app.command(epilog="\b\nExamples:\n  llmagentos lag            all deployments\n  llmagentos lag hello -o json")
    def lag(  # pyright: ignore[reportUnusedFunction]
        deployment: str | None = typer.Argument(None, help="None: all."), output: Output = OutputOption
    ) -> None:
        """Show how far agents are behind: messages, conversations that wait, and since when."""
        from llmagentos.streams.admin import Admin
        from llmagentos.streams.lag import lag as measure
        from llmagentos.streams.settings import Settings
        from llmagentos.streams.tail import Log

        settings = Settings.load()
        admin = Admin(settings)
        inputs, names = _inputs(settings)
        groups = _groups(settings, admin, inputs, deployment)
        with Log(settings) as log:
            found = measure(log, admin, groups, inputs)
        if output is Output.json:
            print_json([{**asdict(part), "agent": _agent(settings, names, part)} for part in found])
            return
        print_rows(
            _lags(settings, names, found),
            ["deployment", "agent", "partition", "behind", "waiting", "oldest", "committed", "end"],
            wrap=["deployment", "agent"],
            empty="no agents: `llmagentos deploy FILE` brings some",
        )

    @app.command(
        epilog="\b\nExamples:\n  llmagentos conversations\n  llmagentos conversations --from -1d --limit 100 -o json"
    )
    def conversations(  # pyright: ignore[reportUnusedFunction]
        start: str = typer.Option("-1h", "--from", help="As of `tail`."),
        limit: int = typer.Option(20, "--limit", "-n", min=1, help="The latest so many."),
        output: Output = OutputOption,
    ) -> None:
        """Show the recent conversations: when, how many messages, which agents, and how they stand."""
        from llmagentos.cli.dialogue import lapse
        from llmagentos.cli.output import errors
        from llmagentos.streams.conversations import recent
        from llmagentos.streams.entries import Decoder
        from llmagentos.streams.position import Position
        from llmagentos.streams.settings import Settings
        from llmagentos.streams.tail import Log

        settings = Settings.load()
        position = Position.parse(start)
        with Log(settings) as log:
            if output is Output.pretty:
                with errors.status("reading"):
                    found = recent(log, Decoder(settings), position)
            else:
                found = recent(log, Decoder(settings), position)
        rows = [asdict(conversation) for conversation in found[:limit]]
        if output is Output.pretty:
            for row in rows:
                row["ago"] = lapse(max(0, time.time() * 1000 - row["last"]))
                row["agents"] = ", ".join(row["agents"])
        print_rows(
            rows,
            ["conversation", "ago", "messages", "state", "agents"],
            output=output,
            wrap=["agents"],
            empty=f"no conversation from {start} on",
        )
        if output is Output.pretty and len(found) > limit:
            errors.print(f"{len(found) - limit:,} more; --limit shows them")


def _topics(settings: Settings, log: Log, admin: Admin) -> Iterator[dict[str, Any]]:
    """The topology with what there is of each kind, then what else lies under the prefix."""
    from llmagentos.streams.position import BEGINNING, END
    from llmagentos.streams.topology import TOPICS

    there = log.topics()
    messages: dict[str, int] = defaultdict(int)
    ours = {topic: count for topic, count in there.items() if topic.startswith(settings.prefix)}
    for span in log.spans([(t, p) for t, count in ours.items() for p in range(count)], BEGINNING, END):
        messages[span.topic] += len(span)

    def row(topic: str, key: str, holds: str) -> dict[str, Any]:
        config = admin.config(topic)
        return {
            "topic": topic,
            "key": key,
            "partitions": ours[topic],
            "messages": messages[topic],
            "cleanup": config.get("cleanup.policy"),
            "retention_ms": None if config.get("cleanup.policy") == "compact" else int(config["retention.ms"]),
            "holds": holds,
        }

    shown: set[str] = set()
    for kind in TOPICS:
        stem, named, _ = settings.topic(kind.name).partition("NAME")
        found = [topic for topic in ours if topic.startswith(stem)] if named else [t for t in ours if t == stem]
        yield from (row(topic, kind.key, kind.holds) for topic in found)
        shown.update(found)
        if not found:  # not made yet
            yield {
                "topic": settings.topic(kind.name),
                "key": kind.key,
                "partitions": None,
                "messages": None,
                "cleanup": kind.cleanup,
                "retention_ms": kind.retention_ms,
                "holds": f"{kind.holds} (none yet)",
            }
    yield from (row(topic, "", "not of the topology") for topic in ours if topic not in shown)


def _inputs(settings: Settings) -> tuple[dict[str, set[str]], dict[tuple[str, str], str]]:
    """By the cards: the topics that each deployment reads, and the agent of (deployment, topic)."""
    from llmagentos.agents.cards import read_cards

    inputs: dict[str, set[str]] = defaultdict(set)
    names: dict[tuple[str, str], str] = {}
    for card in read_cards(settings).values():
        inputs[card.deployment].add(card.topic)
        names[card.deployment, card.topic] = card.name
    return inputs, names


def _groups(settings: Settings, admin: Admin, inputs: dict[str, set[str]], deployment: str | None) -> list[str]:
    """The deployments that have cards; or *deployment*, which may have none any more."""
    import difflib

    from llmagentos.streams.errors import DeploymentError

    known = set(inputs)
    if deployment is not None and deployment not in known and deployment in admin.groups():
        inputs[deployment] = set(admin.topics(settings.topic("agent.")))  # undeployed, with its commits
        return [deployment]
    if deployment is None:
        return sorted(known)
    if deployment not in known:
        close = difflib.get_close_matches(deployment, known, 3) or sorted(known)[:5]
        raise DeploymentError(
            f"there is no deployment {deployment!r}" + (f"; there are {', '.join(close)}" if close else ""),
            fix="`llmagentos ps` lists them",
        )
    return [deployment]


def _agent(settings: Settings, names: dict[tuple[str, str], str], part: PartitionLag) -> str:
    inbox = settings.topic("agent.")
    return names.get((part.deployment, part.topic)) or part.topic.removeprefix(inbox)


def _lags(
    settings: Settings, names: dict[tuple[str, str], str], found: Iterable[PartitionLag]
) -> Iterator[dict[str, Any]]:
    """A line for each agent as a whole, then one for each of its partitions that is behind."""
    by_agent: dict[tuple[str, str], list[PartitionLag]] = defaultdict(list)
    for part in found:
        by_agent[part.deployment, _agent(settings, names, part)].append(part)
    for (deployment, agent), parts in by_agent.items():
        late = [part for part in parts if part.behind]
        oldest = [part.oldest_ms for part in late if part.oldest_ms is not None]
        waiting = sum(part.waiting for part in parts)
        yield {
            "deployment": deployment,
            "agent": agent,
            "partition": f"all {len(parts)}",
            "behind": sum(part.behind for part in parts),
            "waiting": waiting if all(part.whole for part in parts) else f"{waiting} or more",
            "oldest": _ago(min(oldest)) if oldest else "",
        }
        for part in late:
            yield {
                "partition": part.partition,
                "behind": part.behind,
                "waiting": part.waiting if part.whole else f"{part.waiting} or more",
                "oldest": "" if part.oldest_ms is None else _ago(part.oldest_ms),
                "committed": "none" if part.committed is None else part.committed,
                "end": part.end,
            }


def _kept(retention_ms: int | None) -> str:
    from llmagentos.cli.dialogue import lapse

    if retention_ms is None:
        return "last by key"
    return "for ever" if retention_ms < 0 else lapse(retention_ms).replace(".0 ", " ")


def _ago(timestamp_ms: int) -> str:
    from llmagentos.cli.dialogue import lapse

    return f"{lapse(max(0, time.time() * 1000 - timestamp_ms))} ago"
