"""What `llmagentos check` finds in handlers, and above all what it doesn't."""

from __future__ import annotations

import re
import textwrap

import pytest

from llmagentos.agents.effects import CODES, Finding, read
from llmagentos.agents.effects.table import EFFECTS, RESULTS, find

HEAD = "from llmagentos.agents import agent, Context\n"


def found_in(source: str) -> list[Finding]:
    """What is found in *source*, which must be at exactly the lines that say so by `#> CODE`."""
    text = HEAD + textwrap.dedent(source)
    expected = [
        (number, code)
        for number, line in enumerate(text.splitlines(), 1)
        if "#>" in line
        for code in line.split("#>")[1].split()
    ]
    findings = list(read(text).findings)
    assert sorted((finding.line, finding.code) for finding in findings) == sorted(expected), "\n".join(
        f"{finding.line}: {finding.code} {finding.what}" for finding in findings
    )
    return findings


def handler(body: str, before: str = "") -> list[Finding]:
    """What is found in an async handler of *body*, below *before*."""
    return found_in(
        f'{textwrap.dedent(before)}\n@agent("a")\nasync def handle(message, ctx):\n'
        + textwrap.indent(textwrap.dedent(body), "    ")
    )


# --- names of effects


@pytest.mark.parametrize(
    ("imports", "call", "code", "advice"),
    [
        ("import time", "time.time()", "E101", "ctx.now()"),
        ("import time as clock", "clock.monotonic()", "E101", "ctx.now()"),
        ("from time import time as t", "t()", "E101", "ctx.now()"),
        ("from time import *", "time()", "E101", "ctx.now()"),
        ("import time", "time.localtime()", "E101", "ctx.now()"),
        ("from datetime import datetime", "datetime.now()", "E101", "ctx.now()"),
        ("import datetime as dt", "dt.datetime.now(tz=dt.UTC)", "E101", "ctx.now()"),
        ("from datetime import date", "date.today().isoformat()", "E101", "ctx.now()"),
        ("import asyncio", "asyncio.get_running_loop().time()", "E101", "ctx.now()"),
        ("import asyncio", "await asyncio.wait_for(ctx.ask('b', 1), 5)", "E101", "timeout=..."),
        ("import random", "random.random()", "E102", "ctx.random()"),
        ("import random", "random.Random().choice('ab')", "E102", "ctx.random()"),
        ("import secrets", "secrets.token_hex(8)", "E102", "ctx.random()"),
        ("import numpy as np", "np.random.default_rng()", "E102", "ctx.random()"),
        ("import uuid", "str(uuid.uuid4())", "E103", "ctx.uuid()"),
        ("from uuid import uuid4 as new", "new().hex", "E103", "ctx.uuid()"),
        ("import httpx", "httpx.get('http://x').json()", "E104", "await ctx.step("),
        ("import requests", "requests.Session().post('http://x')", "E104", "await ctx.step("),
        ("import urllib.request", "urllib.request.urlopen('http://x')", "E104", "await ctx.step("),
        ("import openai", "await openai.AsyncOpenAI().chat.completions.create()", "E104", "await ctx.step("),
        ("import sqlite3", "sqlite3.connect('x')", "E104", "await ctx.step("),
        ("", "open('x').read()", "E105", "await ctx.step("),
        ("from pathlib import Path", "Path('x').read_text()", "E105", "await ctx.step("),
        ("from pathlib import Path", "(Path('x') / 'y').parent.joinpath('z').exists()", "E105", "await ctx.step("),
        ("import os.path", "os.path.exists('x')", "E105", "await ctx.step("),
        ("import subprocess", "subprocess.run(['ls'])", "E106", "await ctx.step("),
        ("import os", "os.execvp('ls', [])", "E106", "await ctx.step("),
        ("import os", "os.environ['HOME']", "E107", "module is imported"),
        ("from os import environ", "environ.get('HOME')", "E107", "module is imported"),
        ("import os", "os.getenv('HOME')", "E107", "module is imported"),
        ("import threading", "threading.Thread(target=print).start()", "E108", "await ctx.step("),
        ("import asyncio", "await asyncio.to_thread(print)", "E108", "await ctx.step("),
        ("import time", "time.sleep(0.1)", "E109", "await ctx.sleep(seconds)"),
        ("import asyncio", "await asyncio.sleep(60 * 60)", "E109", "await ctx.sleep(seconds)"),
        ("", "input()", "E110", "ctx.approve"),
        ("import asyncio", "asyncio.as_completed([])", "E206", "gather"),
    ],
)
def test_an_effect_is_found_by_its_name_and_advice_given(imports: str, call: str, code: str, advice: str) -> None:
    [finding] = handler(f"x = {call}  #> {code}", imports)
    assert advice in finding.advice
    assert finding.agent == "a"
    assert finding.via == ()
    assert "{" not in finding.advice


