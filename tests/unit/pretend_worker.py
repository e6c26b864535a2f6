"""A program that keeps a worker's contract with the supervisor, and behaves as the JSON file at --target says.

    {"exit": 1, "after_s": 0.2}       ends with that status
    {"starting": true}                never says that it runs
    {"deaf": true}                    ignores SIGTERM
    {"say": "text"}                   prints

It supervises as a worker does, without Kafka: what is tested is the care for processes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
for option in ("--deployment", "--target", "--index", "--run-dir"):
    parser.add_argument(option)
arguments = parser.parse_args()
behaviour = json.loads(Path(arguments.target).read_text())
report = Path(arguments.run_dir) / f"worker-{arguments.index}.json"
started = time.time()
stop = False


def say(state: str) -> None:
    temporary = report.with_suffix(f".{os.getpid()}")
    temporary.write_text(
        json.dumps(
            {
                "pid": os.getpid(),
                "state": state,
                "version": behaviour.get("version", "v1"),
                "assigned": [f"agent.pretend:{arguments.index}"],
                "started_at": started,
                "updated_at": time.time(),
            }
        )
    )
    temporary.replace(report)


def leave(*_: object) -> None:
    global stop
    stop = not behaviour.get("deaf")


signal.signal(signal.SIGTERM, leave)
say("starting")
print(behaviour.get("say", "hello"), flush=True)
if not behaviour.get("starting"):
    say("running")
while not stop:
    if "exit" in behaviour and time.time() - started >= behaviour.get("after_s", 0):
        print("giving up", file=sys.stderr, flush=True)
        sys.exit(behaviour["exit"])
    time.sleep(0.02)
say("stopped")
print("left", flush=True)
