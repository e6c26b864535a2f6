"""The data service: files and SQL tables for agents and models, each operation checked, allowed and audited.

notes = Files("/srv/notes", write={"clerk"})
stock = Tables("/srv/stock.db", write={"orders": {"clerk"}})

@agent("clerk")
async def clerk(message, ctx):
    return (await ctx.llm.chat(message.text, tools=[*notes.tools(), *stock.tools()])).text

data = data_agent("data", notes, stock)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmagentos.agents.data.files import Files
    from llmagentos.agents.data.service import DataTool, data_agent
    from llmagentos.agents.data.tables import Tables

__all__ = ["DataTool", "Files", "Tables", "data_agent"]

_PLACES = {"DataTool": "service", "Files": "files", "Tables": "tables", "data_agent": "service"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