@pytest.mark.parametrize(
    "line",
    [
        "print('hello')",
        "ctx.log.info('at %s', time.time())",
        "log.warning('took %s', time.perf_counter())",
        "print(time.time(), os.getpid())",
        "time.localtime(message.json()['at'])",
        "time.strftime('%Y', moment)",
        "datetime.fromtimestamp(ctx.now(), UTC)",
        "datetime.fromisoformat(message.text) - timedelta(days=1)",
        "random.Random(message.message_id).random()",
        "uuid.uuid5(uuid.NAMESPACE_URL, message.text)",
        "uuid.UUID(message.text)",
        "httpx.URL('http://x').host, httpx.Timeout(5), httpx.Headers({})",
        "Path('a') / 'b', Path('a').name, Path('a').with_suffix('.txt').as_posix()",
        "os.path.join('a', 'b'), os.path.basename('a/b')",
        "json.loads(message.text), re.match('a', 'b')",
        "await asyncio.sleep(0)",
        "await asyncio.sleep(0.05)",
        "await asyncio.gather(ctx.ask('b', 1), ctx.ask('c', 2))",
        "message.time(), message.open(), message.random.random()",
        "ctx.now(), ctx.uuid(), ctx.random()",
        "ctx.memory['seen'] = 1",
        "ctx.memory.update(seen=1)",
        "await ctx.approve('ok?')",
        "client = httpx.AsyncClient()",
        "await client.aclose()",
        "[time for time in message.json()]",
        "[open() for open in message.json()]",
        "rows = sorted(message.json(), key=lambda row: row['at'])",
    ],
)
def test_what_has_no_effect_is_not_found(line: str) -> None:
    handler(
        line,
        """
        import asyncio, json, logging, os, random, re, time, uuid
        import httpx
        from datetime import UTC, datetime, timedelta
        from pathlib import Path
        log = logging.getLogger(__name__)
        """,
    )


def test_a_name_of_ones_own_hides_an_effect() -> None:
    found_in(
        """
        import time
        from random import random
        from mine import open

        def uuid4():
            return "always"

        @agent("a")
        async def handle(message, ctx):
            time = message.json()
            time.time()
            open("x")
            uuid4()
            return [random() for random in time]
        """
    )


def test_what_no_handler_reaches_is_not_looked_at() -> None:
    found_in(
        """
        import os, time, httpx

        STARTED = time.time()
        KEY = os.environ["KEY"]
        client = httpx.AsyncClient()

        def main():
            open("x")

        @agent("a")
        async def handle(message, ctx):
            return KEY, STARTED

        if __name__ == "__main__":
            main()
        """
    )
    assert read("import time\ntime.time()\n").agents == ()


# --- steps


def test_what_is_given_to_a_step_runs_inside_it() -> None:
    handler(
        """
        await ctx.step("a", fetch, message.text)
        await ctx.step("b", lambda: open("x").read())
        await ctx.step("c", partial(fetch, "x"))
        await ctx.step("d", fn=store.save, timeout=5)
        await ctx.step(name="e", fn=httpx.get)
        await ctx.step("f", retrying(lambda: httpx.get("x")))
        later = lambda: time.time()
        await ctx.step("g", later)
        step = ctx.step
        await step("h", fetch, "x")
        async def inner():
            return await fetch("x")
        await ctx.step("i", inner)
        """,
        """
        import httpx, time
        from functools import partial
        from elsewhere import retrying

        async def fetch(url):
            return httpx.get(url)

        class Store:
            def save(self):
                open("x", "w")

        store = Store()
        """,
    )


