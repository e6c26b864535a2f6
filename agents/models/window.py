"""A question kept within a model's window: what was said long ago is summarised, or it is said that it does not fit.

What is never left out: what the model is told by `system`, the last that a user said, and all behind it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from llmagentos.agents.models.provider import Request
from llmagentos.streams.errors import ContextTooLong

__all__ = ["estimate", "fit"]

Message = Mapping[str, Any]

#: UTF-8 bytes of a token, at the least: English has some 4 with the vocabularies in use, code and other alphabets 2 to
#: 3. Where a provider counts by itself, its count is taken in place of this.
BYTES_PER_TOKEN: Final = 3
#: Of each message: its role and what marks its ends.
TOKENS_PER_MESSAGE: Final = 4
#: Of the window, for the answer, where no bound of it is known.
ANSWER_PART: Final = 1 / 4
#: Of the window, for what is left of what was said long ago.
SUMMARY_PART: Final = 1 / 8

_SUMMARISE: Final = (
    "Summarise this part of a conversation between a user and an assistant: facts, names, numbers, what was decided"
    " and what is still open. Be brief, and add nothing."
)
_SUMMARY: Final = "What was said before, in short: "

Count = Callable[[Request], int]
Summarise = Callable[[Request], Awaitable[str]]


def estimate(request: Request) -> int:
    """How many tokens *request* has, rather too many than too few."""
    size = sum(len(orjson.dumps(each)) for each in (*request.tools, *([request.schema] if request.schema else [])))
    for message in request.messages:
        size += BYTES_PER_TOKEN * TOKENS_PER_MESSAGE + len(_text(message).encode(errors="replace"))
        size += len(orjson.dumps(message.get("tool_calls") or ""))
    return -(-size // BYTES_PER_TOKEN)


async def fit(request: Request, window: int, *, name: str, count: Count, summarise: Summarise) -> Request:
    """*request*, made short enough.

    Args:
        window: tokens of question and answer together; 0: not known, and nothing is left out.
        name: of the model, for errors.
        count: tokens of a request.
        summarise: asks the model for a summary.

    Raises:
        ContextTooLong: what can't be left out is too long.
    """
    if not window:
        return request
    answer = request.max_tokens or int(window * ANSWER_PART)
    room = window - answer
    if count(request) <= room:
        return request
    told, past, present = _parts(request.messages)
    bare = count(replace(request, messages=[*told, *present]))
    summary_room = min(int(window * SUMMARY_PART), room - bare)
    if bare > room or summary_room <= 0:
        raise ContextTooLong(
            f"the question has some {bare:,} tokens without what was said before it, and {room:,} of the"
            f" {window:,} of model {name!r} are free for it ({answer:,} are for the answer)",
            fix="ask about less at once, or a model with a larger window",
        )
    kept: list[list[Message]] = []
    left = room - bare - summary_room
    for exchange in reversed(past):
        left -= count(replace(request, messages=exchange, tools=(), schema=None))
        if left < 0:
            break
        kept.insert(0, exchange)
    summary = await _summary(past[: len(past) - len(kept)], room, summary_room, count, summarise)
    messages = [*told, *([{"role": "system", "content": _SUMMARY + summary}] if summary else [])]
    return replace(request, messages=[*messages, *(message for exchange in kept for message in exchange), *present])


async def _summary(past: Sequence[Sequence[Message]], room: int, most: int, count: Count, summarise: Summarise) -> str:
    """In as many questions as the window makes necessary, each of what is said so far and a further stretch."""
    lines = [f"{each['role']}: {_text(each)}" for exchange in past for each in exchange if _text(each)]
    summary, taken = "", 0
    while taken < len(lines):
        part = [_SUMMARY + summary] if summary else []
        begun = taken
        while taken < len(lines) and count(_asking([*part, lines[taken]], most)) <= room - most:
            part.append(lines[taken])
            taken += 1
        if taken == begun:  # longer than the window by itself: its beginning
            part.append(lines[taken][: max(1, (room - most) // 2)])
            taken += 1
        summary = _cut(await summarise(_asking(part, most)), most, count)
    return summary


def _asking(lines: Sequence[str], most: int) -> Request:
    messages = [{"role": "system", "content": _SUMMARISE}, {"role": "user", "content": "\n\n".join(lines)}]
    return Request(messages, max_tokens=most)


def _cut(text: str, most: int, count: Count) -> str:
    """*text*, or as much of its beginning as has *most* tokens: a model may write more than it is asked for."""
    while text and count(Request([{"role": "system", "content": _SUMMARY + text}])) > most:
        text = text[: len(text) * 3 // 4]
    return text


def _parts(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]], list[Message]]:
    """What the model is told; what was said before, by exchanges, each from a user's message on; and the last one."""
    first = next((n for n, message in enumerate(messages) if message["role"] not in ("system", "developer")), 0)
    exchanges: list[list[Message]] = []
    for message in messages[first:]:
        if message["role"] == "user" or not exchanges:
            exchanges.append([])
        exchanges[-1].append(message)
    return list(messages[:first]), exchanges[:-1], exchanges[-1] if exchanges else []


def _text(message: Message) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else orjson.dumps(content).decode()
