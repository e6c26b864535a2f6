"""What a handler is given beside its message: replies, questions, tokens, deadlines."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llmagentos.streams.errors import AgentError, AnswerError, AnswerTimeout, TopicError
from llmagentos.streams.message import Message, encode_content

if TYPE_CHECKING:
    from llmagentos.agents.answers import Answers
    from llmagentos.agents.outputs import Outputs

__all__ = ["Context"]


class Context:
    """The context of one run of a handler over one message.

    Everything sent gets an id that is made of the message's id, the agent and the position of the call among the
    handler's calls: a handler that makes the same calls in the same order sends the same ids when it runs again.

    Attributes:
        agent: the name of the agent that runs.
        message: the message that it handles.
        attempt: how often this worker tried the message before.
        log: a logger that names agent and conversation in each line.
    """

    __slots__ = (
        "_answers",
        "_log",
        "_outputs",
        "_replied",
        "_step",
        "_wait",
        "_work",
        "agent",
        "attempt",
        "message",
        "partition",
    )

    def __init__(
        self,
        agent: str,
        message: Message,
        outputs: Outputs,
        answers: Answers,
        *,
        partition: int,
        wait: Callable[[Any, bool], None],
        work: Any,
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
        self._step = 0
        self._replied = False
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
        return None if deadline is None else deadline / 1000 - time.time()

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
        self.send_reply(content, attributes=attributes, usage=usage)
        await self._outputs.producer.ebb()

    def send_reply(
        self, content: object, *, attributes: Mapping[str, str] | None = None, usage: Mapping[str, Any] | None = None
    ) -> None:
        """As :meth:`reply`, without waiting where the producer is full: for the engine, which waits elsewhere."""
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
        self._outputs.to_asker(answer, cause)
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
        self._outputs.to_inbox(message)
        await self._outputs.producer.ebb()
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
            type="task",
            recipient=agent,
            conversation=conversation,
            deadline=int((time.time() + wait_s) * 1000),
            reply_to={"topic": topic, "partition": self.partition},
            attributes=attributes,
        )
        answer = await self._answers.expect(question.message_id, topic, self.partition)
        self._wait(self._work, True)
        try:
            self._outputs.to_inbox(question)
            async with asyncio.timeout(wait_s):
                result = await answer
        except TimeoutError:
            raise AnswerTimeout(
                f"agent {self.agent!r} had no answer from {agent!r} within {wait_s:.1f} s: question"
                f" {question.message_id} of conversation {question.conversation_id}",
                fix=f"see `llmagentos lag` and `llmagentos tail --conversation {question.conversation_id}`",
            ) from None
        finally:
            self._wait(self._work, False)
            self._answers.forget(question.message_id)
        if result.type == "error":
            said = result.content
            raise AnswerError(
                f"agent {agent!r} failed question {question.message_id}:"
                f" {said.get('error', said) if isinstance(said, dict) else said}"
            )
        return result.content

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
        self._outputs.producer.produce(
            topic,
            body,
            raw_key.encode() if isinstance(raw_key, str) else raw_key,
            headers=list(headers.items()) if headers else None,
        )
        await self._outputs.producer.ebb()

    async def emit(self, content: object) -> None:
        """Send a token or a partial result to the client of the conversation, ahead of the reply."""
        token = self._outputs.child(self.message, self.agent, self._next_step(), content, type="token", recipient="")
        self._outputs.to_client(token)
        await self._outputs.producer.ebb()

    def send_error(self, error: str, cause: str) -> None:
        """Tell the asker that the message became a dead letter."""
        self._replied = True
        message = self.message
        self._outputs.to_asker(
            self._outputs.child(
                message,
                self.agent,
                self._next_step(),
                {"error": error, "cause": cause},
                type="error",
                recipient=message.sender,
            ),
            message,
        )

    def _next_step(self) -> int:
        step = self._step
        self._step = step + 1
        return step


class _ConversationLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return f"[{(self.extra or {}).get('conversation')}] {msg}", kwargs
