"""Memory: what an agent remembers of each conversation, changed together with the completion of a message.

A handler finds the state that the message before it left in `ctx.memory`, and changes it in place. Each attempt has a
copy of its own. What it has become goes into the completion record of its message, as one more output, to the topic
`memory.NAME`; a handler that changes nothing writes nothing. It is read through a mirror in Redis
(:mod:`llmagentos.streams.mirror`), which waits where Redis is away, and never decides about a delivery.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from llmagentos.agents.agent import Agent
from llmagentos.agents.outputs import Output, Outputs
from llmagentos.agents.shape import Shape
from llmagentos.streams.errors import ChangedState, RecordError, StateError
from llmagentos.streams.message import JSON, Message
from llmagentos.streams.mirror import Mirror, Mirrors
from llmagentos.streams.newest import ORDER, Known, order_of

if TYPE_CHECKING:
    from llmagentos.agents.attempts import Attempts, Failed
    from llmagentos.agents.context import Context
    from llmagentos.agents.work import Work
    from llmagentos.streams.wire import Codec

__all__ = ["SUBJECT", "Memories", "Remembering", "State", "no_memory"]

#: The registry subject of what is remembered: the records' full name.
SUBJECT: Final = "llmagentos.Memory"

#: Of `max_message_bytes`: a completion record has the outputs beside it.
SHARE_OF_RECORD: Final = 2


def no_memory(agent: str) -> StateError:
    """The error of a handler that uses a memory that it doesn't have."""
    return StateError(
        f"agent {agent!r} has no memory",
        fix=f'declare it: @agent("{agent}", memory=dict), or a Pydantic model with defaults',
    )


class Memories:
    """What the memories of one worker share.

    Attributes:
        mirrors: of their topics.
        encode: a record to bytes.
        decode: and back.
    """

    def __init__(self, mirrors: Mirrors, codec: Codec) -> None:
        self.mirrors = mirrors
        self.encode = codec.writer(SUBJECT, "memory")
        self.decode: Callable[[bytes], dict[str, Any]] = codec.decode


class State:
    """The memory of one conversation, while one message of it is handled.

    Args:
        known: the newest record in the memory topic.

    Attributes:
        value: what the handler sees and changes.
        changed: the outcome of the attempt that succeeded is another than what was there.
    """

    __slots__ = ("_before", "_forgotten", "_found", "_order", "_remembering", "_work", "changed", "message", "value")

    def __init__(self, remembering: Remembering, work: Work, message: Message, known: Known) -> None:
        self._remembering = remembering
        self._work = work
        self._found = known.value
        self._order = known.order
        self._before = b""
        self._forgotten: bytes | None = None
        self.message = message
        self.changed = False
        self.value: Any = None

    def begin(self) -> None:
        """An attempt begins: it has a copy of its own.

        Raises:
            ChangedState: the code as it is can't read it.
        """
        shape = self._remembering.shape
        self.changed = False
        self._forgotten = None
        self.value = self._read(self._found) if self._found else shape.fresh()
        # Not the bytes that were found: a field that is new to the class is no change of the handler's.
        self._before = shape.encode(self.value)

    def forget(self) -> None:
        """As in a new conversation, from now on."""
        self.value = self._remembering.shape.fresh()
        self._forgotten = self._remembering.shape.encode(self.value)

    def end(self) -> Output | None:
        """The handler has returned: what is to be written, if anything.

        Raises:
            StateError: what it left can't be kept; names agent, conversation and what is wrong.
        """
        remembering, message = self._remembering, self.message
        try:
            body = remembering.shape.encode(self.value)
            if body == self._forgotten or (self.value == {} and remembering.shape.kind is dict):
                self.changed = bool(self._found)
                return remembering.output(self._work, message, None, self._order) if self.changed else None
            if body == self._before:
                return None
            if remembering.shape.kind is not dict:  # what is changed in place, Pydantic doesn't look at
                remembering.shape.decode(body)
        except StateError as error:
            raise StateError(
                f"what message {message.message_id} left in the memory of agent {remembering.agent!r}, conversation"
                f" {message.conversation_id}, can't be kept: {error.what}",
                kept="the memory, as it was before the message",
                fix=error.fix
                or "correct the handler, then `llmagentos dead redrive --agent " + remembering.agent + "`",
            ) from None
        if len(body) > remembering.most:
            raise StateError(
                f"the memory of agent {remembering.agent!r} in conversation {message.conversation_id} would be"
                f" {len(body):,} bytes after message {message.message_id}; the limit is {remembering.most:,}"
                " (setting max_memory_bytes, and half of max_message_bytes)",
                kept="the memory, as it was before the message",
                fix="keep less in it, or where it is, or raise LLMAGENTOS_MAX_MEMORY_BYTES; then"
                f" `llmagentos dead redrive --agent {remembering.agent}`",
            )
        self.changed = True
        return remembering.output(self._work, message, body, self._order)

    def _read(self, found: bytes) -> Any:
        remembering, message = self._remembering, self.message
        at = ""
        try:
            record = remembering.memories.decode(found)
            at = f", which message {record['message_id']} left"
            return remembering.shape.decode(record["body"], record["content_type"])
        except (StateError, RecordError) as error:
            raise ChangedState(
                f"the memory of agent {remembering.agent!r} in conversation {message.conversation_id}{at}, can't be"
                f" read as {remembering.shape.kind.__qualname__}: {error.what}",
                kept="the memory as it is, and message " + message.message_id,
                fix="deploy a class that takes what is there (defaults for new fields, a validator for changed ones),"
                f" then `llmagentos dead redrive --agent {remembering.agent}`; `llmagentos memory"
                f" {message.conversation_id}` shows it",
            ) from None


