"""What a handler is given beside its message: steps, questions, waits, replies, tokens, deadlines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from numbers import Real
from random import Random
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast
from uuid import UUID

import orjson

from llmagentos.agents.asking import IN_FLIGHT, Asking
from llmagentos.agents.history import MOST
from llmagentos.agents.memory import no_memory
from llmagentos.agents.outputs import Output
from llmagentos.agents.steps import RESERVED, Identity, Steps
from llmagentos.streams.errors import StepError, TopicError
from llmagentos.streams.journal_record import Wait
from llmagentos.streams.message import JSON, Message, child_id, encode_content
from llmagentos.streams.producer import MESSAGE_ID

if TYPE_CHECKING:
    from llmagentos.agents.answers import Answers
    from llmagentos.agents.memory import State
    from llmagentos.agents.models import Llm
    from llmagentos.agents.outputs import Outputs
    from llmagentos.agents.tools.tool import Tool
    from llmagentos.streams.settings import Settings

__all__ = ["Approval", "Context"]

#: Of a step's name: it stands in a line of `llmagentos steps`.
NAME_MAX: Final = 200
#: Of what a person is to decide: some pages, of which a list shows the beginning.
WHAT_MAX: Final = 10_000

#: Of a token's `run`, so that two of them compare as text: an offset has 63 bits, and nobody tries a million times.
EPOCH_DIGITS: Final = 19
ATTEMPT_DIGITS: Final = 6

#: Of a wait: a hundred years, so that its end is a time that every clock and format can say.
SECONDS_MAX: Final = 100 * 366 * 86_400

_NO_TOOLS: Final[Mapping[str, Any]] = MappingProxyType({})

#: The step of an error: apart from those of a handler, which may say more when the message is redriven.
ERROR_STEP = -1


class Approval(NamedTuple):
    """What a person decided; true where they approved.

    Attributes:
        by, why: who, and what they said of it.
    """

    approved: bool
    by: str
    why: str

    def __bool__(self) -> bool:
        return self.approved


class Context:
    """The context of one run of a handler over one message.

    Replies, messages and published records are sent when the handler has returned, all or none; tokens and questions
    at once, and what was said before a question ahead of it.

    Everything sent gets an id that is made of the message's id, the agent and the position of the call among the
    handler's calls: a handler that makes the same calls in the same order sends the same ids when it runs again.

    Attributes:
        agent: the name of the agent that runs.
        message: the message that it handles.
        attempt: how often this worker tried the message before.
        log: a logger that names agent and conversation in each line.
        cleans_up: whether the message was cancelled, or its deadline has passed: what the handler does now is its
            cleanup, and who asked is told so, whatever it returns.
        interrupt: how a handler is interrupted that does not run in the task of its message; for the engine.
        tools: those of `@agent(tools=...)`, by name.
    """

    __slots__ = (
        "_again",
        "_answers",
        "_asking",
        "_emitted",
        "_llm",
        "_log",
        "_open_steps",
        "_outputs",
        "_random",
        "_replied",
        "_reply_sent",
        "_step",
        "_steps",
        "_work",
        "agent",
        "attempt",
        "cleans_up",
        "collected",
        "interrupt",
        "message",
        "partition",
        "tools",
    )

    def __init__(
        self,
        agent: str,
        message: Message,
        outputs: Outputs,
        answers: Answers,
        partition: int,
        steps: Steps | None,
        open_steps: Callable[[Any, Message], Steps],
        work: Any,
        again: str = "",
        attempt: int = 0,
    ) -> None:
        self.agent = agent
        self.message = message
        self.partition = partition
        self.attempt = attempt
        self._outputs = outputs
        self._answers = answers
        self._steps = steps  # where there are some from an earlier run
        self._open_steps = open_steps
        self._work = work
        self._random: Random | None = None
        self._asking: Asking | None = None
        self._llm: Llm | None = None
        self._again = again  # tells a redrive's questions from those that it asked before
        self.collected: list[Output] = []
        self.interrupt: Callable[[], None] | None = None
        self.cleans_up = False
        self.tools: Mapping[str, Tool] = _NO_TOOLS
        self._step = 0
        self._emitted = (0, 0)  # tokens, and their characters
        self._replied = False
        self._reply_sent = False
        self._log: logging.LoggerAdapter[logging.Logger] | None = None

    @property
    def conversation(self) -> str:
        """The id of the conversation."""
        return self.message.conversation_id

    @property
    def tenant(self) -> str:
        """Who pays for this message."""
        return self.message.tenant

    @property
    def settings(self) -> Settings:
        """Those of the worker; for the engine."""
        return self._outputs.settings

    @property
    def deadline(self) -> float | None:
        """Seconds left until the message's deadline, below zero when it has passed; None where it has none."""
        deadline = self.message.deadline
        return None if deadline is None else deadline / 1000 - self._outputs.clock.time()

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """Logs with the agent's name and the conversation in front."""
        if self._log is None:
            self._log = _ConversationLog(
                logging.getLogger(f"llmagentos.agent.{self.agent}"), {"conversation": self.conversation}
            )
        return self._log

    @property
    def replied(self) -> bool:
        """Whether :meth:`reply` was called."""
        return self._replied

    @property
    def reply_sent(self) -> bool:
        """Whether the reply is on its way already, as a question followed it."""
        return self._reply_sent

    @property
    def reentrant(self) -> bool:
        """Whether the message is a question that came of another one in this conversation, and runs inside that."""
        return self._work.cause >= 0

    @property
    def suspended(self) -> bool:
        """Whether this run is over, as another will go on with the message."""
        return self._steps is not None and self._steps.suspended

    @property
    def memory(self) -> Any:
        """What the agent remembers of the conversation, as declared by `@agent(memory=...)`. Change it in place.

        What it has become is kept when the handler has returned, together with all that it says. A handler that fails,
        or runs again, begins with what was there before.

        Raises:
            StateError: none is declared.
        """
        return self.state.value

    @memory.setter
    def memory(self, value: Any) -> None:
        self.state.value = value

    def forget(self) -> None:
        """Begin anew with :attr:`memory`, as in a new conversation; left so, nothing is kept of it."""
        self.state.forget()

    @property
    def llm(self) -> Llm:
        """Asks models: `reply = await ctx.llm.chat("a line about rain")`; see docs/howto/models.md."""
        if self._llm is None:
            from llmagentos.agents.models import Llm  # few agents need it

            self._llm = Llm(cast(Any, self), self._opened, self._outputs.models)
        return self._llm

    @property
    def remembers(self) -> bool:
        """Whether its agent has a memory."""
        return self._work.state is not None

    @property
    def state(self) -> State:
        """The memory, for the engine."""
        state: State | None = self._work.state
        if state is None:
            raise no_memory(self.agent)
        return state

    def end(self) -> None:
        """The handler has returned; raises ChangedCode where it left out what is recorded."""
        if self._steps is not None:
            self._steps.end()

    def _opened(self) -> Steps:
        if self._steps is None:
            self._steps = self._open_steps(self._work, self.message)
        return self._steps

    async def reply(
        self, content: object, *, attributes: Mapping[str, str] | None = None, usage: Mapping[str, Any] | None = None
    ) -> None:
        """Answer the message; to return *content* from the handler is the same. One message has one reply.

        Args:
            content: text, bytes, anything that JSON can say, or a :class:`Message` whose body is handed on.
            usage: model, tokens_in, tokens_out, cost: what producing it cost; None: what :attr:`llm` was asked.

        Raises:
            RuntimeError: it was answered already.
            RecordError, RecordTooLarge: *content* can't be sent.
        """
        if self._replied:
            raise RuntimeError(f"agent {self.agent!r} replied twice to message {self.message.message_id}")
        self.collect_reply(content, attributes=attributes, usage=usage)

    def collect_reply(
        self, content: object, *, attributes: Mapping[str, str] | None = None, usage: Mapping[str, Any] | None = None
    ) -> None:
        """As :meth:`reply`, for the engine."""
        if self.cleans_up:  # who asked is told that it was cancelled
            return
        cause = self.message
        answer = self._outputs.child(
            cause,
            self.agent,
            self._next_step(),
            content,
            type="result",
            recipient=cause.record["sender"],
            attributes=attributes,
            usage=self._llm.usage.record() if usage is None and self._llm is not None else usage,
        )
        self.collected.append(self._outputs.to_asker(answer, cause))
        self._replied = True

    async def tell(
        self,
        agent: str,
        content: object,
        *,
        conversation: str | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> str:
        """Send *content* to another agent and wait for no answer.

        Args:
            conversation: None: this one.

        Returns:
            The id of the message that was sent.

        Raises:
            UnknownAgent: nothing of that name was ever deployed.
        """
        step = self._next_step()
        await self._outputs.check_inbox(agent)
        message = self._outputs.child(
            self.message,
            self.agent,
            step,
            content,
            type="task",
            recipient=agent,
            conversation=conversation,
            deadline=self.message.deadline,
            attributes=attributes,
        )
        self.collected.append(self._outputs.to_inbox(message))
        return message.message_id

    def step(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        timeout: float | None = None,
        retries: int = 0,
        backoff: float = 0.2,
        at_most_once: bool = False,
        key_as: str | None = None,
        errors: tuple[type[Exception], ...] = (),
        **options: Any,
    ) -> Awaitable[Any]:
        """Do something once: call *function*, and record its result, which every rerun is given in place of a call.

            price = await ctx.step("look up the price", shop.price, item, retries=3)

        A worker may die between the call and the record; then the next one calls again, with the same idempotency key.

        Args:
            name: what it does, in the handler's words; the same on every run.
            function: async, or a plain one, which runs in a thread. It returns what JSON can say, bytes, a
                :class:`Message`, or a type of :func:`result_type`.
            timeout: seconds that one try may take; None: as long as the handler.
            retries, backoff: how often it is tried again, and seconds before the first time, doubled for each further.
            at_most_once: rather not at all than twice: where it was begun and no result is recorded, StepUnknown.
            key_as: the keyword argument in which *function* takes its idempotency key.
            errors: what it may raise as its result; recorded, and given as StepFailed.

        Raises:
            StepFailed: it ended by one of *errors*, on this run or an earlier one.
            StepUnknown: see *at_most_once*.
            StepError: the name is in use by another task, or *function* can't be called.
            ResultError: its result can't be recorded: the message is parked, as another run would call again.
            ChangedCode: the journal has other steps than this run comes by.
            Exception: what *function* raised after all retries.
        """
        if not isinstance(name, str) or not name or name.startswith(RESERVED) or len(name) > NAME_MAX:  # pyright: ignore[reportUnnecessaryIsInstance] - whoever writes it may not check types
            raise StepError(
                f"a step of agent {self.agent!r} is named {str(name)[:NAME_MAX]!r}",
                fix=f"give it 1 to {NAME_MAX} characters that don't begin with {RESERVED!r}",
            )
        if not callable(function):
            if asyncio.iscoroutine(function):
                function.close()
            raise StepError(
                f"step {name!r} of agent {self.agent!r} was given {type(function).__name__}, which can't be called",
                fix="pass the function and its arguments apart: ctx.step(name, function, argument)",
            )
        steps = self._opened()
        identity = steps.identity(name)
        if key_as is not None:
            options[key_as] = steps.key(identity)
        return steps.run(
            identity,
            partial(function, *args, **options) if args or options else function,
            timeout_s=timeout,
            retries=retries,
            backoff_s=backoff,
            at_most_once=at_most_once,
            errors=errors,
        )

    def history(self, limit: int = 50) -> Awaitable[list[Message]]:
        """What was said in the conversation before this message: the last *limit* messages, the oldest first.

        Tasks, and the answers behind what they answer, of all agents in this conversation; as far as topics still have
        it. It is searched for in the partitions that can hold the conversation, from their beginning: call it once,
        and keep in :attr:`memory` what every message needs. A rerun is given the same messages, without those that
        retention has taken meanwhile.
        """
        if not 1 <= limit <= MOST:
            raise StepError(f"agent {self.agent!r}: history(limit={limit!r})", fix=f"give 1 to {MOST:,}")
        return self._history(self._opened().identity(f"{RESERVED}history"), limit)

    async def _history(self, identity: Identity, limit: int) -> list[Message]:
        steps, history = self._opened(), self._outputs.history
        assert history is not None
        recorded = await steps.meet(identity)
        if recorded is None:
            await steps.new(identity)
            await self._outputs.producer.delivered()  # what this worker answered to the message before
            found = await asyncio.to_thread(history.before, self.message, limit)
            places = [(each.topic, each.partition, each.offset) for each in found]
            await steps.record(identity, "result", orjson.dumps(places), JSON)
            return found
        places = orjson.loads(recorded.body)
        found = await asyncio.to_thread(history.at, places)
        if len(found) < len(places):
            self.log.warning("%d of %d earlier messages are gone by now", len(places) - len(found), len(places))
        return found

    def sleep(self, seconds: float) -> Awaitable[None]:
        """Go on after *seconds*, be it days: meanwhile the handler holds nothing, and any worker may go on with it.

        Raises:
            StepError: *seconds* is no number of them.
        """
        self._check_seconds("sleep", seconds)
        return self._sleep(self._opened().identity(f"{RESERVED}sleep"), seconds)

    async def _sleep(self, identity: Identity, seconds: float) -> None:
        steps = self._opened()
        recorded = await steps.meet(identity)
        if recorded is None:
            await steps.new(identity)
            recorded = await steps.record(identity, "timer", due=self._after(seconds))
        timer = Wait("timer", *identity, "", recorded.due)
        if recorded.outcome == "timer" and not await self._until(steps, timer):
            await steps.record(identity, "result", b"null", JSON)

    def approve(self, what: object, *, timeout: float | None = None) -> Awaitable[Approval]:
        """Wait until a person approves or rejects, by `llmagentos approve CONVERSATION` or `reject`.

            if not await ctx.approve(f"refund {amount} to {customer}"):
                return "A colleague decided against it."

        Args:
            what: what is to be decided; shown by `llmagentos waiting`.
            timeout: seconds after which it counts as rejected, by nobody; None: never.

        Raises:
            StepError: *what* is empty, so that nobody could decide; or *timeout* is no number of seconds.
        """
        if timeout is not None:
            self._check_seconds("approve", timeout)
        text = what if isinstance(what, str) else orjson.dumps(what).decode()
        if not text.strip():
            raise StepError(
                f"agent {self.agent!r}: ctx.approve({text!r})", fix="say what is to be decided: a person is shown it"
            )
        return self._approve(self._opened().identity(f"{RESERVED}approve"), text, timeout)

    async def _approve(self, identity: Identity, what: str, timeout: float | None) -> Approval:
        steps = self._opened()
        recorded = await steps.meet(identity)
        if recorded is None:
            await steps.new(identity)
            due = 0 if timeout is None else self._after(timeout)
            recorded = await steps.record(identity, "approval", about=what[:WHAT_MAX], due=due)
        if recorded.outcome == "approval":
            decided = await self._until(steps, Wait("approval", *identity, recorded.about, recorded.due))
            if not decided and steps.found[identity].outcome == "approval":
                await steps.record(identity, "expired")
            recorded = steps.found[identity]
        said = (orjson.loads(recorded.body) if recorded.body else None) or {}  # one that expired says null
        return Approval(recorded.outcome == "approve", said.get("by", ""), said.get("why", ""))

    async def _until(self, steps: Steps, wait: Wait) -> bool:
        """Wait until something comes from outside (True), or for the end of the time (False)."""
        over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def end(_: object) -> None:
            if not over.done():
                over.set_result(False)

        timer: asyncio.Task[None] | None = None
        if wait.due:
            timer = asyncio.create_task(self._outputs.clock.sleep(wait.due / 1_000 - self._outputs.clock.time()))
            timer.add_done_callback(end)
        try:
            return await steps.wait(wait, over) is not False
        finally:
            if timer is not None:
                timer.cancel()

    def _check_seconds(self, call: str, seconds: float) -> None:
        if not isinstance(seconds, Real) or not abs(seconds) <= SECONDS_MAX:  # one that is over is none
            raise StepError(
                f"agent {self.agent!r}: ctx.{call} was given {seconds!r} as its seconds",
                fix=f"give a number, at most {SECONDS_MAX:,} (a hundred years)",
            )

    def _after(self, seconds: float) -> int:
        return int((self._outputs.clock.time() + seconds) * 1_000)

    async def version(self, name: str) -> bool:
        """Whether this message is handled by the code as it is since the change *name*.

        if await ctx.version("ask twice"):
            ...  # as it is now
        else:
            ...  # as it was: for messages that were past this point when the change was deployed
        """
        return await self._opened().mark(name)

    def now(self) -> datetime:
        """The time, in UTC, the same on every rerun: of what this run came by last, its message or a recorded step."""
        steps = self._steps
        at = self.message.timestamp if steps is None else steps.time
        return datetime.fromtimestamp(at / 1_000, UTC)

    def uuid(self) -> UUID:
        """A new UUID (version 4), the same on every rerun."""
        return UUID(int=self.random.getrandbits(128), version=4)

    @property
    def random(self) -> Random:
        """A source of random numbers, which gives the same ones on every rerun. Not for secrets."""
        if self._random is None:
            self._random = Random(f"{self.message.message_id}/{self.agent}")
        return self._random

    def ask(
        self,
        agent: str,
        content: object,
        *,
        timeout: float | None = None,
        conversation: str | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Awaitable[Any]:
        """Ask another agent and wait for its answer.

        If this worker dies meanwhile, the message is handled again and the question asked again with the same id.

        Args:
            timeout: seconds; None: what is left until the message's deadline, or the settings' `ask_timeout_s`.
            conversation: None: this one.

        Returns:
            The answer's content: text, parsed JSON, or bytes.

        Raises:
            UnknownAgent: nothing of that name was ever deployed.
            AnswerError: the other agent answered with an error.
            AnswerTimeout: no answer came in time; names both agents and the question.
        """
        return self._asks().ask(agent, content, timeout, conversation, attributes)

    def gather(
        self, *questions: tuple[str, object], timeout: float | None = None, return_exceptions: bool = False
    ) -> Awaitable[list[Any]]:
        """Ask several agents at once; their answers, in the order of the questions.

            line, view = await ctx.gather(("poet", "a line"), ("critic", "your view"))

        Each is asked in a conversation of its own (`C/1`, `C/2`, ...), so that they run side by side.

        Args:
            questions: each an agent and what it is asked.
            timeout: seconds for each question; None: as of :meth:`ask`.
            return_exceptions: have errors in the list in place of answers.

        Raises:
            UnknownAgent, RecordError: a question can't be asked. No other was, unless it is too large.
            AnswerError, AnswerTimeout: of the first question that failed, in their order; it is raised once those
                before it are answered, as on every rerun.
            StepError: what is given are no questions; or another task of the handler asks so at the same time.
        """
        return self._asks().gather(questions, timeout, return_exceptions)

    def map(
        self,
        agent: str,
        items: Iterable[object],
        *,
        timeout: float | None = None,
        limit: int = IN_FLIGHT,
        return_exceptions: bool = False,
    ) -> Awaitable[list[Any]]:
        """Ask one agent about each of many items; the answers, in their order. Nothing is asked where there are none.

            reviews = await ctx.map("critic", drafts)

        As :meth:`gather`, whatever their number: *limit* of them wait for answers at a time.

        Args:
            items: the same on every rerun.
            timeout: seconds for each question, from when it is sent; None: as of :meth:`ask`.
            limit: 1 to 1,000.
        """
        return self._asks().map(agent, items, timeout, limit, return_exceptions)

    def _asks(self) -> Asking:
        if self._asking is None:
            self._asking = Asking(
                self.agent,
                self.message,
                self.partition,
                self._work.chain,
                self._again,
                steps=self._opened(),
                outputs=self._outputs,
                answers=self._answers,
                take=self._next_step,
                flush=self.flush,
            )
        return self._asking

    def flush(self) -> None:
        """Send what was collected so far."""
        self._reply_sent = self._replied
        for output in self.collected:
            self._outputs.send(output)
        self.collected.clear()

    async def publish(
        self,
        topic: str,
        content: object,
        *,
        key: str | bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        """Append a plain record to any topic: its full name, without our prefix.

        Args:
            content: text, bytes, or anything that JSON can say.
            key: None: the conversation.
            headers: beside the `message-id` by which readers know a record that comes twice.

        Raises:
            TopicError: there is no such topic.
        """
        if not await self._outputs.partitions_of(topic):
            raise TopicError(
                f"agent {self.agent!r} publishes to topic {topic!r}, which does not exist",
                fix="create it first, or correct the name: the full one, without our prefix",
            )
        body, _ = encode_content(content)
        raw_key = self.conversation if key is None else key
        name = child_id(self.message.message_id, self.agent, self._next_step())
        self.collected.append(
            Output(
                topic,
                body,
                raw_key.encode() if isinstance(raw_key, str) else raw_key,
                headers=[*(headers or {}).items(), (MESSAGE_ID, name)],
            )
        )

    async def emit(self, content: object) -> None:
        """Send a token or a partial result to the client of the conversation, ahead of the reply.

        A handler that runs again emits again what it said, in pieces of any size: each carries attributes by which a
        reader shows nothing twice. `run` compares as text, and is higher for a later owner of the conversation and a
        later attempt; `at` is how many characters of text this run emitted before it.
        """
        # A rerun whose model call is recorded emits none: a token must not shift the ids of what is sent after it.
        run = f"{self._work.epoch:0{EPOCH_DIGITS}}.{self.attempt:0{ATTEMPT_DIGITS}}"
        number, at = self._emitted
        token = self._outputs.child(
            self.message,
            self.agent,
            number,
            content,
            message_id=child_id(self.message.message_id, self.agent, f"token {run} {number}"),
            type="token",
            recipient="",
            attributes={"run": run, "at": str(at)},
        )
        self._emitted = (number + 1, at + (len(content) if isinstance(content, str) else 0))
        self._outputs.send(self._outputs.to_client(token))
        await self._outputs.producer.ebb()

    async def audit(self, kind: str, detail: Mapping[str, str]) -> None:
        """Write to topic `events` what was done for this conversation; returns when Kafka has it.

        At once, whatever becomes of the handler: call it in the function of a step, or each rerun writes it anew.

        Args:
            kind: a short stable word, for example `data`.
        """
        tell = self._outputs.event
        assert tell is not None, "a worker has events"
        tell(kind, about=self.message, agent=self.agent, **detail)
        await self._outputs.producer.delivered()

    def send_error(self, error: str, cause: str) -> None:
        """Tell the asker that the message became a dead letter."""
        self._outputs.send(self.error(error, cause))

    def error(self, error: str, cause: str) -> Output:
        """What tells the asker that there is no reply, and why."""
        message = self.message
        answer = self._outputs.child(
            message,
            self.agent,
            ERROR_STEP,
            {"error": error, "cause": cause},
            type="error",
            recipient=message.sender,
        )
        return self._outputs.to_asker(answer, message)

    def clean_up(self) -> None:
        """Its handler is interrupted: what it said is not sent, and what it says from here on has all the time."""
        self.collected.clear()
        self.cleans_up = True
        self.message.record["deadline"] = None

    def _next_step(self) -> int:
        step = self._step
        self._step = step + 1
        return step


class _ConversationLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return f"[{(self.extra or {}).get('conversation')}] {msg}", kwargs
