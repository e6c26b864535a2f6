"""Reading lines: each with its number and its bytes as they were, whatever is in them."""

from __future__ import annotations

import gzip
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmagentos.streams import intake
from llmagentos.streams.errors import InputError
from llmagentos.streams.intake import Format, Summary, format_of, lines


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.ndjson", "ndjson"), ("a.jsonl.gz", "ndjson"), ("a.CSV", "csv"), ("a.b.csv.gz", "csv"), ("a.txt", "text"),
     ("a", "ndjson"), ("-", "ndjson")],
)  # fmt: skip
def test_the_name_tells_the_format(name: str, expected: Format) -> None:
    assert format_of(Path(name)) == expected


raw_lines = st.binary(max_size=40).filter(lambda raw: b"\n" not in raw and not raw.startswith(b"\x1f\x8b\x08"))


@given(st.lists(raw_lines), st.sampled_from(["ndjson", "text"]))
def test_every_line_is_there_with_its_bytes(
    tmp_path_factory: pytest.TempPathFactory, raws: list[bytes], kind: Format
) -> None:
    file = tmp_path_factory.mktemp("in") / "in"
    file.write_bytes(b"".join(raw + b"\n" for raw in raws))
    found = list(lines(file, kind))
    assert [(line.number, line.raw) for line in found] == [
        (number, raw + b"\n") for number, raw in enumerate(raws, 1) if (raw + b"\n").strip()
    ]
    for line in found:
        if not line.reason and kind == "ndjson":
            assert orjson.loads(line.raw) == line.value


@pytest.mark.parametrize("kind", ["ndjson", "text", "csv"])
def test_a_line_without_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Format
) -> None:
    monkeypatch.setattr(intake, "MAX_LINE_BYTES", 100)
    file = tmp_path / "in"
    file.write_bytes(b'{"a":1}\n"' + b"x" * 1050 + b'"\n{"a":2}\n')
    found = list(lines(file, kind))
    assert [line.number for line in found] == [1, 2, 3]
    assert "longer than" in found[1].reason
    assert not found[2].reason
    assert len(found[1].raw) == 100


def test_progress_is_of_the_packed_file(tmp_path: Path) -> None:
    file = tmp_path / "in.gz"
    file.write_bytes(gzip.compress(b'{"a":1}\n' * 1000))
    summary = Summary("t")
    assert len(list(lines(file, "ndjson", summary))) == 1000
    assert summary.size == summary.position == file.stat().st_size


def test_what_names_no_columns_is_told(tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_bytes(b"\xff\xfe\n1\n")
    with pytest.raises(InputError, match="names no columns: not UTF-8"):
        list(lines(file, "csv"))
    with pytest.raises(InputError, match="can't be read"):
        list(lines(tmp_path / "missing", "text"))
