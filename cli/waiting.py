"""`llmagentos waiting`, `approve` and `reject`: what handlers wait for, and what people decide."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import typer

from llmagentos.cli.journals import open_journals
from llmagentos.cli.output import Output, OutputOption

if TYPE_CHECKING:
    from llmagentos.streams.pending import Decided, Group, Pending, Pendings, Selection
    from llmagentos.streams.settings import Settings

__all__ = ["complete_conversations", "register"]

#: More rows than this are counted by what is waited for, where --each is not given: a screen's height.
MANY = 50
#: Characters of what is to be decided in a table.
WHAT_WIDTH = 70
#: How often --wait looks: smooth to the eye, and a few requests.
LOOK_S = 0.25
#: Conversations that are named where the one that was given waits for nothing.
CLOSE = 3
#: Names that are looked through for those: a second's work.
LOOKED_THROUGH = 10_000
#: From so many rows on they are written as plain lines: a table of 20,000 takes many seconds.
PLAIN = 1_000

_AGENT = typer.Option([], "--agent", "-a", help="Of this agent; may be given again.", show_default=False)
_STEP = typer.Option(None, "--step", min=1, help="Which approval, of several: as `waiting` says.")
_WHO = typer.Option(None, "--as", metavar="NAME", help="Who decides. Default: the user of this machine.")
_WHY = typer.Option("", "--why", metavar="TEXT", help="Kept with the decision, and given to the handler.")
_WAIT = typer.Option(False, "--wait", help="Until the handler has gone on.")
_TIMEOUT = typer.Option(60.0, "--timeout", min=0.1, help="Seconds that --wait waits at most.")


def complete_conversations(incomplete: str) -> list[str]:
    """Conversations that wait for a person, for the shell; none where the cluster does not answer at once."""
    from llmagentos.streams.errors import LLMAgentOSError
    from llmagentos.streams.pending import Selection
    from llmagentos.streams.settings import Settings
    from llmagentos.streams.tail import Log

    try:
        with Log(Settings.load()) as log:
            log.topics(timeout_s=1.0)
        with opened() as (_, pendings):
            found = pendings.read(Selection(kinds=["approval"]))
    except LLMAgentOSError:
        return []  # a shell's completion has nowhere to say why
    return [name for name in dict.fromkeys(p.conversation_id for p in found) if name.startswith(incomplete)]


_CONVERSATION = typer.Argument(
    ..., metavar="CONVERSATION", help="As `llmagentos waiting` says.", autocompletion=complete_conversations
)


def register(app: typer.Typer) -> None:
    """Add `waiting`, `approve` and `reject`."""
    app.command(
        epilog="\b\nExamples:\n  llmagentos waiting\n  llmagentos waiting --for approval --older 1h\n"
        "  llmagentos waiting --agent refunds --each\n  llmagentos waiting --conversation order-17 -o json"
    )(waiting)
    app.command(
        "approve",
        help=_help("Approve"),
        epilog="\b\nExamples:\n  llmagentos approve order-17\n"
        '  llmagentos approve order-17 --why "called the customer" --wait\n'
        "  llmagentos approve order-17 --agent refunds --step 2 --as ada",
    )(_deciding("approve"))
    app.command(
        "reject",
        help=_help("Reject"),
        epilog='\b\nExamples:\n  llmagentos reject order-17 --why "paid twice already"\n'
        "  llmagentos reject order-17 --agent refunds --step 2 --as ada",
    )(_deciding("reject"))


def waiting(
    agent: list[str] = _AGENT,
    kind: list[str] = typer.Option(
        [], "--for", metavar="approval|answer|timer", help="What for; may be given again.", show_default=False
    ),
    conversation: str | None = typer.Option(None, "--conversation", "-c", help="Of one conversation."),
    older: str | None = typer.Option(None, "--older", metavar="1h", help="That have waited for so long already."),
    each: bool = typer.Option(False, "--each", help=f"One by one, also where there are more than {MANY}."),
    output: Output = OutputOption,
) -> None:
    """Show what handlers wait for: a person, another agent's answer, a timer; since when, and until when.

    All that is suspended, of all agents; and of handlers that run, approvals that they have asked for and timers.
    """
    from llmagentos.streams.pending import groups

    selection = _selection(agent, kind, conversation, older)
    with opened() as (_, pendings):
        found = pendings.read(selection)
    if output is Output.pretty and len(found) > MANY and not each:
        _print_groups(groups(found))
    else:
        _print_each(found, output)


def _help(word: str) -> str:
    """Of `approve` and `reject`."""
    return f"""{word} what the handler of a conversation has asked a person for: it goes on, with your name and reason.

    What is decided stays so: exit status 1 where somebody was first, and it says who, when and why.
    """


def _deciding(outcome: Literal["approve", "reject"]) -> Callable[..., None]:
    """The command that decides so."""

    def command(
        conversation: str = _CONVERSATION,
        agent: list[str] = _AGENT,
        step: int | None = _STEP,
        who: str | None = _WHO,
        why: str = _WHY,
        wait: bool = _WAIT,
        timeout: float = _TIMEOUT,
        output: Output = OutputOption,
    ) -> None:
        _decide(outcome, conversation, agent, step, who, why, timeout if wait else None, output)

    return command


@contextmanager
def opened() -> Generator[tuple[Settings, Pendings]]:
    """A reader of what waits."""
    from llmagentos.streams.pending import Pendings

    with (
        open_journals() as (settings, decoder, log, served),
        closing(Pendings(settings, decoder.codec, served, log)) as pendings,
    ):
        yield settings, pendings


def _selection(agents: Sequence[str], kinds: Sequence[str], conversation: str | None, older: str | None) -> Selection:
    from llmagentos.streams.pending import KINDS, Selection
    from llmagentos.streams.position import milliseconds

    for kind in kinds:
        if kind not in KINDS:
            raise typer.BadParameter(f"{kind!r} is none of {', '.join(KINDS)}", param_hint="--for")
    before_ms = None
    if older is not None:
        span = milliseconds(older.strip())
        if span is None:
            raise typer.BadParameter(f"{older!r} is no time: 10m, 1h30m, 2d", param_hint="--older")
        before_ms = time.time_ns() // 1_000_000 - span
    return Selection(tuple(agents), tuple(kinds), conversation, before_ms)


# -- deciding ---------------------------------------------------------------------------------------------------------


def _decide(
    outcome: Literal["approve", "reject"],
    conversation: str,
    agents: Sequence[str],
    step: int | None,
    name: str | None,
    why: str,
    wait_s: float | None,
    output: Output,
) -> None:
    import asyncio

    from llmagentos.cli.dead import who
    from llmagentos.streams.decisions import decide, the_one
    from llmagentos.streams.errors import InputError
    from llmagentos.streams.pending import Decided, Selection
    from llmagentos.streams.producer import Producer

    by = who() if name is None else name.strip()
    if not by:
        raise InputError("--as is empty", fix="say who decides, or leave it out")
    with opened() as (settings, pendings):
        found = pendings.read(Selection(tuple(agents), conversation=conversation))
        approvals = [pending for pending in found if pending.kind == "approval"]
        # One that is named and not there may be decided already, while the handler waits for its next.
        decided = pendings.decisions(conversation, agents) if not approvals or step is not None else []
        decided = [end for end in decided if step in (None, end.step)]
        if decided and not any(pending.step == step for pending in approvals):
            _print_late(conversation, decided[-1], output)
            raise typer.Exit(1)
        pending = the_one(approvals, conversation, step=step)
        if pending is None:
            raise _nothing(pendings, conversation, agents, found)
        if pending.step > 1 and step is None:
            # Who means an earlier one, which somebody else was first to decide, must not decide this one.
            before = [end for end in pendings.decisions(conversation, [pending.agent]) if end.step == pending.step - 1]
            told = f"of its approval number {pending.step - 1}, {_ended(before[-1])}; " if before else ""
            raise InputError(
                f"conversation {conversation}: {told}now it asks for number {pending.step}: {pending.about[:200]}",
                kept="everything as it was",
                fix=f"if that is meant, say so: --step {pending.step}",
            )

        async def say(pending: Pending) -> tuple[Decided | None, bool]:
            async with Producer(settings, pendings.codec) as producer:
                return await decide(producer, pendings, pending, approve=outcome == "approve", by=by, why=why)

        end, ours = asyncio.run(say(pending))
        if end is None or not ours:
            _print_late(conversation, end or Decided("", "", "", 0, -1, pending.agent, pending.about), output)
            raise typer.Exit(1)
        gone_on = None if wait_s is None else _wait(pendings, pending, end, wait_s)
        parked = bool(gone_on) and pendings.parked(pending)
    _print_decided(outcome, pending, end, gone_on, parked, output)
    if gone_on is False or parked:
        raise typer.Exit(1)


def _wait(pendings: Pendings, pending: Pending, end: Decided, wait_s: float) -> bool:
    """Whether the handler has gone on in time."""
    until = time.monotonic() + wait_s
    while True:
        pendings.refresh()
        if pendings.gone_on(pending, end.place):
            return True
        if time.monotonic() > until:
            return False
        time.sleep(LOOK_S)


def _nothing(pendings: Pendings, conversation: str, agents: Sequence[str], found: Sequence[Pending]) -> Exception:
    """The error that nothing there waits for a person."""
    import difflib

    from llmagentos.streams.errors import InputError
    from llmagentos.streams.pending import Selection

    if found:
        return InputError(
            f"conversation {conversation} waits for no approval, but for {', '.join(_what(p) for p in found)}",
            fix=f"`llmagentos steps {conversation}` shows how it stands",
        )
    others = {p.conversation_id for p in pendings.read(Selection(tuple(agents), kinds=["approval"]))}
    close = difflib.get_close_matches(conversation, sorted(others)[:LOOKED_THROUGH], CLOSE)
    of = f" of {', '.join(agents)}" if agents else ""
    return InputError(
        f"nothing{of} waits for an approval in conversation {conversation!r}"
        + (f"; close to it: {', '.join(close)}" if close else ""),
        fix="`llmagentos waiting --for approval` lists what does",
    )


# -- what is printed --------------------------------------------------------------------------------------------------


def _what(pending: Pending, width: int | None = WHAT_WIDTH) -> str:
    if pending.kind == "answer":
        return f"answer of {pending.asked}"
    if pending.kind == "timer":
        return "timer"
    from llmagentos.streams.masking import masked_text, shortened

    return f'approval "{shortened(masked_text(pending.about), width)}"'


def _print_each(found: Iterable[Pending], output: Output) -> None:
    from llmagentos.cli.output import print_rows

    rows: list[dict[str, Any]] = []
    pretty = output is Output.pretty
    for pending in found:
        rows.append(
            {
                "agent": pending.agent,
                "conversation": pending.conversation_id,
                "step": pending.step,
                "waits for": _what(pending),
                "since": _ago(pending.since),
                "due": _due(pending.due),
                "held": pending.held,
            }
            if pretty
            else {
                "agent": pending.agent,
                "conversation": pending.conversation_id,
                "message_id": pending.message_id,
                "for": pending.kind,
                "step": pending.step,
                "about": pending.about,
                "asked": pending.asked or None,
                "since": pending.since,
                "due": pending.due or None,
                "suspended": pending.suspended,
                "held": pending.held,
                "partition": pending.partition,
                "offset": pending.offset,
            }
        )
    columns = ["agent", "conversation", "step", "waits for", "since", "due", "held"]
    if pretty and len(rows) > PLAIN:
        widths = [max(len(name), *(len(str(row[name])) for row in rows)) for name in columns]
        for row in (dict(zip(columns, columns, strict=True)), *rows):
            cells = (f"{row[name]!s:<{width}}" for name, width in zip(columns, widths, strict=True))
            sys.stdout.write("  ".join(cells).rstrip() + "\n")
        return
    print_rows(rows, columns, output=output, wrap=["conversation", "waits for"], empty="nothing waits")


def _print_groups(found: Iterable[Group]) -> None:
    from llmagentos.cli.output import errors, print_rows

    rows: list[dict[str, Any]] = []
    total = 0
    for group in found:
        oldest = group.oldest
        total += group.count
        rows.append(
            {
                "agent": oldest.agent,
                "waits for": f"answer of {oldest.asked}" if oldest.asked else oldest.kind,
                "count": group.count,
                "oldest": _ago(oldest.since),
                "first due": _due(group.next_due),
                "held": group.held,
                "of it, the oldest": oldest.conversation_id,
            }
        )
    print_rows(rows, ["agent", "waits for", "count", "oldest", "first due", "held", "of it, the oldest"])
    errors.print(f"{total:,} wait; --each shows them one by one, --agent, --for and --older choose", soft_wrap=True)


def _print_decided(
    word: str, pending: Pending, end: Decided, gone_on: bool | None, parked: bool, output: Output
) -> None:
    from llmagentos.cli.output import errors, print_json

    if output is Output.json:
        print_json(
            {
                "decision": word,
                "agent": pending.agent,
                "conversation": pending.conversation_id,
                "step": pending.step,
                "what": pending.about,
                "by": end.by,
                "why": end.why,
                "at": end.at,
                "gone_on": gone_on,
                "parked": parked,
            }
        )
        return
    past = {"approve": "approved", "reject": "rejected"}[word]
    why = f": {end.why}" if end.why else ""
    _line(f"{past} by {end.by}{why}")
    _line(f"  {pending.agent}, conversation {pending.conversation_id}: {_what(pending)}")
    if parked:
        errors.print(
            f"its handler has gone on and failed: `llmagentos dead show --conversation {pending.conversation_id}` says"
            " why, and the conversation waits until somebody redrives or drops it",
            markup=False,
            soft_wrap=True,
        )
    elif gone_on:
        _line("  its handler has gone on")
    elif gone_on is False:
        errors.print(
            "its handler has not gone on yet; the decision stays in the journal, and a worker that runs the agent acts"
            " on it (`llmagentos ps`)",
            soft_wrap=True,
        )


def _print_late(conversation: str, end: Decided, output: Output) -> None:
    from llmagentos.cli.output import errors, print_json

    if output is Output.json:
        print_json(
            {
                "decision": None,
                "agent": end.agent,
                "conversation": conversation,
                "what": end.what,
                "first": {"decision": end.outcome, "by": end.by, "why": end.why, "at": end.at},
            }
        )
        return
    errors.print(f"nothing was changed: {_ended(end)}", markup=False, soft_wrap=True)
    what = f': approval "{end.what[:WHAT_WIDTH]}"' if end.what else ""
    errors.print(f"  {end.agent}, conversation {conversation}{what}", markup=False, soft_wrap=True)


def _ended(end: Decided) -> str:
    when = f"{datetime.fromtimestamp(end.at / 1000):%Y-%m-%d %H:%M:%S}, {_ago(end.at)}" if end.at else ""
    why = f": {end.why}" if end.why else ""
    return {
        "approve": f"it is approved already, by {end.by} at {when}{why}",
        "reject": f"it is rejected already, by {end.by} at {when}{why}",
        "expired": f"its time was over at {when}, and it counts as rejected",
    }.get(end.outcome, "its handler does not wait for it any more")


def _ago(timestamp_ms: int) -> str:
    from llmagentos.cli.dialogue import lapse

    return f"{lapse(max(0, time.time() * 1000 - timestamp_ms))} ago"


def _due(timestamp_ms: int) -> str:
    from llmagentos.cli.dialogue import lapse

    if not timestamp_ms:
        return ""
    left = timestamp_ms - time.time() * 1000
    when = datetime.fromtimestamp(timestamp_ms / 1000)
    far = f"{when:%Y-%m-%d %H:%M}" if left > 86_400_000 else f"{when:%H:%M:%S}"
    return f"{far}, in {lapse(left)}" if left > 0 else f"{far}, {lapse(-left)} ago"


def _line(text: str) -> None:
    from llmagentos.cli.output import console

    console.print(text, markup=False, soft_wrap=True)
