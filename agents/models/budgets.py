"""Budgets: what tenants and conversations may spend on models, and what they have spent.

What each turn cost stands in topic `events`; that is the truth. Redis has the sums, each beside the offsets that they
reflect, so that a check reads on from there only. Workers check side by side: a sum is changed, and its offset with it,
in one step that counts only where the offset is still what the reader went on from. A lost Redis is built anew.

A check knows of all turns that have ended, on all workers; those under way are not counted before they have.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Mapping
from typing import Any, Final, cast

import redis
import redis.asyncio
from redis.exceptions import RedisError

from llmagentos.agents.models.provider import Usage
from llmagentos.streams.admin import Admin, partitions_of
from llmagentos.streams.endpoints import redis_url
from llmagentos.streams.errors import BudgetSpent, ModelError
from llmagentos.streams.masking import masked_text
from llmagentos.streams.message import Message
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.spans import Spans
from llmagentos.streams.topology import DAY_MS, named
from llmagentos.streams.wire import Codec

__all__ = ["SPENT", "Budgets", "detail_of"]

#: The kind of event that says what a turn cost.
SPENT: Final = "model"

#: Sums are kept as long as what they are made of.
_KEPT_S: Final = (named("events").retention_ms or 0) // 1_000
_DAYS: Final = _KEPT_S * 1_000 // DAY_MS + 1

#: A Redis that answers at all does so within milliseconds.
_ANSWER_S: Final = 2.0

#: Where partition ARGV[1] stands at ARGV[2] (empty: nowhere), have it stand at ARGV[3], and add to sums: ARGV[6] to the
#: one that ARGV[5] names, and so on. A name is `DAY/...`, and each day is a hash, which goes by itself after ARGV[4] s.
_APPLY: Final = """
local at = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if at ~= ARGV[2] then return 0 end
for i = 5, #ARGV, 2 do
  local day, field = string.match(ARGV[i], '^(%d+)/(.*)$')
  local sums = KEYS[1] .. ':' .. day
  redis.call('HINCRBYFLOAT', sums, field, ARGV[i + 1])
  redis.call('EXPIRE', sums, ARGV[4])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""


def detail_of(message: Message, usage: Usage) -> dict[str, str]:
    """What the event of a turn says."""
    return {
        "tenant": message.tenant,
        "root": message.root_conversation,
        "model": usage.model,
        "tokens_in": str(usage.tokens_in),
        "tokens_out": str(usage.tokens_out),
        "cost": f"{usage.cost:.9f}",
    }


class Budgets:
    """See the module; one for a worker. Nothing is opened where the settings have no budget."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.topic("events")
        self._spans: Spans | None = None
        self._codec: Codec | None = None
        self._hash = ""
        self._partitions = 0
        self._lock = asyncio.Lock()

    async def check(self, message: Message) -> None:
        """See whether who pays for *message* may ask a model.

        Raises:
            BudgetSpent: not any more; says what of, how much, and until when. ModelError: it can't be known now.
        """
        settings = self._settings
        tenant = settings.tenant_budgets.get(message.tenant, settings.tenant_budget)
        conversation = settings.conversation_budget
        if not tenant and not conversation:
            return
        today = time.time_ns() // 1_000_000 // DAY_MS
        try:
            async with self._lock:
                spent_today, spent = await self._spent(message, today)
        except RedisError as error:
            raise ModelError(
                f"what was spent on models can't be known: Redis ({masked_text(redis_url(settings))}): {error}",
                kept="the message; it is tried again",
                fix="see `llmagentos doctor`",
            ) from error
        if tenant and spent_today >= tenant:
            raise BudgetSpent(
                f"tenant {message.tenant!r} has spent ${spent_today:.4f} on models today, of ${tenant:g} a day",
                kept="the message, as a dead letter: redrive it tomorrow (UTC)",
                fix="raise tenant_budget, or tenant_budgets for this one, in the settings",
            )
        if conversation and spent >= conversation:
            raise BudgetSpent(
                f"conversation {message.root_conversation} has spent ${spent:.4f} on models, of ${conversation:g}",
                kept="the message, as a dead letter",
                fix="raise conversation_budget in the settings, or begin a new conversation",
            )

    async def _spent(self, message: Message, today: int) -> tuple[float, float]:
        if self._spans is None:
            await asyncio.to_thread(self._open)
        # One for each check: a connection belongs to the event loop that opened it.
        client = redis.asyncio.Redis.from_url(
            redis_url(self._settings), socket_timeout=_ANSWER_S, socket_connect_timeout=_ANSWER_S
        )
        async with client:
            await self._read_on(client)
            async with client.pipeline(transaction=True) as pipe:
                pipe.hget(f"{self._hash}:{today}", f"t:{message.tenant}")
                for day in range(today - _DAYS, today + 1):
                    pipe.hget(f"{self._hash}:{day}", f"c:{message.root_conversation}")
                of_tenant, *of_days = await pipe.execute()
        return float(of_tenant or 0), sum(float(each or 0) for each in of_days)

    def _open(self) -> None:
        settings = self._settings
        self._hash = f"{settings.prefix}{{{Admin(settings).topic_id(self._topic)}}}:spent"
        self._partitions = partitions_of(settings, self._topic)
        self._codec = Codec(open_registry(settings))
        self._spans = Spans(settings, name="budgets")

    async def _read_on(self, client: redis.asyncio.Redis) -> None:
        """Bring the sums up to where the topic ends now."""
        apply = client.register_script(_APPLY)
        raw = await cast("Awaitable[dict[bytes, bytes]]", client.hgetall(self._hash))
        known = {int(number): int(at) for number, at in raw.items()}
        ends, found = await asyncio.to_thread(self._new, known)
        for number, end in ends.items():
            sums = [part for field, cost in found[number].items() for part in (field, f"{cost:.9f}")]
            if known.get(number) != end:  # where another worker was first, it has added the same
                await apply(keys=[self._hash], args=[number, known.get(number, ""), end, _KEPT_S, *sums])

    def _new(self, known: Mapping[int, int]) -> tuple[dict[int, int], dict[int, dict[str, float]]]:
        """Where each partition ends, and what is to be added by what lies before that."""
        assert self._spans is not None
        assert self._codec is not None
        spans: dict[tuple[str, int], tuple[int, int]] = {}
        for number in range(self._partitions):
            low, end = self._spans.ends(self._topic, number)
            spans[self._topic, number] = (max(low, known.get(number, low)), end)
        found: dict[int, dict[str, float]] = {number: defaultdict(float) for number in range(self._partitions)}
        for batch in self._spans.read(spans):
            for record in batch:
                event: dict[str, Any] = self._codec.decode(record.value() or b"")
                if event["kind"] != SPENT:
                    continue
                detail, sums = event["detail"], found[cast(int, record.partition())]
                day, cost = _day(event["at"]), float(detail["cost"])
                sums[f"{day}/t:{detail['tenant']}"] += cost
                sums[f"{day}/c:{detail['root']}"] += cost
        return {number: spans[self._topic, number][1] for number in range(self._partitions)}, found

    async def close(self) -> None:
        """Let the clients go."""
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)
            self._spans = None


def _day(at: Any) -> int:
    """The UTC day of an event's time: milliseconds, or as the Avro reader gives it."""
    milliseconds = at if isinstance(at, int) else int(at.timestamp() * 1_000)
    return milliseconds // DAY_MS
