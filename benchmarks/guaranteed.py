"""guaranteed: what the guarantees cost: an agent with dedup, gate, lanes and journal on, a raw loop, and stock Faust.

The work and the measuring are those of the benchmark `agents`: each message of 163 bytes is decoded, changed, encoded
and answered, in one process, and every answer is counted and looked at afterwards. Ours is the worker as it is
deployed: the ids of what finished are remembered (and read back at the start), messages of one conversation go one at
a time, offsets pass the gate, each partition's journal is claimed. The raw loop and stock Faust handle the bare events,
as in `transport`, and promise none of it; stock Faust's rate is steady, so it handles fewer.

What a profile says (100k messages, py-spy, and the CPU time of the threads): a message costs 31 us of the event loop's
thread and 5 us of librdkafka's; the raw loop's costs 7 us, so a quarter of its rate would be 28 us in all. Of the 31:
the work itself 5 to 6, decoding the message 4 to 5, making and encoding the reply 8 (2 of it the id), handing it to
librdkafka 3 (1.4 in a burst: each few wake its thread), delivery reports 0.7, the collector 0.6. What the guarantees
cost is the other 10, in small parts: lanes 1.5, hand-out 1.7, duplicates 1.1, attempts 2, room and gate 1.4 and so on.
Journal claims cost nothing a message. By the wall it is 33 us on a machine with nothing else to do, 40 on a busy one
with two cores, which librdkafka's threads and the broker want too. Measured, and no gain: larger and smaller batches
and inboxes, the collector's thresholds. Handing replies over in bursts saves 1 us, a reply encoded without a dict 2.

    make bench NAME=guaranteed ARGS="--rounds 3 --messages 200000"
"""

from __future__ import annotations

import agents

#: As in `agents`; `faust` is stock Faust on aiokafka.
RUNTIMES = {"ours": "agents", "raw": "raw", "faust": "faust"}
MUST = {"raw": 0.25, "faust": 6.0}

if __name__ == "__main__":
    agents.main(__doc__, RUNTIMES, MUST)
