"""Faults on purpose: middleware around the handlers of one worker, to see that an agent bears what will happen to it.

    LLMAGENTOS_FAULTS="fail=0.01,delay=0.1:250ms,duplicate=0.01,reply-lost=0.01,seed=7"

    duplicate    the message comes a second time, as from a producer that lost its acknowledgement: the same id at
                 another offset. It must not be handled twice.
    delay        the handler begins later by the time that is given.
    fail         the run fails: before the handler (nothing has happened), or after it (its effects have, but none of
                 what it says is sent); `:before` or `:after` chooses, else chance does.
    reply-lost   the handler runs, its effects happen, what it says is not sent, and the run has failed as one whose
                 answer did not come in time.

A failed run is tried again as any other is, and becomes a dead letter when `retries` is used up. Which message is hit
is drawn from the seed, the agent, the message's id, and how often this worker hit it before: the same messages have
the same faults, whatever order they come in.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from llmagentos.agents.agent import Agent
from llmagentos.streams.clock import Clock
from llmagentos.streams.errors import InjectedFault, LostReply, SettingsError
from llmagentos.streams.message import Message
from llmagentos.streams.position import milliseconds

if TYPE_CHECKING:
    from llmagentos.agents.context import Context

__all__ = ["Fault", "Faults", "Plan"]

log = logging.getLogger(__name__)

Kind = Literal["duplicate", "delay", "fail", "reply-lost"]
When = Literal["before", "after"]

#: Messages that were hit are remembered, so that a retry is drawn anew: as many as may be in flight with room to
#: spare; of one forgotten, the same run would be hit again.
HITS_KEPT = 100_000

_FORM = 'KIND=RATE, as in "fail=0.01,delay=0.1:250ms,duplicate=0.01,reply-lost=0.01,seed=7"; one agent: fail@NAME=0.5'


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault and how often it strikes.

    Attributes:
        rate: of the messages that it hits, 0 to 1.
        agent: whose messages; empty: all agents'.
        delay_s: of a delay.
        when: of a fail; None: as chance will.
    """

    kind: Kind
    rate: float
    agent: str = ""
    delay_s: float = 0.0
    when: When | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What the setting `faults` says.

    Attributes:
        text: as it was written.
    """

    text: str
    faults: tuple[Fault, ...] = ()
    seed: int = 0

    @classmethod
    def parse(cls, text: str, agents: Collection[str] | None = None) -> Plan:
        """Read what a person wrote; nothing is no faults.

        Args:
            agents: those there are, where that is known.

        Raises:
            SettingsError: a part is none of the forms, or names no agent that there is.
        """
        faults: list[Fault] = []
        seed = 0
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = part.partition("=")
            if not equals:
                raise _wrong(text, part, "has no =")
            if name == "seed":
                if not value.isdecimal():
                    raise _wrong(text, part, "is no whole number")
                seed = int(value)
            else:
                faults.append(_fault(text, part, name, value, agents))
        return cls(text, tuple(faults), seed)

    def __bool__(self) -> bool:
        return bool(self.faults)


def _fault(text: str, part: str, name: str, value: str, agents: Collection[str] | None) -> Fault:
    kind, at, agent = name.partition("@")
    if kind not in get_args(Kind):
        raise _wrong(text, part, f"is none of {', '.join(get_args(Kind))}, seed")
    if at and (not agent or (agents is not None and agent not in agents)):
        raise _wrong(text, part, f"names no agent of this deployment ({', '.join(agents or ()) or 'it has none'})")
    number, colon, argument = value.partition(":")
    try:
        rate = float(number)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise _wrong(text, part, f"has the rate {number!r}, not one from 0 to 1")
    fault = Fault(cast(Kind, kind), rate, agent)
    if kind == "delay":
        delay_ms = milliseconds(argument)
        if delay_ms is None:
            raise _wrong(text, part, "says not how long: delay=0.1:250ms")
        return dataclasses.replace(fault, delay_s=delay_ms / 1000)
    if kind == "fail" and argument in get_args(When):
        return dataclasses.replace(fault, when=argument)
    if colon:
        raise _wrong(text, part, f"has {argument!r} after its rate, which {kind} doesn't take")
    return fault


def _wrong(text: str, part: str, why: str) -> SettingsError:
    return SettingsError(f"faults = {text!r}: {part!r} {why}", fix=f"LLMAGENTOS_FAULTS or --fault takes {_FORM}")


class Faults:
    """The faults of one worker, switched on.

    Args:
        duplicate: sends a message to its partition once more.
        tell: told of each fault that fires: its kind, the agent, the message, and how many of that kind fired so far.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        clock: Clock,
        duplicate: Callable[[Message], None],
        tell: Callable[[str, str, Message, int], None],
    ) -> None:
        self.plan = plan
        self.fired: Counter[str] = Counter()
        self._clock = clock
        self._duplicate = duplicate
        self._tell = tell
        self._hits: OrderedDict[tuple[Kind, str, str], int] = OrderedDict()

    def around(self, agent: Agent) -> Agent:
        """*agent*, with the faults that are for it."""
        own = [fault for fault in self.plan.faults if fault.agent in ("", agent.name) and fault.rate > 0]
        if agent.topic is not None and any(fault.kind == "duplicate" for fault in own):
            # Its records have no ids: one that came twice would be two messages, to every reader of that topic.
            log.warning("fault duplicate does not apply to agent %s: topic %s is not ours", agent.name, agent.topic)
            own = [fault for fault in own if fault.kind != "duplicate"]
        if not own:
            return agent
        inner = agent.handler

        async def handler(message: Message, ctx: Context) -> Any:
            struck = [fault for fault in own if self._strikes(fault, agent.name, message)]
            after: list[Fault] = []
            for fault in struck:
                if fault.kind == "duplicate":
                    self._duplicate(message)
                    self._fire("duplicate", agent.name, message)
                elif fault.kind == "delay":
                    self._fire("delay", agent.name, message)
                    await self._clock.sleep(fault.delay_s)
                else:
                    after.append(fault)
            for fault in after:
                if fault.kind == "fail" and self._when(fault, agent.name, message) == "before":
                    raise self._failure("fail:before", agent.name, message)
            result = await inner(message, ctx)
            for fault in after:
                raise self._failure("fail:after" if fault.kind == "fail" else "reply-lost", agent.name, message)
            return result

        return dataclasses.replace(agent, handler=handler)

    def _strikes(self, fault: Fault, agent: str, message: Message) -> bool:
        key = (fault.kind, agent, message.message_id)
        before = self._hits.get(key, 0)
        if fault.kind == "duplicate" and before:
            return False  # one is enough, and a duplicate of each duplicate would never end
        if self._draw(fault.kind, agent, message, before) >= fault.rate:
            return False
        self._hits[key] = before + 1
        self._hits.move_to_end(key)
        if len(self._hits) > HITS_KEPT:
            self._hits.popitem(last=False)
        return True

    def _when(self, fault: Fault, agent: str, message: Message) -> When:
        if fault.when is not None:
            return fault.when
        hits = self._hits["fail", agent, message.message_id]
        return "before" if self._draw("fail:when", agent, message, hits) < 0.5 else "after"

    def _draw(self, what: str, agent: str, message: Message, before: int) -> float:
        """A number from 0 to below 1, the same whenever the same is asked."""
        text = f"{self.plan.seed}\x00{what}\x00{agent}\x00{message.message_id}\x00{before}"
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) / 2**64

    def _failure(self, name: str, agent: str, message: Message) -> InjectedFault:
        self._fire(name, agent, message)
        kind = LostReply if name == "reply-lost" else InjectedFault
        return kind(
            f"fault {name} fired on purpose for message {message.message_id} (faults = {self.plan.text!r})",
            fix="nothing is wrong with the agent; deploy without --fault and LLMAGENTOS_FAULTS to switch faults off",
        )

    def _fire(self, name: str, agent: str, message: Message) -> None:
        self.fired[name] += 1
        log.warning(
            "fault %s fired: agent %s, message %s of conversation %s (%d so far)",
            name,
            agent,
            message.message_id,
            message.conversation_id,
            self.fired[name],
        )
        self._tell(name, agent, message, self.fired[name])
