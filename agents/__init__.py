"""The agent API, workers and deployments."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# At once, as the function `agent` must hide the module of that name.
from llmagentos.agents.agent import Agent, agent
from llmagentos.streams.message import Message

if TYPE_CHECKING:
    from llmagentos.agents.client import Client
    from llmagentos.agents.context import Approval, Context
    from llmagentos.agents.results import result_type
    from llmagentos.streams.errors import StepFailed, StepUnknown

__all__ = [
    "Agent", "Approval", "Client", "Context", "Message", "StepFailed", "StepUnknown", "agent", "result_type",
]  # fmt: skip

#: Imported when first asked for: they bring Kafka's client, which a supervisor never needs.
_LATER = {
    "Approval": "llmagentos.agents.context",
    "Client": "llmagentos.agents.client",
    "Context": "llmagentos.agents.context",
    "StepFailed": "llmagentos.streams.errors",
    "StepUnknown": "llmagentos.streams.errors",
    "result_type": "llmagentos.agents.results",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
