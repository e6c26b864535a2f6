"""`ctx.llm`: a handler's way to models. Each turn of a model is a step, recorded once and paid once."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast, overload

import orjson
from pydantic import BaseModel

from llmagentos.agents.models.answers import asked_for, parsed
from llmagentos.agents.models.budgets import SPENT, detail_of
from llmagentos.agents.models.provider import Call, Request, ToolLike, Turn, Usage
from llmagentos.agents.steps import RESERVED, Identity, Steps
from llmagentos.streams.errors import BadAnswer, BudgetSpent, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmagentos.agents.context import Context
    from llmagentos.agents.models.service import Models
    from llmagentos.streams.message import Message

__all__ = ["Llm", "Reply"]

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

#: The step of a model's turn is named so, with its number among the handler's chats.
STEP: Final = f"{RESERVED}llm"

#: Turns of a tool loop that is given no other bound: more than a task needs, and a model that goes in circles ends.
MAX_TURNS: Final = 10

Messages = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """What a model said.

    Attributes:
        text: of its last turn.
        parsed: the value of the class that was asked for with `response=`; None where none was.
        usage: of all its turns.
        turns: how many those were.
        messages: what was said, from the question to the answer: the next question may follow it.
        finish: why it ended: `stop`, or `length` where it ran into a limit of tokens.
    """

    text: str
    parsed: T
    usage: Usage
    turns: int
    messages: tuple[Mapping[str, Any], ...] = field(repr=False)
    finish: str = "stop"

    def __str__(self) -> str:
        return self.text


class Llm:
    """See the module.

    Attributes:
        usage: of all that the handler asked so far.
    """

    def __init__(self, ctx: Context, steps: Callable[[], Steps], models: Models) -> None:
        self._ctx = ctx
        self._steps = steps
        self._models = models
        self.usage = Usage()

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        response: type[M],
        model: str | None = None,
        system: str | None = None,
        tools: Iterable[ToolLike] = (),
        history: int = 0,
        memory: bool = False,
        stream: bool = True,
        max_tokens: int | None = None,
        temperature: float | None = None,
        max_turns: int = MAX_TURNS,
        max_cost: float | None = None,
    ) -> Awaitable[Reply[M]]: ...

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        response: None = None,
        model: str | None = None,
        system: str | None = None,
        tools: Iterable[ToolLike] = (),
        history: int = 0,
        memory: bool = False,
        stream: bool = True,
        max_tokens: int | None = None,
        temperature: float | None = None,
        max_turns: int = MAX_TURNS,
        max_cost: float | None = None,
    ) -> Awaitable[Reply[None]]: ...

    def chat(
        self,
        messages: Messages,
        *,
        response: type[Any] | None = None,
        model: str | None = None,
        system: str | None = None,
        tools: Iterable[ToolLike] = (),
        history: int = 0,
        memory: bool = False,
        stream: bool = True,
        max_tokens: int | None = None,
        temperature: float | None = None,
        max_turns: int = MAX_TURNS,
        max_cost: float | None = None,
    ) -> Awaitable[Reply[Any]]:
        """Ask a model; with *tools*, call those that it wants, until it answers in words.

            reply = await ctx.llm.chat("What is the weather in Oslo?", tools=[weather])
            return reply.text

        Args:
            messages: a question, or what was said so far: mappings with `role` and `content`.
            response: the answer is to be of this Pydantic model; it is `reply.parsed`.
            model: by its name in the settings; None: the one that is set as usual.
            system: what the model is told beforehand.
            history: how many messages of the conversation before this one the model is to see; see `ctx.history`.
            memory: whether it is to see what `ctx.memory` has, too.
            stream: send the text to the client as it comes; not where *response* is given.
            max_tokens: of each turn.
            max_turns, max_cost: of the whole; cost in US dollars. An answer that is mended is two turns.

        Raises:
            ModelError: no answer, or none that can be used; see its leaves.
            SettingsError: there is no such model.
        """
        if max_turns < 1:
            raise ModelError(f"chat(max_turns={max_turns!r})", fix="give 1 or more")
        first = self._steps().identity(STEP)
        return self._chat(
            first,
            [{"role": "user", "content": messages}] if isinstance(messages, str) else [*messages],
            model,
            [each for each in (system, self._remembered() if memory else None) if each],
            self._ctx.history(history) if history else None,
            {tool.name: tool for tool in tools},
            stream and response is None,
            response,
            Request((), max_tokens=max_tokens or 0, temperature=temperature),
            max_turns,
            max_cost,
        )

    async def _chat(
        self,
        first: Identity,
        said: list[Mapping[str, Any]],
        model: str | None,
        told: list[str],
        past: Awaitable[list[Message]] | None,
        tools: Mapping[str, ToolLike],
        stream: bool,
        response: type[BaseModel] | None,
        limits: Request,
        max_turns: int,
        max_cost: float | None,
    ) -> Reply[Any]:
        usage = Usage()
        schema = None if response is None else response.model_json_schema()
        if schema is not None:
            told.append(asked_for(schema))
        if past is not None:
            said[:0] = _dialogue(await past, self._ctx.agent)
        leading = [{"role": "system", "content": each} for each in told]
        mended = False
        offered = [
            {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
            for tool in tools.values()
        ]
        for number in range(max_turns):
            request = replace(limits, messages=[*leading, *said], tools=offered, schema=schema)
            turn, cost = await self._turn(first, number, model, request, stream)
            usage += cost
            said.append(_message(turn))
            if not turn.calls and response is None:
                return Reply(turn.text, None, usage, number + 1, tuple(said), turn.finish)
            if not turn.calls and response is not None:
                try:
                    return Reply(turn.text, parsed(response, turn), usage, number + 1, tuple(said), turn.finish)
                except BadAnswer as error:
                    if mended:
                        raise
                    mended = True
                    said.append({"role": "user", "content": f"{error.what}\nAnswer again, with nothing but the JSON."})
            for call in turn.calls:
                said.append({"role": "tool", "tool_call_id": call.id, "content": await self._call(tools, call)})
            if max_cost is not None and usage.cost > max_cost:
                raise BudgetSpent(
                    f"the chat cost ${usage.cost:.4f} in {number + 1} turns, above its bound of ${max_cost:g}",
                    kept="all its turns, in the journal",
                    fix="raise max_cost, or give the model less to do",
                )
        raise BudgetSpent(
            f"the model gave no answer within {max_turns} turns: it wanted a tool, or had to mend its answer, in each",
            kept="all its turns, in the journal",
            fix="raise max_turns, or see by `llmagentos steps` whether it goes in circles",
        )

    def _remembered(self) -> str:
        value = self._ctx.memory
        text = value.model_dump_json() if isinstance(value, BaseModel) else orjson.dumps(value).decode()
        return f"What you remember of this conversation: {text}"

    async def _turn(
        self, first: Identity, number: int, model: str | None, request: Request, stream: bool
    ) -> tuple[Turn, Usage]:
        """One turn, recorded: the first under the chat's own name, further ones under names below it."""
        steps, heard = self._steps(), 0
        identity = first if number == 0 else steps.identity(f"{STEP} {first[1] + 1}.{number + 1}")

        async def hear(text: str) -> None:
            nonlocal heard
            heard += len(text)
            await self._ctx.emit(text)

        async def ask() -> dict[str, Any]:
            await self._models.budgets.check(self._ctx.message)
            turn, usage = await self._models.ask(model, request, hear if stream else None, tenant=self._ctx.tenant)
            await self._ctx.audit(SPENT, detail_of(self._ctx.message, usage))
            calls = [[call.id, call.name, call.arguments] for call in turn.calls]
            return {"text": turn.text, "calls": calls, "finish": turn.finish, "usage": usage.record()}

        recorded = cast(
            "dict[str, Any]",
            await steps.run(identity, ask, timeout_s=None, retries=0, backoff_s=0.0, at_most_once=False, errors=()),
        )
        if stream and not heard and recorded["text"]:
            # Of an earlier run: told again in one piece, so that what this run says next stands where it belongs.
            await self._ctx.emit(recorded["text"])
        usage = Usage(**recorded["usage"])
        self.usage += usage
        calls = tuple(Call(*call) for call in recorded["calls"])
        return Turn(recorded["text"], calls, usage.tokens_in, usage.tokens_out, recorded["finish"]), usage

    async def _call(self, tools: Mapping[str, ToolLike], call: Call) -> str:
        tool = tools.get(call.name)
        if tool is None:
            return f"error: there is no tool {call.name!r}; there are: {', '.join(sorted(tools)) or 'none'}"
        return await tool.invoke(self._ctx, call.arguments)


def _dialogue(past: Iterable[Message], agent: str) -> list[Mapping[str, Any]]:
    """What *agent* was asked and what it answered, as a model is to see it; others' talk is left out."""
    said: list[Mapping[str, Any]] = []
    for message in past:
        if message.type in ("task", "command") and message.recipient == agent:
            said.append({"role": "user", "content": message.text})
        elif message.type == "result" and message.sender == agent:
            said.append({"role": "assistant", "content": message.text})
    return said


def _message(turn: Turn) -> dict[str, Any]:
    """*turn* as the protocol has it among the messages of the next question."""
    message: dict[str, Any] = {"role": "assistant", "content": turn.text}
    if turn.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in turn.calls
        ]
    return message
