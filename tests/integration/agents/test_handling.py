"""What an agent does with its messages, on a real broker: replies, questions, tokens, failures, foreign topics."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from llmagentos.agents.cards import read_cards
from llmagentos.agents.provision import provision, retire
from llmagentos.streams.errors import AnswerError, AnswerTimeout, DeploymentError, TopicError, UnknownAgent
from llmagentos.streams.message import Message, child_id
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec

from .reading import read_topic

ECHO = """
    from llmagentos.agents import agent

    @agent("echo")
    async def echo(message, ctx):
        "Says it again."
        return message.content
"""


@pytest.mark.parametrize("content", ["text", {"a": [1, None]}, b"\x00\xff", "ü" * 1000])
async def test_what_is_returned_is_the_reply(deploy, client, content) -> None:
    await deploy(ECHO)
    answer = await (await client()).ask("echo", content, timeout=20)
    assert answer.content == content
    assert answer.type == "result"
    assert answer.sender == "echo"


async def test_ids_of_outputs_follow_from_the_message(deploy, settings: Settings) -> None:
    await deploy(ECHO)
    async with Producer(settings, Codec(open_registry(settings))) as producer:
        message = Message.create("hello", to="echo", conversation="c", message_id="the-id")
        await (await producer.send(message))
        reply = (await read_topic(settings, "replies", 1))[0]
    assert reply.message_id == child_id("the-id", "echo", 0)
    assert reply.caused_by == "the-id"
    assert reply.conversation_id == "c"


async def test_a_conversation_is_answered_in_order_and_others_side_by_side(deploy, settings: Settings) -> None:
    await deploy(
        """
        import asyncio
        from llmagentos.agents import agent

        @agent("slow")
        async def slow(message, ctx):
            await asyncio.sleep(0.2 if message.text.startswith("c0 ") else 0.001)
            return message.text
        """
    )
    async with Producer(settings, Codec(open_registry(settings))) as producer:
        for number in range(10):
            for conversation in range(20):
                text = f"c{conversation} {number}"
                await producer.send(Message.create(text, to="slow", conversation=f"c{conversation}"))
    replies = [reply.text for reply in await read_topic(settings, "replies", 200, ordered_by_time=True)]
    for conversation in range(20):
        own = [text for text in replies if text.startswith(f"c{conversation} ")]
        assert own == [f"c{conversation} {number}" for number in range(10)]
    # c0 takes two seconds by itself; the others did not wait for it.
    assert replies.index("c0 5") > len(replies) * 0.9


async def test_asking_another_agent_and_its_errors(deploy, client) -> None:
    await deploy(
        """
        from llmagentos.agents import agent
        from llmagentos.streams.errors import AnswerError, AnswerTimeout

        @agent("poet")
        async def poet(message, ctx):
            return f"a line for {message.text}"

        @agent("broken", retries=0)
        async def broken(message, ctx):
            raise ValueError("no muse")

        @agent("asleep")
        async def asleep(message, ctx):
            return None

        @agent("asker")
        async def asker(message, ctx):
            try:
                return await ctx.ask(message.text, "Ada", timeout=3 if message.text == "asleep" else 20)
            except (AnswerError, AnswerTimeout) as error:
                return {"error": type(error).__name__, "says": str(error)}
        """
    )
    talk = await client()
    assert (await talk.ask("asker", "poet", timeout=20)).text == "a line for Ada"
    failed = (await talk.ask("asker", "broken", timeout=20)).json()
    assert failed["error"] == "AnswerError"
    assert "ValueError: no muse" in failed["says"]
    late = (await talk.ask("asker", "asleep", timeout=20)).json()
    assert late["error"] == "AnswerTimeout"
    assert "'asker'" in late["says"]
    assert "'asleep'" in late["says"]


async def test_many_questions_at_once(deploy, client) -> None:
    await deploy(
        """
        import asyncio
        from llmagentos.agents import agent

        @agent("double")
        async def double(message, ctx):
            return int(message.text) * 2

        @agent("summer")
        async def summer(message, ctx):
            return sum(await asyncio.gather(*(ctx.ask("double", str(n), conversation=f"{ctx.conversation}/{n}")
                                              for n in range(20))))
        """
    )
    talk = await client()
    answers = await asyncio.gather(*(talk.ask("summer", "go", timeout=30) for _ in range(10)))
    assert [answer.json() for answer in answers] == [380] * 10


async def test_tokens_come_before_the_answer_in_order(deploy, client) -> None:
    await deploy(
        """
        from llmagentos.agents import agent

        @agent("teller")
        async def teller(message, ctx):
            for word in ("once", "upon", "a", "time"):
                await ctx.emit(word)
            return "the end"
        """
    )
    got = [(m.type, m.text) async for m in (await client()).stream("teller", "go", timeout=20)]
    assert got == [("token", "once"), ("token", "upon"), ("token", "a"), ("token", "time"), ("result", "the end")]


async def test_a_failing_handler_is_retried_then_kept_and_the_asker_told(deploy, client, settings: Settings) -> None:
    await deploy(
        """
        from llmagentos.agents import agent
        tries = {}

        @agent("moody", retries=2, backoff=0.01)
        async def moody(message, ctx):
            tries[message.text] = tries.get(message.text, 0) + 1
            if message.text == "never" or tries[message.text] < 3:
                raise RuntimeError(f"not now {tries[message.text]}")
            return {"attempt": ctx.attempt}
        """
    )
    talk = await client()
    assert (await talk.ask("moody", "third", conversation="m", timeout=20)).json() == {"attempt": 2}
    with pytest.raises(AnswerError, match="RuntimeError: not now 3"):
        await talk.ask("moody", "never", conversation="m", timeout=20)
    (dead,) = await read_topic(settings, "dead.moody", 1, decoded=True)
    assert dead["cause"] == "failed"
    assert dead["attempts"] == 3
    assert "raise RuntimeError" in dead["traceback"]
    assert dead["conversation_id"] == "m"
    # The kept value is the record as it was.
    kept = Codec(open_registry(settings)).message(dead["value"], "", 0, 0, 0)
    assert kept.text == "never"
    # Other conversations go on; this one waits (tests/integration/agents/test_parking.py).
    assert (await talk.ask("moody", "third", conversation="n", timeout=20)).json() == {"attempt": 0}


async def test_a_handler_over_its_time_is_a_dead_letter(deploy, client, settings: Settings) -> None:
    await deploy(
        """
        import asyncio
        from llmagentos.agents import agent

        @agent("stuck", retries=0, timeout=0.1)
        async def stuck(message, ctx):
            await asyncio.Event().wait()
        """
    )
    with pytest.raises(AnswerError, match="TimeoutError"):
        await (await client()).ask("stuck", "x", timeout=20)
    (dead,) = await read_topic(settings, "dead.stuck", 1, decoded=True)
    assert dead["cause"] == "timeout"


async def test_a_message_past_its_deadline_is_not_handled(deploy, settings: Settings) -> None:
    await deploy(ECHO)
    async with Producer(settings, Codec(open_registry(settings))) as producer:
        old = Message.create("late", to="echo", deadline=int(time.time() * 1000) - 5_000)
        await (await producer.send(old))
    (dead,) = await read_topic(settings, "dead.echo", 1, decoded=True)
    assert dead["cause"] == "expired"
    (reply,) = await read_topic(settings, "replies", 1)
    assert reply.type == "error"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"\x07whatever", "magic byte is 0x07"),
        (b"\x00\x00\x00\xff\xffbody", "knows no schema 65535"),
        (b"", "0 bytes"),
        (None, "null"),
    ],
)
async def test_a_worker_does_not_die_of_a_record(deploy, client, settings: Settings, raw, says) -> None:
    await deploy(ECHO)
    async with Producer(settings) as producer:
        producer.produce(settings.topic("agent.echo"), raw, b"k")
        await producer.delivered()
    (dead,) = await read_topic(settings, "dead.echo", 1, decoded=True)
    assert dead["cause"] == "undecodable"
    assert says in dead["error"]
    assert dead["value"] == raw
    assert (await (await client()).ask("echo", "still here", timeout=20)).text == "still here"


async def test_a_truncated_body_is_kept(deploy, client, settings: Settings) -> None:
    await deploy(ECHO)
    whole = Codec(open_registry(settings)).encode(Message.create("hello", to="echo"))
    async with Producer(settings) as producer:
        producer.produce(settings.topic("agent.echo"), whole[:-9], b"k")
        await producer.delivered()
    (dead,) = await read_topic(settings, "dead.echo", 1, decoded=True)
    assert dead["cause"] == "undecodable"
    assert (await (await client()).ask("echo", "still here", timeout=20)).text == "still here"


async def test_a_reply_that_is_too_large_is_a_dead_letter_that_says_so(deploy, client, settings: Settings) -> None:
    await deploy(
        """
        from llmagentos.agents import agent

        @agent("windy", retries=0)
        async def windy(message, ctx):
            return "x" * 2_000_000
        """
    )
    with pytest.raises(AnswerError, match="limit is 1,000,000"):
        await (await client()).ask("windy", "go", timeout=20)
    (dead,) = await read_topic(settings, "dead.windy", 1, decoded=True)
    assert dead["cause"] == "too-large"


async def test_an_agent_over_a_topic_that_exists(deploy, settings: Settings) -> None:
    from llmagentos.streams.admin import ensure_topics

    topic = f"{settings.prefix}orders"
    ensure_topics(settings, [(topic, 3, {})])
    await deploy(
        f"""
        from llmagentos.agents import agent

        @agent("orders", topic="{topic}", key=lambda key, order: order["customer"])
        async def orders(message, ctx):
            return {{"customer": ctx.conversation, "total": message.content["price"] * 2, "said": message.attributes}}
        """
    )
    async with Producer(settings) as producer:
        order = json.dumps({"customer": "ada", "price": 21}).encode()
        producer.produce(topic, order, b"other", headers=[("source", b"shop")])
        producer.produce(topic, b"{not json", b"bad")
        await producer.delivered()
    (reply,) = await read_topic(settings, "replies", 1)
    assert reply.json() == {"customer": "ada", "total": 42, "said": {"source": "shop"}}
    assert reply.conversation_id == "ada"
    (dead,) = await read_topic(settings, "dead.orders", 1, decoded=True)
    assert dead["cause"] == "undecodable"
    assert dead["value"] == b"{not json"


async def test_an_agent_over_a_missing_topic_is_refused(deploy, settings: Settings) -> None:
    with pytest.raises(TopicError, match=r"reads topic 'nowhere\.at\.all', which does not exist"):
        await deploy(
            """
            from llmagentos.agents import agent

            @agent("x", topic="nowhere.at.all")
            async def x(message, ctx): ...
            """
        )


async def test_two_deployments_can_not_have_one_agent(deploy, settings: Settings) -> None:
    await deploy(ECHO, "first")
    with pytest.raises(DeploymentError, match="served by deployment .*first"):
        await deploy(ECHO, "second")


async def test_cards_come_and_go(deploy, settings: Settings) -> None:
    worker = await deploy(ECHO, "first")
    card = read_cards(settings)["echo"]
    assert card.deployment == f"{settings.prefix}first"
    assert card.description == "Says it again."
    assert card.partitions == settings.partitions
    provision_again = await asyncio.to_thread(provision, settings, f"{settings.prefix}first", worker.loaded)
    assert [c.name for c in provision_again] == ["echo"]
    assert await asyncio.to_thread(retire, settings, f"{settings.prefix}first") == ["echo"]
    assert read_cards(settings) == {}


async def test_asking_nobody_says_who_there_is(deploy, client) -> None:
    await deploy(ECHO)
    with pytest.raises(UnknownAgent, match="no agent is named 'ecco'; there are echo"):
        await (await client()).ask("ecco", "x")


async def test_no_answer_in_time_is_said_with_where_the_message_is(deploy, client) -> None:
    await deploy(
        """
        from llmagentos.agents import agent

        @agent("mute")
        async def mute(message, ctx):
            return None
        """
    )
    with pytest.raises(AnswerTimeout, match="no answer within 0.5 s") as caught:
        await (await client()).ask("mute", "x", timeout=0.5)
    assert "agent.mute" in caught.value.kept


async def test_faust_agents_and_timers_of_the_module_run_beside(deploy, settings: Settings) -> None:
    from llmagentos.streams.admin import ensure_topics

    ensure_topics(settings, [(f"{settings.prefix}plain", 2, {}), (f"{settings.prefix}seen", 1, {})])
    await deploy(
        f"""
        import faust
        from llmagentos.agents import agent

        app = faust.App("{settings.prefix}users", broker="llmagentos://")
        plain = app.topic("{settings.prefix}plain", value_type=bytes, value_serializer="raw")
        seen = app.topic("{settings.prefix}seen", value_serializer="raw")

        @app.agent(plain)
        async def watch(stream):
            async for value in stream:
                await seen.send(value=b"faust " + value)

        @app.timer(0.2)
        async def tick():
            await seen.send(value=b"tick")

        @agent("echo")
        async def echo(message, ctx):
            return message.content
        """
    )
    async with Producer(settings) as producer:
        producer.produce(f"{settings.prefix}plain", b"hello", b"k")
        await producer.delivered()
    seen = await read_topic(settings, "seen", 1, raw=True, wanted=lambda value: value.startswith(b"faust"))
    assert seen == [b"faust hello"]
    assert await read_topic(settings, "seen", 2, raw=True, wanted=lambda value: value == b"tick") == [b"tick"] * 2


@pytest.mark.parametrize(
    ("app", "says"),
    [
        ('faust.App("other", broker="llmagentos://")', "is named 'other', its deployment"),
        ('faust.App("users", broker="kafka://localhost:9092")', "has broker kafka://localhost:9092"),
    ],
)
async def test_a_faust_app_that_does_not_fit_is_refused(deploy, app: str, says: str) -> None:
    with pytest.raises(DeploymentError, match=says) as caught:
        await deploy(ECHO + f"\n    import faust\n    app = {app}\n")
    assert caught.value.fix


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ('await ctx.tell("nobody", "x")', "UnknownAgent: no agent is named 'nobody'"),
        ('await ctx.ask("nobody", "x")', "UnknownAgent: no agent is named 'nobody'"),
        ('await ctx.publish("no.such.topic", "x")', "TopicError: .*'no.such.topic', which does not exist"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise asyncio.CancelledError", "CancelledError"),
        ("asyncio.current_task().cancel(); await asyncio.sleep(1)", "CancelledError"),
        ("return object()", "content of type object can't be sent"),
        ('await ctx.reply("once"); await ctx.reply("twice")', "replied twice"),
    ],
)
async def test_a_worker_does_not_die_of_a_handler(deploy, client, settings: Settings, call: str, says) -> None:
    await deploy(
        f"""
        import asyncio
        from llmagentos.agents import agent

        @agent("odd", retries=0)
        async def odd(message, ctx):
            if message.text == "well":
                return "well"
            {call}
        """
    )
    talk = await client()
    with pytest.raises(AnswerError, match=says):
        await talk.ask("odd", "odd", timeout=20)
    (dead,) = await read_topic(settings, "dead.odd", 1, decoded=True)
    assert dead["cause"] in ("failed", "invalid")
    assert (await talk.ask("odd", "well", timeout=20)).text == "well"


@pytest.mark.parametrize("place", [("no.such.topic", 0), ("replies", 99), ("replies", -1)])
async def test_an_answer_that_has_nowhere_to_go_is_a_dead_letter(deploy, client, settings: Settings, place) -> None:
    await deploy(ECHO)
    topic = settings.topic(place[0]) if place[0] == "replies" else place[0]
    async with Producer(settings, Codec(open_registry(settings))) as producer:
        await (await producer.send(Message.create("x", to="echo", reply_to=(topic, place[1]))))
    (dead,) = await read_topic(settings, "dead.echo", 1, decoded=True)
    assert dead["cause"] == "invalid"
    assert "which does not exist" in dead["error"]
    assert (await (await client()).ask("echo", "still here", timeout=20)).text == "still here"


async def test_agents_that_ask_each_other_do_not_stand_in_each_others_way(deploy, settings: Settings) -> None:
    await deploy(
        """
        import asyncio
        from llmagentos.agents import agent

        @agent("front")
        async def front(message, ctx):
            return await ctx.ask("back", message.text)

        @agent("back", max_in_flight=2)
        async def back(message, ctx):
            if message.text.startswith("deeper"):
                return "again " + await ctx.ask("back", message.text[6:], conversation=f"{ctx.conversation}/1")
            return message.text
        """,
        max_in_flight=10,
        ask_timeout_s=20.0,
    )
    async with Producer(settings, Codec(open_registry(settings))) as producer:
        for number in range(200):
            text = f"deeper{number}" if number % 2 else f"{number}"
            await producer.send(Message.create(text, to="front", conversation=f"c{number}"))
    replies = await read_topic(settings, "replies", 200, deadline_s=30)
    said = {reply.conversation_id: reply.text for reply in replies}
    assert said == {f"c{n}": f"again {n}" if n % 2 else f"{n}" for n in range(200)}


async def test_asking_oneself_in_the_same_conversation_runs_inside(deploy, client) -> None:
    await deploy(
        """
        from llmagentos.agents import agent

        @agent("mirror", max_in_flight=1)
        async def mirror(message, ctx):
            return "itself" if ctx.reentrant else await ctx.ask("mirror", "x")
        """
    )
    assert (await (await client()).ask("mirror", "x", timeout=20)).text == "itself"


@pytest.mark.parametrize(
    "failure",
    [
        'raise ValueError("x" * 2_000_000)',
        r'raise ValueError("bad \\ud800 text")',
        'raise type("Odd", (Exception,), {"__str__": lambda self: 1 / 0})()',
        'raise type("Odder", (BaseException,), {})("odd")',
    ],
)
async def test_a_dead_letter_is_written_whatever_the_error_says(deploy, client, settings: Settings, failure) -> None:
    await deploy(
        f"""
        from llmagentos.agents import agent

        @agent("odd", retries=0)
        async def odd(message, ctx):
            if message.text == "well":
                return "well"
            {failure}
        """
    )
    talk = await client()
    with pytest.raises(AnswerError):
        await talk.ask("odd", "odd", timeout=20)
    (dead,) = await read_topic(settings, "dead.odd", 1, decoded=True)
    assert dead["cause"] == "failed"
    assert (await talk.ask("odd", "well", timeout=20)).text == "well"


async def test_a_record_too_large_for_a_dead_letter_is_named_where_it_lies(deploy, client, settings: Settings) -> None:
    await deploy(ECHO)
    async with Producer(settings, message_max_bytes=2_000_000, compression_type="none") as producer:
        producer.produce(settings.topic("agent.echo"), b"\x07" * 1_040_000, b"k")
        await producer.delivered()
    (dead,) = await read_topic(settings, "dead.echo", 1, decoded=True)
    assert dead["value"] is None
    assert "at offset 0, until its retention ends" in dead["error"]
    assert (await (await client()).ask("echo", "still here", timeout=20)).text == "still here"
