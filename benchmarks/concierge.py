"""concierge: 2,098 recorded conversations, 300 at once, a worker killed in the middle, every word and call checked.

Runs examples/concierge as a person would: users, model, three deployments of services and two workers of the assistant,
each a process, on a node of this run's own. `matched` of `total` are turns and calls; an event is a message in a topic
(a user's turn, a reply, a question to a service, its result), counted once; the time is the users', from the first to
the last turn, the kill's hand-over included.

What a profile of the assistant says (py-spy): most of its time was the client of the model's endpoint, half of that the
client's own transformation of messages and tools by their types, which is left out since (agents/models/endpoint.py).

    make bench NAME=concierge ARGS="--dialogues 400"
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from cluster import cluster

PROGRAM = Path(__file__).parents[1] / "examples" / "concierge" / "run.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, help="how many; all by default")
    parser.add_argument("--at-once", type=int, default=300)
    options = parser.parse_args()
    with cluster() as settings:
        command = [sys.executable, str(PROGRAM), "--at-once", str(options.at_once)]
        if options.dialogues:
            command += ["--dialogues", str(options.dialogues)]
        environment = os.environ | {"LLMAGENTOS_HOME": str(settings.home)}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout or "the example failed; it said why above")
    figures = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({name: figures[name] for name in ("matched", "total", "events_s", "seconds", "cpu_s")}))


if __name__ == "__main__":
    main()