class Remembering:
    """Attempts at the messages of one agent with memory in one worker; used as :class:`Attempts` is.

    Args:
        attempts: makes the attempts of an agent.
        waits: told when a work begins (True) and ends (False) to wait for its memory.
    """

    def __init__(
        self,
        agent: Agent,
        memories: Memories,
        outputs: Outputs,
        *,
        attempts: Callable[[Agent], Attempts],
        waits: Callable[[Work, bool], None],
    ) -> None:
        assert agent.memory is not None
        settings = outputs.settings
        self.agent = agent.name
        self.memories = memories
        self.shape = Shape(agent.name, agent.memory)
        self.topic = settings.topic(f"memory.{agent.name}")
        self.most = min(settings.max_memory_bytes, settings.max_message_bytes // SHARE_OF_RECORD)
        self._waits = waits
        self._attempts = attempts(replace(agent, handler=partial(self._handle, agent.handler)))

    def open(self, partition: int) -> Mirror:
        """The memory of a partition that is this worker's from now on."""
        return self.memories.mirrors.open(self.topic, partition)

    async def run(
        self, work: Work, message: Message, context: Callable[[int], Context]
    ) -> list[Output] | Failed | None:
        """As :meth:`Attempts.run`, once the memory is there."""
        mirror = work.assignment.memory
        assert mirror is not None
        key = work.conversation(message).encode(errors="surrogatepass")
        while (known := await mirror.get(key)) is None:
            self._waits(work, True)
            try:
                await mirror.wait()
            finally:
                self._waits(work, False)
        work.state = cast(Any, State(self, work, message, known))  # of this module by its other name
        return await self._attempts.run(work, message, context)

    async def _handle(self, handler: Callable[[Message, Any], Any], message: Message, ctx: Context) -> Any:
        state = ctx.state
        state.begin()
        result = await handler(message, ctx)
        if (output := state.end()) is not None:
            if ctx.reentrant:
                raise StateError(
                    f"message {message.message_id} changed the memory of agent {self.agent!r} in conversation"
                    f" {message.conversation_id}, inside an earlier message that is not finished: what that one"
                    " remembers would overwrite it",
                    kept="the memory, as it was before both",
                    fix="leave memory as it is where ctx.reentrant is true: answer, and have the earlier message"
                    " remember the answer",
                )
            ctx.collected.append(output)
        return result

    def output(self, work: Work, message: Message, body: bytes | None, before: str) -> Output:
        """What is to be written into the memory topic: *body*, or that it is forgotten.

        Args:
            before: the order of what was there.
        """
        conversation_id = work.conversation(message)
        value = None
        if body is not None:
            value = self.memories.encode(
                {
                    "conversation_id": conversation_id,
                    "message_id": message.message_id,
                    "offset": work.offset,
                    "at": time.time_ns() // 1_000_000,
                    "content_type": JSON,
                    "body": body,
                }
            )
        order = order_of(work.assignment.ownership.epoch, work.offset, before)
        key = conversation_id.encode(errors="surrogatepass")
        return Output(self.topic, value, key, work.tp.partition, [(ORDER, order.encode())])

    def sent(self, work: Work, outputs: Sequence[Output]) -> None:
        """A completion counts, and *outputs* of it are on their way: the next message sees what is in them."""
        mirror = work.assignment.memory
        for output in outputs:
            if output.topic == self.topic and output.key is not None and mirror is not None:
                order = next((value for name, value in output.headers if name == ORDER), b"")
                mirror.put(output.key, order.decode() if isinstance(order, bytes) else order or "", output.value)
