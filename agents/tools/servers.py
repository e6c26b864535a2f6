"""MCP servers: their tools as an agent's, over stdio or HTTP, by the protocol's own client (package `mcp`).

A server is started, or connected to, when its tools are first needed, and let go with the worker. One that died gives
the model an error, and is started again for the next call.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

from llmagentos.agents.tools.confine import Limits
from llmagentos.agents.tools.isolation import CallFailed
from llmagentos.agents.tools.signature import check_by
from llmagentos.agents.tools.tool import TIMEOUT_S, Allow, Approve, Tool, check_name, step_of
from llmagentos.streams.errors import AgentError, ToolError

if TYPE_CHECKING:
    from mcp import Client

__all__ = ["McpServer", "mcp_tools"]

#: A server may be installed by the very command that starts it (`npx`, `uvx`).
START_S: Final = 120.0
#: One that is told to end gets SIGTERM and SIGKILL within some 4 s by the client; beyond this it is left to itself.
CLOSE_S: Final = 10.0
#: Of what a server that does not start wrote to stderr: the end, for the error.
SAID_BYTES: Final = 2_000
#: Pages of a server's list of tools: a hundred tools and more each; one that never ends must not hang a worker.
PAGES_MOST: Final = 100


def mcp_tools(
    server: str | Sequence[str],
    *,
    only: Sequence[str] | None = None,
    prefix: str = "",
    env: Sequence[str] = (),
    cwd: str | Path | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT_S,
    allow: Allow | None = None,
    approve: Approve = False,
) -> McpServer:
    """The tools of an MCP server, for `@agent(tools=[...])`.

        files = mcp_tools("npx -y @modelcontextprotocol/server-filesystem /srv/docs", only=["read_file"])

    Args:
        server: a command that speaks MCP over stdin and stdout, or the `http://` or `https://` URL of one that runs.
        only: names of the tools that the agent is given; None: all that the server has.
        prefix: in front of the names, where two servers have tools of the same.
        env: names of environment variables that a command is to see, beside PATH, HOME and the like.
        cwd: folder that a command runs in.
        headers: sent with each HTTP request, for example `Authorization`.
        timeout: seconds of one call.
        allow, approve: see :func:`tool`; for each of them.

    Raises:
        AgentError: the package `mcp` is not installed, or *server* is neither a command nor a URL.
    """
    if importlib.util.find_spec("mcp") is None:
        raise AgentError(
            f"the tools of MCP server {server!r} need the package mcp", fix="pip install 'llmagentos[tools]'"
        )
    command = shlex.split(server) if isinstance(server, str) else list(server)
    url = command[0] if len(command) == 1 and re.match(r"https?://", command[0]) else ""
    if not command or (headers and not url) or (url and (env or cwd)):
        raise AgentError(
            f"mcp_tools({server!r}) is no command, or has options of the other kind",
            fix="give a command (with env and cwd), or a URL (with headers)",
        )
    made = McpServer(command, url)
    made.only, made.prefix, made.timeout_s = only, prefix, timeout
    made.env, made.cwd, made.headers = env, cwd, headers
    made.allow, made.approve = allow, approve
    return made


class McpServer:
    """An MCP server; see :func:`mcp_tools`, which makes one. Used from one event loop at a time."""

    def __init__(self, command: Sequence[str], url: str) -> None:
        self.name = url or " ".join(command)
        self.only: Sequence[str] | None = None
        self.prefix = ""
        self.env: Sequence[str] = ()
        self.cwd: str | Path | None = None
        self.headers: Mapping[str, str] | None = None
        self.timeout_s = TIMEOUT_S
        self.allow: Allow | None = None
        self.approve: Approve = False
        self._command = command
        self._url = url
        self._connection: _Connection | None = None
        self._connecting: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tools: list[Tool] | None = None

    async def open(self) -> Sequence[Tool]:
        """Its tools; asked for once, so that an agent has the same ones while its worker runs.

        Raises:
            ToolError: it can't be started or reached, or has not what *only* names.
        """
        if self._tools is None:
            client = await self._client()
            try:
                self._tools = [self._tool(each) for each in await self._listed(client)]
            except Exception as error:
                raise await self._lost(client, error) from error
            missing = set(self.only or ()) - {each.name.removeprefix(self.prefix) for each in self._tools}
            if missing:
                self._tools = None
                raise ToolError(
                    f"MCP server {self.name} has no tool {', '.join(sorted(missing))}", fix="correct `only`"
                )
        return self._tools

    async def close(self) -> None:
        """End the server, or leave it; the next call comes back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _listed(self, client: Client) -> list[Any]:
        found: list[Any] = []
        cursor: str | None = None
        for _ in range(PAGES_MOST):
            page = await client.list_tools(cursor=cursor)
            found += [tool for tool in page.tools if self.only is None or tool.name in self.only]
            cursor = page.next_cursor
            if not cursor:
                break
        return found

    def _tool(self, described: Any) -> Tool:
        name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{self.prefix}{described.name}")  # theirs may have dots, too
        check_name(name)

        async def call(values: dict[str, Any], given: Mapping[str, Any]) -> str:
            return await self._call(described.name, values)

        return Tool(
            name,
            described.description or "",
            described.input_schema,
            check=check_by(name, described.input_schema),
            do=step_of(name, call),
            allow=self.allow,
            approve=self.approve,
        )

    async def _call(self, name: str, arguments: dict[str, Any]) -> str:
        from mcp import MCPError
        from mcp.types import CONNECTION_CLOSED, REQUEST_TIMEOUT

        client = await self._client()
        try:
            async with asyncio.timeout(self.timeout_s):
                result = await client.call_tool(name, arguments)
        except TimeoutError:
            await self._drop(client)  # it may hang, and the next one finds another
            raise CallFailed(f"{name} of MCP server {self.name} took longer than {self.timeout_s:g} s") from None
        except MCPError as error:
            if error.code in (CONNECTION_CLOSED, REQUEST_TIMEOUT):
                raise CallFailed((await self._lost(client, error)).what) from error
            raise CallFailed(f"{name} of MCP server {self.name}: {error}") from error
        except Exception as error:
            raise CallFailed((await self._lost(client, error)).what) from error
        text = _text(result)
        if len(text) > Limits().output_bytes:
            raise CallFailed(f"{name} returned more than {Limits().output_bytes:,} characters; ask for less")
        if result.is_error:
            raise CallFailed(text)
        return text

    # -- the connection -----------------------------------------------------------------------------------------

    async def _client(self) -> Client:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # the one before is gone, with all that ran in it
            self._loop, self._connecting, self._connection = loop, asyncio.Lock(), None
        assert self._connecting is not None
        async with self._connecting:
            if self._connection is not None and self._connection.over:
                await self.close()
            if self._connection is None:
                connection = _Connection(self)
                try:
                    async with asyncio.timeout(START_S):
                        await asyncio.shield(connection.ready)
                except BaseException as error:
                    await connection.close()
                    if not isinstance(error, Exception):
                        raise
                    raise ToolError(
                        f"MCP server {self.name} can't be {'reached' if self._url else 'started'}: {_leaf(error)}"
                        + (f"; it said: {connection.said}" if connection.said else ""),
                        fix="try it by hand" if self._command else "",
                    ) from error
                self._connection = connection
            return await self._connection.ready

    async def _lost(self, client: Client, error: Exception) -> ToolError:
        """What to say of a server that does not answer any more; it is connected to anew."""
        await self._drop(client)
        return ToolError(
            f"MCP server {self.name} does not answer ({_leaf(error)}); it is {'reached' if self._url else 'started'}"
            " again for the next call"
        )

    async def _drop(self, client: Client) -> None:
        """Let go of the connection of *client*, unless somebody did and there is another."""
        connection = self._connection
        if connection is not None and connection.ready.result() is client:
            await self.close()

    def transport(self, stack: contextlib.AsyncExitStack, said: TextIO) -> Any:
        """What the client speaks over; what it brings is closed by *stack*."""
        if self._url:
            import httpx2
            from mcp.client.streamable_http import streamable_http_client

            # What the client's own default has: an answer may stream for long.
            http = httpx2.AsyncClient(headers=dict(self.headers or {}), timeout=httpx2.Timeout(30.0, read=300.0))
            stack.push_async_exit(http)
            return streamable_http_client(self._url, http_client=http)
        from mcp import StdioServerParameters, stdio_client

        granted = {name: os.environ[name] for name in self.env if name in os.environ}
        return stdio_client(
            StdioServerParameters(command=self._command[0], args=list(self._command[1:]), env=granted, cwd=self.cwd),
            errlog=said,
        )


