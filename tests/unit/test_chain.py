"""The chain of a question: kept in a header, bounded, and drawn for people."""

from __future__ import annotations

import pytest

from llmagentos.agents.chain import CHAIN, Chain, Hop, chain_in, drawn, header, lengthened


def test_a_chain_survives_its_header() -> None:
    chain = lengthened(lengthened((), Hop("till", 1, 7, "c")), Hop("poet", 0, 3, "c/1"))
    assert chain_in([("message-id", b"x"), header(chain)]) == chain
    assert drawn(chain, "till") == "till -> poet (c/1) -> till"


def test_a_circle_keeps_its_first_and_last_hops_and_counts_the_others() -> None:
    chain: Chain = ()
    for n in range(100_000):
        chain = lengthened(chain, Hop("ab"[n % 2], 0, n, "c" * 1_000))
    assert [hop.offset for hop in chain] == [*range(8), 100_000 - 32, *range(100_000 - 24, 100_000)]
    assert len(header(chain)[1]) < 5_000
    assert drawn(chain, "a").startswith("a -> b -> a -> b -> a -> b -> a -> b -> ... 99,968 more ... -> a -> b")


@pytest.mark.parametrize("value", [b"", b"{", b"7", b"null", b"[1]", b'[["a"]]', b'[["a",0,"x","c"]]', b"\xff", None])
def test_a_header_that_is_no_chain_is_none(value: bytes | None) -> None:
    assert chain_in([(CHAIN, value)]) == ()


def test_no_headers_are_no_chain() -> None:
    assert chain_in(None) == chain_in([]) == ()
