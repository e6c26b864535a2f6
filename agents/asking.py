"""Asking: the questions of one run of a handler, one by one or many at a time, and what becomes of their answers.

A question's id is made of the message, the agent and the question's place among the handler's, so a rerun asks the
same ones: it is given the answers that are known, and whoever was asked already handles nothing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from llmagentos.agents.chain import Chain, Hop, drawn, header, lengthened
from llmagentos.agents.outputs import LATE
from llmagentos.agents.steps import RESERVED, Identity, Steps
from llmagentos.streams.errors import AgentError, AnswerError, AnswerTimeout, LLMAgentOSError, RecordError, StepError
from llmagentos.streams.journal_record import Wait
from llmagentos.streams.message import Message, encode_content, question_id

if TYPE_CHECKING:
    from llmagentos.agents.answers import Answers
    from llmagentos.agents.outputs import Outputs

__all__ = ["IN_FLIGHT", "IN_FLIGHT_MOST", "Asking"]

#: Questions of one `map` that wait for answers at once, if it says nothing else: enough to keep a few workers busy.
IN_FLIGHT: Final = 100
#: And at most: a suspension names each in its journal record, at some 80 bytes.
IN_FLIGHT_MOST: Final = 1_000

#: Answers that a handler has in hand go to the journal when they are so many: a next run is given them from there, and
#: need not find them among all that was answered to its partition.
IN_HAND_MOST: Final = 500

#: Known answers that are taken without giving the event loop a turn: at 10 microseconds each a millisecond.
PER_TURN: Final = 100

_NOTHING: Final = object()

E = TypeVar("E", bound=LLMAgentOSError)


class _Question(NamedTuple):
    """One question.

    Attributes:
        position: among all that the handler sends.
        conversation: None: the handler's own.
        item: which of many it is, for errors; empty: it is the only one.
    """

    identity: Identity
    position: int
    agent: str
    content: object
    conversation: str | None = None
    attributes: Mapping[str, str] | None = None
    item: str = ""


class Asking:
    """The questions of one run of a handler over one message.

    Args:
        chain: who asked because of whom, so that the message came.
        again: tells a redrive's questions from those that were asked before.
        take: takes the next position among all that the handler sends.
        flush: sends what the handler said so far.
    """

    def __init__(
        self,
        agent: str,
        message: Message,
        partition: int,
        chain: Chain,
        again: str,
        *,
        steps: Steps,
        outputs: Outputs,
        answers: Answers,
        take: Callable[[], int],
        flush: Callable[[], None],
    ) -> None:
        self._agent = agent
        self._message = message
        self._partition = partition
        self._chain = lengthened(chain, Hop(agent, partition, message.offset, message.conversation_id))
        self._header = header(self._chain)
        self._again = again
        self._steps = steps
        self._outputs = outputs
        self._answers = answers
        self._take = take
        self._flush = flush
        self._children = 0  # conversations that came of this one

    # -- what a handler calls. Each takes its place before anything is awaited, so that calls side by side keep theirs

    def ask(
        self,
        agent: str,
        content: object,
        timeout: float | None,
        conversation: str | None,
        attributes: Mapping[str, str] | None,
    ) -> Awaitable[Any]:
        """See `Context.ask`."""
        return self._one(self._question(agent, content, conversation, attributes), timeout)

    def gather(
        self, questions: Sequence[tuple[str, object]], timeout: float | None, return_exceptions: bool
    ) -> Awaitable[list[Any]]:
        """See `Context.gather`."""
        pairs: list[tuple[str, object]] = []
        for number, pair in enumerate(questions, 1):
            given: Any = pair
            if not isinstance(given, tuple | list) or len(given) != 2 or not isinstance(given[0], str):  # pyright: ignore[reportUnknownArgumentType]
                raise StepError(
                    f"agent {self._agent!r}: question {number} of {len(questions)} of ctx.gather is"
                    f" {type(given).__name__} {str(given)[:100]!r}, not (agent, content)",
                    fix='ctx.gather(("poet", "a line"), ("critic", "your view"))',
                )
            pairs.append((given[0], given[1]))
        return self._many("question", pairs, timeout, max(1, len(pairs)), return_exceptions)

    def map(
        self, agent: str, items: Iterable[object], timeout: float | None, limit: int, return_exceptions: bool
    ) -> Awaitable[list[Any]]:
        """See `Context.map`."""
        given: Any = items
        if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
            raise StepError(
                f"agent {self._agent!r}: ctx.map({agent!r}, ...) was given {type(given).__name__}, not items to ask"
                " about one by one",
                fix="pass a list",
            )
        if not 1 <= limit <= IN_FLIGHT_MOST:
            raise StepError(f"agent {self._agent!r}: ctx.map(limit={limit!r})", fix=f"give 1 to {IN_FLIGHT_MOST:,}")
        return self._many("item", [(agent, item) for item in items], timeout, limit, return_exceptions)

    # -- many ---------------------------------------------------------------------------------------------------

    def _many(
        self,
        word: str,
        pairs: Sequence[tuple[str, object]],
        timeout: float | None,
        limit: int,
        return_exceptions: bool,
    ) -> Awaitable[list[Any]]:
        try:
            self._steps.identity(f"{RESERVED}gather")  # so that two tasks don't take numbers in turns, by chance
        except StepError as error:
            fix = "call both in one task, and await them together: asyncio.gather(ctx.map(...), ctx.map(...))"
            raise StepError(error.what, fix=fix) from None
        questions: list[_Question] = []
        for number, (agent, content) in enumerate(pairs, 1):
            item = f"{word} {number:,} of {len(pairs):,}"
            try:
                encode_content(content.body if isinstance(content, Message) else content)
            except RecordError as error:  # before anything is asked
                raise _named(error, item) from None
            self._children += 1
            conversation = f"{self._message.conversation_id}/{self._children}"
            questions.append(self._question(agent, content, conversation, None, item))
        return self._gathered(questions, timeout, limit, return_exceptions)

    async def _gathered(
        self, questions: Sequence[_Question], timeout: float | None, limit: int, return_exceptions: bool
    ) -> list[Any]:
        await self._check_inboxes(questions)
        results: list[Any] = [_NOTHING] * len(questions)
        settled = 0  # so many from the first on are known
        left = iter(enumerate(questions))

        def note(index: int, result: Any) -> None:
            """Keep a result; raises the first failure in the order of the questions: the same on every rerun."""
            nonlocal settled
            results[index] = result
            while settled < len(results) and results[settled] is not _NOTHING:
                result = results[settled]
                if isinstance(result, _Failure) and not return_exceptions:
                    raise result.error
                settled += 1

        tasks = [asyncio.create_task(self._work(left, timeout, note)) for _ in range(min(limit, len(questions)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [result.error if isinstance(result, _Failure) else result for result in results]

    async def _work(
        self, left: Iterator[tuple[int, _Question]], timeout: float | None, note: Callable[[int, Any], None]
    ) -> None:
        for index, question in left:
            try:
                result = await self._one(question, timeout)
            except (AnswerError, AnswerTimeout, RecordError) as error:
                result = _Failure(error)
            note(index, result)
            if not (index + 1) % PER_TURN:
                await asyncio.sleep(0)

    async def _check_inboxes(self, questions: Sequence[_Question]) -> None:
        known: set[str] = set()
        for question in questions:
            if question.agent not in known:
                try:
                    await self._outputs.check_inbox(question.agent)
                except LLMAgentOSError as error:
                    raise _named(error, question.item) from None
                known.add(question.agent)

    # -- one ----------------------------------------------------------------------------------------------------

    def _question(
        self,
        agent: str,
        content: object,
        conversation: str | None,
        attributes: Mapping[str, str] | None,
        item: str = "",
    ) -> _Question:
        identity = self._steps.identity(f"{RESERVED}ask {agent}")
        return _Question(identity, self._take(), agent, content, conversation, attributes, item)

    async def _one(self, question: _Question, timeout: float | None) -> Any:
        steps, outputs, message = self._steps, self._outputs, self._message
        agent, identity = question.agent, question.identity
        await steps.alive()
        if not question.item:
            await outputs.check_inbox(agent)
        name = f"{identity[0]}#{identity[1]}{self._again}"
        question_key = question_id(message.message_id, self._agent, name, max(0, message.offset))
        wait_s = outputs.settings.ask_timeout_s if timeout is None else timeout
        if message.deadline is not None:
            wait_s = max(0.0, min(wait_s, message.deadline / 1_000 - outputs.clock.time()))
        result = steps.answers.get(question_key)
        if result is None:
            await steps.fresh(identity)
            due = steps.dues.get(question_key) or int((outputs.clock.time() + wait_s) * 1_000)
            try:
                sent = outputs.child(
                    message,
                    self._agent,
                    question.position,
                    question.content,
                    message_id=question_key,
                    type="task",
                    recipient=agent,
                    conversation=question.conversation,
                    deadline=due,
                    reply_to={"topic": outputs.settings.topic(f"answers.{self._agent}"), "partition": self._partition},
                    attributes=question.attributes,
                )
                result = await self._answer(Wait("answer", *identity, question_key, due), sent, question.item)
            except RecordError as error:
                _named(error, question.item)
                raise
        if result.type != "error":
            return result.content
        conversation = question.conversation or message.conversation_id
        said = result.content
        cause = said.get("cause") if isinstance(said, dict) else None
        # Of two who both say that the deadline has passed, it is chance who is first.
        if (LATE in result.attributes and result.sender == self._agent) or cause == "expired":
            failed: AgentError = AnswerTimeout(
                f"agent {self._agent!r} had no answer from {agent!r} within {wait_s:.1f} s: question {question_key} of"
                f" conversation {conversation}; the chain is {drawn(self._chain, agent)}",
                fix=f"see `llmagentos lag` and `llmagentos tail --conversation {conversation}`",
            )
        else:
            failed = AnswerError(
                f"agent {agent!r} failed question {question_key}:"
                f" {said.get('error', said) if isinstance(said, dict) else said}"
            )
        raise _named(failed, question.item)

    async def _answer(self, wait: Wait, question: Message, item: str) -> Message:
        steps, outputs = self._steps, self._outputs
        place = question.record["reply_to"]
        asked = question.recipient
        future = await self._answers.expect(wait.about, place["topic"], self._partition, asked, item)
        steps.asks()
        try:
            self._flush()
            # What a suspension named was sent before; and who has the answer needs not ask.
            if wait.about not in steps.dues and not future.done():
                outputs.send(outputs.to_inbox(question, self._header))
            timer = asyncio.create_task(self._remind(wait, asked))
            try:
                result: Message = await steps.wait(wait, future)
            finally:
                timer.cancel()
        finally:
            self._answers.forget(wait.about)
        if steps.answers.setdefault(wait.about, result) is result:
            steps.in_hand[wait.about] = result
            if len(steps.in_hand) >= IN_HAND_MOST:
                await steps.keep()
        return result

    async def _remind(self, wait: Wait, asked: str) -> None:
        """Say so among the answers when none came in time: see :meth:`Outputs.late`."""
        outputs = self._outputs
        await outputs.clock.sleep(wait.due / 1_000 - outputs.clock.time())
        outputs.send(outputs.late(self._agent, self._partition, self._message.conversation_id, wait.about, asked))


class _Failure(NamedTuple):
    """Stands for the error of one of many, as an answer may be anything."""

    error: Exception


def _named(error: E, item: str) -> E:
    """*error*, saying of which of many it is."""
    if item:
        error.what = f"{item}: {error.what}"
        error.args = (error.what, *error.args[1:])
    return error
