"""Jars by Maven coordinates: fetched with jgo, taken only if they match a checksum that the project keeps."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llmagentos.streams.errors import NodeError

__all__ = ["Jar", "Progress", "fetch", "missing", "read_list"]

#: Told what goes on: (what, done, total); bytes while jars load, otherwise 0 and 0.
Progress = Callable[[str, int, int], None]

#: Small files from one host: more threads bring nothing, fewer are slower.
_THREADS = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of a list of jars.

    Attributes:
        sha256: checksum of the file, in hex.
        size: of the file, in bytes.
        group, artifact, version: its Maven coordinates.
    """

    sha256: str
    size: int
    group: str
    artifact: str
    version: str

    @property
    def file_name(self) -> str:
        """As Maven names it."""
        return f"{self.artifact}-{self.version}.jar"

    def __str__(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"


def read_list(path: Path) -> list[Jar]:
    """Read a list: one jar a line, `sha256 size group:artifact:version`, `#` begins a comment."""
    jars: list[Jar] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            sha256, size, coordinates = line.split()
            jars.append(Jar(sha256, int(size), *coordinates.split(":")))
    return jars


def missing(jars: Sequence[Jar], folder: Path) -> list[Jar]:
    """Those of *jars* that aren't in *folder* with the size they must have."""
    return [jar for jar in jars if not _has_size(folder / jar.file_name, jar.size)]


def fetch(jars: Sequence[Jar], folder: Path, progress: Progress | None = None) -> list[Path]:
    """Make *folder* hold all *jars* and return their paths, in order.

    What is there is taken by name and size, for its checksum was compared when it came. A jar gets its name
    only when it is whole and right, so that an interrupted fetch goes on where it stopped.

    Raises:
        NodeError: a jar can't be fetched, or isn't the one that the list names.
    """
    wanted = missing(jars, folder)
    if wanted:
        _make(folder)
        total, done, lock = sum(jar.size for jar in wanted), 0, threading.Lock()

        def fetch_one(jar: Jar) -> None:
            nonlocal done
            _fetch_one(jar, folder)
            with lock:
                done += jar.size
                if progress:
                    progress("fetching jars", done, total)

        if progress:
            progress("fetching jars", 0, total)
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="jars")
        try:
            list(pool.map(fetch_one, wanted))
        finally:
            pool.shutdown(cancel_futures=True)
    return [folder / jar.file_name for jar in jars]


def _fetch_one(jar: Jar, folder: Path) -> None:
    from jgo.maven import MavenContext  # half a second, which a start with all jars present needn't pay

    with _scratch(folder) as scratch:
        try:
            project = MavenContext(repo_cache=scratch, timeout=60).project(jar.group, jar.artifact)
            got = project.at_version(jar.version).artifact().resolve()
        except (OSError, RuntimeError, ValueError) as error:  # requests' errors are OSErrors; jgo's are the others
            raise NodeError(
                f"the jar {jar} could not be fetched from Maven Central: {_first_line(error)}",
                kept=f"the jars already fetched, in {folder}",
                fix="check the network and run it again; without a way to Maven Central put the jars that "
                "streams/node/jars.txt lists into a folder and set LLMAGENTOS_KAFKA_JARS to it",
            ) from error
        digest = hashlib.sha256(got.read_bytes()).hexdigest()
        if digest != jar.sha256:
            raise NodeError(
                f"the jar {jar} that was fetched is not the one this project was made with: "
                f"its SHA-256 is {digest}, it must be {jar.sha256}",
                kept=f"the jars already fetched, in {folder}; this one was thrown away",
                fix="a proxy or mirror may have changed it; fetch it by another way and set LLMAGENTOS_KAFKA_JARS",
            )
        got.replace(folder / jar.file_name)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NodeError(
            f"the cache folder {folder} can't be made: {error.strerror}",
            fix="make it writable, or set LLMAGENTOS_CACHE to another folder",
        ) from error


@contextlib.contextmanager
def _scratch(folder: Path) -> Generator[Path]:
    """A folder on the same file system, so that the move at the end is atomic."""
    path = Path(tempfile.mkdtemp(prefix=".fetch-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
