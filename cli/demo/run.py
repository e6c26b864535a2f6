"""The demo, step by step."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from llmagentos.agents.deploying import deploy, undeploy
from llmagentos.agents.deployment import Deployments
from llmagentos.cli.demo.oracle import Kill, Verdict, judge, lag, read_ledger
from llmagentos.cli.demo.sources import Source, find_sources, standard_library, survey
from llmagentos.cli.demo.survey import LEDGER
from llmagentos.cli.output import Output, console, errors, print_json
from llmagentos.streams.errors import AgentError
from llmagentos.streams.message import Message
from llmagentos.streams.node import Node
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec

__all__ = ["run"]

DEPLOYMENT = "survey"

#: The kill comes when this share of the entries is made: late enough that both workers work, early enough that much
#: of the work follows it.
KILL_AT = 0.2

#: Between two looks at the ledger; well under the commit interval, so that a worker can be met in the act.
LOOK_S = 0.02

#: Nothing new in the ledger for this long means that it will not come: many times a hand-over.
STALL_S = 90.0

#: Of a record, for its header; the rest may be source.
HEADER_BYTES = 2_000


def run(folder: Path | None, *, workers: int, out: Path | None, keep: bool, output: Output) -> bool:
    """Survey *folder*, kill a worker meanwhile, print what came of it; returns whether all is as it must be.

    Args:
        folder: None: the standard library.
        out: where the Spark job's report goes; None: it does not run.
        keep: leave node, topics and ledger.
    """

    base = Settings.load()
    folder = (folder or standard_library()).expanduser().resolve()
    sources, left_out = find_sources(folder, limit_bytes=base.max_message_bytes - HEADER_BYTES)
    for reason in left_out[:5]:
        errors.print(f"[dim]left out: {reason}[/]")
    if len(left_out) > 5:
        errors.print(f"[dim]left out: {len(left_out) - 5} more[/]")

    home = Path(tempfile.mkdtemp(prefix="llmagentos-demo-"))
    settings = base.model_copy(update={"home": home, "prefix": f"demo-{uuid.uuid4().hex[:6]}."})
    ledger = home / "ledger.ndjson"
    environment = {
        **os.environ,
        "LLMAGENTOS_HOME": str(home),
        "LLMAGENTOS_PREFIX": settings.prefix,
        LEDGER: str(ledger),
    }
    with _node(settings, keep):
        with _step("survey the files in one loop, without Kafka, to compare", len(sources)) as advance:
            started = time.monotonic()
            expected = {}
            for path, of_file in survey(sources):
                expected[path] = of_file
                advance(len(expected))
            loop_s = time.monotonic() - started
        entries = sum(of_file.pieces + 1 for of_file in expected.values())
        deployed = False
        try:
            with _step(f"deploy {workers} workers"):
                deploy(
                    settings,
                    "llmagentos.cli.demo.survey",
                    name=DEPLOYMENT,
                    workers=workers,
                    environment=environment,
                )
                deployed = True
            started = time.monotonic()
            with _step("produce one message a file", len(sources)) as advance:
                asyncio.run(_produce(settings, sources, advance))
            kill = None
            with _step("agents parse, measure and compile", entries) as advance:
                for done, newest in _follow(ledger, entries):
                    advance(done)
                    if kill is None and newest and done >= entries * KILL_AT and _in_the_act(settings, newest):
                        kill = _kill(settings, newest["pid"])
            seconds = time.monotonic() - started
            if kill is None:
                raise AgentError(
                    f"the {entries} entries were made too fast to kill a worker meanwhile", fix="give a larger folder"
                )
            with _step("wait until every offset is committed"):
                until = time.monotonic() + STALL_S
                while lag(settings, DEPLOYMENT) and time.monotonic() < until:
                    time.sleep(0.2)
            with _step("count from topics, committed offsets and the ledger"):
                verdict = judge(settings, DEPLOYMENT, ledger, expected, kill, seconds=seconds)
            _show_one_conversation(environment, read_ledger(ledger)[0])
            page = _report(environment, out) if out is not None else None
        finally:
            if deployed and not keep:
                with _step("undeploy"):
                    undeploy(settings, DEPLOYMENT)
    _print(verdict, output, folder=folder, seconds=seconds, loop_s=loop_s, page=page)
    return not verdict.failures()


def _print(verdict: Verdict, output: Output, *, folder: Path, seconds: float, loop_s: float, page: str | None) -> None:
    failures = verdict.failures()
    if output is Output.json:
        print_json(
            {name: getattr(verdict, name) for name in Verdict.__slots__}
            | {"seconds": seconds, "single_loop_s": loop_s, "report": page, "failures": failures}
        )
    else:
        rows = {
            "messages": f"{verdict.messages:,}",
            "redelivered": f"{verdict.redelivered:,}",
            "lost": f"{verdict.lost:,}",
            "out of order": f"{verdict.out_of_order:,}",
            "entries made twice": f"{verdict.twice:,}",
            "seconds to fail over": "never" if verdict.failover_s is None else f"{verdict.failover_s:.2f}",
            "events a second": f"{verdict.events_per_s:,.0f}",
            "survey": f"{len(verdict.unequal)} files differ" if verdict.unequal else "equal, file by file",
            "seconds": f"{seconds:.1f} (one loop without Kafka: {loop_s:.1f})",
        }
        table = Table(title=f"{verdict.files} files of {folder}", title_justify="left", show_header=False, box=None)
        for row in rows.items():
            table.add_row(*row)
        console.print()
        console.print(table)
        if page:
            console.print(f"report: {page}")
    for failure in failures:
        errors.print(f"[bold red]off:[/] {failure}")


@contextmanager
def _node(settings: Settings, keep: bool) -> Generator[None]:
    """The demo's own node, unless the settings name a cluster; gone at the end."""

    node = Node(settings)
    try:
        if not settings.brokers:
            with _step("start Kafka and Redis") as advance:
                node.up(progress=advance.say)
        yield
    finally:
        if keep:
            errors.print(f"kept: node and ledger in {settings.home}, topics {settings.prefix}*")
            errors.print(f"      `LLMAGENTOS_HOME={settings.home} llmagentos down` ends the node")
        else:
            if not settings.brokers:
                with _step("stop Kafka and Redis"):
                    node.down()
            shutil.rmtree(settings.home, ignore_errors=True)


