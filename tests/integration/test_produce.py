"""`llmagentos produce` and `llmagentos schema`, as a person calls them, against a real broker."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from llmagentos.streams.admin import ensure_topics
from llmagentos.streams.message import Message
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec
from tests.integration.test_producer import PARTITIONS, read

DATA = Path(os.environ.get("LLMAGENTOS_DATA", "/nonexistent")) / "sgd_dev.ndjson.gz"


class Command:
    """Runs `llmagentos` in a folder of its own, with the settings of the test."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder

    def __call__(self, *arguments: str | Path, stdin: bytes = b"", **env: str) -> tuple[int, str, str]:
        """Status, standard output, standard error."""
        env |= {"LLMAGENTOS_HOME": str(self.settings.home), "LLMAGENTOS_PREFIX": self.settings.prefix}
        done = subprocess.run(
            [sys.executable, "-m", "llmagentos.cli.main", *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, "COLUMNS": "200", **env},
            input=stdin,
            capture_output=True,
            timeout=120,
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def messages(self, agent: str = "greeter") -> list[Message]:
        """What is in the inbox, by partition and offset."""
        codec = Codec(open_registry(self.settings))
        records = read(self.settings, self.settings.topic(f"agent.{agent}"))
        records.sort(key=lambda record: (record.partition(), record.offset()))
        return [codec.message(r.value(), r.topic(), r.partition(), r.offset(), 0) for r in records]


@pytest.fixture
def command(settings: Settings, tmp_path: Path) -> Command:
    names = [settings.topic(f"agent.{name}") for name in ("greeter", "poet")]
    ensure_topics(settings, [(name, PARTITIONS, {}) for name in names])
    return Command(settings, tmp_path)


def ndjson(path: Path, *lines: Any) -> Path:
    raw = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def test_one_message(command: Command) -> None:
    code, out, err = command("produce", "--to", "greeter", "--conversation", "c-1", "good morning")
    assert (code, err) == (0, "")
    assert "conversation c-1" in out
    [message] = command.messages()
    assert (message.text, message.conversation_id, message.recipient) == ("good morning", "c-1", "greeter")
    code, out, _ = command("produce", "--to", "poet", "hi", "--output", "json")
    assert code == 0
    assert json.loads(out)["topic"] == command.settings.topic("agent.poet")


def test_unknown_agent_names_those_there_are(command: Command) -> None:
    code, out, err = command("produce", "--to", "greetr", "hello")
    assert (code, out) == (1, "")
    assert "there is no agent 'greetr'" in err
    assert "greeter, poet" in err
    assert "llmagentos deploy" in err


def test_bad_lines_are_told_and_kept(command: Command, tmp_path: Path) -> None:
    bad: list[Any] = [b'{"text": broken', {"conversation_id": "c"}, {"text": 5}, b"\xff\xfe"]
    good = [{"text": f"t{n}", "conversation_id": "c", "message_id": f"m{n}"} for n in range(3)]
    lines = [good[0], bad[0], b"", bad[1], good[1], bad[2], bad[3], {"body": "x" * 1_000_001}, good[2]]
    file = ndjson(tmp_path / "in.ndjson", *lines)
    code, out, err = command("produce", "--to", "greeter", "--file", file, "--rejects", "bad.ndjson")
    assert code == 1
    assert "3 messages to" in out
    assert "5 lines refused, kept in bad.ndjson" in out
    told = {int(line.split(":")[0][5:]): line for line in err.splitlines() if line.startswith("line ")}
    assert list(told) == [2, 4, 6, 7, 8]
    assert "not JSON" in told[2]
    assert "no text and no body" in told[4]
    assert "text must be a string" in told[6]
    assert "max_message_bytes" in told[8]
    assert [message.text for message in command.messages()] == ["t0", "t1", "t2"]
    assert (tmp_path / "bad.ndjson").read_bytes() == ndjson(tmp_path / "want", *bad, lines[7]).read_bytes()


def test_a_file_keeps_its_order_by_conversation(command: Command, tmp_path: Path) -> None:
    lines = [{"room": f"r{n % 5}", "no": n, "say": f"{n}"} for n in range(500)]
    file = ndjson(tmp_path / "in.ndjson.gz", *lines)
    mapping = ("--map", "conversation_id=.room", "--map", "text=.say", "--map", "message_id={.room}/{.no}")
    code, out, _ = command("produce", "--to", "greeter", "--file", file, *mapping, "--output", "json")
    assert code == 0
    summary = json.loads(out)
    assert (summary["read"], summary["acknowledged"], summary["refused"]) == (500, 500, 0)
    by_room: dict[str, list[int]] = defaultdict(list)
    for message in command.messages():
        by_room[message.conversation_id].append(int(message.text))
    assert by_room == {f"r{n}": list(range(n, 500, 5)) for n in range(5)}
    assert {message.message_id for message in command.messages()} == {f"r{n % 5}/{n}" for n in range(500)}


def test_csv(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "orders.csv"
    file.write_bytes(b'\xef\xbb\xbfcustomer,note\r\nanna,"two\r\nlines"\r\nben\r\ncarl,"a ""quote"""\r\n')
    code, _, err = command(
        "produce", "--to", "greeter", "--file", file, "--map", "conversation_id=.customer", "--map", "text=.note",
        "--rejects", "bad.csv",
    )  # fmt: skip
    assert code == 1
    assert "line 4: 1 columns, where the first line names 2" in err
    assert {m.conversation_id: m.text for m in command.messages()} == {"anna": "two\r\nlines", "carl": 'a "quote"'}
    assert (tmp_path / "bad.csv").read_bytes() == b"\xef\xbb\xbfcustomer,note\r\nben\r\n"


def test_standard_input_and_text(command: Command) -> None:
    code, out, _ = command("produce", "--to", "greeter", "-", stdin=b'{"text": "a"}\n{"text": "b"}')
    assert (code, out[:10]) == (0, "2 messages")
    code, _, _ = command("produce", "--to", "poet", "-c", "c", "--format", "text", "-", stdin=b"one\n\ntwo\n")
    assert code == 0
    assert [message.text for message in command.messages("poet")] == ["one", "two"]


def test_rate(command: Command, tmp_path: Path) -> None:
    file = ndjson(tmp_path / "in.ndjson", *({"text": "x"} for _ in range(11)))
    code, out, _ = command("produce", "--to", "greeter", "--file", file, "--rate", "10", "--output", "json")
    assert code == 0
    assert 1.0 <= json.loads(out)["seconds"] < 10


def test_a_damaged_file_says_how_far_it_went(command: Command, tmp_path: Path) -> None:
    file = ndjson(tmp_path / "in.ndjson.gz", *({"text": os.urandom(500).hex()} for _ in range(200)))
    file.write_bytes(file.read_bytes()[:60_000])
    code, out, err = command("produce", "--to", "greeter", "--file", file)
    assert code == 1
    assert "is damaged behind line" in err
    sent = len(command.messages())
    assert 0 < sent < 200
    assert f"up to {sent} were sent" in err.replace("\n", " ")
    assert out.startswith(f"{sent} messages")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--file", "missing.ndjson"], 1, "there is no file missing.ndjson"),
        (["--file", "in.ndjson", "--map", "x=.y"], 1, "there is no field 'x'"),
        (["--file", "in.ndjson", "--rejects", "in.ndjson"], 1, "is the file that is read"),
        (["--file", "in.ndjson", "text"], 2, "one of them"),
        (["text", "--rate", "5"], 2, "--rate goes with a file"),
        ([], 2, "one of them"),
    ],
)
def test_wrong_use(command: Command, tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    ndjson(tmp_path / "in.ndjson", {"text": "x"})
    got, _, err = command("produce", "--to", "greeter", *arguments)
    assert got == code
    assert says in err
    assert "Traceback" not in err


def test_kafka_out_of_reach_is_told(command: Command) -> None:
    code, _, err = command("produce", "--to", "greeter", "hello", LLMAGENTOS_BROKERS="127.0.0.1:1")
    assert code == 1
    assert "out of reach" in err
    assert "fix:" in err


@pytest.mark.skipif(not DATA.is_file(), reason="LLMAGENTOS_DATA names no folder with sgd_dev.ndjson.gz")
def test_real_dialogues(command: Command) -> None:
    mapping = ("-m", "conversation_id=.conversation", "-m", "text=.text", "-m", "message_id={.conversation}/{.turn}")
    code, out, _ = command("produce", "--to", "greeter", "--file", DATA, *mapping, "--output", "json")
    assert code == 0
    assert json.loads(out)["acknowledged"] == 38_768
    turns: dict[str, int] = defaultdict(int)
    for message in command.messages():
        conversation, turn = message.message_id.rsplit("/", 1)
        assert message.conversation_id == conversation
        assert int(turn) == turns[conversation], "turns are in order"
        turns[conversation] += 1
    assert len(turns) == 2098


def test_schema_commands(command: Command, tmp_path: Path) -> None:
    code, out, err = command("schema", "list")
    assert (code, out) == (0, "")
    assert "empty" in err
    code, out, _ = command("schema", "register", "--output", "json")
    assert code == 0
    assert {row["subject"] for row in json.loads(out)} >= {"llmagentos.Message", "llmagentos.Card"}
    code, out, _ = command("schema", "list", "-o", "json")
    ids = {row["subject"]: row["id"] for row in json.loads(out)}
    code, out, _ = command("schema", "show", "llmagentos.Message")
    assert json.loads(out)["name"] == "Message"
    code, by_id, _ = command("schema", "show", "--id", str(ids["llmagentos.Message"]))
    assert by_id == out

    broken = json.loads(out)
    broken["fields"].append({"name": "mood", "type": "string"})
    (tmp_path / "message.avsc").write_text(json.dumps(broken))
    for verb in ("check", "register"):
        code, out, err = command("schema", verb, "message.avsc", "-o", "json")
        assert code == 1
        [row] = json.loads(out)
        assert not row["compatible"]
        assert "field 'mood' was added without a default" in row["reason"]
    broken["fields"][-1]["default"] = ""
    (tmp_path / "message.avsc").write_text(json.dumps(broken))
    assert command("schema", "check", "message.avsc")[0] == 0
    code, out, _ = command("schema", "show", "llmagentos.Message", "-o", "json")
    assert json.loads(out)["version"] == 1, "check registers nothing"
    assert command("schema", "register", "message.avsc")[0] == 0
    code, out, _ = command("schema", "show", "llmagentos.Message", "-o", "json")
    assert json.loads(out)["version"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["show", "nope"], 1, "has no subject nope"),
        (["show", "--id", "77"], 1, "has no schema 77"),
        (["show"], 2, "one of them"),
        (["check", "missing.avsc"], 1, "can't be read"),
        (["check", "broken.avsc"], 1, "is not JSON"),
        (["check", "list.avsc"], 1, "holds no record"),
        (["register", "wrong.avsc"], 1, "is no Avro schema"),
        (["register", "--subject", "x"], 2, "exactly one FILE"),
    ],
)
def test_wrong_schemas(command: Command, tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    (tmp_path / "broken.avsc").write_text("{")
    (tmp_path / "list.avsc").write_text("[]")
    (tmp_path / "wrong.avsc").write_text('{"type": "record", "name": "X", "fields": [{"name": "a", "type": "what"}]}')
    got, _, err = command("schema", *arguments)
    assert got == code
    assert says in err
    assert "Traceback" not in err
