"""Dead letters as `llmagentos dead` prints them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from llmagentos.cli.dialogue import lapse
from llmagentos.cli.output import Output, console, errors, print_json, print_rows

if TYPE_CHECKING:
    from llmagentos.streams.entries import Entry
    from llmagentos.streams.letters import Group, Letter, Letters
    from llmagentos.streams.redrive import Outcome, Wish
    from llmagentos.streams.settings import Settings

__all__ = ["plan", "print_each", "print_groups", "print_letter", "print_outcome", "print_plan"]

#: Lines of a traceback's end that tell where it was and what; --full shows all.
TRACE_LINES = 8
#: Characters of an error in a table.
ERROR_WIDTH = 60


def print_groups(letters: Letters, groups: Sequence[Group], *, full: bool, output: Output) -> None:
    """Letters by cause, with the traceback of the first of each."""
    rows: list[dict[str, Any]] = []
    for group in groups:
        known = group.first.offset >= 0
        fields = (letters.entry(group.first).record if known else None) or {"error": group.first.error, "traceback": ""}
        rows.append(
            {
                "agent": group.first.agent,
                "cause": group.first.cause,
                "error": fields["error"],
                "letters": group.letters,
                "conversations": group.conversations,
                "held": group.held,
                "states": group.states,
                "first": group.first.id,
                "first_died_at": group.first.died_at,
                "last": group.last.id,
                "last_died_at": group.last.died_at,
                "traceback": fields["traceback"],
            }
        )
    if output is Output.json:
        print_json(rows)
        return
    if not rows:
        errors.print("no dead letter waits")
        return
    for row in rows:
        count = f"{_many(row['letters'], 'dead letter')} in {_many(row['conversations'], 'conversation')}"
        held = f", {_many(row['held'], 'message')} held behind" if row["held"] else ""
        _line(f"{row['agent']}: {row['cause']}, {count}{held}", style="bold")
        states = ", ".join(f"{number:,} {state}" for state, number in row["states"].items())
        first, last = _when(row["first_died_at"]), f"the last {_ago(row['last_died_at'])}"
        _line(f"  {states}; the first {first}, {row['first']}" + (f"; {last}" if row["letters"] > 1 else ""))
        text = (row["traceback"] or row["error"]).rstrip().splitlines()
        if len(text) > TRACE_LINES and not full:
            text = [f"... {len(text) - TRACE_LINES} lines; --full shows them", *text[-TRACE_LINES:]]
        for line in text:
            _line(f"    {line}", style="dim")
        console.print()


def print_each(settings: Settings, letters: Sequence[Letter], *, output: Output) -> None:
    """A row for each letter."""
    rows = [_fields(letter) for letter in letters]
    if output is Output.pretty:
        for row in rows:
            row["letter"] = row["letter"].removeprefix("dead.")
            row["died"] = _ago(row["died_at"])
            error = row["error"].partition("\n")[0]
            row["error"] = error if len(error) <= ERROR_WIDTH else f"{error[: ERROR_WIDTH - 1]}…"
    columns = ["letter", "conversation", "state", "held", "cause", "died", "error"]
    print_rows(rows, columns, output=output, wrap=["error", "conversation"], empty="no dead letter waits")


def print_letter(settings: Settings, letter: Letter, entry: Entry, *, output: Output) -> None:
    """One letter whole."""
    from llmagentos.streams.entries import content, said

    fields = entry.record or {}
    message = entry.message
    value: bytes | None = fields["value"]
    body = content(message) if message is not None else None if value is None else said(value)
    if output is Output.json:
        print_json(
            _fields(letter)
            | {
                "error": fields["error"],
                "traceback": fields["traceback"],
                "worker": fields["worker"],
                "message": None if message is None else message.record | {"body": body},
                "value": None if message is not None else body,
            }
        )
        return
    meant = {
        "parked": f"parked: its conversation waits, {_many(letter.held, 'message')} held behind it",
        "passed": "passed: its conversation goes on without it",
        "redriving": f"to be run again, asked for; {_many(letter.held, 'message')} held behind it",
        "dropping": f"to be dropped, asked for; {_many(letter.held, 'message')} held behind it",
        "settled": "settled" + (f" by {letter.by}" if letter.by else ""),
    }
    _line(f"{letter.id}  {meant[letter.state]}", style="bold")
    tries = f" after {_many(letter.attempts, 'attempt')}" if letter.attempts else ""
    _line(f"cause         {letter.cause}{tries}, {_when(letter.died_at)}, {_ago(letter.died_at)}; {fields['worker']}")
    _line(f"conversation  {letter.conversation_id}")
    _line(f"was at        {letter.topic}[{letter.inbox_partition}]@{letter.inbox_offset}")
    if message is not None:
        _line(f"message       {message.message_id}, {message.type} of {message.sender} to {message.recipient}")
        for name, text in message.attributes.items():
            _line(f"attribute     {name}: {text}")
    _line(f"error         {fields['error']}")
    if body is not None:
        _line(f"\nbody ({'as it was read' if message is None else message.content_type})", style="bold")
        _line(body if isinstance(body, str) else _pretty(body))
    if fields["traceback"]:
        _line("\ntraceback", style="bold")
        _line(fields["traceback"].rstrip())


def plan(settings: Settings, wish: Wish, chosen: Sequence[Letter]) -> str:
    """What would be done, in words."""
    parked = [letter for letter in chosen if letter.state == "parked"]
    passed = [letter for letter in chosen if letter.state == "passed"]
    held = sum(letter.held for letter in parked)
    lines: list[str] = []
    of = ", ".join(sorted({letter.agent for letter in chosen}))
    if parked:
        behind = f", and then {_many(held, 'message')} held behind" if held else ""
        lines.append(
            f"{_many(len(parked), 'parked message')} of {of} would be run again{behind}"
            if wish == "redrive"
            else f"{_many(len(parked), 'parked message')} of {of} would never be handled"
            + (f"; {_many(held, 'message')} held behind would be" if held else "")
        )
    if passed:
        lines.append(
            f"{_many(len(passed), 'message')} that {of} passed over would go into the inbox again"
            if wish == "redrive"
            else f"{_many(len(passed), 'message')} that {of} passed over would never be handled"
        )
        inbox = settings.topic("agent.")
        foreign = sorted({letter.topic for letter in passed if not letter.topic.startswith(inbox)})
        if foreign and wish == "redrive":
            lines.append(f"so into {', '.join(foreign)}, where its other readers see them too")
    return "\n".join(lines) or "nothing would be done: no dead letter of these waits"


def print_plan(settings: Settings, wish: Wish, chosen: Sequence[Letter], *, told: int, output: Output) -> None:
    """A dry run."""
    if output is Output.json:
        print_json([_fields(letter) for letter in chosen])
        return
    _line(plan(settings, wish, chosen))
    for letter in chosen[:told]:
        _line(f"  {letter.id}  conversation {letter.conversation_id}, {letter.cause}, {letter.held:,} held")
    if len(chosen) > told:
        _line(f"  and {len(chosen) - told:,} more")


def print_outcome(
    wish: Wish,
    chosen: Sequence[Letter],
    outcome: Outcome | None,
    waited: tuple[int, list[Letter]] | None,
    seconds: float,
    already: int,
    *,
    output: Output,
) -> None:
    """What was asked for, and what became of it where that was waited for: (messages left, letters anew)."""
    done = 0 if outcome is None else outcome.parked + outcome.passed
    gone = [] if outcome is None else outcome.gone
    held = sum(letter.held for letter in chosen)
    left, again = waited or (None, [])
    if output is Output.json:
        print_json(
            {
                "redriven" if wish == "redrive" else "dropped": done,
                "held": held,
                "already": already,
                "gone": [letter.id for letter in gone],
                "left": left,
                "died_again": [letter.id for letter in again],
                "seconds": round(seconds, 3),
            }
        )
        return
    word = "redriven" if wish == "redrive" else "dropped"
    if not done and not gone:
        errors.print(f"nothing was {word}: no dead letter of these waits" + (f"; {already:,} did" if already else ""))
        return
    behind = f"{_many(held, 'message')} held behind"
    goes_on = f"; {behind} {'goes' if held == 1 else 'go'} on"  # nobody drops those
    behind = "" if not held else f", with {behind}" if wish == "redrive" else goes_on
    took = f" in {seconds:.1f} s" if waited is not None and not left else ""
    _line(
        f"{_many(done, 'dead letter')} {word}{behind}{took}"
        + (f"; {already:,} {'was' if already == 1 else 'were'} already" if already else "")
    )
    for letter in gone:
        errors.print(
            f"{letter.id} keeps no message, and {letter.topic}[{letter.inbox_partition}]@{letter.inbox_offset} is gone",
            markup=False,
            soft_wrap=True,
        )
    for letter in again:
        errors.print(f"died again: {letter.id}  conversation {letter.conversation_id}, {letter.error}", markup=False)
    if left:
        errors.print(
            f"{_many(left, 'message')} not handled yet; what was asked for stays in the journal, and a worker that runs"
            " the agent does it (`llmagentos ps`, `llmagentos dead list`)",
            soft_wrap=True,
        )


def _fields(letter: Letter) -> dict[str, Any]:
    return {
        "letter": letter.id,
        "agent": letter.agent,
        "conversation": letter.conversation_id,
        "message_id": letter.message_id or None,
        "state": letter.state,
        "held": letter.held,
        "cause": letter.cause,
        "error": letter.error,
        "attempts": letter.attempts,
        "died_at": letter.died_at,
        "topic": letter.topic,
        "partition": letter.inbox_partition,
        "offset": letter.inbox_offset,
    }


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _when(timestamp_ms: int) -> str:
    return f"{datetime.fromtimestamp(timestamp_ms / 1000):%Y-%m-%d %H:%M:%S}"


def _ago(timestamp_ms: int) -> str:
    return f"{lapse(max(0, time.time() * 1000 - timestamp_ms))} ago"


def _pretty(value: Any) -> str:
    import orjson

    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _line(text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, soft_wrap=True)
