"""rollout: replace three workers under load; what is lost or done twice, and how long a conversation waits.

Three workers of a real deployment with 1,000 messages a second in 1,000 conversations; each message takes its handler
50 ms and a line in a ledger outside of Kafka. `rollout` replaces them one at a time, each new one before an old one
leaves. The wait of a message is the time from its sending until its handler begins. What was sent is compared with
the ledger afterwards.

    make bench NAME=rollout
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter

from rich.console import Console
from rich.table import Table
from steady import DEPLOYMENT, Steady, percentile, steady

from llmagentos.agents import deploying

WORKERS = 3
RATE = 1_000
CONVERSATIONS = 1_000
WORK_MS = 50.0
#: Before the roll-out, to compare with, and after it: what came late shows then.
CALM_S = 3.0


def replace_all(load: Steady) -> tuple[float, float]:
    """Roll out; from when to when."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            deploying.rollout(load.settings, DEPLOYMENT)
        except BaseException as error:  # noqa: BLE001 - raised below, in the main thread
            failed.append(error)

    thread = threading.Thread(target=run)
    began = time.monotonic()
    thread.start()
    load.until(lambda: not thread.is_alive(), "the roll-out", patience_s=120)
    if failed:
        raise failed[0]
    ended = time.monotonic()
    load.settled(WORKERS, CALM_S)
    return began, ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=RATE)
    options = parser.parse_args()
    with steady(workers=WORKERS, rate=options.rate, conversations=CONVERSATIONS, work_ms=WORK_MS) as load:
        before = set(load.settled(WORKERS, CALM_S))
        began, ended = replace_all(load)
        assert not before & set(load.owned()), "an old worker still runs"
        sent = load.stop()
        load.until(lambda: len({entry.number for entry in load.entries}) >= sent, "the last messages", patience_s=20)
    times = Counter(entry.number for entry in load.entries)
    last: dict[str, int] = {}
    disordered = 0
    for entry in sorted(load.entries, key=lambda entry: entry.begun):
        disordered += entry.number < last.get(entry.conversation, -1)
        last[entry.conversation] = entry.number
    calm = [entry.begun - entry.sent for entry in load.entries if began - CALM_S <= entry.sent < began]
    rough = [entry.begun - entry.sent for entry in load.entries if began <= entry.sent < ended + CALM_S]
    figures = {
        "lost": sent - len(times),
        "doubled": times.total() - len(times),
        "worst_wait_s": round(max(rough), 2),
    }
    table = Table(title=f"{WORKERS} workers replaced within {ended - began:.1f} s, {options.rate:,} messages/s")
    for column in ("what", "figure", "must be"):
        table.add_column(column, justify="left" if column == "what" else "right")
    table.add_row("messages", f"{sent:,}", "")
    table.add_row("lost", str(figures["lost"]), "0")
    table.add_row("doubled in the ledger", str(figures["doubled"]), "0")
    table.add_row("out of order in their conversation", str(disordered), "0")
    table.add_row("longest wait", f"{figures['worst_wait_s']} s", "at most 2 s")
    table.add_row("99 of 100 waited at most", f"{percentile(rough, 0.99):.2f} s", "")
    table.add_row("the same before", f"{percentile(calm, 0.99):.2f} s", "")
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
