"""`@tool`: a typed function that a model may have called; and the way that every call goes, whatever is called.

A call is checked (the arguments against the schema), allowed (by policy: what the agent was given, the operator's
`tool_policy`, the tool's own `allow`), approved where it must be, and then done as a durable step: once, whatever
becomes of the worker. What the model can mend comes back to it as a text that begins with `error:`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pydantic_core

from llmagentos.agents.tools.signature import Signature, WrongArguments, parse
from llmagentos.streams.errors import AgentError

if TYPE_CHECKING:
    from llmagentos.agents.context import Context

__all__ = ["ERROR", "Call", "Tool", "as_text", "tool"]

log = logging.getLogger("llmagentos.tools")

#: What a text for the model begins with where the call did not succeed.
ERROR: Final = "error:"

#: What OpenAI's API and others take as a function's name.
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is to be judged.

    Attributes:
        tool, agent, conversation, tenant: which, by whom, where, and who pays.
        arguments: checked, as the function is given them.
    """

    tool: str
    agent: str
    conversation: str
    tenant: str
    arguments: dict[str, Any]


#: Whether a call may be: true, or false, or a text that says why not.
Allow = Callable[[Call], bool | str]


@dataclass(frozen=True, slots=True, eq=False)
class Tool:
    """What a model may have called. Of a function, calling it calls the function, so that it can be tested alone.

    Attributes:
        name, description: what a model is told.
        parameters: the JSON schema of its arguments.
        call: does it, with arguments that are checked; gives the text for the model.
        check: raises WrongArguments, or gives the arguments as *call* takes them.
        function: what `@tool` decorated; None where there is none.
        allow: judges each call; None: whoever was given the tool may call it.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    call: Callable[..., Awaitable[str]] = field(repr=False)
    check: Callable[[Mapping[str, Any]], dict[str, Any]] = field(repr=False)
    function: Callable[..., Any] | None = field(default=None, repr=False)
    allow: Allow | None = field(default=None, repr=False)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.function is None:
            raise TypeError(f"tool {self.name!r} is no function: await {self.name}.invoke(ctx, arguments)")
        return self.function(*args, **options)

    def invoke(self, ctx: Context, arguments: str | Mapping[str, Any]) -> Coroutine[Any, Any, str]:
        """Call it on behalf of a model; what the model is to read.

        Args:
            arguments: JSON text, or the object.

        Raises:
            StepError, ChangedCode, ResultError: as of `Context.step`.
        """
        try:
            values = self.check(parse(arguments))
        except WrongArguments as error:
            return ctx_step(ctx, self, _say, f"{ERROR} {error}")
        refused = self._refused(ctx, values)
        if refused:
            return ctx_step(ctx, self, _say, f"{ERROR} {refused}")
        return ctx_step(ctx, self, self._call, values)

    def _refused(self, ctx: Context, values: dict[str, Any]) -> str:
        if self.allow is None:
            return ""
        judged = self.allow(Call(self.name, ctx.agent, ctx.conversation, ctx.tenant, values))
        if judged is True:
            return ""
        return f"{self.name} is not allowed{f': {judged}' if isinstance(judged, str) and judged else ''}"

    async def _call(self, values: dict[str, Any]) -> str:
        try:
            return await self.call(values)
        except Exception as error:
            log.warning("tool %s failed", self.name, exc_info=error)
            return f"{ERROR} {type(error).__name__}: {error}"


async def ctx_step(ctx: Context, tool: Tool, function: Callable[[Any], Awaitable[str]], argument: Any) -> str:
    return await ctx.step(f"tool {tool.name}", function, argument)


async def _say(text: str) -> str:
    return text


def tool(name: str | None = None, *, description: str | None = None, allow: Allow | None = None) -> Callable[..., Tool]:
    """Make a tool of a typed function, async or plain.

    Args:
        name: the tool's; None: the function's.
        description: what a model is told; None: the docstring up to its first section.
        allow: judges each call by tool, agent, tenant and arguments: true, false, or a text that says why not.

    Raises:
        AgentError: the name can't be a tool's, or a parameter has no type.
    """
    if callable(name):
        raise AgentError("@tool is missing its parentheses", fix='write @tool() or @tool("name")')

    def decorate(function: Callable[..., Any]) -> Tool:
        label = name if name is not None else getattr(function, "__name__", "tool")
        check_name(label)
        signature = Signature(label, function)

        async def call(values: dict[str, Any]) -> str:
            from llmagentos.agents.steps import called

            return as_text(await called(lambda: function(**values)))

        return Tool(
            name=label,
            description=description if description is not None else signature.description,
            parameters=signature.parameters,
            call=call,
            check=signature.check,
            function=function,
            allow=allow,
        )

    return decorate


def check_name(name: str) -> None:
    """Raise AgentError where *name* can't be a tool's."""
    if not NAME.fullmatch(name):
        raise AgentError(
            f"{name!r} can't be a tool's name", fix="use letters, digits, - and _ (at most 64), beginning with a letter"
        )


def as_text(value: Any) -> str:
    """A tool's result as a model reads it: text as it is, all else as JSON.

    Raises:
        TypeError: JSON can't say it.
    """
    if isinstance(value, str):
        return value
    try:
        return pydantic_core.to_json(value, inf_nan_mode="constants").decode()
    except (pydantic_core.PydanticSerializationError, UnicodeDecodeError) as error:
        raise TypeError(f"it returned {type(value).__name__}, which JSON can't say: {error}") from error