def test_what_is_worked_out_for_a_step_runs_outside_it() -> None:
    handler(
        """
        await ctx.step("a", fetch, time.time())  #> E101
        await ctx.step("b", partial(fetch, uuid.uuid4()))  #> E103
        await ctx.step(f"c-{random.random()}", fetch)  #> E102
        await ctx.step("d", fetch("x"))  #> E207
        ctx.step("e", fetch, "x")  #> E208
        later = ctx.step("f", fetch, "x")
        await later
        await ctx.step("e", httpx.get("x"))  #> E104
        """,
        """
        import httpx, random, time, uuid
        from functools import partial

        async def fetch(url):
            return httpx.get(url)
        """,
    )


def test_a_step_in_a_function_that_is_given_the_context() -> None:
    findings = found_in(
        """
        import httpx, random

        async def safely(c, fn, *args):
            random.random()  #> E102
            return await c.step("x", fn, *args)

        async def typed(text, work: "Context | None" = None):
            return await work.step("y", lambda: open("x"))

        async def unsafe(fn):
            return fn()

        class Desk:
            def __init__(self, ctx):
                self.ctx = ctx

            async def look(self, url):
                httpx.head(url)  #> E104
                return await self.ctx.step("look", httpx.get, url)

        @agent("a")
        async def handle(message, context):
            await safely(context, lambda: open("x"), 1)
            await typed("x", context)
            await unsafe(lambda: open("y"))  #> E105
            return await Desk(context).look("x")
        """
    )
    assert "`c.random()`" in next(f.advice for f in findings if f.code == "E102")
    assert next(f.via for f in findings if f.code == "E102") == ("safely",)


# --- following calls


def test_calls_are_followed_into_functions_methods_and_back() -> None:
    findings = found_in(
        """
        import functools, time, httpx

        def first():
            return second(3)

        def second(depth):
            stamp = time.time()  #> E101
            return first() if depth else stamp

        class Base:
            def load(self):
                return open("x")  #> E105

        class Store(Base):
            kind: httpx.Client

            def __init__(self):
                self.client = httpx.Client()

            def load(self):
                super().load()
                self.client.get("x")  #> E104
                return self.kind.post("y")  #> E104

            @property
            def size(self):
                return time.monotonic()  #> E101

            @staticmethod
            def new():
                return time.time_ns()  #> E101

        def made():
            return httpx.Client()

        @functools.lru_cache
        def cached():
            return open("z")  #> E105

        store = Store()

        @agent("a")
        async def handle(message, ctx):
            first()
            store.load()
            store.size
            Store.new()
            made().get("x")  #> E104
            cached()
            with httpx.Client() as client:
                client.get("x")  #> E104
            sorted([], key=by_time)

        def by_time(row):
            return time.time()  #> E101
        """
    )
    assert [f.via for f in findings if f.line == 9] == [("first", "second")]


@pytest.mark.parametrize(
    "made",
    [
        "from llmagentos.agents import agent as actor\n@actor('a')",
        "import llmagentos.agents as la\n@la.agent('a')",
        "from llmagentos import agents\n@agents.agent('a', retries=1)",
        "from llmagentos.agents.agent import agent\n@agent('a')",
        "import llmagentos.agents\n@llmagentos.agents.agent('a')",
        "from llmagentos.agents import agent\nactor = agent('a', retries=1)\n@actor",
        "from llmagentos.agents import *\n@agent('a')",
    ],
)
def test_a_handler_is_known_however_it_is_decorated(made: str) -> None:
    report = read(f"import time\n{made}\nasync def handle(m, c):\n    time.time()\n")
    assert report.agents == ("a",)
    [finding] = report.findings
    assert "`c.now()`" in finding.advice


