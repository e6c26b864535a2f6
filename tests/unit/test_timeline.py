"""What `llmagentos steps` makes of a conversation's records, and how it shows it."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from typing import Any

import confluent_kafka
import orjson
import pytest
from rich.console import Console

from llmagentos.cli.page import page
from llmagentos.cli.timeline import as_json, drawn, line, rows, summary
from llmagentos.streams.decisions import the_one
from llmagentos.streams.entries import Entry
from llmagentos.streams.errors import InputError
from llmagentos.streams.invocations import Invocation, Timeline
from llmagentos.streams.journal_record import BLANK
from llmagentos.streams.masking import MASK, masked, masked_text, shortened
from llmagentos.streams.message import Message
from llmagentos.streams.pending import Pending, groups
from llmagentos.streams.settings import Settings

T0 = 1_790_000_000_000
STEP = {"name": "", "number": 0, "outcome": "", "about": "", "due": 0, "attempts": 1, "took_ms": 0}
BODY = {"content_type": "", "type": "", "body": b"", "blob": ""}


class Records:
    """A conversation, written by hand."""

    def __init__(self) -> None:
        self.settings = Settings.load(prefix="t.")
        self.answers: dict[bytes, Message] = {}
        self.timeline = Timeline(self.settings, self.answers.__getitem__)

    def message(self, topic: str, offset: int, at: int, message: Message) -> None:
        entry = self._entry(topic, offset, at)
        entry.message = Message(message.record, entry.topic, 0, offset, T0 + at)
        self.timeline.add(entry)

    def journal(self, agent: str, at_offset: int, kind: str, at: int, **fields: Any) -> None:
        entry = self._entry(f"journal.{agent}", at_offset, at)
        entry.record = {
            **BLANK,
            "claim": 0,
            "conversation_id": "c",
            "kind": kind,
            "at": T0 + at,
            "writer": "",
            **fields,
        }
        self.timeline.add(entry)

    def _entry(self, topic: str, offset: int, at: int) -> Entry:
        return Entry(
            confluent_kafka.Message(
                topic=f"t.{topic}", partition=0, offset=offset, key=b"c", value=b"", headers=[], timestamp=(1, T0 + at)
            )
        )


def step(name: str, outcome: str, value: object = None, **fields: Any) -> dict[str, Any]:
    body = {"content_type": "application/json", "body": orjson.dumps(value)} if value is not None else {}
    return STEP | BODY | body | {"name": name, "outcome": outcome, **fields}


def asked(records: Records) -> Message:
    """`desk` was given a message."""
    message = Message.create("refund 17", to="desk", conversation="c", message_id="m")
    records.message("agent.desk", 5, 0, message)
    return message


def the_root(records: Records) -> Invocation:
    roots = records.timeline.roots()
    assert len(roots) == 1
    return roots[0]


def test_steps_questions_and_answers_make_a_tree() -> None:
    records = Records()
    asked(records)
    question = Message.create(
        "paid?", to="bank", conversation="c/1", message_id="q", sender="desk", reply_to=("t.answers.desk", 0)
    )
    question.record |= {"caused_by": "m", "root_conversation": "c"}
    records.journal("desk", 1, "step", 40, offset=5, message_id="m", step=step("look up", "result", 17, took_ms=30))
    records.message("agent.bank", 2, 50, question)
    records.message("agent.bank", 3, 60, question)  # asked again by a rerun: it is handled once
    records.journal("bank", 1, "step", 70, offset=2, message_id="q", step=step("ledger", "result", "yes", attempts=3))
    records.journal("bank", 2, "done", 80, offset=2, message_id="q")
    answer = Message.create("yes", to="desk", conversation="c/1", sender="bank", type="result")
    answer.record |= {"caused_by": "q"}
    records.message("answers.desk", 9, 90, answer)

    root = the_root(records)
    assert [(s.name, s.state, s.took) for s in root.steps] == [("look up", "done", 30), ("ask bank", "done", 40)]
    child = root.steps[1].child
    assert child is not None
    assert (child.state, [s.attempts for s in child.steps]) == ("done", [3])
    assert child.answer is not None
    assert root.state == "open"
    found = rows([root])
    assert [(row.guide, row.name) for row in found] == [
        ("", "desk ← client"),
        ("├ ", "look up"),
        ("└ ", "ask bank"),
        ("  ", "bank ← desk"),
        ("  ├ ", "ledger"),
        ("  └ ", "answer"),
    ]
    assert "3 tries" in found[4].how
    assert as_json([root], show=False)[0]["steps"][1]["message"]["answer"] == "yes"


def test_of_two_decisions_the_first_counts() -> None:
    records = Records()
    asked(records)
    records.journal("desk", 1, "step", 10, offset=5, step=step("ctx.approve", "approval", about="pay?"))
    assert [s.about for s in the_root(records).waits] == ["pay?"]
    assert 'desk waits for approval "pay?"' in summary([the_root(records)])
    for at, (kind, who) in enumerate([("reject", "ada"), ("approve", "bob")], start=2):
        said = step("ctx.approve", kind, {"by": who, "why": "so"})
        records.journal("desk", at, kind, at * 10, offset=5, claim=-1, step=said)
    decided = the_root(records).steps[0]
    assert (decided.state, decided.by, decided.why, decided.took) == ("rejected", "ada", "so", 10)


def test_what_a_superseded_worker_wrote_is_void() -> None:
    records = Records()
    asked(records)
    records.journal("desk", 11, "step", 10, offset=5, claim=3, step=step("pay", "result", "by the old one"))
    records.journal("desk", 12, "step", 20, offset=5, claim=10, step=step("pay", "result", "by the owner"))
    assert the_root(records).steps[0].body == b'"by the owner"'
    # The same, were the second no owner either: nobody has claimed before the first.
    records.journal("desk", 12, "step", 20, offset=5, claim=3, step=step("pay", "result", "by the owner"))
    assert the_root(records).steps[0].body == b'"by the old one"'


def test_a_suspended_one_says_what_it_waits_for_until_that_has_come() -> None:
    records = Records()
    asked(records)
    wait = {"kind": "answer", "name": "ctx.ask bank", "number": 0, "about": "q", "due": T0 + 99_000}
    records.journal("desk", 1, "suspend", 10, offset=5, waits=[wait])
    root = the_root(records)
    assert (root.state, [s.asked for s in root.waits]) == ("waiting", ["bank"])
    records.answers[b"encoded"] = Message.create("yes", to="desk", sender="bank", type="result")
    records.journal("desk", 2, "step", 30, offset=5, step=step("ctx.ask bank", "answer", about="q", body=b"encoded"))
    root = the_root(records)
    assert (root.state, root.waits, root.steps[0].body) == ("open", [], b"yes")
    records.journal("desk", 3, "park", 40, offset=5, detail={"error": "ValueError: password=hunter22"})
    root = the_root(records)
    assert root.state == "parked"
    assert f"password={MASK}" in "".join(row.text for row in rows([root]))
    assert "hunter22" in "".join(row.text for row in rows([root], show=True))


def test_what_retention_has_taken_of_a_message_is_said() -> None:
    records = Records()
    records.journal("desk", 1, "done", 10, offset=5, message_id="m")
    root = the_root(records)
    assert (root.message, root.state) == (None, "done")
    assert "retention" in rows([root])[0].text


def test_a_page_holds_text_as_text_and_nothing_from_elsewhere() -> None:
    records = Records()
    evil = "<script>alert('x')</script>\"&<img src=http://elsewhere/>" + "x" * 20_000
    records.message("agent.desk", 5, 0, Message.create(evil, to="desk", conversation="c", message_id="m"))
    records.journal("desk", 1, "step", 10, offset=5, step=step("<b>bold</b>", "result", {"token": "tiptop-secret"}))

    class Tags(HTMLParser):
        seen: set[str] = set()
        attributes: set[str] = set()

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.seen.add(tag)
            self.attributes |= {name for name, _ in attrs}

    written = page("</title><script>", records.timeline.roots())
    tags = Tags()
    tags.feed(written)
    assert not tags.seen & {"script", "img", "b", "link", "iframe"}
    assert not tags.attributes & {"src", "href", "onload"}
    assert "tiptop" not in written
    assert len(written) < 30_000
    assert "tiptop" in page("c", records.timeline.roots(), show=True)


def test_a_terminal_is_given_lines_that_fit_and_a_pipe_lines_that_stand_alone() -> None:
    records = Records()
    records.message("agent.desk", 5, 0, Message.create("long " * 100, to="desk", conversation="c", message_id="m"))
    roots = records.timeline.roots()
    terminal = Console(file=io.StringIO(), force_terminal=True, width=60)
    assert all(part.cell_len <= 60 for part in drawn("c", rows(roots), roots, terminal, full=False)[1:])
    assert line(rows(roots)[0]).count("\n") == 0
    assert "desk ← client" in line(rows(roots)[0])


@pytest.mark.parametrize(
    "text",
    [
        "sk-proj-abcdefghijklmnop1234",
        "ghp_abcdefghijklmnopqrstuv123456",
        "AKIAIOSFODNN7EXAMPLE",
        "Authorization: Bearer abcdef.ghijkl",
        "postgres://user:hunter22@db/x",
        "password=hunter22 and more",
        '{"api_key": "hunter22"}',
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc",
    ],
)
def test_secrets_are_masked(text: str) -> None:
    shown = masked_text(text)
    assert MASK in shown
    assert not any(part in shown for part in ("hunter22", "EXAMPLE", "abcdef", "eyJzdWI", "mnop"))


def test_what_is_no_secret_stays() -> None:
    value = {
        "tokens_in": 12,
        "author": "ada",
        "text": "my token of love, pin: no",
        "token": "",
        "ok": True,
        "n": [1, None],
    }
    assert masked(value) == value
    assert masked({"password": "x", "deep": [{"client_secret": 7}]}) == {
        "password": MASK,
        "deep": [{"client_secret": MASK}],
    }
    assert shortened("a\nb" * 100, 10) == "a ⏎ ba ⏎ …"
    assert shortened("short", 10) == "short"


def pending(agent: str, since: int, number: int = 0, **fields: Any) -> Pending:
    known: dict[str, Any] = {"kind": "approval", "name": "ctx.approve", "about": f"{agent}?", "due": 0}
    return Pending(agent, 0, 1, "c", "m", number=number, since=since, suspended=True, held=2, **(known | fields))


def test_many_waits_are_counted_by_what_for() -> None:
    many = [pending("desk", n) for n in range(5, 1_000)]
    many += [pending("desk", 1, kind="answer", name="ctx.ask bank", due=70), pending("bank", 2, due=90)]
    first = groups(many)[0]
    assert (first.count, first.oldest.since, first.held, first.next_due) == (995, 5, 1_990, 0)
    assert [(g.oldest.agent, g.oldest.asked, g.next_due) for g in groups(many)[1:]] == [
        ("desk", "bank", 70),
        ("bank", "", 90),
    ]


def test_of_several_approvals_one_must_be_named() -> None:
    both = [pending("desk", 1), pending("bank", 2, 1)]
    with pytest.raises(InputError, match=r"2 approvals:\n  --agent desk --step 1: desk\?\n  --agent bank --step 2"):
        the_one(both, "c")
    assert the_one(both, "c", step=2) is both[1]
    with pytest.raises(InputError, match="none is number 7"):
        the_one(both, "c", step=7)
    assert the_one([], "c") is None
