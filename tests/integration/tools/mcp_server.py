"""An MCP server, for the tests: `mcp_server.py` speaks over stdio, `mcp_server.py PORT` over HTTP."""

from __future__ import annotations

import os
import sys

from mcp.server.mcpserver import MCPServer

server = MCPServer("shop")


@server.tool()
def add(a: int, b: int = 1) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def fails() -> str:
    """Always."""
    raise ValueError("out of order")


@server.tool()
def pid() -> int:
    """Which process it is."""
    return os.getpid()


@server.tool()
def dies() -> None:
    """Ends the server in the midst of the call."""
    os._exit(3)


@server.tool()
def environment(name: str) -> str:
    """What it sees of the environment."""
    return os.environ.get(name, "nothing")


@server.tool()
async def hangs() -> None:
    """Never answers."""
    import asyncio

    await asyncio.sleep(3600)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