def test_handlers_that_are_classes_methods_and_made_by_a_call() -> None:
    found_in(
        """
        import time

        @agent("class")
        class Poet:
            def __init__(self):
                self.made = 0

            async def __call__(self, message, ctx):
                self.made += 1  #> E205
                await ctx.step("line", self.line)
                return self.rest()

            def line(self):
                return time.time()

            def rest(self):
                return time.monotonic()  #> E101

        class Desk:
            async def run(self, message, ctx):
                return time.time_ns()  #> E101

        desk = agent("method")(Desk().run)

        def factory(name):
            @agent(name)
            async def handle(message, ctx):
                return time.time()  #> E101

            return handle

        @somebody.elses("x")
        async def other(message, ctx):
            return time.time()
        """
    )


def test_advice_for_functions_that_block() -> None:
    threaded, process, slept = found_in(
        """
        import time

        @agent("a", blocking="thread")
        def handle(message, ctx):
            open("x")  #> E105

        @agent("b", blocking="process")
        def other(message, ctx):
            open("x")  #> E105
            time.sleep(1)  #> E109
        """
    )
    assert "`ctx.step(" in threaded.advice
    assert "await" not in threaded.advice
    assert "blocking='thread'" in process.advice
    assert process.advice == slept.advice


def test_nothing_goes_round_for_ever() -> None:
    found_in(
        """
        import ast, time
        x = x
        y = z
        z = y.parent

        def wrap(fn):
            return wrap(lambda: fn())

        def even(n):
            return odd(n - 1)

        def odd(n):
            time.time()  #> E101
            return even(n - 1)

        class Node(Node):
            def __init__(self):
                self.next = self.next.next

        def parts(node: ast.AST):
            return parts(node.left), parts(node.right), parts(node.value[0]), [parts(child) for child in node.body]

        def deeper(fn, n=0):
            def inner():
                return deeper(inner, n + 1), deeper(lambda: inner(), n + 2)
            return inner()

        @agent("a")
        async def handle(message, ctx):
            wrap(lambda: None)
            even(4)
            parts(message)
            deeper(parts)
            x.open(), y.open(), Node().next.open()
        """
    )


def test_calls_that_lead_too_deep_are_left_out_and_the_rest_is_found() -> None:
    deep = "\n".join(f"def f{n}(): return {'str(' * 30}f{n + 1}(){')' * 30}" for n in range(60))
    handler("f0()\ntime.time()  #> E101", f"import time\n{deep}")


# --- ends of a handler


def test_swallowed_ends() -> None:
    handler(
        """
        try:
            await ctx.ask("b", 1)
        except:  #> E201
            pass
        try:
            await ctx.ask("b", 1)
        except BaseException as error:  #> E201
            ctx.log.error("%s", error)
        try:
            await ctx.ask("b", 1)
        except (ValueError, asyncio.CancelledError):  #> E201
            return "late"
        try:
            await ctx.ask("b", 1)
        except BaseException as error:  #> E201
            raise ValueError from error
        with contextlib.suppress(BaseException):  #> E201
            await ctx.ask("b", 1)
        try:
            await ctx.ask("b", 1)
        finally:
            return 3  #> E201
        """,
        "import asyncio, contextlib",
    )


def test_ends_that_go_through() -> None:
    handler(
        """
        try:
            await ctx.ask("b", 1)
        except Exception:
            pass
        try:
            await ctx.ask("b", 1)
        except BaseException as error:
            ctx.log.error("%s", error)
            raise
        try:
            await ctx.ask("b", 1)
        except BaseException as error:
            raise error
        try:
            await ctx.ask("b", 1)
        except asyncio.CancelledError:
            raise
        except BaseException:
            pass
        try:
            number = int(message.text)
        except:
            number = 0
        with contextlib.suppress(ValueError):
            await ctx.ask("b", 1)
        task = asyncio.create_task(ctx.ask("b", 1))
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        """,
        "import asyncio, contextlib",
    )


