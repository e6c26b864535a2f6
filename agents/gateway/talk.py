"""Talk: messages from clients to agents, and what comes back, told so that nothing is shown twice."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from llmagentos.agents.gateway.replies import Replies, Subscription
from llmagentos.agents.gateway.shown import Shown
from llmagentos.streams.errors import AnswerTimeout
from llmagentos.streams.message import TEXT, Message, child_id
from llmagentos.streams.producer import Producer
from llmagentos.streams.settings import Settings

__all__ = ["Question", "Said", "Talk", "id_of"]

#: Answers of one conversation that a stream knows to be under way, or over: a conversation is handled one message at a
#: time by each agent, so a stream meets few at once.
ANSWERS_MOST: Final = 1_000

#: How far back a stream that is resumed looks for the beginning of what was being said: at 10,000 tokens/s over eight
#: partitions 40 s, read in a fraction of a second.
BACK: Final = 50_000

#: `replies` keeps messages for this long (streams/topology.py), so an idempotency key is good for it.
REPEAT_S: Final = 86_400.0

Kind = Literal["token", "anew", "partial", "answer", "error"]


@dataclass(slots=True)
class Said:
    """One thing to show.

    Attributes:
        kind: token: *text* goes behind what was shown; anew: in its place; partial: *content* is a part of a result;
            answer: the whole, of which *text* was not shown yet; error: why there is none.
        message: what it answers.
        place: partition and offset in `replies`; where several are told as one, of the last.
    """

    kind: Kind
    agent: str
    message: str
    place: tuple[int, int]
    text: str = ""
    content: Any = None
    usage: Mapping[str, Any] | None = None

    @property
    def id(self) -> str:
        """The id of its server-sent event."""
        return f"{self.place[0]}-{self.place[1]}"


@dataclass(frozen=True, slots=True)
class Question:
    """A message to an agent.

    Attributes:
        repeat: it may have been sent before, with this id.
    """

    message: Message
    repeat: bool


def id_of(tenant: str, name: str) -> str:
    """The id of the message that a client of *tenant* sends under an idempotency key *name*."""
    return child_id(f"gateway/{tenant}", "gateway", name)


class Talk:
    """Sends to agents, and follows what they say.

    Args:
        producer: started.
    """

    def __init__(self, settings: Settings, producer: Producer, replies: Replies) -> None:
        self._settings = settings
        self._producer = producer
        self._replies = replies

    def question(
        self,
        agent: str,
        content: object,
        *,
        conversation: str | None,
        tenant: str,
        name: str | None,
        attributes: Mapping[str, str],
        timeout_s: float | None = None,
    ) -> Question:
        """A message to *agent*, to be sent.

        Args:
            conversation: None begins a new one.
            name: the client's idempotency key: the same again joins the first one's answer.
            timeout_s: after which it is not to be handled any more; None: it may wait for days.

        Raises:
            RecordError: *content* can't be said.
        """
        scope = f"{agent}/{conversation or ''}/{name}"
        message = Message.create(
            content,
            to=agent,
            conversation=conversation,
            message_id=None if name is None else id_of(tenant, scope),
            sender="gateway",
            tenant=tenant,
            attributes=attributes,
            deadline=None if timeout_s is None else int((time.time() + timeout_s) * 1_000),
        )
        partition = self._replies.partition_of(message.conversation_id)
        message.record["reply_to"] = {"topic": self._replies.topic, "partition": partition}
        return Question(message, name is not None)

    async def send(self, question: Question) -> None:
        """Send it, and wait until Kafka has it.

        Raises:
            DeliveryError: Kafka does not take it. RecordTooLarge: it is over the limit.
        """
        await (await self._producer.send(question.message))

    async def answer(self, question: Question) -> AsyncGenerator[list[Said]]:
        """Send *question*; what is said to it, the answer or an error last.

        Raises:
            AnswerTimeout: neither came in time; the agent works on it all the same.
            BrokerError, DeliveryError, RecordTooLarge: it can't be sent, or followed.
        """
        message = question.message
        subscription = await self._replies.open(message.conversation_id)
        try:
            await self.send(question)
            following = self._again(subscription, message) if question.repeat else self._replies.messages(subscription)
            narrator = _Narrator(message.message_id)
            async with aclosing(following) as batches, asyncio.timeout(self._settings.gateway_timeout_s):
                async for batch in batches:
                    said = narrator.tell(batch)
                    if said:
                        yield said
                        if said[-1].kind in ("answer", "error"):
                            return
        except TimeoutError:
            raise AnswerTimeout(
                f"agent {message.recipient!r} gave no answer within {self._settings.gateway_timeout_s:g} s to message"
                f" {message.message_id}",
                kept="the message; its agent works on it all the same",
                fix="follow the conversation's events, or ask again with the same Idempotency-Key",
            ) from None
        finally:
            self._replies.close(subscription)

    async def events(self, conversation: str, after: int | None) -> AsyncGenerator[list[Said]]:
        """What is said in *conversation* from now on, or behind the offset *after*; without end.

        Raises:
            BrokerError: it can't be followed.
        """
        subscription = await self._replies.open(conversation)
        try:
            narrator = _Narrator(None)
            start = None if after is None else max(0, after + 1 - BACK)
            async with aclosing(self._replies.messages(subscription, start)) as batches:
                async for batch in batches:
                    # What was shown before is told again to the narrator alone, who then knows where to go on.
                    if after is not None and batch[0].offset <= after:
                        narrator.tell([message for message in batch if message.offset <= after])
                        batch = [message for message in batch if message.offset > after]
                    if said := narrator.tell(batch):
                        yield said
        finally:
            self._replies.close(subscription)

    async def place(self, conversation: str) -> str:
        """The id of the last event before what is said in *conversation* from now on.

        Raises:
            BrokerError: Kafka does not answer.
        """
        partition = self._replies.partition_of(conversation)
        return f"{partition}-{await self._replies.end(partition) - 1}"

    def partition_of(self, conversation: str) -> int:
        """Of `replies`, where all of *conversation* is."""
        return self._replies.partition_of(conversation)

    async def _again(self, subscription: Subscription, asked: Message) -> AsyncGenerator[Sequence[Message]]:
        """What was said to *asked*, which may have been sent before, and is said."""
        looking = asyncio.create_task(self._before(subscription, asked.message_id))
        live = asyncio.create_task(subscription.take())
        try:
            await asyncio.wait((looking, live), return_when=asyncio.FIRST_COMPLETED)
            upto = 0
            if live.done() and _begins(live.result(), asked.message_id):
                looking.cancel()  # it is being said now, from its beginning
            elif before := await looking:
                yield before
                upto = before[-1].offset + 1
            first = [message for message in await live if message.offset >= upto]
            if first:
                yield first
                upto = first[-1].offset + 1
            start = upto if subscription.lost_at >= 0 else None
            async with aclosing(self._replies.messages(subscription, start)) as batches:
                async for batch in batches:
                    if new := [message for message in batch if message.offset >= upto]:
                        yield new
        finally:
            for task in (looking, live):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _before(self, subscription: Subscription, message_id: str) -> list[Message]:
        start = await self._replies.place_at(subscription.partition, REPEAT_S)
        found: list[Message] = []
        async for messages in self._replies.past(subscription, start):
            found += [message for message in messages if message.caused_by == message_id]
        return found


def _begins(messages: Sequence[Message], message_id: str) -> bool:
    """Whether the first that is said to the message there begins its answer, or is all of it."""
    first = next((message for message in messages if message.caused_by == message_id), None)
    return first is not None and (first.type != "token" or first.attributes.get("at") == "0")


class _Narrator:
    """Makes of a conversation's replies what is to be shown.

    Args:
        only: the message whose answer is wanted; None: all.
    """

    def __init__(self, only: str | None) -> None:
        self._only = only
        self._shown: OrderedDict[str, Shown | None] = OrderedDict()  # by message; None: it is answered

    def tell(self, messages: Sequence[Message]) -> list[Said]:
        """What to show of *messages*; tokens that follow each other are one."""
        told: list[Said] = []
        for message in messages:
            cause = message.caused_by or ""
            if self._only is not None and cause != self._only:
                continue
            shown = self._of(cause)
            if shown is None:
                continue
            place = (message.partition, message.offset)
            last = told[-1] if told else None
            if message.type == "token" and message.content_type == TEXT:
                piece = shown.take(message)
                if piece is None:
                    continue
                if last is not None and last.message == cause and last.kind in ("token", "anew") and not piece.anew:
                    last.text += piece.text
                    last.place = place
                else:
                    kind = "anew" if piece.anew else "token"
                    told.append(Said(kind, message.sender, cause, place, piece.text))
            elif message.type == "token":
                if shown.partial(message):
                    told.append(Said("partial", message.sender, cause, place, content=_content(message)))
            elif message.type in ("result", "error"):
                self._shown[cause] = None
                told.append(_end(message, shown, place))
        return told

    def _of(self, cause: str) -> Shown | None:
        if cause not in self._shown:
            self._shown[cause] = Shown()
            if len(self._shown) > ANSWERS_MOST:
                self._shown.popitem(last=False)
        return self._shown[cause]


def _content(message: Message) -> Any:
    """What it says, as JSON can."""
    content = message.content
    if isinstance(content, bytes):
        return {"content_type": message.content_type, "base64": b64encode(content).decode()}
    return content


def _end(message: Message, shown: Shown, place: tuple[int, int]) -> Said:
    content = _content(message)
    cause = message.caused_by or ""
    if message.type == "error":
        return Said("error", message.sender, cause, place, content=content)
    whole = content if isinstance(content, str) else "" if content is None else orjson.dumps(content).decode()
    return Said("answer", message.sender, cause, place, shown.rest(whole), content, message.usage)
