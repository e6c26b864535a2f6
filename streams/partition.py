"""Which partition a key goes to: Murmur2, as Kafka's Java client and librdkafka's `murmur2_random` have it.

Source: Austin Appleby's MurmurHash2, 32 bits, seed 0x9747b28c, and `Utils.toPositive`, in Kafka's clients
(`org.apache.kafka.common.utils.Utils`, `BuiltInPartitioner`).
"""

from __future__ import annotations

__all__ = ["murmur2", "murmur2_partition"]

_MASK = 0xFFFFFFFF
_SEED = 0x9747B28C  # Kafka's
_M = 0x5BD1E995  # Murmur2's multiplier


def murmur2(data: bytes) -> int:
    """The hash of *data*, unsigned 32 bits (Java shows the same bits signed)."""
    length = len(data)
    h = _SEED ^ length
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if whole < length:
        h = (h ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def murmur2_partition(key: bytes, n: int) -> int:
    """The partition of *key* in a topic of *n* partitions."""
    return (murmur2(key) & 0x7FFFFFFF) % n
