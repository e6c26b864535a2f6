"""A plain Faust agent for the tests of bad input: `plain.py URL NAME TOPIC [partitions]`."""

import sys

import faust

URL, NAME, TOPIC = sys.argv[1:4]
app = faust.App(NAME, broker=URL, topic_disable_leader=True)


class Number(faust.Record):
    value: int


if len(sys.argv) > 4:
    numbers = app.topic(TOPIC, value_type=Number, internal=True, partitions=int(sys.argv[4]))
else:
    numbers = app.topic(TOPIC, value_type=Number)
doubled = app.topic(f"{NAME}-out", key_type=str, value_type=int)


@app.agent(numbers)
async def double(stream):
    async for event in stream.events():
        await doubled.send(
            key=event.headers["name"].decode() if event.headers else None,
            value=event.value.value * 2,
            timestamp=event.message.timestamp,
            headers={"partition": str(event.message.partition).encode()},
        )


if __name__ == "__main__":
    sys.argv = ["faust", "worker", "-l", "info"]
    app.main()
