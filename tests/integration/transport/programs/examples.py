"""Programs of Faust's documentation, with nothing changed but the broker URL and names of topics.

The first argument is the program, the second the broker URL, the third a name that keeps tests apart.
"""

import sys
from datetime import timedelta

import faust

WHICH, URL, NAME = sys.argv[1:4]
app = faust.App(NAME, broker=URL)

if WHICH == "word_count":  # docs: "Tutorial: word count"
    posts = app.topic(f"{NAME}-in", value_type=str)
    counted = app.topic(f"{NAME}-out", key_type=str, value_type=int)
    word_counts = app.Table("word_counts", default=int, help="Keep count of words (str to int).")

    @app.agent(posts)
    async def shuffle_words(posts):
        async for post in posts:
            for word in post.split():
                await count_words.send(key=word, value=word)

    @app.agent(value_type=str)
    async def count_words(words):
        """Count words from blog post article body."""
        async for word in words:
            word_counts[word] += 1
            await counted.send(key=word, value=word_counts[word])

elif WHICH == "table":  # one table fed from its source topic alone
    source = app.topic(f"{NAME}-in", key_type=str, value_type=str)
    counted = app.topic(f"{NAME}-out", key_type=str, value_type=int)
    counts = app.Table("counts", default=int)

    @app.agent(source)
    async def count(stream):
        async for key, _ in stream.items():
            counts[key] += 1
            await counted.send(key=key, value=counts[key])

elif WHICH == "windowed":  # docs: "Tables and windowing", tumbling
    views = app.topic(f"{NAME}-in", key_type=str, value_type=str)
    counted = app.topic(f"{NAME}-out", key_type=str, value_type=int)
    page_views = app.Table("page_views", default=int).tumbling(
        timedelta(seconds=60), expires=timedelta(hours=1), key_index=True
    )

    @app.agent(views)
    async def count_views(stream):
        async for page, _ in stream.items():
            page_views[page] += 1
            await counted.send(key=page, value=page_views[page].now())

elif WHICH == "ask":  # docs: "Agents", ask and map
    app.conf.reply_create_topic = True
    told = app.topic(f"{NAME}-out", key_type=str, value_type=str)

    @app.agent(app.topic(f"{NAME}-add", value_type=int, partitions=8, internal=True))
    async def add_two(stream):
        async for value in stream:
            yield value + 2

    @app.task
    async def ask():
        answer = await add_two.ask(40)
        await told.send(key="ask", value=str(answer))
        async for answer in add_two.map([1, 2, 3]):
            await told.send(key="map", value=str(answer))
        await told.send(key="join", value=str(sorted(await add_two.join([10, 20]))))

elif WHICH == "timers":  # docs: "Tasks, timers, crontab, sinks, batches"
    numbers = app.topic(f"{NAME}-in", value_type=int)
    told = app.topic(f"{NAME}-out", key_type=str, value_type=str)

    @app.timer(interval=0.2)
    async def every():
        await told.send(key="timer", value="tick")

    @app.crontab("* * * * *")
    async def every_minute():
        await told.send(key="crontab", value="tick")

    @app.timer(interval=0.2, on_leader=True)
    async def leading():
        await told.send(key="leader", value="tick")

    @app.task
    async def once(app):
        await told.send(key="task", value=app.conf.id)

    def sink(value):
        told.send_soon(key="sink", value=str(value))

    @app.agent(numbers, sink=[sink])
    async def batches(stream):
        async for values in stream.take(5, within=0.5):
            yield sum(values)

elif WHICH == "group_by":  # docs: "Streams", group_by and models

    class Withdrawal(faust.Record):
        account: str
        amount: int

    withdrawals = app.topic(f"{NAME}-in", value_type=Withdrawal)
    told = app.topic(f"{NAME}-out", key_type=str, value_type=int)
    totals = app.Table("totals", default=int)

    @app.agent(withdrawals)
    async def total(stream):
        async for withdrawal in stream.group_by(Withdrawal.account):
            totals[withdrawal.account] += withdrawal.amount
            await told.send(key=withdrawal.account, value=totals[withdrawal.account])

elif WHICH == "standby":
    app = faust.App(NAME, broker=URL, table_standby_replicas=1)
    table = app.Table("t", default=int)

elif WHICH == "global":
    table = app.GlobalTable("t", default=int)

if __name__ == "__main__":
    sys.argv = ["faust", "worker", "-l", "info"]
    app.main()
