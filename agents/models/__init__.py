"""Models: what `ctx.llm` is made of.

A provider asks one model (:mod:`.provider` is the seam, :mod:`.endpoint` and :mod:`.scripted` are two), :mod:`.service`
has those of a worker and decides whom to ask and how often, and :mod:`.llm` records what they said.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmagentos.agents.models.llm import Llm, Reply
    from llmagentos.agents.models.provider import Call, Provider, Request, ToolLike, Turn, Usage
    from llmagentos.agents.models.scripted import Scripted
    from llmagentos.agents.models.service import Models

__all__ = [
    "Call", "Llm", "Models", "Provider", "Reply", "Request", "Scripted", "ToolLike", "Turn", "Usage",
]  # fmt: skip

_PLACES = {
    "Call": "provider",
    "Llm": "llm",
    "Models": "service",
    "Provider": "provider",
    "Reply": "llm",
    "Request": "provider",
    "Scripted": "scripted",
    "ToolLike": "provider",
    "Turn": "provider",
    "Usage": "provider",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
