"""The store: one SQLite file with documents, their chunks, the words of these (FTS5) and their vectors.

All of a document changes in one transaction, so a search never sees a half of it, and a process that dies leaves no
half. Vectors are compared with all others by usearch's kernels: nothing is approximate, and nothing is to be rebuilt
(docs/decisions/0066-knowledge.md has the measurements).
"""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Generator, Hashable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from llmagentos.agents.knowledge.chunking import Chunk
from llmagentos.streams.errors import KnowledgeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Passage", "Store", "Stored"]

#: Of the tables below; a store of another form is refused.
VERSION: Final = 1

#: Seconds that one process waits for another's transaction: one group of documents, which is some hundred rows.
BUSY_S: Final = 30.0

#: Candidates that each of both searches brings to the fusion.
DEPTH: Final = 50

#: Of reciprocal rank fusion. The paper that proposed it has 60, for lists of a thousand (Cormack, Clarke and Büttcher,
#: 2009); with lists of DEPTH, 10 found a little more (docs/decisions/0066-knowledge.md).
FUSION: Final = 10

#: Words of a query that are looked up: a whole page as a query is found by its first words as well.
WORDS_MAX: Final = 32

#: Words that nearly all English text has: looking them up costs the most and tells the least.
_COMMON: Final = frozenset(
    {
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "been",
        "but",
        "by",
        "can",
        "do",
        "does",
        "for",
        "from",
        "had",
        "has",
        "have",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "me",
        "my",
        "no",
        "not",
        "of",
        "on",
        "or",
        "so",
        "such",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "to",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "who",
        "why",
        "will",
        "with",
        "you",
        "your",
    }
)

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    source TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    added_at INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS chunks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    document INTEGER NOT NULL REFERENCES documents (id),
    title TEXT NOT NULL,
    location TEXT NOT NULL,
    text TEXT NOT NULL,
    digest BLOB NOT NULL,
    vector BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS chunks_of ON chunks (document);
