"""`@tool`: a typed function that a model may have called; and the way that every call goes, whatever is called.

A call is checked (the arguments against the schema), allowed (by policy: what the agent was given, the operator's
`tool_policy`, the tool's own `allow`), approved where it must be, and then done as a durable step: once, whatever
becomes of the worker. What the model can mend comes back to it as a text that begins with `error:`.
"""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import math
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pydantic_core

from llmagentos.agents.tools.confine import Limits
from llmagentos.agents.tools.isolation import Apart, CallFailed, Isolation
from llmagentos.agents.tools.signature import Signature, WrongArguments, parse
from llmagentos.streams.errors import AgentError, ToolError

if TYPE_CHECKING:
    from llmagentos.agents.context import Context

__all__ = ["ERROR", "Call", "Tool", "abandon", "as_text", "check_name", "step_of", "tool"]

log = logging.getLogger("llmagentos.tools")

#: What a text for the model begins with where the call did not succeed.
ERROR: Final = "error:"

#: What OpenAI's API and others take as a function's name.
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")

#: Seconds of a call that says nothing else: what a person who waits for an answer would bear.
TIMEOUT_S: Final = 60.0


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

#: Whether a person must approve a call: always, where a function of its arguments says so, or where one of them, by
#: name, is above a number.
Approve = bool | Callable[[dict[str, Any]], bool] | Mapping[str, float]

#: Begins a call, and takes its place among the handler's steps at once: of the context, the arguments as they were
#: checked, and as they were given. Awaited, the text for the model; one that is not to be awaited can be closed.
Do = Callable[["Context", dict[str, Any], Mapping[str, Any]], Awaitable[str]]


