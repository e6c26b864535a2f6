"""Which partition a key belongs to: Murmur2, as Kafka's Java clients and librdkafka's `murmur2_random` have it."""

from __future__ import annotations

__all__ = ["murmur2", "murmur2_partition"]

# Seed, multiplier and shift of org.apache.kafka.common.utils.Utils.murmur2 (after Austin Appleby's MurmurHash2).
_SEED = 0x9747B28C
_M = 0x5BD1E995
_R = 24
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The 32-bit hash of *data*, unsigned."""
    length = len(data)
    h = (_SEED ^ length) & _MASK
    whole = length & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _MASK
        k = (k ^ k >> _R) * _M & _MASK
        h = h * _M & _MASK ^ k
    if length > whole:
        h = (h ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def murmur2_partition(key: bytes, partitions: int) -> int:
    """The partition of *key* in a topic of *partitions*; the sign bit is cleared, as Java does."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
