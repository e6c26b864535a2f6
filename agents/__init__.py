"""The agent API, workers and deployments."""

from llmagentos.agents.agent import Agent, agent
from llmagentos.agents.client import Client
from llmagentos.agents.context import Context
from llmagentos.streams.message import Message

__all__ = ["Agent", "Client", "Context", "Message", "agent"]
