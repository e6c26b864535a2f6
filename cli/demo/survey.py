"""The demo's agents: `parser` cuts a file into pieces, `measurer` measures each, `compiler` enters it in the ledger.

One conversation is one file. The ledger is a file outside of Kafka, one line an entry with the id of the message
that caused it: an entry made twice shows there.
"""

from __future__ import annotations

import os
import time
from typing import Any

import orjson

from llmagentos.agents import Context, Message, agent
from llmagentos.cli.demo.measure import measure, pieces

#: Names the ledger's file; set by the demo for its workers.
LEDGER = "LLMAGENTOS_DEMO_LEDGER"


@agent("parser")
async def parser(message: Message, ctx: Context) -> None:
    """Cuts a Python file into pieces and sends each to be measured, in order."""
    path, source = message.attributes["path"], message.text
    try:
        found = pieces(source)
    except (SyntaxError, ValueError) as error:
        await ctx.tell("compiler", {"path": path, "unparsable": type(error).__name__})
        return
    for index, piece in enumerate(found):
        await ctx.tell("measurer", piece.source, attributes={"path": path, "piece": piece.name, "index": str(index)})
    await ctx.tell("measurer", "", attributes={"path": path, "piece": "", "index": str(len(found))})


@agent("measurer")
async def measurer(message: Message, ctx: Context) -> None:
    """Measures a piece of source: functions, branches, docstrings, longest function."""
    attributes = message.attributes
    entry: dict[str, Any] = {"path": attributes["path"], "index": int(attributes["index"])}
    if attributes["piece"]:
        entry |= {"piece": attributes["piece"], **measure(message.text).record()}
    else:
        entry["end"] = True
    await ctx.tell("compiler", entry)


@agent("compiler")
async def compiler(message: Message, ctx: Context) -> dict[str, Any] | None:
    """Enters what was measured in the ledger, and replies when a file is complete."""
    entry = message.json()
    line = orjson.dumps({"message_id": message.message_id, "pid": os.getpid(), "at": time.time(), **entry}) + b"\n"
    # One write with O_APPEND is one entry, whichever processes write: POSIX, and true of Linux' local file systems.
    ledger = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(ledger, line)
    finally:
        os.close(ledger)
    if entry.get("end") or "unparsable" in entry:
        return {"path": entry["path"], "pieces": entry.get("index", 0)}
    return None
