"""waiting: what 100,000 suspended conversations cost the memory of the worker that owns them.

They are suspended by a worker, which then ends; a new one finds them in the journal, and has nothing else. Its resident
memory, less that of the same worker with nothing, is divided by their number. Must hold: at most 1 kB each.

    make bench NAME=waiting ARGS="--conversations 100000"
"""

from __future__ import annotations

import argparse
import json
import time

import psutil
from cluster import cluster
from rich.console import Console
from rich.table import Table
from sleepers import Sleepers

CONVERSATIONS = 100_000
MUST_BYTES = 1_000
#: Far beyond the benchmark's end.
ASLEEP_S = 86_400.0
#: A worker that serves goes on with what its start left to do, and gives memory back after 5 to 10 s.
REST_S = 12.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=CONVERSATIONS)
    count = parser.parse_args().conversations
    with cluster() as settings:
        sleepers = Sleepers(settings, time.time() + ASLEEP_S)
        sizes: list[int] = []
        for number in (0, count, None):  # with nothing; one that suspends them; one that finds them
            if number:
                sleepers.send(number)
            process = sleepers.start()
            try:
                if number:
                    # A look at the whole journal costs seconds, so not before it can be over.
                    sleepers.until(lambda: sleepers.effects() >= count, 600, process)
                    sleepers.until(lambda: sleepers.journal("suspend") >= count, 120, process)
                time.sleep(REST_S)
                sizes.append(psutil.Process(process.pid).memory_info().rss)
            finally:
                process.terminate()
                process.wait(60)
    each = (sizes[2] - sizes[0]) / count
    table = Table("what", "measured", "must be at most")
    table.add_row(f"a suspended conversation, of {count:,}", f"{each:,.0f} bytes", f"{MUST_BYTES:,} bytes")
    table.add_row("the worker with nothing", f"{sizes[0] / 2**20:.0f} MB", "")
    table.add_row("the one that suspended them", f"{sizes[1] / 2**20:.0f} MB", "")
    table.add_row("the one that found them", f"{sizes[2] / 2**20:.0f} MB", "")
    Console().print(table)
    print(json.dumps({"bytes_each": round(each)}))


if __name__ == "__main__":
    main()