class _Advance:
    """Moves one step's bar; `say` shows what goes on within it."""

    def __init__(self, progress: Progress, task: TaskID, text: str) -> None:
        self._progress, self._task, self._text = progress, task, text

    def __call__(self, done: int) -> None:
        self._progress.update(self._task, completed=done)

    def say(self, what: str, done: int = 0, total: int = 0) -> None:
        counted = f" {done}/{total}" if total else ""
        self._progress.update(self._task, description=f"{self._text}: {what}{counted}")


@contextmanager
def _step(text: str, total: int | None = None) -> Generator[_Advance]:
    """A line with its time, and a bar where there is a total."""
    columns: tuple[ProgressColumn, ...] = (
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}"),
        *((BarColumn(bar_width=30), MofNCompleteColumn()) if total else ()),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors) as progress:
        task = progress.add_task(text, total=total)
        yield _Advance(progress, task, text)
        progress.update(task, description=text, total=total or 1, completed=total or 1)


async def _produce(settings: Settings, sources: Sequence[Source], advance: Callable[[int], None]) -> None:

    codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
    async with Producer(settings, codec) as producer:
        for number, source in enumerate(sources, 1):
            await producer.send(
                Message.create(
                    source.text.encode(errors="surrogatepass"),
                    to="parser",
                    conversation=source.path,
                    sender="demo",
                    sequence=number - 1,
                    attributes={"path": source.path},
                    content_type="text/plain",
                )
            )
            advance(number)
        await producer.delivered()


def _follow(ledger: Path, wanted: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """How many different entries are made, and the newest one, until all are made.

    Raises:
        AgentError: none came for long.
    """
    seen: set[tuple[str, int]] = set()
    newest: dict[str, Any] | None = None
    read, moved_at = 0, time.monotonic()
    while len(seen) < wanted:
        entries, read = read_ledger(ledger, read)
        for newest in entries:
            seen.add((newest["path"], newest.get("index", 0)))
        if entries:
            moved_at = time.monotonic()
        elif time.monotonic() - moved_at > STALL_S:
            raise AgentError(
                f"only {len(seen)} of {wanted} entries were made, and none in the last {STALL_S:.0f} s",
                fix="run with --keep, then `llmagentos ps`, `logs` and `lag` with the LLMAGENTOS_HOME that it names",
            )
        yield len(seen), newest
        time.sleep(LOOK_S)


def _in_the_act(settings: Settings, newest: Mapping[str, Any] | None) -> bool:
    """Whether a worker has just made *newest*, so that its offset can't be committed yet."""
    return newest is not None and time.time() - newest["at"] < settings.commit_interval_ms / 1000 / 2


def _kill(settings: Settings, pid: int) -> Kill | None:
    """SIGKILL the worker with that process id, where it has partitions."""
    deployments = Deployments(settings.home)
    for worker in deployments.workers(DEPLOYMENT):
        report = deployments.report(DEPLOYMENT, worker)
        if worker.process is not None and report is not None and report.pid == pid and report.assigned:
            kill = Kill(pid, time.time(), frozenset(report.assigned))
            os.kill(pid, signal.SIGKILL)
            errors.print(
                f"[bold]killed[/] worker {worker.index} (pid {pid}), which owned {len(report.assigned)} partitions"
            )
            return kill
    return None


def _show_one_conversation(environment: Mapping[str, str], entries: Sequence[Mapping[str, object]]) -> None:
    """Tail a short conversation, as its debugger would."""
    lengths: dict[str, int] = {}
    for entry in entries:
        lengths[str(entry["path"])] = lengths.get(str(entry["path"]), 0) + 1
    path = min(lengths, key=lambda p: (abs(lengths[p] - 3), p))
    errors.print(f"\n[bold]$ llmagentos tail --from beginning --conversation {path}[/]")
    _command(environment, "tail", "--from", "beginning", "--conversation", path, to_stderr=True)


def _report(environment: Mapping[str, str], out: Path) -> str | None:
    """Run the analytics job; its report's path."""
    errors.print(f"\n[bold]$ llmagentos job run analytics --out {out}[/]")
    if _command(environment, "job", "run", "analytics", "--out", str(out), to_stderr=True):
        errors.print("[yellow]the job failed; its message is above[/]")
        return None
    pages = sorted(out.rglob("*.html"), key=lambda page: page.stat().st_mtime)
    return str(pages[-1]) if pages else None


def _command(environment: Mapping[str, str], *arguments: str, to_stderr: bool) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "llmagentos.cli.main", *arguments],
        env=dict(environment),
        stdout=sys.stderr if to_stderr else None,
        check=False,
    )
    return done.returncode