def test_a_blocking_handler_swallows_by_what_it_calls() -> None:
    found_in(
        """
        @agent("a", blocking="thread")
        def handle(message, ctx):
            try:
                ctx.ask("b", 1)
            except:  #> E201
                pass
            try:
                int("x")
            except:
                pass
        """
    )


def test_effects_while_the_handler_is_torn_down() -> None:
    handler(
        """
        lock = message.lock
        try:
            await ctx.ask("b", 1)
        finally:
            lock.release()
            ctx.log.info("done")
            await ctx.tell("c", 1)  #> E202
            note()
        with Desk():
            pass
        """,
        """
        def note():
            open("x")  #> E202

        class Desk:
            def __enter__(self):
                open("x")  #> E105

            def __exit__(self, *error):
                open("x")  #> E202
        """,
    )


# --- order


def test_steps_of_one_name_in_parallel_tasks() -> None:
    work = """
    import asyncio

    async def work(ctx, url, name="fetch"):
        await ctx.step("first", print)
        return await ctx.step(name, print, url)

    async def other(ctx):
        return await ctx.step("fetch", print)
    """
    [finding] = handler("await asyncio.gather(work(ctx, 1), other(ctx))  #> E203", work)
    assert "'fetch'" in finding.what
    assert 'ctx.step(f"fetch-{key}", ...)' in finding.advice
    handler("await asyncio.gather(*(work(ctx, u) for u in message.json()))  #> E203", work)
    handler("await asyncio.gather(*[work(ctx, u) for u in message.json()])  #> E203", work)
    handler("tasks = [other(ctx) for u in message.json()]\nawait asyncio.gather(*tasks)  #> E203", work)
    handler("await asyncio.gather(ctx.step('fetch', print), other(ctx))  #> E203", work)
    handler(
        """
        async with asyncio.TaskGroup() as group:
            for url in message.json():
                group.create_task(other(ctx))  #> E203
        """,
        work,
    )


def test_steps_in_parallel_whose_order_is_settled() -> None:
    handler(
        """
        await asyncio.gather(ctx.step("a", print, 1), ctx.step("a", print, 2))
        await asyncio.gather(*(ctx.step("a", print, x) for x in message.json()))
        await asyncio.gather(*(named(ctx, x) for x in message.json()))
        await asyncio.gather(work(ctx, "a"), work(ctx, "b"))
        await work(ctx, "a")
        await work(ctx, "a")
        asyncio.create_task(work(ctx, "a"))
        """,
        """
        import asyncio

        async def named(ctx, x):
            return await ctx.step(f"fetch-{x}", print, x)

        async def work(ctx, name):
            return await ctx.step(name, print)
        """,
    )


def test_the_order_of_a_set() -> None:
    handler(
        """
        tags = set(message.json())
        for tag in tags:  #> E204
            await ctx.step(f"tag-{tag}", print, tag)
        for tag in list(tags | {"more"}):  #> E204
            await each(ctx, tag)
        await asyncio.gather(*(ctx.ask("b", tag) for tag in tags))  #> E204
        while tags:
            await ctx.tell("b", tags.pop())  #> E204
        """,
        """
        import asyncio

        async def each(ctx, tag):
            await ctx.tell("b", tag)
        """,
    )


def test_sets_that_decide_nothing() -> None:
    handler(
        """
        tags = set(message.json())
        for tag in sorted(tags):
            await ctx.tell("b", tag)
        for tag in tags:
            print(tag)
        await ctx.tell("b", sorted(tag.upper() for tag in tags))
        tags = sorted(tags)
        for tag in tags:
            await ctx.tell("b", tag)
        for tag in dict.fromkeys(message.json()):
            await ctx.tell("b", tag)
        """
    )


# --- state of the process


