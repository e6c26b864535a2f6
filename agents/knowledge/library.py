"""Knowledge: folders and documents in, passages with their places out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np

from llmagentos.agents.knowledge.chunking import Chunk, chunks
from llmagentos.agents.knowledge.embedding import Embedder, embedder_of
from llmagentos.agents.knowledge.reading import is_document, sections
from llmagentos.agents.knowledge.store import New, Passage, Store, Stored, fused
from llmagentos.streams.errors import DocumentError, InputError
from llmagentos.streams.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Added", "Knowledge", "Problem", "documents_in"]

#: Chunks that are embedded and written together: some seconds of work are lost at most when a process dies.
GROUP: Final = 256

#: Folders of other programs: nobody asks for what lies in them.
UNREAD: Final = frozenset({"node_modules", "__pycache__", "site-packages"})

#: Passages that one search gives at most.
PASSAGES_MAX: Final = 50

Progress = Callable[[int, int, str], None]


class Problem(NamedTuple):
    """A document that was skipped, and why."""

    source: str
    why: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.source} {self.why}" + (f" ({self.fix})" if self.fix else "")


class Added(NamedTuple):
    """What became of what was to be added: documents, and the chunks of those that are new or changed."""

    new: int
    changed: int
    unchanged: int
    removed: int
    ignored: int
    chunks: int
    problems: list[Problem]


class _Read(NamedTuple):
    source: str
    digest: str
    bytes: int
    chunks: list[Chunk]


class Knowledge:
    """Documents, and the search in them.

        with Knowledge("notes.db") as knowledge:
            knowledge.add("notes/")
            for passage in knowledge.search("how do we deploy?"):
                print(passage.citation, passage.text)

    Args:
        path: the store's file; None: the settings'.
        embedder: what makes vectors; None: what the settings name.

    Raises:
        KnowledgeError: the store can't be opened, or the model is not installed.
    """

    def __init__(
        self, path: str | Path | None = None, *, embedder: Embedder | None = None, settings: Settings | None = None
    ) -> None:
        settings = settings or Settings.load()
        self._bytes_max = settings.max_document_bytes
        self._embedder = embedder or embedder_of(settings)
        self._store = Store(Path(path or settings.knowledge or settings.home / "knowledge.db"))
        self._bound = False

    def __enter__(self) -> Knowledge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the store's file back."""
        self._store.close()

    @property
    def path(self) -> Path:
        """The store's file."""
        return self._store.path

    def add(self, *places: str | Path, progress: Progress | None = None) -> Added:
        """Take in files, and folders with all below them; what is stored already and unchanged is skipped.

        What is no longer in a folder is removed from the store. A document that can't be read is a
        :class:`Problem`; what the store had of it is removed too, and the others go on.

        Args:
            progress: called with how many documents are done, how many there are, and the next one.

        Raises:
            InputError: there is no such file or folder.
            KnowledgeError: the model or the store fails; what came before is stored.
        """
        self._bind()
        stored = self._store.digests()
        files: dict[str, Path] = {}
        gone: list[str] = []
        ignored = 0
        for place in places:
            found, others = documents_in(place)
            ignored += others
            files |= {str(each): each for each in found}
            root = str(Path(place).resolve())
            gone += [each for each in stored if _below(each, root) and each not in files]
        gone = [each for each in dict.fromkeys(gone) if each not in files]
        new = changed = unchanged = written = 0
        problems: list[Problem] = []
        group: list[_Read] = []
        for done, (source, path) in enumerate(files.items()):
            if progress is not None:
                progress(done, len(files), source)
            try:
                data = self._bytes(path)
                digest = hashlib.sha256(data).hexdigest()
                if stored.get(source) == digest:
                    unchanged += 1
                    continue
                read = _Read(source, digest, len(data), list(chunks(sections(source, data))))
            except DocumentError as error:
                problems.append(Problem(source, error.what, error.fix))
                gone += [source] if source in stored else []
                continue
            except OSError as error:  # what the store has of it may still hold
                problems.append(Problem(source, f"can't be read: {error.strerror or error}"))
                continue
            new, changed = new + (source not in stored), changed + (source in stored)
            written += len(read.chunks)
            group.append(read)
            if sum(len(each.chunks) for each in group) >= GROUP:
                self._write(group)
                group = []
        if group:
            self._write(group)
        if gone:
            self._store.remove(gone)
        if progress is not None:
            progress(len(files), len(files), "")
        return Added(new, changed, unchanged, len(gone), ignored, written, problems)

    def put(self, source: str, data: bytes) -> int:
        """Store one document that is no file here, under the name *source*, whose suffix says what it is.

        Returns:
            How many chunks it has.

        Raises:
            DocumentError: it isn't what its name says.
        """
        self._bind()
        self._check_size(len(data))
        digest = hashlib.sha256(data).hexdigest()
        read = _Read(source, digest, len(data), list(chunks(sections(source, data))))
        self._write([read])
        return len(read.chunks)

    def remove(self, *sources: str | Path) -> int:
        """Forget documents, and all below a folder; files themselves stay.

        Returns:
            How many documents were forgotten.
        """
        stored = self._store.digests()
        named = {str(each) for each in sources} | {str(Path(each).resolve()) for each in sources}
        gone = [each for each in stored if any(_below(each, name) for name in named)]
        if gone:
            self._store.remove(gone)
        return len(gone)

    def keep(self, folder: str | Path, files: Iterable[str | Path]) -> int:
        """Forget what is stored of *folder* but for *files*, which are all that it has now.

        Returns:
            How many documents were forgotten.
        """
        root, there = str(Path(folder).resolve()), {str(Path(each).resolve()) for each in files}
        gone = [each for each in self._store.digests() if _below(each, root) and each not in there]
        if gone:
            self._store.remove(gone)
        return len(gone)

    def documents(self) -> list[Stored]:
        """All that is stored, by source."""
        return self._store.documents()

    def search(self, query: str, k: int = 5, *, by: Literal["both", "words", "meaning"] = "both") -> list[Passage]:
        """The *k* passages that answer *query* best.

        Args:
            by: words are BM25, the meaning is the vectors', and both are fused by their ranks.

        Raises:
            InputError: the query is empty, or *k* is not 1 to 50.
        """
        if not query.strip():
            raise InputError("the query is empty", fix="ask in words")
        vector = None if by == "words" else self.embed(query)
        return self.find(query, vector, k) if by != "meaning" else self.find("", vector, k)

    def embed(self, query: str) -> NDArray[np.float32]:
        """The vector of a query, for :meth:`find`."""
        self._bind()
        return self._embedder.embed([query])[0]

    def find(self, query: str, vector: NDArray[np.float32] | None, k: int = 5) -> list[Passage]:
        """As :meth:`search`, of a query whose vector is known: by words where that is None, else by meaning
        where *query* is empty, else by both."""
        if not 1 <= k <= PASSAGES_MAX:
            raise InputError(f"{k} passages are asked for", fix=f"ask for 1 to {PASSAGES_MAX}")
        orders = [self._store.by_words(query)] if query else []
        if vector is not None:
            orders.append(self._store.by_vector(vector))
        section = self._store.sections(each for order in orders for each in order)
        return self._store.passages(fused(*orders, section=section)[:k])

    def _bind(self) -> None:
        if not self._bound:
            self._store.bind(self._embedder.name)
            self._bound = True

    def _bytes(self, path: Path) -> bytes:
        self._check_size(path.stat().st_size)
        return path.read_bytes()

    def _check_size(self, size: int) -> None:
        if size > self._bytes_max:
            raise DocumentError(
                f"is too large: {size:,} bytes, and {self._bytes_max:,} are taken",
                fix="split it, or raise LLMAGENTOS_MAX_DOCUMENT_BYTES",
            )

    def _write(self, group: list[_Read]) -> None:
        texts = {
            hashlib.sha256(text.encode()).digest(): text
            for read in group
            for text in (_embedded(read.source, chunk) for chunk in read.chunks)
        }
        known = self._store.known(texts)
        missing = [digest for digest in texts if digest not in known]
        if missing:
            known |= dict(zip(missing, self._embedder.embed([texts[each] for each in missing]), strict=True))
        new: list[New] = []
        for read in group:
            digests = [hashlib.sha256(_embedded(read.source, chunk).encode()).digest() for chunk in read.chunks]
            vectors = np.stack([known[each] for each in digests])
            new.append(New(read.source, read.digest, read.bytes, read.chunks, digests, vectors))
        self._store.write(new)


def _embedded(source: str, chunk: Chunk) -> str:
    """What of a chunk is embedded: it, under the name of what it belongs to."""
    return f"{chunk.title or Path(source).stem}\n{chunk.text}"


def _below(source: str, root: str) -> bool:
    return source == root or source.startswith(root.rstrip("/") + "/")


def documents_in(place: str | Path) -> tuple[list[Path], int]:
    """The documents at *place*, by name; and how many other files there are.

    Hidden files and folders, links, and the folders of other programs (`node_modules`, virtual environments) are left
    out.

    Raises:
        InputError: there is no such file or folder.
    """
    root = Path(place).resolve()
    if root.is_file():
        return [root], 0
    if not root.is_dir():
        raise InputError(
            f"there is no file or folder {str(place)!r}",
            fix="correct the path; what was stored of it is removed by: llmagentos knowledge remove PATH",
        )
    found: list[Path] = []
    others = 0
    for path in _walk(root):
        # A link may lead out of the folder, and a pipe would be waited for.
        if is_document(path) and path.is_file() and not path.is_symlink():
            found.append(path)
        else:
            others += 1
    return found, others


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name not in UNREAD and not Path(folder, name, "pyvenv.cfg").exists()
        )
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name)
