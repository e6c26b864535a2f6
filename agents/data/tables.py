"""SQL tables of an SQLite database, read-only unless granted. The database enforces it; no statement is parsed here.

A reading connection is opened read-only. On a writing one SQLite asks for each thing that a statement would do
(sqlite3_set_authorizer), so that a view, a trigger or a common table expression hides nothing.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import Field

from llmagentos.agents.data.service import EVERYONE, Caller, DataTool, Operation, Request, Who, permitted
from llmagentos.streams.errors import DataRefused

__all__ = ["Tables"]

#: Of a statement: some pages.
SQL_MAX: Final = 10_000
#: A value, row or text that SQLite may make, in bytes: without it `randomblob(1e9)` takes the memory.
VALUE_MAX: Final = 1_000_000
#: SQLite calls back after so many of its virtual instructions, some 10 microseconds' worth, to ask about the time.
INSTRUCTIONS: Final = 1_000
#: A writer waits so long for another one, in seconds.
BUSY_S: Final = 5.0
#: Answers of changes are kept as long as a journal keeps its steps (30 days): a rerun is given them.
DONE_KEPT_S: Final = 30 * 86_400
#: Ours, in the database: what was done, by the key of its request.
DONE: Final = "_llmagentos_done"

#: What a statement that only reads does.
_READS: Final = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_CHANGES: Final = {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE}

Value = str | int | float | None


class _Query(Request):
    sql: str = Field(max_length=SQL_MAX, description="One SELECT in SQLite's dialect, with ? for values.")
    values: list[Value] = Field(default_factory=list, description="For each ?, in order.")


class _Change(Request):
    sql: str = Field(max_length=SQL_MAX, description="One INSERT, UPDATE or DELETE, with ? for values.")
    values: list[Value] = Field(default_factory=list, description="For each ?, in order.")


class _Describe(Request):
    pass


class Tables:
    """The tables of an SQLite database, for agents.

    Args:
        database: its file, which exists.
        read: names of the agents that may read all tables; `"*"`: all.
        write: who may change rows, by table; no one may change what tables there are.
        rows: the most that an answer has.
        answer_bytes: the most that its rows are as JSON.
        timeout_s: a statement that takes longer is ended.

    A change is made once: its answer is written in the same transaction, into the table `_llmagentos_done`.

    Raises:
        DataRefused: there is no such file.
    """

    def __init__(
        self,
        database: str | Path,
        *,
        read: Who = EVERYONE,
        write: Mapping[str, Who] | None = None,
        rows: int = 200,
        answer_bytes: int = 64 * 1024,
        timeout_s: float = 5.0,
    ) -> None:
        self._path = Path(database).expanduser().resolve()
        if not self._path.is_file():
            raise DataRefused(f"there is no database {self._path}", fix="make it, or correct the path")
        self._read, self._write = read, {table.lower(): who for table, who in (write or {}).items()}
        self._rows, self._answer_bytes, self._timeout_s = rows, answer_bytes, timeout_s
        self._writing = threading.Lock()

    def tools(self) -> list[DataTool]:
        """For `ctx.llm.chat(tools=...)`."""
        return [DataTool(operation) for operation in self.operations()]

    def operations(self) -> Sequence[Operation]:
        """Describe and query; change where anybody may."""
        describe = Operation(
            "describe_tables",
            "The tables, as they were created.",
            _Describe,
            self._name,
            self._may_read,
            self._describe,
        )
        query = Operation("query_tables", "Read rows by a SELECT.", _Query, _statement, self._may_read, self._query)
        change = Operation(
            "change_tables",
            f"Change rows of {', '.join(self._write)} by INSERT, UPDATE or DELETE.",
            _Change,
            _statement,
            self._may_write,
            self._change,
        )
        return (describe, query, change) if self._write else (describe, query)

    # -- who may

    def _name(self, _: Any) -> str:
        return self._path.name

    def _may_read(self, caller: Caller, _: Any) -> None:
        if not permitted(self._read, caller.name):
            raise DataRefused(f"agent {caller.name!r} may not read these tables")

    def _may_write(self, caller: Caller, _: Any) -> None:
        self._may_read(caller, _)
        if not self._granted(caller):
            raise DataRefused(f"agent {caller.name!r} may change no table here")

    def _granted(self, caller: Caller) -> set[str]:
        return {table for table, who in self._write.items() if permitted(who, caller.name)}

    # -- operations, each in a thread

    def _describe(self, caller: Caller, request: _Describe) -> dict[str, Any]:
        with self._open("ro") as connection:
            found = connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name != ?", [DONE])
            return {"tables": [sql for (sql,) in found], "writable": sorted(self._granted(caller))}

    def _query(self, caller: Caller, request: _Query) -> dict[str, Any]:
        with self._open("ro") as connection:
            connection.set_authorizer(_reader)
            return self._run(connection, request)

    def _change(self, caller: Caller, request: _Change) -> dict[str, Any]:
        granted = self._granted(caller)
        with self._writing, self._open("rw") as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"CREATE TABLE IF NOT EXISTS {DONE} (key TEXT PRIMARY KEY, at REAL, answer BLOB)")
            connection.execute(f"DELETE FROM {DONE} WHERE at < ?", [time.time() - DONE_KEPT_S])
            known = connection.execute(f"SELECT answer FROM {DONE} WHERE key = ?", [caller.key]).fetchone()
            if known is not None:  # its worker died before the answer was recorded
                connection.execute("COMMIT")
                return orjson.loads(known[0])
            connection.set_authorizer(_writer(granted))
            answer = self._run(connection, request)
            connection.set_authorizer(None)
            connection.execute(f"INSERT INTO {DONE} VALUES (?, ?, ?)", [caller.key, time.time(), orjson.dumps(answer)])
            connection.execute("COMMIT")  # what is not committed, SQLite rolls back when the connection closes
            return answer

    def _run(self, connection: sqlite3.Connection, request: _Query | _Change) -> dict[str, Any]:
        cursor = connection.execute(request.sql, request.values)
        rows: list[list[Any]] = []
        size, more = 0, False
        for row in cursor:
            shown = [value.hex() if isinstance(value, bytes) else value for value in row]
            size += len(orjson.dumps(shown))
            if len(rows) >= self._rows or size > self._answer_bytes:
                more = True
                if isinstance(request, _Query):
                    break  # of a change with RETURNING each row is still to be made
                continue
            rows.append(shown)
        columns = [column[0] for column in cursor.description or ()]
        answer: dict[str, Any] = {"columns": columns, "rows": rows, "more": more}
        return answer if isinstance(request, _Query) else answer | {"changed": max(0, cursor.rowcount)}

    @contextmanager
    def _open(self, mode: str) -> Generator[sqlite3.Connection]:
        """A connection with limits; what goes wrong on it is told as DataRefused."""
        until = time.monotonic() + self._timeout_s
        late = False

        def over() -> int:
            nonlocal late
            late = time.monotonic() > until
            return int(late)

        try:
            uri = f"{self._path.as_uri()}?mode={mode}"
            with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None)) as connection:
                connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_MAX)
                connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
                connection.set_progress_handler(over, INSTRUCTIONS)
                yield connection
        except (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeError) as error:
            if late:
                raise DataRefused(f"the statement took longer than {self._timeout_s:g} s, and was ended") from error
            raise DataRefused(f"the database refused: {error}") from error


def _statement(request: Any) -> str:
    return request.sql if not request.values else f"{request.sql} -- {orjson.dumps(request.values).decode()}"


def _reader(action: int, first: str | None, *_: str | None) -> int:
    """What a reading statement may do: read, and not what is ours or loads code."""
    return sqlite3.SQLITE_OK if action in _READS and not _hidden(action, first, *_) else sqlite3.SQLITE_DENY


def _writer(granted: set[str]) -> Any:
    def authorise(action: int, first: str | None, *rest: str | None) -> int:
        if action in _CHANGES:
            return sqlite3.SQLITE_OK if (first or "").lower() in granted else sqlite3.SQLITE_DENY
        return _reader(action, first, *rest)

    return authorise


def _hidden(action: int, first: str | None, second: str | None = None, *_: str | None) -> bool:
    if action == sqlite3.SQLITE_FUNCTION:
        return (second or "").lower() == "load_extension"
    return action == sqlite3.SQLITE_READ and (first or "").lower() == DONE
