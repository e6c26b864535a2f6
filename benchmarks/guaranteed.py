"""guaranteed: what the guarantees cost: an agent with dedup, gate, lanes and journal on, a raw loop, and stock Faust.

The work and the measuring are those of the benchmark `agents`: each message of 163 bytes is decoded, changed, encoded
and answered, in one process, and every answer is counted and looked at afterwards. Ours is the worker as it is
deployed: the ids of what finished are remembered (and read back at the start), messages of one conversation go one at
a time, offsets pass the gate, each partition's journal is claimed. The raw loop and stock Faust handle the bare events,
as in `transport`, and promise none of it; stock Faust's rate is steady, so it handles fewer.

    make bench NAME=guaranteed ARGS="--rounds 3 --messages 200000"
"""

from __future__ import annotations

import agents

#: As in `agents`; `faust` is stock Faust on aiokafka.
RUNTIMES = {"ours": "agents", "raw": "raw", "faust": "faust"}
MUST = {"raw": 0.25, "faust": 6.0}

if __name__ == "__main__":
    agents.main(__doc__, RUNTIMES, MUST)
