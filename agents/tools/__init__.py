"""Tools: what a model may have done. Functions, MCP servers and other agents, each with a name and a JSON schema.

@tool()
def weather(city: str, days: int = 1) -> str:
    \"\"\"The weather forecast.

    Args:
        city: where.
        days: how many, from today on.
    \"\"\"

@agent("guide", tools=[weather])
async def guide(message, ctx):
    return await ctx.tools["weather"].invoke(ctx, {"city": "Oslo"})
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# At once, as the function `tool` must hide the module of that name.
from llmagentos.agents.tools.confine import Limits
from llmagentos.agents.tools.tool import Call, Tool, tool

if TYPE_CHECKING:
    from llmagentos.agents.tools.others import agent_tool
    from llmagentos.agents.tools.servers import McpServer, mcp_tools

__all__ = ["Call", "Limits", "McpServer", "Tool", "agent_tool", "mcp_tools", "tool"]

#: Imported when first asked for.
_LATER = {
    "McpServer": "llmagentos.agents.tools.servers",
    "agent_tool": "llmagentos.agents.tools.others",
    "mcp_tools": "llmagentos.agents.tools.servers",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
