"""An agent: a named handler of messages, made from one Python function."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from llmagentos.agents.blocking import Blocking, Function, Processes, Threads, usual_number
from llmagentos.streams.errors import AgentError
from llmagentos.streams.message import Message

if TYPE_CHECKING:
    from llmagentos.agents.context import Context
    from llmagentos.agents.tools.toolbox import Toolbox

__all__ = ["Agent", "Decode", "Handler", "Key", "agent"]

Handler = Callable[[Message, "Context"], Awaitable[Any]]

#: How the value of a topic that is not ours becomes the content of a message: a format by name, or a function.
Decode = Literal["json", "text", "bytes", "avro"] | Callable[[bytes], Any]

#: From a foreign record's (key, content) to the conversation that it belongs to.
Key = Callable[[bytes | None, Any], str]

#: Kafka allows 249 characters of these in a topic's name (org.apache.kafka.common.internals.Topic), and
#: prefixes and kinds are added to an agent's; the dot separates kind and name.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True, slots=True, eq=False)
class Agent:
    """What `@agent` makes of a function. Calling it calls the function, so that it can be tested alone.

    Attributes:
        name: unique in a cluster.
        handler: what the engine calls: `async (message, ctx) -> reply`.
        function: what `@agent` decorated: the same, or the plain function that the handler runs elsewhere.
        topic: None for an inbox of its own; otherwise the full name of a topic that exists already.
        decode, key: how records of such a topic are read; unused with an inbox.
        retries: how often a failed message is tried again before it becomes a dead letter.
        backoff_s: wait before the first retry; doubled for each further one, up to `backoff_max_s`.
        timeout_s: a handler that takes longer has failed; None: no limit but the message's deadline.
        max_in_flight: messages handled at once per worker; None: the settings' bound alone.
        memory: what it remembers of each conversation: a Pydantic model, or `dict`; None: nothing.
        tools: what its model may have called; None: nothing.
        executor: runs a plain function; None where the function is async.
        description: the function's docstring.
    """

    name: str
    handler: Handler
    function: Callable[..., Any]
    topic: str | None = None
    decode: Decode = "json"
    key: Key | None = None
    retries: int = 2
    backoff_s: float = 0.2
    backoff_max_s: float = 10.0
    timeout_s: float | None = None
    max_in_flight: int | None = None
    memory: type | None = None
    tools: Toolbox | None = field(default=None, repr=False)
    executor: Threads | Processes | None = field(default=None, repr=False)
    description: str = field(default="", repr=False)

    def __call__(self, message: Message, ctx: Any) -> Any:
        return self.function(message, ctx)

    @property
    def source(self) -> str:
        """Where the function is written, for error messages: `file:line`."""
        return _source(self.function)

    async def close(self) -> bool:
        """End the threads or processes of a plain function, and what tools opened; the worker calls it once drained.

        Returns:
            Whether all have ended.
        """
        if self.tools is not None:
            await self.tools.close()
        return self.executor is None or await self.executor.close()


def agent(
    name: str | None = None,
    *,
    topic: str | None = None,
    decode: Decode = "json",
    key: Key | None = None,
    retries: int = 2,
    backoff: float = 0.2,
    timeout: float | None = None,
    max_in_flight: int | None = None,
    blocking: Blocking | None = None,
    memory: type | None = None,
    tools: Sequence[Any] = (),
) -> Callable[[Function], Agent]:
    """Make an agent of an async function, or with `blocking` of a plain one.

        @agent("greeter")
        async def greeter(message, ctx):
            return f"Hello, {message.text}!"

    What the function returns is the reply (text, bytes, anything that JSON can say); None sends none.

    Args:
        name: the agent's; None: the function's.
        topic: a topic that exists already, in place of an inbox: its full name, without our prefix.
        decode: of such a topic: `json`, `text`, `bytes`, `avro` (Confluent wire format), or a function of bytes.
        key: of such a topic: a function of the record's key and content that names the conversation; by default
            the record's key, or topic and partition for a record that has none.
        retries, backoff, timeout, max_in_flight: see :class:`Agent`; seconds.
        blocking: how a plain function runs: in a `thread`, or in a `process` of its own. `max_in_flight` is then
            how many threads or processes there are; by default cores + 4 (at most 32), or as many as cores.
        memory: what `ctx.memory` is: `dict`, or a Pydantic model whose fields all have defaults. It is kept for each
            conversation, and changed together with the completion of a message.
        tools: what its model may have called, and nothing else: of `@tool`, `mcp_tools`, `agent_tool` or a class of
            your own with the same members; they are `ctx.tools`, by name.

    Raises:
        AgentError: the name can't be a topic's, the function isn't async, or doesn't take (message, ctx); or *memory*
            can't be one; or *tools* are none, or two of one name.
    """
    if callable(name):
        raise AgentError(
            f"@agent at {_source(name)} is missing its parentheses", fix='write @agent() or @agent("name")'
        )

    def decorate(function: Function) -> Agent:
        label = name if name is not None else getattr(function, "__name__", "agent")
        if not NAME.fullmatch(label):
            raise AgentError(
                f"agent name {label!r} at {_source(function)} can't be part of a topic's name",
                fix="use letters, digits, - and _ (at most 100, beginning with a letter or digit)",
            )
        _check_function(label, function, blocking)
        _check_limits(label, function, retries=retries, backoff=backoff, timeout=timeout, max_in_flight=max_in_flight)
        if memory is not None:
            from llmagentos.agents.shape import Shape  # few agents need it

            Shape(label, memory, _source(function))
        executor: Threads | Processes | None = None
        most = max_in_flight
        toolbox: Toolbox | None = None
        if tools:
            from llmagentos.agents.tools.toolbox import Toolbox  # few agents need it

            toolbox = Toolbox(label, tools, blocking)
        if blocking is not None:
            most = max_in_flight or usual_number(blocking)
            executor = Threads(label, function, most) if blocking == "thread" else Processes(label, function)
        return Agent(
            name=label,
            handler=executor or function if toolbox is None else toolbox.around(executor or function),
            function=function,
            topic=topic,
            decode=decode,
            key=key,
            retries=retries,
            backoff_s=backoff,
            timeout_s=timeout,
            max_in_flight=most,
            memory=memory,
            tools=toolbox,
            executor=executor,
            description=inspect.cleandoc(function.__doc__ or ""),
        )

    return decorate


def _check_limits(label: str, function: Function, **limits: object) -> None:
    for name, value in limits.items():
        whole, least = name in ("retries", "max_in_flight"), name in ("timeout", "max_in_flight")
        if value is None and least:  # no limit
            continue
        if isinstance(value, int if whole else int | float) and 0 <= value < math.inf and (value or not least):
            continue
        wanted = f"a {'whole number' if whole else 'number of seconds'}, {'above 0' if least else '0 or more'}"
        raise AgentError(f"agent {label!r} at {_source(function)}: {name} = {value!r}", fix=f"give {wanted}")


def _check_function(label: str, function: Function, blocking: Blocking | None) -> None:
    plain = f"`def {getattr(function, '__name__', label)}(message, ctx):`"
    if blocking not in (None, "thread", "process"):
        raise AgentError(
            f"agent {label!r} at {_source(function)}: blocking = {blocking!r}", fix="write 'thread' or 'process'"
        )
    if inspect.iscoroutinefunction(function) != (blocking is None):
        if blocking is None:
            raise AgentError(
                f"the handler of agent {label!r} at {_source(function)} is not async",
                fix=f"write `async {plain[1:]}, or @agent(..., blocking='thread') for one that waits or computes"
                " without async",
            )
        raise AgentError(
            f"the handler of agent {label!r} at {_source(function)} is async, and blocking={blocking!r} is for others",
            fix=f"leave blocking out, or write {plain}",
        )
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise AgentError(
            f"the handler of agent {label!r} at {_source(function)} can't be called with (message, ctx): {error}",
            fix=f"write {plain if blocking else '`async ' + plain[1:]}",
        ) from None


def _source(function: Any) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def names(agents: Sequence[Agent]) -> str:
    """The names of *agents* for a message: `a, b and c`."""
    *first, last = sorted(a.name for a in agents)
    return f"{', '.join(first)} and {last}" if first else last
