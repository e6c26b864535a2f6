"""The way of every request for data: request, validate, authorise, operate, answer; and an audit record of it.

All of it is one durable step: a rerun is given the recorded answer. The audit record is written before the answer
counts, so nothing was read or changed without one; a worker that dies in between leaves two of the same `key`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from llmagentos.agents.agent import Agent, agent
from llmagentos.streams.errors import DataRefused

if TYPE_CHECKING:
    from llmagentos.agents.context import Context
    from llmagentos.streams.message import Message

__all__ = ["EVERYONE", "Caller", "DataTool", "Operation", "Request", "Source", "Who", "data_agent", "permitted"]

log = logging.getLogger("llmagentos.data")

#: Who may: names of agents, or everyone.
Who = Collection[str] | Literal["*"]
EVERYONE: Final = "*"

#: Of a value in an audit record: a statement of some lines, not what is in the file that was written.
AUDIT_MAX: Final = 1_000

#: What a text for a model begins with where its request was refused.
ERROR: Final = "error:"


class Request(BaseModel):
    """The arguments of an operation; nothing beyond its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        name: the agent whose tool it is, or that asked the data agent.
        tenant: who pays.
        key: of this request, the same on every rerun.
    """

    name: str
    tenant: str
    key: str


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One thing that can be done with a source of data.

    Attributes:
        name, description: what a model is told.
        request: its arguments.
        target: what is to be used, by the request, for the audit record.
        authorise: raises DataRefused where the caller may not.
        do: does it, in a thread; what JSON can say. Raises DataRefused.
    """

    name: str
    description: str
    request: type[Request]
    target: Callable[[Any], str] = field(repr=False)
    authorise: Callable[[Caller, Any], None] = field(repr=False)
    do: Callable[[Caller, Any], Any] = field(repr=False)


class Source(Protocol):
    """Files or tables."""

    def operations(self) -> Sequence[Operation]:
        """What can be done with it."""
        ...


def permitted(who: Who, caller: str) -> bool:
    """Whether *caller* is one of *who*."""
    return who == EVERYONE or caller in who


class DataTool:
    """An operation as a tool of a model.

    Attributes:
        name, description: what a model is told.
        parameters: the JSON schema of the arguments.
    """

    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        self.name = operation.name
        self.description = operation.description
        schema = operation.request.model_json_schema()
        self.parameters: dict[str, Any] = {name: value for name, value in schema.items() if name != "title"}

    def invoke(self, ctx: Context, arguments: str | Mapping[str, Any]) -> Awaitable[str]:
        """Do it on behalf of a model; what the model is to read: JSON, or a text that begins with `error:`.

        Args:
            arguments: JSON text, or the object.
        """
        return self._text(self.ask(ctx, ctx.agent, arguments))

    def ask(self, ctx: Context, caller: str, arguments: str | Mapping[str, Any]) -> Awaitable[dict[str, Any]]:
        """Do it for *caller*: `{"answer": ...}`, or `{"error": why not}`. A durable step."""
        return ctx.step(f"data {self.name}", self._carry_out, ctx, caller, arguments, key_as="key")

    @staticmethod
    async def _text(asked: Awaitable[dict[str, Any]]) -> str:
        told = await asked
        return f"{ERROR} {told['error']}" if "error" in told else orjson.dumps(told["answer"]).decode()

    async def _carry_out(
        self, ctx: Context, name: str, arguments: str | Mapping[str, Any], *, key: str
    ) -> dict[str, Any]:
        caller, operation = Caller(name, ctx.tenant, key), self._operation
        outcome, target, told = "refused", "", {}
        try:
            request = self._validated(arguments)
            target = operation.target(request)
            operation.authorise(caller, request)
            told = {"answer": await asyncio.to_thread(operation.do, caller, request)}
            outcome = "done"
        except DataRefused as refused:
            told = {"error": str(refused)}
        except OSError as error:  # a disk that is full, a store out of reach: its text may name what is not theirs
            log.warning("%s for agent %s failed", operation.name, name, exc_info=error)
            outcome, told = "failed", {"error": f"{operation.name} failed: {error.strerror or type(error).__name__}"}
        record = {
            "operation": operation.name,
            "caller": name,
            "tenant": ctx.tenant,
            "target": target[:AUDIT_MAX],
            "outcome": outcome,
            "key": key,
        }
        await ctx.audit("data", record | ({"why": told["error"][:AUDIT_MAX]} if "error" in told else {}))
        return told

    def _validated(self, arguments: str | Mapping[str, Any]) -> Request:
        try:
            if isinstance(arguments, str):
                return self._operation.request.model_validate_json(arguments)
            return self._operation.request.model_validate(dict(arguments))
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors())
            raise DataRefused(f"{self.name} was asked wrongly: {wrong}") from None


def data_agent(name: str, *sources: Source) -> Agent:
    """An agent that does what other agents ask it: `await ctx.ask(name, {"operation": "read_file", "path": "a.txt"})`.

    Its answer is `{"answer": ...}` or `{"error": why not}`. Who may do what goes by the name of the agent that asks,
    as its message has it: whoever may produce to Kafka under that name is taken for it.
    """
    tools = {operation.name: DataTool(operation) for source in sources for operation in source.operations()}

    @agent(name)
    async def data(message: Message, ctx: Context) -> dict[str, Any]:
        """Reads and changes files and tables for other agents."""
        asked = message.content
        tool = tools.get(str(asked.get("operation"))) if isinstance(asked, dict) else None
        if tool is None or not isinstance(asked, dict):
            return {"error": f"name an operation: {{'operation': ...}} with one of {', '.join(tools)}"}
        arguments = {field: value for field, value in asked.items() if field != "operation"}
        return await tool.ask(ctx, message.sender, arguments)

    return data
