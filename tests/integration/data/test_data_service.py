"""The data service at work: as tools of a handler, as an agent that others ask, and what is written down of it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.data import Files, Tables, data_agent
from llmagentos.agents.testing import Agents


async def test_requests_are_answered_once_and_each_is_audited(agents: Agents, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    with closing(sqlite3.connect(tmp_path / "stock.db")) as connection:
        connection.executescript("CREATE TABLE item (name TEXT, price INTEGER); INSERT INTO item VALUES ('tea', 3);")
    notes = Files(tmp_path / "notes", write={"clerk", "buyer"})
    stock = Tables(tmp_path / "stock.db", write={"item": {"clerk"}})
    data = data_agent("data", notes, stock)

    @agent("clerk", retries=1, backoff=0.01)
    async def clerk(message: Message, ctx: Context) -> Any:
        tools = {tool.name: tool for tool in (*notes.tools(), *stock.tools())}
        said = [await tools[name].invoke(ctx, arguments) for name, arguments in message.content]
        if ctx.attempt == 0:
            raise RuntimeError("once")  # so that all of it runs again
        return said

    @agent("buyer")
    async def buyer(message: Message, ctx: Context) -> Any:
        return await ctx.ask("data", message.content)

    raised = {"sql": "UPDATE item SET price = price + 1"}
    async with agents.run(data, clerk, buyer) as run:
        asked = [
            ("write_file", {"path": "a.txt", "text": "tea is 4"}),
            ("change_tables", raised),
            ("read_file", orjson.dumps({"path": "a.txt"}).decode()),
            ("query_tables", {"sql": "SELECT price FROM item"}),
            ("read_file", {"path": "../secret.txt"}),
            ("read_file", {"file": "a.txt"}),
            ("read_file", "not JSON"),
        ]
        said = (await run.ask("clerk", asked, conversation="c", tenant="acme")).content
        assert said[0] == '{"written":8}'
        assert [orjson.loads(text).get("changed") for text in said[1:2]] == [1]
        assert orjson.loads(said[2])["text"] == "tea is 4"
        assert orjson.loads(said[3])["rows"] == [[4]], "a rerun did not change it again"
        assert [text.split()[0] for text in said[4:]] == ["error:"] * 3

        told = [
            (await run.ask("buyer", request)).content
            for request in (
                {"operation": "read_file", "path": "a.txt"},
                {"operation": "change_tables", **raised},
                {"operation": "format_disk"},
                "hello",
            )
        ]
        assert told[0]["answer"]["text"] == "tea is 4"
        assert "'buyer' may change no table" in told[1]["error"]
        assert "read_file" in told[2]["error"]
        assert "read_file" in told[3]["error"]

        events = await run.events("data")
        details = [event["detail"] for event in events]
        assert len({detail["key"] for detail in details}) == len(details) == len(asked) + 2, "one for each"
        first = next(detail for detail in details if detail["operation"] == "write_file")
        assert first.items() >= {"caller": "clerk", "tenant": "acme", "target": "a.txt", "outcome": "done"}.items()
        assert [d["outcome"] for d in details if d["caller"] == "clerk"] == ["done"] * 4 + ["refused"] * 3
        assert [(d["operation"], d["outcome"]) for d in details if d["caller"] == "buyer"] == [
            ("read_file", "done"),
            ("change_tables", "refused"),
        ]
        assert {event["conversation_id"] for event in events if event["agent"] == "clerk"} == {"c"}
        assert not any("tea is 4" in str(detail) for detail in details), "what is in files is not told"
    with closing(sqlite3.connect(tmp_path / "stock.db")) as connection:
        assert connection.execute("SELECT price FROM item").fetchall() == [(4,)]
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["a.txt"]