CREATE INDEX IF NOT EXISTS chunks_like ON chunks (digest);
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (title, body, tokenize = 'porter unicode61 remove_diacritics 2');
"""


class Passage(NamedTuple):
    """What a search found.

    Attributes:
        source: the document: its path, or the name that it was given.
        location: where in it: `lines 10-32`, `page 3`.
        score: for the order within one search; it says nothing of another.
        title: the headings above it, or the function's name; may be empty.
    """

    text: str
    source: str
    location: str
    score: float
    title: str = ""

    @property
    def citation(self) -> str:
        """Source and location in one line."""
        return f"{self.source}, {self.location}"


class Stored(NamedTuple):
    """A document in the store; `added_at` in milliseconds since 1970."""

    source: str
    chunks: int
    bytes: int
    added_at: int
    digest: str


class New(NamedTuple):
    """A document to be written: its chunks, and for each the digest of what was embedded, and its vector."""

    source: str
    digest: str
    bytes: int
    chunks: Sequence[Chunk]
    digests: Sequence[bytes]
    vectors: NDArray[np.float32]


class Store:
    """One file; several threads and processes may read and write it at once.

    Raises:
        KnowledgeError: the file can't be opened, or is no store of this version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._seen = -1  # what the vectors in memory reflect
        self._ids: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._vectors: NDArray[np.float16] = np.empty((0, 0), dtype=np.float16)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KnowledgeError(
                f"no folder for the knowledge store {path}: {error}", fix="name another file"
            ) from None
        with self._told():
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._open()

    def _open(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise KnowledgeError(
                f"the knowledge store {self.path} is of version {version}, and this program's is {VERSION}",
                fix="name another file by LLMAGENTOS_KNOWLEDGE, and add the documents again",
                kept="the store as it is",
            )
        self._db.execute("PRAGMA journal_mode = WAL")  # who searches doesn't wait for who adds
        self._db.execute("PRAGMA synchronous = NORMAL")  # with WAL: a power cut loses the last documents, not the file
        with self.writing():
            for statement in _TABLES.split(";\n"):
                self._db.execute(statement)
            if not version:
                # A title says more of a chunk than one of its words.
                self._db.execute("INSERT INTO words (words, rank) VALUES ('rank', 'bm25(2.0, 1.0)')")
                self._db.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            self._db.close()

    @contextmanager
    def writing(self) -> Generator[None]:
        """One transaction; the block runs alone, in this process and among others."""
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _told(self) -> Generator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise KnowledgeError(
                    f"the knowledge store {self.path} can't be used: {error}",
                    fix="name another file by LLMAGENTOS_KNOWLEDGE, or end who else is writing to it"
                    if "locked" in str(error)
                    else "name another file by LLMAGENTOS_KNOWLEDGE, and add the documents again",
                    kept="what was stored before",
                ) from error

    def bind(self, model: str) -> None:
        """Say which model's vectors are stored: those of two models can't be compared.

        Raises:
            KnowledgeError: there are those of another one.
        """
        with self.writing():
            self._db.execute("INSERT OR IGNORE INTO about VALUES ('model', ?)", (model,))
            had = self._db.execute("SELECT value FROM about WHERE name = 'model'").fetchone()[0]
        if had != model:
            raise KnowledgeError(
                f"the knowledge store {self.path} holds vectors of the model {had!r}, and the settings name {model!r}",
                fix=f"set the embeddings of {had!r}, or name another file by LLMAGENTOS_KNOWLEDGE and add again",
                kept="the store as it is",
            )

    def digests(self) -> dict[str, str]:
        """Of each document, the digest of its bytes."""
        with self._told():
            return dict(self._db.execute("SELECT source, digest FROM documents"))

    def documents(self) -> list[Stored]:
        """All documents, by source."""
        with self._told():
            rows = self._db.execute(
                "SELECT source, (SELECT count(*) FROM chunks WHERE document = documents.id), bytes, added_at, digest"
                " FROM documents ORDER BY source"
            ).fetchall()
        return [Stored(*row) for row in rows]

    def known(self, digests: Iterable[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """The vectors of texts that are embedded already."""
        found: dict[bytes, NDArray[np.float32]] = {}
        with self._told():
            for digest in digests:
                row = self._db.execute("SELECT vector FROM chunks WHERE digest = ? LIMIT 1", (digest,)).fetchone()
                if row is not None:
                    found[digest] = np.frombuffer(row[0], dtype=np.float16).astype(np.float32)
        return found

    def write(self, documents: Iterable[New]) -> None:
        """Store *documents* in place of what was there under their names."""
        with self.writing():
            for new in documents:
                self._drop(new.source)
                document = self._db.execute(
                    "INSERT INTO documents (source, digest, bytes, added_at) VALUES (?, ?, ?, ?)",
                    (new.source, new.digest, new.bytes, int(time.time() * 1_000)),
                ).lastrowid
                stem = Path(new.source).name
                for chunk, digest, vector in zip(new.chunks, new.digests, new.vectors, strict=True):
                    rowid = self._db.execute(
                        "INSERT INTO chunks (document, title, location, text, digest, vector)"
                        " VALUES (?, ?, ?, ?, ?, ?)",
                        (
                            document,
                            chunk.title,
                            chunk.location,
                            chunk.text,
                            digest,
                            vector.astype(np.float16).tobytes(),
                        ),
                    ).lastrowid
                    self._db.execute(
                        "INSERT INTO words (rowid, title, body) VALUES (?, ?, ?)",
                        (rowid, _spelled(f"{stem} {chunk.title}"), _spelled(chunk.text)),
                    )

    def remove(self, sources: Iterable[str]) -> None:
        """Forget these documents."""
        with self.writing():
            for source in sources:
                self._drop(source)

    def _drop(self, source: str) -> None:
        row = self._db.execute("SELECT id FROM documents WHERE source = ?", (source,)).fetchone()
        if row is not None:
            self._db.execute("DELETE FROM words WHERE rowid IN (SELECT id FROM chunks WHERE document = ?)", row)
            self._db.execute("DELETE FROM chunks WHERE document = ?", row)
            self._db.execute("DELETE FROM documents WHERE id = ?", row)

    def by_words(self, query: str, depth: int = DEPTH) -> list[int]:
        """Ids of the chunks that BM25 puts first; of any of the query's words."""
        words = list(dict.fromkeys(re.findall(r"\w+", _spelled(query).lower())))
        telling = [word for word in words if word not in _COMMON] or words
        if not telling:
            return []
        match = " OR ".join(f'"{word}"' for word in telling[:WORDS_MAX])
        with self._told():
            rows = self._db.execute(
                "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?", (match, depth)
            ).fetchall()
        return [row[0] for row in rows]

    def by_vector(self, vector: NDArray[np.float32], depth: int = DEPTH) -> list[int]:
        """Ids of the chunks whose vectors are the most alike."""
        from usearch.index import MetricKind, search

        with self._told():
            self._refresh()
            ids, vectors = self._ids, self._vectors
        if not len(ids):
            return []
        found: Any = search(vectors, vector.astype(np.float16), min(depth, len(ids)), MetricKind.IP, exact=True)
        return [int(each) for each in ids[found.keys.ravel()]]

    def _refresh(self) -> None:
        """Bring the vectors in memory to what the file has; ids are never used again, and only grow."""
        # Of other connections' commits; ours are counted by total_changes.
        seen = hash((self._db.execute("PRAGMA data_version").fetchone()[0], self._db.total_changes))
        if seen == self._seen:
            return
        last = int(self._ids[-1]) if len(self._ids) else 0
        self._db.execute("BEGIN")  # both of one state of the file
        try:
            ids = np.fromiter((row[0] for row in self._db.execute("SELECT id FROM chunks ORDER BY id")), dtype=np.int64)
            rows = self._db.execute("SELECT vector FROM chunks WHERE id > ? ORDER BY id", (last,)).fetchall()
        finally:
            self._db.execute("COMMIT")
        left = self._vectors[np.isin(self._ids, ids)]
        if rows:
            new = np.frombuffer(b"".join(row[0] for row in rows), dtype=np.float16).reshape(len(rows), -1)
            left = np.concatenate([left, new]) if len(left) else new
        self._ids, self._vectors, self._seen = ids, np.ascontiguousarray(left), seen

    def sections(self, ids: Iterable[int]) -> dict[int, Hashable]:
        """What each of these chunks belongs to: document and title; where there is no title, itself."""
        wanted = list(dict.fromkeys(ids))
        marks = ", ".join("?" * len(wanted))
        with self._told():
            rows = self._db.execute(f"SELECT id, document, title FROM chunks WHERE id IN ({marks})", wanted).fetchall()
        return {each: (document, title) if title else each for each, document, title in rows}

    def passages(self, scored: Sequence[tuple[int, float]]) -> list[Passage]:
        """What these ids stand for, in their order, without those that were removed meanwhile."""
        if not scored:
            return []
        marks = ", ".join("?" * len(scored))
        with self._told():
            rows = self._db.execute(
                "SELECT chunks.id, text, source, location, title FROM chunks JOIN documents ON document = documents.id"
                f" WHERE chunks.id IN ({marks})",
                [each for each, _ in scored],
            ).fetchall()
        found = {row[0]: row[1:] for row in rows}
        return [
            Passage(text, source, location, score, title)
            for each, score in scored
            if each in found
            for text, source, location, title in [found[each]]
        ]


def fused(*orders: Sequence[int], section: Mapping[int, Hashable]) -> list[tuple[int, float]]:
    """Reciprocal rank fusion of *orders*: ids with their scores, the best first.

    A section counts by its best chunk: five pieces of one function would hide four others.
    """
    scores: dict[Hashable, float] = {}
    best: dict[Hashable, int] = {}
    for order in orders:
        seen = dict.fromkeys(section[each] for each in order if each in section)
        for rank, each in enumerate(seen, 1):
            scores[each] = scores.get(each, 0.0) + 1 / (FUSION + rank)
        for each in order:
            if each in section:
                best.setdefault(section[each], each)
    ordered = sorted(scores.items(), key=lambda item: (-item[1], best[item[0]]))
    return [(best[each], score) for each, score in ordered]


def _spelled(text: str) -> str:
    """*text*, and behind it the words that its camelCase names are made of; FTS5 parts those_like_this itself."""
    names = set(re.findall(r"\b\w*[a-z][A-Z]\w*\b", text))
    parts = [part for name in sorted(names) for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]
    return f"{text}\n{' '.join(parts)}" if parts else text
