"""tools: calls of a tool in a fresh process each, with limits, against a fresh `python -c` with the same imports.

The tool imports json, re and httpx and does next to nothing, so what is measured is the process: ours is forked from a
warm one that has the imports, confined (rlimits, Landlock, seccomp, privileges dropped), watched and reaped; at both
levels, `process` and `sandbox` (no network, a private file system). The escape tests hold at both
(tests/integration/tools/test_isolation.py). The two sides take turns, a tenth of the calls each. The journal's record
of a call is not in it: `make bench NAME=step-latency` has that.

    make bench NAME=tools ARGS="--calls 500"

What a call costs in CPU (getrusage, 60 calls, two cores shared with others): 20 ms at level `process`, 4 of them in
Python and 17 in the kernel, for two forks of a process with the imports (the keeper and the function) and the pages
that each then writes; a fresh interpreter takes 233 ms, 201 of them in Python, for the imports.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time

import httpx

from llmagentos.agents.tools import Limits, tool
from llmagentos.agents.tools.isolation import Apart, Isolation, bubblewrap
from llmagentos.streams.errors import ToolError

CALLS = 500
#: The two sides take turns this often, so that what else the machine does falls on both.
ROUNDS = 10
#: What must hold: so many times faster than fresh processes.
MUST = 4.0
#: The same imports, and the same work.
FRESH = "import json, re, httpx; print(json.dumps(re.findall('[a-z]+', str(httpx.URL('https://example.org/a')))))"


@tool()
def words(url: str) -> list[str]:
    """The words of a URL."""
    return json.loads(json.dumps(re.findall("[a-z]+", str(httpx.URL(url)))))


def fresh(calls: int) -> float:
    """Seconds for *calls* fresh interpreters."""
    begun = time.perf_counter()
    for _ in range(calls):
        subprocess.run([sys.executable, "-c", FRESH], check=True, capture_output=True)
    return time.perf_counter() - begun


async def ours(apart: Apart, calls: int) -> float:
    """Seconds for *calls* of the tool."""
    begun = time.perf_counter()
    for _ in range(calls):
        assert await apart.call({"url": "https://example.org/a"}, {}) == '["https","example","org","a"]'
    return time.perf_counter() - begun


async def measure(calls: int) -> dict[str, float]:
    levels: list[Isolation] = ["process"]
    try:
        bubblewrap()
        levels.append("sandbox")
    except ToolError as error:
        print(f"without the sandbox: {error}", file=sys.stderr)
    assert words.function is not None
    warm = {level: Apart("words", words.function, level, Limits(), 60.0, (), None) for level in levels}
    spent = dict.fromkeys(["fresh", *levels], 0.0)
    started: dict[str, float] = {}
    for level, apart in warm.items():
        started[level] = await ours(apart, 1)  # starts the warm process; once a worker
    fresh(1)
    for _ in range(ROUNDS):
        share = calls // ROUNDS
        for level, apart in warm.items():
            spent[level] += await ours(apart, share)
        spent["fresh"] += fresh(share)
    for apart in warm.values():
        await apart.close()
    figures = {"ours_s": round(spent["process"], 3), "fresh_s": round(spent["fresh"], 3), "calls": calls}
    figures["start_s"] = round(started["process"], 3)
    if "sandbox" in spent:
        figures["sandbox_s"] = round(spent["sandbox"], 3)
    return figures


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=CALLS)
    options = parser.parse_args()
    figures = asyncio.run(measure(max(ROUNDS, options.calls // ROUNDS * ROUNDS)))
    table = Table("calls, one after the other", "seconds", "ms each", "faster than fresh", "wanted")
    names = (("fresh python -c", "fresh_s"), ("process", "ours_s"), ("sandbox", "sandbox_s"))
    for name, key in names:
        if key in figures:
            seconds = figures[key]
            ratio = "" if key == "fresh_s" else f"{figures['fresh_s'] / seconds:.1f}x"
            wanted = "" if key == "fresh_s" else f"{MUST:g}x"
            table.add_row(name, f"{seconds:.2f}", f"{1_000 * seconds / figures['calls']:.1f}", ratio, wanted)
    Console().print(table)
    print(f"the warm process starts in {figures['start_s']:.2f} s, once a worker")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
