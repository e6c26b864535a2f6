"""The agent API, workers and deployments."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# At once, as the function `agent` must hide the module of that name.
from llmagentos.agents.agent import Agent, agent
from llmagentos.streams.message import Message

if TYPE_CHECKING:
    from llmagentos.agents.client import Client
    from llmagentos.agents.context import Context

__all__ = ["Agent", "Client", "Context", "Message", "agent"]

#: Imported when first asked for: they bring Kafka's client, which a supervisor never needs.
_LATER = {"Client": "llmagentos.agents.client", "Context": "llmagentos.agents.context"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
