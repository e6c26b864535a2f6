"""The work of the benchmarks `steps` and `step-latency` in DBOS, run in the peers' environment.

python dbos_steps.py URL steps WORKFLOWS       three trivial steps each, sync, 8 threads: its best mode
python dbos_steps.py URL latency COUNT RATE    one step at a time
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from dbos import DBOS, DBOSConfig

#: The best of 4, 8 and 16, as was measured for design.md.
THREADS = 8


@DBOS.step()
def trivial(number: int) -> int:
    return number + 1


@DBOS.workflow()
def three(number: int) -> int:
    return trivial(trivial(trivial(number)))


@DBOS.workflow()
def one(number: int) -> float:
    before = time.perf_counter()
    trivial(number)
    return time.perf_counter() - before


def main() -> None:
    url, what, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    config: DBOSConfig = {"name": "bench", "system_database_url": url, "log_level": "ERROR", "run_admin_server": False}
    DBOS(config=config)
    DBOS.launch()
    if what == "steps":
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(three, range(THREADS * 4)))  # connections, caches
            started = time.perf_counter()
            assert list(pool.map(three, range(count))) == [number + 3 for number in range(count)]
            told = {"steps": 3 * count, "seconds": time.perf_counter() - started}
    else:
        rate, times = float(sys.argv[4]), []
        for number in range(count):
            started = time.perf_counter()
            times.append(one(number))
            time.sleep(max(0.0, 1 / rate - (time.perf_counter() - started)))
        times = sorted(times[len(times) // 10 :])
        told = {"p50_ms": times[len(times) // 2] * 1_000}
    print(json.dumps(told))
    DBOS.destroy()


if __name__ == "__main__":
    main()
