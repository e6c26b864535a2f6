"""The tools of one agent: what `@agent(tools=...)` was given, opened when first needed and closed with the worker."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmagentos.agents.tools.tool import check_name
from llmagentos.streams.errors import AgentError

if TYPE_CHECKING:
    from llmagentos.agents.context import Context
    from llmagentos.streams.message import Message

__all__ = ["Toolbox"]

#: What a tool has, whatever class it is of.
MEMBERS = ("name", "description", "parameters", "invoke")


class Toolbox:
    """The tools of one agent.

    Args:
        agent: its name, for errors.
        given: tools; or what has an `open()` that gives tools, as an MCP server's.

    Raises:
        AgentError: something given is no tool, or two have one name; or the agent has no context to call them with.
    """

    def __init__(self, agent: str, given: Sequence[Any], blocking: str | None) -> None:
        self._agent = agent
        if blocking == "process":
            raise AgentError(
                f"agent {agent!r} has tools, and runs in a process of its own, where it can't call them",
                fix="write an async handler; a tool itself may run apart: @tool(isolation='process')",
            )
        self._tools: dict[str, Any] = {}
        self._sources: list[Any] = []
        for each in given:
            if hasattr(each, "open"):
                self._sources.append(each)
            else:
                self._add(self._tools, each)

    def _add(self, tools: dict[str, Any], tool: Any) -> None:
        if not all(hasattr(tool, member) for member in MEMBERS):
            raise AgentError(
                f"agent {self._agent!r} was given {tool!r} as a tool, which is none",
                fix="decorate the function with @tool() (from llmagentos.agents.tools)",
            )
        check_name(tool.name)
        if tool.name in tools:
            raise AgentError(
                f"agent {self._agent!r} was given two tools named {tool.name!r}",
                fix="give one another name: @tool('name'), mcp_tools(..., prefix='name_')",
            )
        tools[tool.name] = tool

    def around(self, handler: Callable[..., Awaitable[Any]]) -> Callable[[Message, Context], Awaitable[Any]]:
        """*handler* with `ctx.tools` set before it begins."""

        @functools.wraps(handler, updated=())
        async def handle(message: Message, ctx: Context) -> Any:
            ctx.tools = await self.opened()
            return await handler(message, ctx)

        return handle

    async def opened(self) -> Mapping[str, Any]:
        """All tools by name; those of servers as they are now.

        Raises:
            ToolError: a server does not answer.
        """
        tools = self._tools
        for source in self._sources:
            tools = dict(tools)
            for tool in await source.open():
                self._add(tools, tool)
        return MappingProxyType(tools)

    async def close(self) -> None:
        """Close what was opened."""
        for each in (*self._sources, *self._tools.values()):
            if (close := getattr(each, "close", None)) is not None:
                await close()
