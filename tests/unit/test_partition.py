"""Murmur2 against what Kafka's own Java tests expect."""

import pytest

from llmagentos.streams.partition import murmur2, murmur2_partition


@pytest.mark.parametrize(
    ("key", "signed"),
    [
        # org.apache.kafka.common.utils.UtilsTest.testMurmur2
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_hash_is_javas(key: bytes, signed: int) -> None:
    value = murmur2(key)
    assert (value - 2**32 if value >= 2**31 else value) == signed
    assert murmur2_partition(key, 7) == (signed & 0x7FFFFFFF) % 7


def test_empty_key_has_a_partition() -> None:
    assert 0 <= murmur2_partition(b"", 3) < 3
