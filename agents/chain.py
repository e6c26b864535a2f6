"""The chain of a question: who asks because of whom, from the first message on. It travels with the question.

It stands in a Kafka header, as lanes look at it before a record is decoded: a question whose chain holds its lane
can't wait for it (docs/decisions/0054-questions.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import orjson

__all__ = ["CHAIN", "Chain", "Hop", "chain_in", "drawn", "header", "lengthened"]

#: The Kafka header that has it.
CHAIN: Final = "asked-by"

#: Of a longer chain, as circles make them, the first and the last hops are kept: where it came from, and who waits now.
FIRST, LAST = 8, 24

#: Of a conversation's name, which may be of any length: what a person knows it by.
NAME_MAX: Final = 100


class Hop(NamedTuple):
    """An agent that asks while it handles a message.

    Attributes:
        agent: empty: stands for hops that are left out, as many as *offset* says.
        partition, offset: where the message is in the agent's inbox.
        conversation: of the message, or the beginning of its name.
    """

    agent: str
    partition: int
    offset: int
    conversation: str


Chain = tuple[Hop, ...]


def chain_in(headers: Sequence[tuple[str, bytes | str | None]] | None) -> Chain:
    """The chain that a record's headers have; empty where they have none that can be read."""
    for name, value in headers or ():
        if name == CHAIN and value is not None:
            try:
                return tuple(_hop(*given) for given in orjson.loads(value))
            except (orjson.JSONDecodeError, TypeError, ValueError):  # another's header: the message is as any other
                return ()
    return ()


def _hop(agent: Any, partition: Any, offset: Any, conversation: Any) -> Hop:
    return Hop(str(agent), int(partition), int(offset), str(conversation))


def lengthened(chain: Chain, hop: Hop) -> Chain:
    """*chain* with one more hop."""
    chain = (*chain, hop._replace(conversation=hop.conversation[:NAME_MAX].encode(errors="replace").decode()))
    if len(chain) <= FIRST + LAST + 1:
        return chain
    left_out = sum(1 if each.agent else each.offset for each in chain[FIRST:-LAST])
    return (*chain[:FIRST], Hop("", -1, left_out, ""), *chain[-LAST:])


def header(chain: Chain) -> tuple[str, bytes]:
    """The header for a record."""
    return CHAIN, orjson.dumps([[*hop] for hop in chain])


def drawn(chain: Chain, asked: str) -> str:
    """For people, with the agent that is asked last: `till -> poet (c/1) -> till`."""
    parts: list[str] = []
    conversation = chain[0].conversation if chain else ""
    for hop in chain:
        if not hop.agent:
            parts.append(f"... {hop.offset:,} more ...")
        elif hop.conversation == conversation:
            parts.append(hop.agent)
        else:
            parts.append(f"{hop.agent} ({hop.conversation})")
        conversation = hop.conversation or conversation
    return " -> ".join((*parts, asked))