@dataclass(frozen=True, slots=True, eq=False)
class Tool:
    """What a model may have called. Of a function, calling it calls the function, so that it can be tested alone.

    Attributes:
        name, description: what a model is told.
        parameters: the JSON schema of its arguments.
        check: raises WrongArguments, or gives the arguments as a function takes them.
        do: does it.
        function: what `@tool` decorated; None where there is none.
        allow: judges each call; None: whoever was given the tool may call it.
        approve: which calls a person must approve.
        close: ends what was started for it; None: nothing is.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    check: Callable[[Mapping[str, Any]], dict[str, Any]] = field(repr=False)
    do: Do = field(repr=False)
    function: Callable[..., Any] | None = field(default=None, repr=False)
    allow: Allow | None = field(default=None, repr=False)
    approve: Approve = field(default=False, repr=False)
    close: Callable[[], Awaitable[None]] | None = field(default=None, repr=False)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.function is None:
            raise TypeError(f"tool {self.name!r} is no function: await its invoke(ctx, arguments)")
        return self.function(*args, **options)

    def invoke(self, ctx: Context, arguments: str | Mapping[str, Any]) -> Coroutine[Any, Any, str]:
        """Call it on behalf of a model; awaited, what the model is to read.

        Its place among the handler's steps is taken at once, so that calls side by side (`asyncio.gather`) keep theirs.

        Args:
            arguments: JSON text, or the object.

        Raises:
            ToolError: it can't be run where it is to run.
            StepError, ChangedCode, ResultError: as of `Context.step`.
        """
        try:
            given = parse(arguments)
            values = self.check(given)
        except WrongArguments as error:
            return self._refuse(ctx, str(error))
        refused = self._denied(ctx, values)
        if refused:
            return self._refuse(ctx, refused)
        if not self._must_be_approved(values):
            return _awaited(self.do(ctx, values, given))
        asked = ctx.approve(f"{ctx.agent} is to call {self.name}: {pydantic_core.to_json(dict(given)).decode()}")
        return self._approved(asked, self.do(ctx, values, given))

    async def _approved(self, asked: Awaitable[Any], done: Awaitable[str]) -> str:
        try:
            approval = await asked
            if approval:
                return await done
        finally:  # where it does not come to it: so that Python doesn't warn of a coroutine that nobody awaited
            abandon(done)
        why = f": {approval.why}" if approval.why else ""
        return f"{ERROR} a person did not approve this call of {self.name}{why}"

    def _refuse(self, ctx: Context, why: str) -> Coroutine[Any, Any, str]:
        # A step too, so that a rerun is told the same though the policy was changed.
        return _awaited(ctx.step(_step_name(self.name), _say, f"{ERROR} {why}"))

    def _denied(self, ctx: Context, values: dict[str, Any]) -> str:
        if not permitted(ctx.settings.tool_policy, ctx.tenant, ctx.agent, self.name):
            return f"{self.name} is not allowed here"
        if self.allow is None:
            return ""
        judged = self.allow(Call(self.name, ctx.agent, ctx.conversation, ctx.tenant, values))
        if judged is True:
            return ""
        return f"{self.name} is not allowed{f': {judged}' if isinstance(judged, str) and judged else ''}"

    def _must_be_approved(self, values: dict[str, Any]) -> bool:
        if isinstance(self.approve, bool):
            return self.approve
        if isinstance(self.approve, Mapping):  # what is no number is not below it
            return any(not _at_most(values.get(name), most) for name, most in self.approve.items())
        return self.approve(values)


def permitted(policy: Mapping[str, str], tenant: str, agent: str, tool: str) -> bool:
    """Whether the operator's *policy* lets *agent* call *tool* for *tenant*: the first pattern that fits counts.

    A pattern is `TOOL`, `AGENT/TOOL` or `TENANT/AGENT/TOOL`, with `*` for any.
    """
    names = (tenant, agent, tool)
    for pattern, verdict in policy.items():
        parts = pattern.split("/")
        if all(map(fnmatch.fnmatchcase, names[-len(parts) :], parts)):
            return verdict == "allow"
    return True


def _at_most(value: Any, most: float) -> bool:
    try:
        return value is not None and bool(value <= most) and not math.isnan(value)
    except TypeError:
        return False


def _step_name(name: str) -> str:
    return f"tool {name}"


def step_of(name: str, call: Callable[..., Awaitable[str]], *, keyed: bool = False) -> Do:
    """For `Tool.do`: *call*, as a durable step whose result is a text, also where it fails.

    Args:
        call: `(checked arguments, arguments as given)`.
        keyed: give it the step's idempotency key too, as `key`.
    """

    async def guarded(values: dict[str, Any], given: Mapping[str, Any], **key: str) -> str:
        try:
            return await call(values, given, **key)
        except ToolError:  # of no use to a model: who runs the agent has to mend it
            raise
        except CallFailed as error:
            return f"{ERROR} {error}"
        except Exception as error:  # of the tool's making, and the model's to deal with
            log.warning("tool %s failed", name, exc_info=error)
            return f"{ERROR} {type(error).__name__}: {error}"

    def do(ctx: Context, values: dict[str, Any], given: Mapping[str, Any]) -> Awaitable[str]:
        return ctx.step(_step_name(name), guarded, values, given, key_as="key" if keyed else None)

    return do


async def _awaited(said: Awaitable[str]) -> str:
    return await said


def abandon(awaitable: Awaitable[Any]) -> None:
    """Say that nobody will await *awaitable*, be it that it was."""
    if (end := getattr(awaitable, "close", None)) is not None:
        end()


async def _say(text: str) -> str:
    return text


def tool(
    name: str | None = None,
    *,
    description: str | None = None,
    allow: Allow | None = None,
    approve: Approve = False,
    isolation: Isolation = "none",
    limits: Limits | None = None,
    timeout: float = TIMEOUT_S,
    env: Sequence[str] = (),
    key_as: str | None = None,
) -> Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a typed function, async or plain.

    Args:
        name: the tool's; None: the function's.
        description: what a model is told; None: the docstring up to its first section.
        allow: judges each call by tool, agent, tenant and arguments: true, false, or a text that says why not.
        approve: which calls wait for a person: `True`; a function of the arguments; or `{"amount": 100}`, those where
            the argument is above the number. The same answer for the same arguments, always.
        isolation: `none`: in the worker, a plain function in a thread; `process`: in a fresh process with *limits*;
            `sandbox`: there, and without network and the system's files. The last two need Linux.
        limits: of one call; with isolation.
        timeout: seconds of one call. What runs apart is ended then; a thread is left to itself.
        env: names of environment variables that the function is to see; with isolation it sees no others.
        key_as: the keyword argument in which it takes the call's idempotency key; not the model's to give.

    Raises:
        AgentError: the name can't be a tool's, a parameter has no type, or an option makes no sense.
    """
    if callable(name):
        raise AgentError("@tool is missing its parentheses", fix='write @tool() or @tool("name")')

    def decorate(function: Callable[..., Any]) -> Tool:
        label = name if name is not None else getattr(function, "__name__", "tool")
        check_name(label)
        signature = Signature(label, function, frozenset({key_as} if key_as else ()))
        _check_options(label, signature.parameters, approve, isolation, limits, timeout, env)
        apart: Apart | None = None
        if isolation != "none":
            apart = Apart(label, function, isolation, limits or Limits(), timeout, env, key_as)

        async def here(values: dict[str, Any], given: Mapping[str, Any], **key: str) -> str:
            from llmagentos.agents.steps import called  # brings much that a forked call never needs

            extra = {key_as: key["key"]} if key_as else {}
            limit: asyncio.Timeout | None = None
            try:
                async with asyncio.timeout(timeout) as limit:
                    return as_text(await called(partial(function, **values, **extra)))
            except TimeoutError:
                if limit is None or not limit.expired():  # its own
                    raise
                raise CallFailed(f"{label} took longer than {timeout:g} s and was given up") from None

        async def there(values: dict[str, Any], given: Mapping[str, Any], **key: str) -> str:
            assert apart is not None
            return await apart.call(given, {key_as: key["key"]} if key_as else {})

        return Tool(
            name=label,
            description=description if description is not None else signature.description,
            parameters=signature.parameters,
            check=signature.check,
            do=step_of(label, here if apart is None else there, keyed=key_as is not None),
            function=function,
            allow=allow,
            approve=approve,
            close=None if apart is None else apart.close,
        )

    return decorate


def _check_options(
    label: str,
    parameters: Mapping[str, Any],
    approve: Approve,
    isolation: str,
    limits: Limits | None,
    timeout: float,
    env: Sequence[str],
) -> None:
    if isolation not in ("none", "process", "sandbox"):
        raise AgentError(f"tool {label!r}: isolation = {isolation!r}", fix="write 'none', 'process' or 'sandbox'")
    if isolation == "none" and (limits is not None or env):
        raise AgentError(
            f"tool {label!r} has limits or env, which hold for what runs apart, and isolation='none'",
            fix="write isolation='process' or 'sandbox', or leave them out",
        )
    if not 0 < timeout < math.inf:
        raise AgentError(f"tool {label!r}: timeout = {timeout!r}", fix="give a number of seconds above 0")
    if isinstance(approve, Mapping) and (unknown := set(approve) - set(parameters["properties"])):
        raise AgentError(
            f"tool {label!r}: approve names {sorted(unknown)}, which it does not take",
            fix=f"name one of {sorted(parameters['properties'])}",
        )


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
