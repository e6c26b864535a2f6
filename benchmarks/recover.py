"""recover: a partition with 1,000 open and 100,000 finished invocations; its worker is killed, the next one goes on.

The inbox has one partition. 1,000 handlers sleep, suspended; 100,000 messages had a step each and are completed, all in
the partition's journal. A second worker is up and waits for a partition. While messages come in steadily, the owner is
killed (-9), and the time is taken until the second one has handled one of them: the group's session timeout has to
pass, then the new owner claims the journal, reads what the last commit's note says that is needed, reads back the ids
of the messages that finished lately, and fetches. `recover_s` is that time less the session timeout; the heartbeat that
the broker had last is up to one interval old when the worker dies, so that it may come to less than what was done in
it. Must hold: at most 1 s.

    make bench NAME=recover ARGS="--finished 100000 --open 1000"
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import threading
import time

from cluster import cluster
from rich.console import Console
from rich.table import Table
from sleepers import Sleepers

from llmagentos.agents import Message
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.wire import Codec

OPEN, FINISHED, KILLS = 1_000, 100_000, 3
MUST_S = 1.0
#: Far beyond the benchmark's end.
ASLEEP_S = 86_400.0
#: Between two messages that show who handles them.
EVERY_S = 0.02
#: Before each kill, so that the note of a commit is as new as it is in life.
CALM_S = 3.0
#: For the next owner, on a machine that does much else.
PATIENCE_S = 60.0

#: What the message says is what becomes of it.
AGENT = """
import os, pathlib, time
from llmagentos.agents import agent

HERE = pathlib.Path({folder!r})
effects = (HERE / "effects").open("a", buffering=1)

async def effect():
    return "x" * 50

@agent("sleeper")
async def sleeper(message, ctx):
    if message.text == "probe":
        effects.write(f"{{time.monotonic()}} {{os.getpid()}}\\n")
        return
    await ctx.step("effect", effect)
    if message.text == "open":
        await ctx.sleep(86_400)
"""


class Probes(threading.Thread):
    """Sends messages steadily; `seen` says who handled them, and when."""

    def __init__(self, sleepers: Sleepers) -> None:
        super().__init__(daemon=True)
        self._sleepers = sleepers
        self._over = threading.Event()

    def run(self) -> None:
        asyncio.run(self._send())

    async def _send(self) -> None:
        settings = self._sleepers.settings
        codec = await asyncio.to_thread(lambda: Codec(open_registry(settings)))
        number = 0
        async with Producer(settings, codec) as producer:
            while not self._over.is_set():
                await producer.send(Message.create("probe", to="sleeper", conversation=f"probe{number}"))
                await asyncio.sleep(EVERY_S)
                number += 1

    def stop(self) -> None:
        self._over.set()
        self.join()

    def seen(self) -> list[tuple[float, int]]:
        lines = (self._sleepers.home / "effects").read_text(encoding="utf-8").splitlines()
        return [(float(at), int(pid)) for at, pid in (line.split() for line in lines)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open", type=int, default=OPEN)
    parser.add_argument("--finished", type=int, default=FINISHED)
    parser.add_argument("--kills", type=int, default=KILLS)
    options = parser.parse_args()
    found: list[float] = []
    with cluster(partitions=1) as settings:
        sleepers = Sleepers(settings, time.time() + ASLEEP_S, AGENT)
        session_s = settings.session_timeout_ms / 1_000
        owner = sleepers.start("worker0")
        sleepers.send(options.open, b"open", "open")
        sleepers.send(options.finished, b"finish", "finished")
        sleepers.until(lambda: sleepers.committed() >= options.open + options.finished, 600, owner)
        sleepers.until(lambda: sleepers.journal("suspend") >= options.open, 60, owner)
        assert sleepers.journal("done") >= options.finished
        probes = Probes(sleepers)
        probes.start()
        workers = {owner.pid: owner}
        try:
            for turn in range(options.kills):
                second = sleepers.start(f"worker{turn + 1}")
                workers[second.pid] = second
                seen = len(probes.seen())
                sleepers.until(lambda seen=seen: len(probes.seen()) > seen + 1 / EVERY_S, 60, second)
                time.sleep(CALM_S)
                victim = workers.pop(probes.seen()[-1][1])
                (pid,) = workers
                at = time.monotonic()
                os.kill(victim.pid, signal.SIGKILL)
                victim.wait()
                begun = [handled for handled, by in probes.seen() if by == pid and handled > at]
                while not begun and time.monotonic() - at < PATIENCE_S:
                    time.sleep(EVERY_S)
                    begun = [handled for handled, by in probes.seen() if by == pid and handled > at]
                found.append(begun[0] - at)
        finally:
            probes.stop()
            for worker in workers.values():
                worker.terminate()
                worker.wait(60)
    beyond = [seconds - session_s for seconds in found]
    table = Table("what", "measured", "must be at most")
    table.add_row(
        f"kill -9 to the next owner's first message, {options.kills} times", " ".join(f"{s:.2f} s" for s in found), ""
    )
    table.add_row("of that the session timeout", f"{session_s:g} s", "")
    table.add_row("beyond it, the worst", f"{max(beyond):.2f} s", f"{MUST_S:g} s")
    Console().print(table)
    print(json.dumps({"recover_s": round(max(beyond), 2), "median_s": round(statistics.median(beyond), 2)}))


if __name__ == "__main__":
    main()
