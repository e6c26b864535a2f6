"""guaranteed: what the guarantees cost: an agent with dedup, gate, lanes and journal on, a raw loop, and stock Faust.

The work and the measuring are those of the benchmark `agents`: each message of 163 bytes is decoded, changed, encoded
and answered, in one process, and every answer is counted and looked at afterwards. Ours is the worker as it is
deployed: the ids of what finished are remembered (and read back at the start), messages of one conversation go one at
a time, offsets pass the gate, each partition's journal is claimed. The raw loop and stock Faust handle the bare events,
as in `transport`, and promise none of it; stock Faust's rate is steady, so it handles fewer.

What a profile says (60k messages, py-spy, share of the time with the interpreter's lock): making and encoding the reply
22 %, the work itself 15 %, decoding the message 13 %, handing the reply to librdkafka 11 %. The guarantees are what is
left: the look at duplicates, held conversations and gate 8 %, retries and breaker 5 %, lanes 4 %, hand-out 4 %; journal
claims cost nothing a message. So most of the distance to the raw loop is the second Avro record around the event.

    make bench NAME=guaranteed ARGS="--rounds 3 --messages 200000"
"""

from __future__ import annotations

import agents

#: As in `agents`; `faust` is stock Faust on aiokafka.
RUNTIMES = {"ours": "agents", "raw": "raw", "faust": "faust"}
MUST = {"raw": 0.25, "faust": 6.0}

if __name__ == "__main__":
    agents.main(__doc__, RUNTIMES, MUST)
