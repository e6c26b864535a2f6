"""From sections to chunks: pieces small enough to be embedded whole, each with its place in the document."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from llmagentos.agents.knowledge.reading import Section

__all__ = ["CHUNK_MAX", "Chunk", "chunks"]

#: Characters. all-MiniLM-L6-v2 was trained on texts of up to 128 tokens, which are about 450 characters of code and
#: 550 of English.
CHUNK_MAX: Final = 500

#: Below this a piece joins the next one of the same section: a heading alone says too little to be found by.
_SMALL: Final = 120


class Chunk(NamedTuple):
    """A piece of a document.

    Attributes:
        title: see :class:`Section`.
        location: where it stands, for a person: `lines 10-32` or `page 3`.
    """

    text: str
    title: str
    location: str


def chunks(parts: Iterable[Section]) -> Iterator[Chunk]:
    """Cut *parts* at paragraphs, else at lines, else at sentences, else anywhere. Sections are never mixed."""
    for part in parts:
        line = part.line
        for piece in _cut(part.text):
            if piece.strip():
                lead = len(piece) - len(piece.lstrip("\n"))
                first, last = line + lead, line + piece.rstrip().count("\n")
                if part.page:
                    location = f"page {part.page}"
                else:
                    location = f"line {first}" if first == last else f"lines {first}-{last}"
                yield Chunk(piece.strip("\n").rstrip(), part.title, location)
            line += piece.count("\n")


#: From the best place to cut to the last resort: before a paragraph, before a line, after a sentence, at a space.
_CUTS: Final = (r"(?<=\n)(?=[ \t]*\n)", r"(?<=\n)", r"(?<=[.!?])(?=\s)", r"(?<=\s)")


def _cut(text: str, level: int = 0) -> Iterator[str]:
    """Pieces of at most CHUNK_MAX characters; joined they are *text* again."""
    if len(text) <= CHUNK_MAX:
        yield text
        return
    if level == len(_CUTS):
        for at in range(0, len(text), CHUNK_MAX):
            yield text[at : at + CHUNK_MAX]
        return
    held = ""
    for piece in re.split(_CUTS[level], text):
        if len(held) + len(piece) <= CHUNK_MAX:
            held += piece
            continue
        if len(held) < _SMALL:  # rather cut what follows at a worse place than leave this alone
            piece, held = held + piece, ""
        if held:
            yield held
        held = ""
        if len(piece) <= CHUNK_MAX:
            held = piece
            continue
        *whole, held = _cut(piece, level + 1)
        yield from whole
    if held:
        yield held
