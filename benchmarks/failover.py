"""failover: kill -9 one of three workers under load; how long its conversations stand still, and who else notices.

Three workers of a real deployment, each a process, with a steady load; each message takes its handler 5 ms and a line
in a ledger outside of Kafka. A worker is killed 20 times, each in turn, when all has been calm for a while. For each
partition that it owned the time runs from the kill to the first message that another worker has handled of it. The
others' latency (from the sender's clock to the ledger) is compared: from the kill until the last of those partitions
goes on, against the calm before. The supervisor starts the replacement meanwhile, on the same two cores.

    make bench NAME=failover ARGS="--kills 20"
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time

from rich.console import Console
from rich.table import Table
from steady import Steady, percentile, steady

KILLS = 20
WORKERS = 3
RATE = 500
CONVERSATIONS = 300
WORK_MS = 5.0
#: Before each kill; the latencies of its last two thirds are what those after the kill are compared with.
CALM_S = 3.0


def kill_one(load: Steady, turn: int) -> tuple[dict[int, float], list[float], list[float]]:
    """Kill a worker; returns its partitions' times, and the others' latencies before and meanwhile."""
    owned = load.settled(WORKERS, CALM_S)
    running = sorted((worker.index, worker.process.pid) for worker in load.workers() if worker.process is not None)
    victim = running[turn % WORKERS][1]
    theirs = owned[victim]
    at = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    first: dict[int, float] = {}
    seen = len(load.entries)

    def taken_over() -> bool:
        nonlocal seen
        for entry in load.entries[seen:]:
            if entry.partition in theirs and entry.pid != victim:
                first[entry.partition] = min(first.get(entry.partition, entry.done), entry.done)
        seen = len(load.entries)
        return len(first) == len(theirs)

    load.until(taken_over, f"the partitions {sorted(theirs)} of worker {victim}")
    times = {partition: done - at for partition, done in first.items()}
    until = max(first.values())
    others = [entry for entry in load.entries if entry.partition not in theirs]
    before = [entry.done - entry.sent for entry in others if at - CALM_S * 2 / 3 <= entry.done < at]
    # By when they were sent: one that stood still all the while counts too, once it is done.
    load.until(lambda: any(e.sent > until and e.partition not in theirs for e in load.entries[seen:]), "the others")
    others = [entry for entry in load.entries if entry.partition not in theirs]
    meanwhile = [entry.done - entry.sent for entry in others if at <= entry.sent < until]
    return times, before, meanwhile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--rate", type=int, default=RATE)
    options = parser.parse_args()
    times: list[float] = []
    before: list[float] = []
    meanwhile: list[float] = []
    with steady(workers=WORKERS, rate=options.rate, conversations=CONVERSATIONS, work_ms=WORK_MS) as load:
        for turn in range(options.kills):
            found, calm, rough = kill_one(load, turn)
            times += found.values()
            before += calm
            meanwhile += rough
            print(
                f"kill {turn + 1}: {min(found.values()):.2f} to {max(found.values()):.2f} s for"
                f" {len(found)} partitions; the others' p99 {percentile(calm, 0.99) * 1000:.0f} ms before,"
                f" {percentile(rough, 0.99) * 1000:.0f} ms meanwhile",
                file=sys.stderr,
            )
        settings = load.settings
    calm_p99, rough_p99 = percentile(before, 0.99), percentile(meanwhile, 0.99)
    figures = {
        "p50_s": round(statistics.median(times), 2),
        "worst_s": round(max(times), 2),
        "others_p99_ratio": round(rough_p99 / calm_p99, 2),
    }
    table = Table(
        title=f"kill -9 of one of {WORKERS} workers, {options.kills} times, {options.rate} messages/s, session timeout"
        f" {settings.session_timeout_ms} ms, heartbeats every {settings.heartbeat_interval_ms} ms"
    )
    for column in ("what", "figure", "must be at most"):
        table.add_column(column, justify="left" if column == "what" else "right")
    table.add_row("to the first message handled, median of all partitions", f"{figures['p50_s']} s", "1.5 s")
    table.add_row("the slowest partition", f"{figures['worst_s']} s", "3 s")
    table.add_row("the others' p99 before", f"{calm_p99 * 1000:.0f} ms", "")
    table.add_row("the others' p99 meanwhile", f"{rough_p99 * 1000:.0f} ms", "")
    table.add_row("ratio of the two", f"{figures['others_p99_ratio']}x", "2x")
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
