"""What a tool that runs apart can't do, at both levels."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.testing import Agents
from llmagentos.agents.tools.isolation import bubblewrap
from llmagentos.streams.errors import ToolError

from .escapes import LEVELS


@pytest.mark.parametrize("level", ["process", "sandbox"])
async def test_a_tool_does_not_get_out(
    agents: Agents,
    level: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    if level == "sandbox":
        try:
            bubblewrap()
        except ToolError as error:
            pytest.skip(str(error))
    monkeypatch.setenv("SHOP_KEY", "a-secret")
    (tmp_path / "secret").write_text("a-secret")

    @agent("clerk", tools=list(LEVELS[level].values()), timeout=250)
    async def clerk(message: Message, ctx: Context) -> Any:
        return await asyncio.gather(*(ctx.tools[name].invoke(ctx, given) for name, given in message.content))

    # /proc shows the environment that a process began with: the worker's would have it, were it set by who started it.
    bearer = subprocess.Popen(["sleep", "600"], env=os.environ | {"SHOP_KEY": "a-secret"})  # noqa: ASYNC220
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:
        stack.callback(bearer.wait)
        stack.callback(bearer.kill)
        calls: list[tuple[str, dict[str, Any]]] = [
            ("fine", {"number": 1}),
            ("fine", {"number": 2}),
            ("waits", {}),
            ("sleeps", {}),
            ("computes", {}),
            ("eats", {}),
            ("forks", {}),
            ("starts", {}),
            ("leaves", {}),
            ("writes", {"path": str(tmp_path / "out")}),
            ("writes", {"path": "/tmp/llmagentos-out"}),
            ("writes", {"path": "in"}),
            ("fills", {}),
            ("opens", {}),
            ("talks", {}),
            ("tells", {}),
            ("reads", {"path": str(tmp_path / "secret")}),
            ("connects", {"port": server.getsockname()[1]}),
            ("kills", {"pid": os.getpid()}),
            ("aborts", {}),
            ("exits", {}),
            ("raises", {}),
        ]
        async with agents.run(clerk) as run:
            said = (await run.ask("clerk", calls, timeout=250)).content
    first, second = json.loads(said[0]), json.loads(said[1])
    assert (first["number"], second["number"]) == (1, 2)
    assert first["pid"] != second["pid"]
    told = dict(zip([f"{name} {given.get('path', '')}".strip() for name, given in calls], said, strict=True))
    assert told["waits"] == "an async one"
    assert told["sleeps"] == "error: sleeps took longer than 2 s and was ended"
    assert told["computes"].startswith("error: computes")
    assert told["eats"] == "error: eats needed more than its 200 MB of memory"
    assert told["forks"].startswith("error: PermissionError")
    assert told["starts"].startswith("error: PermissionError")
    assert told[f"writes {tmp_path / 'out'}"].startswith("error: ")
    assert not (tmp_path / "out").exists()
    assert told["writes /tmp/llmagentos-out"].startswith("error: PermissionError")
    assert told["writes in"].endswith("/in")
    assert not os.path.exists(told["writes in"])  # noqa: PTH110, ASYNC240
    assert told["fills"] == "error: OSError: [Errno 27] File too large"
    assert told["opens"].startswith("error: OSError: [Errno 24]")
    assert told["talks"] == "error: talks returned more than 1,000 bytes; ask for less"
    assert "SHOP_KEY" not in told["tells"]
    assert "a-secret" not in told["tells"]
    assert told["kills"].startswith("error: P")
    assert told["aborts"] == "error: aborts was ended by signal SIGABRT"
    assert told["exits"] == "error: exits ended without a result"
    assert told["raises"] == "error: LookupError: nothing of that name"
    if level == "sandbox":
        assert told[f"reads {tmp_path / 'secret'}"].startswith("error: FileNotFoundError")
        assert told["connects"].startswith("error: ConnectionRefusedError")
    else:
        assert told["connects"] == "connected"
        assert not psutil.pid_exists(int(told["leaves"]))
    out, err = capfd.readouterr()
    assert "what a tool prints" not in out + err + caplog.text
    assert "and what it says" not in out + err + caplog.text
    assert not [one for one in psutil.Process().children(recursive=True) if "tools.warm" in " ".join(one.cmdline())]


def test_a_system_that_allows_no_sandbox_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = tmp_path / "bwrap"
    refuses.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    refuses.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ToolError, match="lets bubblewrap make no sandbox: bwrap: No permissions") as caught:
        bubblewrap()
    assert "isolation='process'" in caught.value.fix