class _Connection:
    """One client, in a task of its own: it must be left in the task that entered it.

    Attributes:
        ready: the client, once both sides have said hello.
        said: what the server wrote to stderr, where it did not start.
    """

    def __init__(self, server: McpServer) -> None:
        self.ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self.said = ""
        self._end = asyncio.Event()
        self._task = asyncio.create_task(self._hold(server))

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._task.done()

    async def _hold(self, server: McpServer) -> None:
        from mcp import Client

        with tempfile.TemporaryFile("w+", errors="replace") as said:
            try:
                async with contextlib.AsyncExitStack() as stack:
                    client = await stack.enter_async_context(Client(server.transport(stack, cast(TextIO, said))))
                    if not self.ready.done():
                        self.ready.set_result(client)
                    await self._end.wait()
            except BaseException as error:  # of whichever library lies below
                said.seek(max(0, said.seek(0, os.SEEK_END) - SAID_BYTES))
                self.said = said.read().strip()
                if not self.ready.done():
                    self.ready.set_exception(error if isinstance(error, Exception) else ConnectionError(_leaf(error)))
                    self.ready.exception()  # where nobody waits for it, that is no news
                if isinstance(error, asyncio.CancelledError):
                    raise

    async def close(self) -> None:
        """Leave the server; a command is ended."""
        self._end.set()
        await asyncio.wait((self._task,), timeout=CLOSE_S if self.ready.done() else 0)
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=CLOSE_S)


def _leaf(error: BaseException) -> str:
    """What is at the bottom of *error*: task groups wrap what they raise."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _text(result: Any) -> str:
    """What of a result a model can read: texts, and the names of what is none."""
    parts: list[str] = []
    for each in result.content:
        if each.type == "text":
            parts.append(each.text)
        elif each.type == "resource" and hasattr(each.resource, "text"):
            parts.append(each.resource.text)
        elif each.type == "resource_link":
            parts.append(f"[{each.uri}]")
        else:
            parts.append(f"[{each.type} {getattr(each, 'mime_type', '') or ''}]".replace(" ]", "]"))
    if not parts and result.structured_content is not None:
        import orjson

        return orjson.dumps(result.structured_content).decode()
    return "\n".join(parts)
