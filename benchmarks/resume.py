"""resume: 10,000 suspended conversations; everything is killed, started again, and all are released at once.

Each handler has a step, whose function appends to a file, and then sleeps until one and the same time, which comes
while nothing runs. The clock runs from the start of the new worker's process until every message is completed. What
ran is counted in the file, what completed in the journal. Must hold: within 15 s, and no recorded step runs again.

    make bench NAME=resume ARGS="--conversations 10000"
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time

from cluster import cluster
from rich.console import Console
from rich.table import Table
from sleepers import Sleepers

CONVERSATIONS = 10_000
MUST_S = 15.0
#: Long enough to suspend them all.
ASLEEP_S = 90.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=CONVERSATIONS)
    count = parser.parse_args().conversations
    with cluster() as settings:
        until = time.time() + ASLEEP_S
        sleepers = Sleepers(settings, until)
        sleepers.send(count)
        process = sleepers.start()
        sleepers.until(lambda: sleepers.journal("suspend") >= count, ASLEEP_S, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        before = sleepers.effects()
        assert time.time() < until, "it took longer to suspend them than they sleep"
        time.sleep(until - time.time() + 1)
        started = time.monotonic()
        process = sleepers.start()
        try:
            sleepers.until(lambda: sleepers.journal("done") >= count, 300, process)
            seconds = time.monotonic() - started
        finally:
            process.terminate()
            process.wait(60)
        rerun = sleepers.effects() - before
    table = Table("what", "measured", "must be at most")
    table.add_row(f"{count:,} resumed and completed, from the start of a process", f"{seconds:.1f} s", f"{MUST_S:g} s")
    table.add_row("recorded steps that ran again", str(rerun), "0")
    Console().print(table)
    print(json.dumps({"resume_s": round(seconds, 1), "rerun": rerun}))


if __name__ == "__main__":
    main()
