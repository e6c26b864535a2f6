"""The checker: reads the topics alone, and compares what was said and called with the file, turn by turn.

A user's turn matches where it was said once, as recorded. An assistant's turn matches where it got one answer with the
recorded text, after the recorded calls and no others. A call matches where service, method and parameters were asked
once, and the answer has the recorded results. A record that is there twice with one id counts once: so receivers do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import dialogues
from catalogue import AGENTS
from dialogues import Call
from rich.console import Console
from rich.table import Table

from llmagentos.agents import Message
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.spans import Spans
from llmagentos.streams.wire import Codec

__all__ = ["Found", "check"]


class Found:
    """What the topics hold, against the file.

    Attributes:
        matched, total: turns and calls.
        counts: (matched, total) by kind of thing.
        events: messages in the topics: user turns, replies, questions and results, each id once.
        twice: records whose id was there before.
        wrong: the first things that don't match, in words.
    """

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {"user turns": [0, 0], "assistant turns": [0, 0], "calls": [0, 0]}
        self.events = self.twice = 0
        self.wrong: list[str] = []

    @property
    def matched(self) -> int:
        return sum(matched for matched, _ in self.counts.values())

    @property
    def total(self) -> int:
        return sum(total for _, total in self.counts.values())

    def count(self, kind: str, right: bool, what: str) -> None:
        """One more thing of *kind*; *what* it is where it is wrong."""
        self.counts[kind][0] += right
        self.counts[kind][1] += 1
        if not right:
            self.wrong.append(what)


class Topics:
    """The messages in the topics, each id once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._codec = Codec(open_registry(settings))
        self._spans = Spans(settings, name="checker")
        self.read = self.twice = 0

    def __call__(self, topic: str, kind: str) -> Iterator[Message]:
        """Those of *kind* in *topic*, each partition in its order."""
        seen: set[str] = set()
        for batch in self._spans.whole(self._settings.topic(topic)):
            for record in batch:
                message = self._codec.read(record)
                if message.type != kind:
                    continue
                self.read += 1
                if message.message_id in seen:
                    self.twice += 1
                    continue
                seen.add(message.message_id)
                yield message

    def close(self) -> None:
        self._spans.close()


def check(settings: Settings) -> Found:
    """Compare the topics with the file."""
    topics = Topics(settings)
    asked: dict[str, list[Message]] = defaultdict(list)  # user turns by conversation
    replies: dict[str, list[str]] = defaultdict(list)  # by what they answer
    results: dict[str, list[Any]] = defaultdict(list)
    calls: dict[str, list[Call]] = defaultdict(list)
    for message in topics("agent.assistant", "task"):
        asked[message.conversation_id].append(message)
    for message in topics("replies", "result"):
        replies[message.record["caused_by"]].append(message.text)
    for message in topics("answers.assistant", "result"):
        results[message.record["caused_by"]].append(message.content)
    for name in AGENTS:
        for message in topics(f"agent.{name}", "task"):
            said, made = message.content, calls[message.record["caused_by"]]
            # One that got two different answers, or none, matches no recorded call.
            for result in results.get(message.message_id, [None]):
                made.append(Call(said["service"], said["method"], said["parameters"], result))
    topics.close()
    found = _compare(asked, replies, calls)
    found.events, found.twice = topics.read - topics.twice, topics.twice
    return found


def _compare(asked: dict[str, list[Message]], replies: dict[str, list[str]], calls: dict[str, list[Call]]) -> Found:
    found = Found()
    recorded = dialogues.read()
    for conversation, exchanges in recorded.items():
        turns = asked.pop(conversation, [])
        for number, exchange in enumerate(exchanges):
            place = f"{conversation}, turn {2 * number}"
            turn = turns[number] if number < len(turns) else None
            cause = turn.message_id if turn is not None else ""
            heard, made = replies.pop(cause, []), calls.pop(cause, [])
            said = turn.text if turn is not None else None
            found.count("user turns", said == exchange.user, f"{place}: {said!r} in place of {exchange.user!r}")
            for index, call in enumerate(exchange.calls):
                this = made[index] if index < len(made) else None
                found.count("calls", this == call, f"{place}: {this!r} in place of {call!r}")
            right = heard == [exchange.text] and len(made) == len(exchange.calls)
            what = (
                f"{place}: {heard!r} after {len(made)} calls, in place of {exchange.text!r} after {len(exchange.calls)}"
            )
            found.count("assistant turns", right, what)
        for turn in turns[len(exchanges) :]:
            found.count("user turns", False, f"{conversation}: {turn.text!r} was never recorded")
    for conversation in asked:
        found.count("user turns", False, f"conversation {conversation} was never recorded")
    for cause in replies | calls:
        found.count("assistant turns", False, f"something was said or called for message {cause}, which nobody sent")
    return found


def show(found: Found) -> None:
    """For people: a table, and what is wrong."""
    table = Table("what", "matched", "total", title="what the topics hold, against the file")
    for kind, (matched, total) in found.counts.items():
        table.add_row(kind, f"{matched:,}", f"{total:,}")
    table.add_row("all", f"{found.matched:,}", f"{found.total:,}", style="bold")
    console = Console(stderr=True)
    console.print(table)
    for line in found.wrong[:10]:
        console.print(f"wrong: {line[:500]}", style="red", markup=False)
    print(f"matched {found.matched:,} of {found.total:,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", choices=("text", "json"), default="text")
    output = parser.parse_args().output
    found = check(Settings.load())
    if output == "json":
        print(
            json.dumps(
                {"matched": found.matched, "total": found.total, "events": found.events, "wrong": found.wrong[:10]}
            )
        )
    else:
        show(found)
    sys.exit(found.matched != found.total)


if __name__ == "__main__":
    main()
