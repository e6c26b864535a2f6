"""Files and tables for agents: what is refused, and that nothing was changed then."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llmagentos.agents.data import Files, Tables
from llmagentos.agents.data.service import Caller, Source
from llmagentos.streams.errors import DataRefused

Ask = Callable[..., Any]


def ask(source: Source, name: str, by: str = "clerk", tenant: str = "default", key: str = "k", **asked: Any) -> Any:
    """As the service does it, without the step."""
    (operation,) = [each for each in source.operations() if each.name == name]
    caller, request = Caller(by, tenant, key), operation.request.model_validate(asked)
    operation.authorise(caller, request)
    return operation.do(caller, request)


# -- files


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text("secret")
    return path


@pytest.fixture
def root(tmp_path: Path, outside: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "a.txt").write_text("hello")
    return folder


def test_files_are_listed_read_written_and_deleted(root: Path) -> None:
    files = Files(root, write={"clerk"})
    assert ask(files, "write_file", path="notes/deep/b.txt", text="grüße") == {"written": 7}
    assert (root / "notes/deep/b.txt").read_text() == "grüße"
    listed = {"files": [{"path": "notes/a.txt", "bytes": 5}, {"path": "notes/deep/b.txt", "bytes": 7}], "more": 0}
    assert ask(files, "list_files") == ask(files, "list_files", folder="notes") == listed
    assert ask(files, "read_file", path="notes/a.txt") == {"text": "hello", "bytes": 5, "next": None}
    assert ask(files, "delete_file", path="notes/a.txt") == {"deleted": True}
    assert ask(files, "delete_file", path="notes/a.txt") == {"deleted": False}
    assert not (root / "notes/a.txt").exists()


def test_a_long_file_is_read_in_pieces_that_cut_no_character(root: Path) -> None:
    text = "aé€😀" * 50
    files = Files(root, write={"clerk"}, answer_bytes=64)
    ask(files, "write_file", path="long.txt", text=text)
    read, start = "", 0
    while start is not None:
        part = ask(files, "read_file", path="long.txt", start=start)
        read, start = read + part["text"], part["next"]
    assert read == text
    assert ask(files, "read_file", path="long.txt", start=10_000)["text"] == ""


@pytest.mark.parametrize(
    "path",
    [
        *(
            "../secret.txt",
            "notes/../../secret.txt",
            "notes/..",
            "/etc/passwd",
            "//etc/passwd",
            "./a",
            "a//b",
            "a/",
            "",
        ),
        *("..\\secret.txt", "a\x00b", "a\nb", "x" * 241, "/".join("x" * 40), "x/" * 600 + "x"),
    ],
)
def test_a_path_that_leads_out_or_is_none_is_refused(root: Path, outside: Path, path: str) -> None:
    files = Files(root, write={"clerk"})
    for name, more in (("read_file", {}), ("write_file", {"text": "x"}), ("delete_file", {})):
        with pytest.raises(DataRefused, match="not allowed|are allowed"):
            ask(files, name, path=path, **more)
    assert outside.read_text() == "secret"


def test_links_are_not_followed(root: Path, outside: Path) -> None:
    (root / "link.txt").symlink_to(outside)
    (root / "up").symlink_to(outside.parent)
    (root / "lost").symlink_to("/nonexistent/file")
    files = Files(root, write={"clerk"})
    for path in ("link.txt", "up/secret.txt", "up/new.txt", "lost"):
        for name, more in (("read_file", {}), ("write_file", {"text": "x"}), ("delete_file", {})):
            with pytest.raises(DataRefused, match="symbolic link"):
                ask(files, name, path=path, **more)
    assert [each["path"] for each in ask(files, "list_files")["files"]] == ["notes/a.txt"]
    with pytest.raises(DataRefused, match="symbolic link"):
        ask(files, "list_files", folder="up")
    assert outside.read_text() == "secret"


def test_what_is_no_plain_file_is_refused(root: Path) -> None:
    os.mkfifo(root / "pipe")  # to read it would wait for ever
    (root / "image").write_bytes(b"\xff\xfe\x00")
    files = Files(root, write={"clerk"})
    with pytest.raises(DataRefused, match="plain file"):
        ask(files, "read_file", path="pipe")
    with pytest.raises(DataRefused, match="no folder"):
        ask(files, "write_file", path="notes/a.txt/b", text="x")
    with pytest.raises(DataRefused, match="is a folder"):
        ask(files, "write_file", path="notes", text="x")
    with pytest.raises(DataRefused, match="is a folder"):
        ask(files, "delete_file", path="notes")
    with pytest.raises(DataRefused, match="not a text"):
        ask(files, "read_file", path="image")
    with pytest.raises(DataRefused, match="no file"):
        ask(files, "read_file", path="nothing")


def test_quotas_hold_and_say_what_is_used(root: Path) -> None:
    files = Files(root, write={"clerk"}, quota_bytes=20, quota_files=2, file_bytes=18)
    with pytest.raises(DataRefused, match="a file may have 18"):
        ask(files, "write_file", path="b", text="x" * 19)
    with pytest.raises(DataRefused, match="5 of 20 bytes are in use"):
        ask(files, "write_file", path="b", text="x" * 16)
    assert ask(files, "write_file", path="b", text="x" * 15) == {"written": 15}
    assert ask(files, "write_file", path="b", text="y" * 15) == {"written": 15}, "what is replaced does not count"
    with pytest.raises(DataRefused, match="2 files already"):
        ask(files, "write_file", path="c", text="")
    assert sorted(path.name for path in root.rglob("*")) == ["a.txt", "b", "notes"]


def test_who_is_not_permitted_is_refused(root: Path) -> None:
    files = Files(root, read={"clerk", "reader"}, write={"clerk"})
    with pytest.raises(DataRefused, match="'stranger' may not use read_file"):
        ask(files, "read_file", by="stranger", path="notes/a.txt")
    for name, more in (("write_file", {"text": "x"}), ("delete_file", {})):
        with pytest.raises(DataRefused, match="'reader' may not"):
            ask(files, name, by="reader", path="notes/a.txt", **more)
        with pytest.raises(DataRefused, match="'clerk' may not"):
            ask(Files(root), name, path="notes/a.txt", **more)
    assert (root / "notes/a.txt").read_text() == "hello"


def test_a_tenant_sees_its_own_files_alone(root: Path) -> None:
    files = Files(root, write="*", per_tenant=True, quota_files=1)
    for tenant in ("acme", "globex"):
        assert ask(files, "list_files", tenant=tenant) == {"files": [], "more": 0}
        ask(files, "write_file", tenant=tenant, path="mine", text=tenant)
    assert ask(files, "read_file", tenant="acme", path="mine")["text"] == "acme"
    assert ask(files, "list_files", tenant="globex")["files"] == [{"path": "mine", "bytes": 6}]
    for tenant in ("../root/acme", "..", "acme/x", ""):
        with pytest.raises(DataRefused):
            ask(files, "list_files", tenant=tenant)


def test_another_file_system_keeps_to_its_root() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/elsewhere/secret", b"secret")
    try:
        files = Files("memory://shared", write={"clerk"}, quota_bytes=10)
        ask(files, "write_file", path="a/b", text="hello")
        assert ask(files, "read_file", path="a/b")["text"] == "hello"
        assert ask(files, "list_files")["files"] == [{"path": "a/b", "bytes": 5}]
        with pytest.raises(DataRefused, match="not allowed"):
            ask(files, "read_file", path="../elsewhere/secret")
        with pytest.raises(DataRefused, match="quota"):
            ask(files, "write_file", path="c", text="123456")
    finally:
        memory.rm("/", recursive=True)


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="there is no folder"):
        Files(tmp_path / "nothing")


# -- tables


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "stock.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("""
            CREATE TABLE item (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, price REAL);
            CREATE TABLE orders (id INTEGER PRIMARY KEY AUTOINCREMENT, item INTEGER, number INTEGER);
            CREATE TABLE log (what TEXT);
            CREATE TRIGGER noted AFTER DELETE ON orders BEGIN INSERT INTO log VALUES ('gone'); END;
            INSERT INTO item (name, price) VALUES ('tea', 3), ('cake', 4.5);
        """)
    return path


def rows(database: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(sql).fetchall()


def test_tables_are_described_queried_and_changed(database: Path) -> None:
    tables = Tables(database, write={"orders": {"clerk"}})
    described = ask(tables, "describe_tables")
    assert "CREATE TABLE orders" in described["tables"][1] or any("orders" in sql for sql in described["tables"])
    assert described["writable"] == ["orders"]
    found = ask(tables, "query_tables", sql="SELECT name, price FROM item WHERE price < ? ORDER BY id", values=[4])
    assert found == {"columns": ["name", "price"], "rows": [["tea", 3.0]], "more": False}
    sql = "INSERT INTO orders (item, number) VALUES (?, ?) RETURNING id"
    made = ask(tables, "change_tables", sql=sql, values=[1, 2])
    assert made["rows"] == [[1]]
    assert rows(database, "SELECT item, number FROM orders") == [(1, 2)]


def test_a_change_is_made_once_whatever_becomes_of_its_worker(database: Path) -> None:
    tables = Tables(database, write={"item": "*"})
    sql = "UPDATE item SET price = price + 1 WHERE name = 'tea'"
    first = ask(tables, "change_tables", key="one", sql=sql)
    assert ask(tables, "change_tables", key="one", sql=sql) == first
    assert first["changed"] == 1
    assert rows(database, "SELECT price FROM item WHERE name = 'tea'") == [(4.0,)]
    ask(tables, "change_tables", key="two", sql=sql)
    assert rows(database, "SELECT price FROM item WHERE name = 'tea'") == [(5.0,)]


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM item",
        "INSERT INTO item (name) VALUES ('x')",
        "WITH x AS (SELECT 1) INSERT INTO item (name) SELECT 'x' FROM x",
        "DROP TABLE item",
        "CREATE TABLE x (y)",
        "CREATE TEMP TABLE x (y)",
        "ATTACH 'other.db' AS other",
        "PRAGMA writable_schema = 1",
        "PRAGMA query_only = 0",
        "SELECT load_extension('x')",
        "VACUUM INTO 'copy.db'",
        "BEGIN",
        "SELECT 1; DELETE FROM item",
        "SELECT * FROM nothing",
        "nonsense",
        "",
    ],
)
def test_a_query_can_change_nothing(database: Path, sql: str) -> None:
    before = database.read_bytes()
    if sql:
        with pytest.raises(DataRefused, match="the database refused"):
            ask(Tables(database), "query_tables", sql=sql)
    else:
        assert ask(Tables(database), "query_tables", sql=sql)["rows"] == []
    assert database.read_bytes() == before
    assert [path.name for path in database.parent.iterdir()] == [database.name]


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE item SET price = 0",
        "DELETE FROM orders",  # its trigger writes to another table
        "WITH x AS (SELECT 1) DELETE FROM item",
        "DROP TABLE orders",
        "ALTER TABLE orders ADD COLUMN x",
        "CREATE TRIGGER t AFTER INSERT ON orders BEGIN DELETE FROM item; END",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT x",
        "ATTACH 'other.db' AS other",
        "PRAGMA journal_mode = WAL",
        "INSERT INTO _llmagentos_done VALUES ('x', 0, '')",
        "INSERT INTO orders (item) SELECT key FROM _llmagentos_done",
        "INSERT INTO orders (item) VALUES (1); DELETE FROM item",
        "INSERT INTO orders (item) VALUES (abs(-9223372036854775808))",
    ],
)
def test_a_change_reaches_the_granted_tables_alone(database: Path, sql: str) -> None:
    tables = Tables(database, write={"orders": {"clerk"}})
    ask(tables, "change_tables", key="first", sql="INSERT INTO orders (item) VALUES (1)")
    with pytest.raises(DataRefused, match="the database refused"):
        ask(tables, "change_tables", key="second", sql=sql)
    assert rows(database, "SELECT name, price FROM item") == [("tea", 3.0), ("cake", 4.5)]
    assert rows(database, "SELECT count(*) FROM orders") == [(1,)]
    assert rows(database, "SELECT count(*) FROM log") == [(0,)]
    assert rows(database, "SELECT key FROM _llmagentos_done") == [("first",)]


def test_who_is_not_granted_a_table_is_refused(database: Path) -> None:
    tables = Tables(database, read={"clerk", "reader", "buyer"}, write={"orders": {"buyer"}, "item": {"clerk"}})
    with pytest.raises(DataRefused, match="'stranger' may not read"):
        ask(tables, "query_tables", by="stranger", sql="SELECT 1")
    with pytest.raises(DataRefused, match="'reader' may change no table"):
        ask(tables, "change_tables", by="reader", sql="DELETE FROM item")
    with pytest.raises(DataRefused, match="not authorized"):
        ask(tables, "change_tables", by="buyer", sql="DELETE FROM item")
    assert [each.name for each in Tables(database).operations()] == ["describe_tables", "query_tables"]


def test_a_statement_is_bounded_in_time_rows_and_bytes(database: Path) -> None:
    tables = Tables(database, timeout_s=0.2, rows=10, answer_bytes=300)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT {} FROM n"
    with pytest.raises(DataRefused, match=r"longer than 0\.2 s"):
        ask(tables, "query_tables", sql=endless.format("count(*)"))
    found = ask(tables, "query_tables", sql=endless.format("i"))
    assert found["more"]
    assert found["rows"] == [[number] for number in range(1, 11)]
    assert ask(tables, "query_tables", sql=endless.format("hex(zeroblob(100))"))["more"]
    with pytest.raises(DataRefused, match="too big"):
        ask(tables, "query_tables", sql="SELECT randomblob(1000000000)")
    with pytest.raises(DataRefused, match="database refused"):
        ask(tables, "query_tables", sql="SELECT ?", values=[2**70])


def test_requests_have_no_other_fields_or_types(database: Path) -> None:
    for wrong in ({"sql": 1}, {}, {"sql": "SELECT 1", "database": "/etc/passwd"}, {"sql": "x" * 10_001}):
        with pytest.raises(ValidationError):
            ask(Tables(database), "query_tables", **wrong)
    with pytest.raises(DataRefused, match="there is no database"):
        Tables(database.with_name("none.db"))
