"""Newest: which record of a key counts, by its order, and the step by which Redis takes records in."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import confluent_kafka

__all__ = [
    "APPLY", "LEAST", "ORDER", "ORDER_WIDTH", "Known", "arguments_of", "newest_of", "now_ms", "order_of",
]  # fmt: skip

#: The Kafka header with a record's order; a deletion has no value that could say it.
ORDER: Final = "order"
#: Its characters: two numbers of 64 bits in decimal, so that it sorts as text wherever Redis runs.
ORDER_WIDTH: Final = 40
#: The order of what was never there.
LEAST: Final = "0" * ORDER_WIDTH

#: That a key was deleted is kept for so long, against a late record of it: longer than a producer tries to deliver
#: (`delivery_timeout_s`) and than a worker is thought to be frozen.
DELETED_MS: Final = 3_600_000

#: Applies records behind the offset ARGV[1], up to the offset ARGV[2]; then triples of key, order and value, where an
#: empty value is a deletion. It returns 1 and the keys of records that came late with what counts; or 0, where the
#: mirror is at another offset.
APPLY: Final = """
if redis.call('HGET', KEYS[1], '@offset') ~= ARGV[1] then return {0} end
local late = {1}
for i = 5, #ARGV, 3 do
  local field = 'k' .. ARGV[i]
  local known = redis.call('HGET', KEYS[1], field)
  if known and string.sub(known, 1, 40) > ARGV[i + 1] then
    late[#late + 1] = ARGV[i]
    late[#late + 1] = known
  else
    redis.call('HSET', KEYS[1], field, ARGV[i + 1] .. ARGV[i + 2])
    if ARGV[i + 2] == '' then redis.call('ZADD', KEYS[2], ARGV[3], ARGV[i]) end
  end
end
for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[4], 'LIMIT', 0, 1000)) do
  if redis.call('HSTRLEN', KEYS[1], 'k' .. key) == 40 then redis.call('HDEL', KEYS[1], 'k' .. key) end
  redis.call('ZREM', KEYS[2], key)
end
redis.call('HSET', KEYS[1], '@offset', ARGV[2], '@when', ARGV[3])
return late
"""


class Known(NamedTuple):
    """The newest record of a key.

    Attributes:
        order: what a newer one must be above.
        value: empty: it was deleted, or never there.
    """

    order: str
    value: bytes


def order_of(claim: int, offset: int, before: str) -> str:
    """The order of what the owner by the claim *claim* writes because of the message at *offset*.

    Args:
        before: of what it makes it of. A journal that was deleted and made anew begins with low claims again: they
            must not lose against what was written before.
    """
    return max(f"{claim + 1:020d}{offset + 1:020d}", f"{int(before) + 1:0{ORDER_WIDTH}d}")


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def arguments_of(position: int, after: int, newest: Mapping[bytes, Known], at_ms: int = 0) -> list[Any]:
    """Those of :data:`APPLY`."""
    at_ms = at_ms or now_ms()
    arguments: list[Any] = [position, after, at_ms, at_ms - DELETED_MS]
    for key, record in newest.items():
        arguments += [key, record.order, record.value]
    return arguments


def newest_of(records: Iterable[confluent_kafka.Message]) -> tuple[dict[bytes, Known], dict[bytes, Known]]:
    """What counts of *records*, and of that what an older one came behind."""
    newest: dict[bytes, Known] = {}
    late: dict[bytes, Known] = {}
    for record in records:
        key = record.key() or b""
        new = Known(_order(record), record.value() or b"")
        known = newest.get(key)
        if known is not None and known.order > new.order:
            late[key] = known
        else:
            newest[key] = new
            late.pop(key, None)
    return newest, late


def _order(record: confluent_kafka.Message) -> str:
    headers: Any = record.headers()
    for name, value in headers or ():
        if name == ORDER and value is not None and len(value) == ORDER_WIDTH:
            return value.decode() if isinstance(value, bytes) else value
    return LEAST
