"""Other agents as tools: a call is a question, and what they answer is what the model reads."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, Final

import pydantic

from llmagentos.agents.tools.signature import WrongArguments, check_by, describe, plain
from llmagentos.agents.tools.tool import ERROR, Allow, Approve, Tool, abandon, as_text, check_name
from llmagentos.streams.errors import AgentError, AnswerError, AnswerTimeout

if TYPE_CHECKING:
    from llmagentos.agents.context import Context

__all__ = ["agent_tool"]

#: Of an agent that is asked in words.
_WORDS: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"message": {"type": "string", "description": "what it is asked, in words"}},
    "required": ["message"],
    "additionalProperties": False,
}


def agent_tool(
    agent: str,
    description: str,
    schema: Mapping[str, Any] | type[pydantic.BaseModel] | None = None,
    *,
    name: str | None = None,
    timeout: float | None = None,
    allow: Allow | None = None,
    approve: Approve = False,
) -> Tool:
    """Have a model ask another agent.

        critic = agent_tool("critic", "Judges a text.")

    Args:
        agent: whom; it is asked in the same conversation.
        description: what a model is told of it.
        schema: of what it is asked, an object: a JSON schema, or a Pydantic model; None: a text.
        name: of the tool; None: the agent's.
        timeout: seconds; None: as of `Context.ask`.
        allow, approve: see :func:`tool`.

    Raises:
        AgentError: the name can't be a tool's, or the schema is none of an object.
    """
    label = agent if name is None else name
    check_name(label)
    check: Callable[[Mapping[str, Any]], dict[str, Any]]
    if schema is None:
        parameters: Mapping[str, Any] = _WORDS
        check = _message
    elif isinstance(schema, type):
        parameters, check = plain(schema.model_json_schema()), _by_model(schema)
    else:
        if schema.get("type") != "object":
            raise AgentError(
                f"tool {label!r}: its schema is of type {schema.get('type')!r}",
                fix='give one of an object: {"type": "object", "properties": {...}}',
            )
        parameters, check = schema, check_by(label, schema)

    def do(ctx: Context, values: dict[str, Any], given: Mapping[str, Any]) -> Awaitable[str]:
        return _Answer(ctx.ask(agent, values["message"] if schema is None else values, timeout=timeout))

    return Tool(label, description, parameters, check=check, do=do, allow=allow, approve=approve)


class _Answer:
    """An answer as a text, also where it is an error."""

    def __init__(self, asked: Awaitable[Any]) -> None:
        self._asked = asked

    def __await__(self) -> Generator[Any, Any, str]:
        return self._read().__await__()

    async def _read(self) -> str:
        try:
            return as_text(await self._asked)
        except (AnswerError, AnswerTimeout) as error:
            return f"{ERROR} {error.what}"

    def close(self) -> None:
        abandon(self._asked)


def _message(arguments: Mapping[str, Any]) -> dict[str, Any]:
    message = arguments.get("message")
    if not isinstance(message, str) or len(arguments) != 1:
        raise WrongArguments('wrong arguments: give one text, {"message": "..."}')
    return {"message": message}


def _by_model(model: type[pydantic.BaseModel]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    def check(arguments: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return json.loads(model.model_validate(arguments).model_dump_json())
        except pydantic.ValidationError as error:
            raise WrongArguments(describe(error)) from error

    return check
