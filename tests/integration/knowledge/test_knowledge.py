"""A folder of documents through the real model, the real store and the command; and the documents that lie."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest

from llmagentos.agents.knowledge import Knowledge
from llmagentos.streams.errors import DocumentError, InputError, KnowledgeError
from llmagentos.streams.settings import Settings

#: The smallest PNG that decoders take: one grey pixel's header is enough to be told by.
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(40)


def pdf(*pages: str) -> bytes:
    """A PDF with a line of text a page, written by hand after ISO 32000-1."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >>"
            f" /Contents {5 + 2 * number} 0 R >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    out, places = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{each}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n"
    return out + f"{head}<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF".encode()


@pytest.fixture
def settings(bare_environment: None, tmp_path: Path) -> Settings:
    """In place of the node's: nothing here needs one."""
    return Settings.load(home=tmp_path / "home")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One document of each kind."""
    folder = tmp_path / "house"
    (folder / "code").mkdir(parents=True)
    (folder / "rules.md").write_text(
        "# House rules\n\nBe kind.\n\n## Bicycles\n\nBicycles are kept in the cellar, never in the hallway.\n\n"
        "```sh\n# no heading\n```\n\n## Noise\n\nAfter ten at night the piano stays closed.\n"
    )
    (folder / "heating.html").write_text(
        "<html><head><title>x</title><script>alert('boiler')</script></head><body><h1>Heating</h1>"
        "<p>The boiler is serviced every autumn.</p></body></html>"
    )
    (folder / "lease.pdf").write_bytes(pdf("Rent is due on the third of each month.", "Pets need a written permit."))
    (folder / "code" / "garden.py").write_text(
        '"""Garden."""\n\n\nclass Garden:\n    """Beds."""\n\n    def waterRoses(self, litres):\n'
        '        """Give the roses their water."""\n        return litres * 2\n'
    )
    (folder / "notes.txt").write_text("The spare key is with Mrs. Lindgren on the second floor.\n")
    (folder / "photo.png").write_bytes(PNG)
    return folder


def first(knowledge: Knowledge, query: str) -> tuple[str, str]:
    passage = knowledge.search(query)[0]
    return Path(passage.source).name, passage.location


def test_a_folder_is_searched_kept_in_step_and_forgotten(folder: Path, tmp_path: Path, settings: Settings) -> None:
    with Knowledge(tmp_path / "house.db", settings=settings) as knowledge:
        seen: list[tuple[int, int]] = []
        added = knowledge.add(folder, progress=lambda done, total, _: seen.append((done, total)))
        assert (added.new, added.changed, added.ignored, added.problems) == (5, 0, 1, [])
        assert seen == [(done, 5) for done in range(6)]

        # Other words than the documents': found by meaning; and where exactly.
        assert first(knowledge, "Where may I put my bike?") == ("rules.md", "lines 5-11")
        assert first(knowledge, "When do I have to pay?") == ("lease.pdf", "page 1")
        assert first(knowledge, "Am I allowed to have a dog?") == ("lease.pdf", "page 2")
        assert first(knowledge, "maintenance of the furnace") == ("heating.html", "lines 1-2")
        assert first(knowledge, "Who has a key to my flat?") == ("notes.txt", "line 1")
        # A name in camelCase, by one of its words; and what a browser would not show is not there.
        assert knowledge.search("roses", by="words")[0].title == "garden.Garden.waterRoses"
        assert knowledge.search("alert", by="words") == []
        assert knowledge.search('"; NEAR( * -', by="words") == []

        # Unchanged, changed, new and gone, in one go.
        (folder / "notes.txt").write_text("The spare key is with the caretaker.\n")
        (folder / "bins.txt").write_text("The bins are emptied on Tuesdays.\n")
        (folder / "heating.html").unlink()
        added = knowledge.add(folder)
        assert (added.new, added.changed, added.unchanged, added.removed) == (1, 1, 3, 1)
        assert "caretaker" in knowledge.search("spare key")[0].text
        assert not any("Lindgren" in each.text for each in knowledge.search("spare key Lindgren", 50))
        assert not any("boiler" in each.text for each in knowledge.search("boiler", 50))

        # Another connection's writes are seen without opening anew.
        with Knowledge(tmp_path / "house.db", settings=settings) as other:
            assert other.put("minutes of May.txt", b"The roof will be mended in June.") == 1
        assert knowledge.search("repair of the roof")[0].source == "minutes of May.txt"
        assert knowledge.remove("minutes of May.txt", folder / "code") == 2
        assert {Path(each.source).name for each in knowledge.documents()} == {
            "rules.md", "lease.pdf", "notes.txt", "bins.txt",
        }  # fmt: skip


def test_a_document_that_lies_is_named_and_the_rest_goes_on(folder: Path, tmp_path: Path, settings: Settings) -> None:
    small = settings.model_copy(update={"max_document_bytes": 2_000})
    bad = {
        "scan.pdf": (PNG, "says .pdf, but is a PNG image"),
        "torn.pdf": (pdf("Some text")[:60], "is a broken PDF document"),
        "blank.pdf": (pdf(""), "has no text"),
        "zip.md": (b"PK\x03\x04 and more", "says .md, but is a ZIP archive"),
        "latin.txt": ("Grüße".encode("latin-1"), "is not UTF-8: byte 0xfc at 2 can't be decoded"),
        "zero.txt": (b"a\0b", "is no text: it has a zero byte at 1"),
        "coding.py": (b"# -*- coding: klingon -*-\n", "names no encoding that Python knows"),
        "empty.txt": (b"", "is empty"),
        "white.md": (b"\n  \n", "holds nothing but white space"),
        "huge.txt": (b"x" * 2_001, "is too large: 2,001 bytes, and 2,000 are taken"),
    }
    for name, (data, _) in bad.items():
        (folder / name).write_bytes(data)
    (folder / "away.txt").symlink_to("/etc/hostname")
    with Knowledge(tmp_path / "house.db", settings=small) as knowledge:
        added = knowledge.add(folder)
        said = {Path(each.source).name: str(each) for each in added.problems}
        assert said.keys() == bad.keys()
        for name, (_, why) in bad.items():
            assert why in said[name]
        assert added.new == 5
        assert first(knowledge, "Where may I put my bike?")[0] == "rules.md"

        # One that was good and has gone bad is not cited any longer.
        (folder / "notes.txt").write_bytes(PNG)
        assert "says .txt, but is a PNG image" in "".join(map(str, knowledge.add(folder).problems))
        assert not any(each.source.endswith("notes.txt") for each in knowledge.documents())
        with pytest.raises(DocumentError, match="says .pdf, but is a PNG image"):
            knowledge.put("sent.pdf", PNG)
        with pytest.raises(InputError, match="no file or folder"):
            knowledge.add(folder / "nowhere")
        with pytest.raises(InputError, match="query is empty"):
            knowledge.search(" ")


class Letters:
    """Vectors by how often each letter comes: what a test needs of a model, and where it may break off."""

    name = "letters"

    def __init__(self) -> None:
        self.calls = 0
        self.fail_at = -1

    def embed(self, texts: list[str]) -> np.ndarray:
        self.calls += 1
        if self.calls == self.fail_at:
            raise KnowledgeError("the endpoint is away")
        counts = np.array([[1 + text.lower().count(chr(97 + at)) for at in range(26)] for text in texts], np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_what_was_stored_before_a_failure_stays_and_is_not_read_again(tmp_path: Path, settings: Settings) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(3):  # each fills a group of its own
        (folder / f"{number}.txt").write_text(
            "\n\n".join(f"paragraph {number} {at} " + "word " * 60 for at in range(300))
        )
    letters = Letters()
    letters.fail_at = 2
    with Knowledge(tmp_path / "many.db", embedder=letters, settings=settings) as knowledge:
        with pytest.raises(KnowledgeError, match="the endpoint is away"):
            knowledge.add(folder)
        assert len(knowledge.documents()) == 1
        added = knowledge.add(folder)
        assert (added.new, added.unchanged) == (2, 1)
        # Of a changed document, only the paragraph that changed is embedded.
        letters.calls = 0
        path = folder / "0.txt"
        path.write_text(path.read_text().replace("paragraph 0 7 ", "paragraph 0 seven "))
        texts: list[int] = []
        embed = letters.embed
        letters.embed = lambda given: (texts.append(len(given)), embed(given))[1]  # type: ignore[method-assign]
        assert knowledge.add(folder).changed == 1
        assert texts == [1]
    with pytest.raises(KnowledgeError, match="holds vectors of the model 'letters'"):
        Knowledge(tmp_path / "many.db", settings=settings).add(folder)
    with sqlite3.connect(tmp_path / "many.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(KnowledgeError, match="is of version 99"):
        Knowledge(tmp_path / "many.db", settings=settings)
    (tmp_path / "no.db").write_text("this is no database, and long enough for SQLite to look at its header " * 20)
    with pytest.raises(KnowledgeError, match=r"no\.db can't be used"):
        Knowledge(tmp_path / "no.db", settings=settings)


def test_the_command(folder: Path, tmp_path: Path) -> None:
    (folder / "scan.pdf").write_bytes(PNG)
    store = str(tmp_path / "house.db")

    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llmagentos.cli.main", "knowledge", *arguments, "--store", store]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)
        assert done.returncode == status, done.stderr
        return done

    added = run("add", ".", status=1)
    assert "5 new" in added.stdout
    assert "skipped: scan.pdf says .pdf, but is a PNG image" in added.stderr
    found = orjson.loads(run("search", "Where may I put my bike?", "-k", "1", "-o", "json").stdout)
    assert [(Path(each["source"]).name, each["location"]) for each in found] == [("rules.md", "lines 5-11")]
    assert "[1] lease.pdf, page 2" in run("search", "Am I allowed to have a dog?").stdout
    assert len(orjson.loads(run("list", "-o", "json").stdout)) == 5
    assert "1 document forgotten" in run("remove", "rules.md").stdout
    assert "nothing is stored of rules.md" in run("remove", "rules.md", status=1).stderr
