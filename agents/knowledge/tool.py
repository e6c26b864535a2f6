"""Knowledge as a tool: what a model is given to look things up with."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Final

from llmagentos.agents.knowledge.library import PASSAGES_MAX, Knowledge
from llmagentos.agents.knowledge.store import Passage
from llmagentos.agents.tools import Tool, tool
from llmagentos.streams.errors import InputError

__all__ = ["cited", "knowledge_tool"]

#: What a model is told where nothing says what the knowledge is of.
DESCRIPTION: Final = (
    "Search the documents. Gives the passages that answer the question best, each under a number and its source. "
    "Cite what you use by its number, and say so where nothing fits."
)


def knowledge_tool(
    knowledge: Knowledge | str | Path | None = None,
    *,
    name: str = "search_knowledge",
    description: str = DESCRIPTION,
    k: int = 5,
) -> Tool:
    """A tool that searches *knowledge*: for `ctx.llm.chat(..., tools=[knowledge_tool()])`, or `@agent(tools=[...])`.

    Args:
        knowledge: where to search: it, or the path of its store; None: the settings' store. A store is opened at the
            first call.
        description: what a model is told; say there what the documents are about.
        k: passages that a call gives, 1 to 50.

    Raises:
        InputError: *k* is none of these.
    """
    if not 1 <= k <= PASSAGES_MAX:
        raise InputError(f"{k} passages are asked for", fix=f"ask for 1 to {PASSAGES_MAX}")
    opened: list[Knowledge] = [knowledge] if isinstance(knowledge, Knowledge) else []
    opening = threading.Lock()

    def look(query: str) -> str:
        with opening:
            if not opened:
                assert not isinstance(knowledge, Knowledge)
                opened.append(Knowledge(knowledge))
        return cited(opened[0].search(query, k))

    async def search(query: str) -> str:
        return await asyncio.to_thread(look, query)

    return tool(name, description=description)(search)


def cited(passages: list[Passage]) -> str:
    """*passages* as a model reads them: each under `[1]`, `[2]`, ... and its source."""
    if not passages:
        return "Nothing was found."
    return "\n\n".join(
        f"[{number}] {each.citation}{f' ({each.title})' if each.title else ''}\n{each.text}"
        for number, each in enumerate(passages, 1)
    )