def test_state_of_the_process_that_is_changed() -> None:
    [first, *_] = handler(
        """
        global count
        count += 1  #> E205
        CACHE[message.text] = 1  #> E205
        SEEN.append(message.text)  #> E205
        Settings.debug = True  #> E205
        state.value = 3  #> E205
        del CACHE["x"]  #> E205
        next(NUMBERS)  #> E205
        store.put(1)
        """,
        """
        import itertools
        import state
        from collections import deque

        count = 0
        CACHE: dict[str, int] = {}
        SEEN = deque(maxlen=3)
        NUMBERS = itertools.count()

        class Settings:
            debug = False

        class Store:
            def __init__(self):
                self.items = []

            def put(self, item):
                self.items.append(item)  #> E205

        store = Store()
        """,
    )
    assert "`ctx.memory`" in first.advice


def test_state_of_ones_own() -> None:
    handler(
        """
        global client
        if client is None:
            client = httpx.AsyncClient()
        seen = []
        seen.append(1)
        mine = dict(CACHE)
        mine["x"] = 1
        CACHE.get("x")
        row = message.json()
        row["x"] = 1
        message.attributes.update(x=1)
        store = Store()
        store.put(1)
        if "model" not in CACHE:
            CACHE["model"] = 1
        """,
        """
        import httpx

        client = None
        CACHE = {}

        class Store:
            def __init__(self):
                self.items = []

            def put(self, item):
                self.items.append(item)
        """,
    )


# --- definitions


def test_what_deploy_would_refuse() -> None:
    found_in(
        """
        @agent("no spaces, please")  #> E002
        async def one(message, ctx): ...

        @agent("plain")  #> E002
        def two(message, ctx): ...

        @agent("threaded", blocking="thread")  #> E002
        async def three(message, ctx): ...

        @agent("short")  #> E002
        async def four(message): ...

        @agent  #> E002
        async def five(message, ctx): ...

        @agent("twice")
        async def six(message, ctx): ...

        @agent("twice")  #> E002
        async def seven(message, ctx): ...

        @agent("good")
        async def eight(message, ctx, more=None, *, rest=1): ...

        @agent("any")
        async def nine(*args): ...
        """
    )


@pytest.mark.parametrize("text", ["def x(:\n", "x = '\0'\n", "x = " + "-" * 100_000 + "1\n", "x = (\n", "\ttry\n  x"])
def test_what_is_not_python_is_told(text: str) -> None:
    [finding] = read(text).findings
    assert finding.code == "E001"


def test_an_empty_file_and_one_without_agents() -> None:
    assert read("").findings == read("import time\ntime.time()").findings == ()


# --- comments


def test_comments_silence_what_they_name() -> None:
    report = read(
        HEAD
        + textwrap.dedent(
            """
            import time

            @agent("a")
            async def handle(message, ctx):
                a = time.time()  # llmagentos: ignore[E101]
                b = time.time()  # llmagentos: ignore[E105]
                c = time.time()  # llmagentos: ignore
                d = dict(  # llmagentos: ignore[E101, E105]
                    at=time.time(),
                    file=open("x"),
                )
                e = "# llmagentos: ignore", time.time()
                with open("x") as f:  # noqa  # llmagentos: ignore[E105]
                    time.time()
            """
        )
    )
    assert [(f.line, f.code) for f in report.findings] == [(8, "E101"), (14, "E101"), (16, "E101")]
    assert report.ignored == 5


# --- the table


def test_the_table_is_well_formed() -> None:
    for effect in EFFECTS:
        assert effect.code in CODES
        assert re.fullmatch(r"(\{(await|ctx|name|key)\}|[^{}])*", effect.advice), effect.advice
        assert "{name}" not in effect.advice
        for name in (*effect.calls, *effect.reads):
            assert re.fullmatch(r"[a-zA-Z_]\w*(\(\))?(\.([\w]+\*?|\*)(\(\))?)*", name), name
            assert "*" in name or name in effect.reads or find(name) is not None
            assert not name.startswith(("threading.Lock", "logging."))
    for name in RESULTS.values():
        assert name not in RESULTS


def test_each_name_is_in_the_table_once() -> None:
    names = [name for effect in EFFECTS for name in effect.calls]
    assert sorted(names) == sorted(set(names))
