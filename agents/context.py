"""What a handler is given beside its message: replies, questions, tokens, deadlines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llmagentos.agents.outputs import Output
from llmagentos.streams.errors import AgentError, AnswerError, AnswerTimeout, TopicError
from llmagentos.streams.message import Message, child_id, encode_content
from llmagentos.streams.producer import MESSAGE_ID

if TYPE_CHECKING:
    from llmagentos.agents.answers import Answers
    from llmagentos.agents.outputs import Outputs

__all__ = ["Context"]

#: The step of an error: apart from those of a handler, which may say more when the message is redriven.
ERROR_STEP = -1


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
    """

    __slots__ = (
        "_again",
        "_answered",
        "_answers",
        "_log",
        "_outputs",
        "_replied",
        "_reply_sent",
        "_step",
        "_wait",
        "_work",
        "agent",
        "attempt",
        "collected",
        "message",
        "partition",
    )

    def __init__(
        self,
        agent: str,
        message: Message,
        outputs: Outputs,
        answers: Answers,
        partition: int,
        wait: Callable[[Any, bool], None],
        work: Any,
        answered: dict[str, Message],
        again: str = "",
        attempt: int = 0,
    ) -> None:
        self.agent = agent
        self.message = message
        self.partition = partition
        self.attempt = attempt
        self._outputs = outputs
        self._answers = answers
        self._wait = wait  # told when a question of this work begins (True) and ends (False) to wait
        self._work = work
        self._answered = answered  # of earlier attempts, by question: they aren't asked again
        self._again = again  # tells a redrive's questions from those that it asked before
        self.collected: list[Output] = []
        self._step = 0
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

    async def reply(
        self, content: object, *, attributes: Mapping[str, str] | None = None, usage: Mapping[str, Any] | None = None
    ) -> None:
        """Answer the message; to return *content* from the handler is the same. One message has one reply.

        Args:
            content: text, bytes, anything that JSON can say, or a :class:`Message` whose body is handed on.
            usage: model, tokens_in, tokens_out, cost: what producing it cost.

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
        cause = self.message
        answer = self._outputs.child(
            cause,
            self.agent,
            self._next_step(),
            content,
            type="result",
            recipient=cause.record["sender"],
            attributes=attributes,
            usage=usage,
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

    async def ask(
        self,
        agent: str,
        content: object,
        *,
        timeout: float | None = None,
        conversation: str | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Any:
        """Ask another agent and wait for its answer.

        If this worker dies meanwhile, the message is handled again and the question asked again with the same id.

        Args:
            timeout: seconds; None: what is left until the message's deadline, or the settings' `ask_timeout_s`.
            conversation: None: this one.

        Returns:
            The answer's content: text, parsed JSON, or bytes.

        Raises:
            UnknownAgent: nothing of that name was ever deployed.
            AgentError: it asks itself, in the conversation that it is handling.
            AnswerError: the other agent answered with an error.
            AnswerTimeout: no answer came in time; names both agents and the question.
        """
        if agent == self.agent and conversation in (None, self.conversation):
            raise AgentError(
                f"agent {agent!r} asks itself within conversation {self.conversation!r}, whose lane it holds: the"
                " question could only be handled after this message",
                fix='ask in a conversation of its own: conversation=f"{ctx.conversation}/1"',
            )
        wait_s = self._outputs.settings.ask_timeout_s if timeout is None else timeout
        left = self.deadline
        if left is not None:
            wait_s = min(wait_s, left)
        topic = self._outputs.settings.topic(f"answers.{self.agent}")
        step = self._next_step()  # before anything is awaited, so that questions side by side keep their places
        await self._outputs.check_inbox(agent)
        question = self._outputs.child(
            self.message,
            self.agent,
            step,
            content,
            label=self._again,
            type="task",
            recipient=agent,
            conversation=conversation,
            deadline=int((self._outputs.clock.time() + wait_s) * 1000),
            reply_to={"topic": topic, "partition": self.partition},
            attributes=attributes,
        )
        result = self._answered.get(question.message_id)
        if result is None:
            result = self._answered[question.message_id] = await self._answer(question, topic, wait_s)
        if result.type == "error":
            said = result.content
            raise AnswerError(
                f"agent {agent!r} failed question {question.message_id}:"
                f" {said.get('error', said) if isinstance(said, dict) else said}"
            )
        return result.content

    async def _answer(self, question: Message, topic: str, wait_s: float) -> Message:
        answer = await self._answers.expect(question.message_id, topic, self.partition)
        self._wait(self._work, True)
        try:
            self.flush()
            self._outputs.send(self._outputs.to_inbox(question))
            async with self._outputs.clock.timeout(wait_s):
                return await answer
        except TimeoutError:
            raise AnswerTimeout(
                f"agent {self.agent!r} had no answer from {question.recipient!r} within {wait_s:.1f} s: question"
                f" {question.message_id} of conversation {question.conversation_id}",
                fix=f"see `llmagentos lag` and `llmagentos tail --conversation {question.conversation_id}`",
            ) from None
        finally:
            self._wait(self._work, False)
            self._answers.forget(question.message_id)

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
        """Send a token or a partial result to the client of the conversation, ahead of the reply."""
        token = self._outputs.child(self.message, self.agent, self._next_step(), content, type="token", recipient="")
        self._outputs.send(self._outputs.to_client(token))
        await self._outputs.producer.ebb()

    def send_error(self, error: str, cause: str) -> None:
        """Tell the asker that the message became a dead letter."""
        message = self.message
        answer = self._outputs.child(
            message,
            self.agent,
            ERROR_STEP,
            {"error": error, "cause": cause},
            type="error",
            recipient=message.sender,
        )
        self._outputs.send(self._outputs.to_asker(answer, message))

    def _next_step(self) -> int:
        step = self._step
        self._step = step + 1
        return step


class _ConversationLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return f"[{(self.extra or {}).get('conversation')}] {msg}", kwargs
