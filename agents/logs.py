"""The logs of a deployment's workers, merged by time and followed across rotation."""

from __future__ import annotations

import heapq
import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from llmagentos.agents.deployment import Deployments

__all__ = ["Line", "Places", "follow", "last_lines"]

#: A worker prints these first; a line without belongs to the one before it, as in a traceback.
_STAMP = re.compile(r"\[?(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?)")

#: How often the files are looked at while followed.
_LOOK_S = 0.1

#: Read at once; also the longest line that is kept in one piece.
_CHUNK = 64 * 1024

#: By deployment and worker: a file's inode, and the offset up to which it was read.
Places = dict[tuple[str, int], tuple[int, int]]

_FILE = re.compile(r"worker-(\d+)\.log")


@dataclass(frozen=True, slots=True)
class Line:
    """One line that a worker printed, without its end."""

    deployment: str
    worker: int
    text: str
    stamp: str = ""


def last_lines(
    deployments: Deployments,
    names: Sequence[str],
    count: int,
    worker: int | None = None,
    *,
    places: Places | None = None,
) -> list[Line]:
    """The last *count* lines of each worker, those before a rotation included, merged by their time stamps.

    Args:
        places: filled with where :func:`follow` goes on; a line whose end was not printed yet is left to it.
    """
    parts: list[list[Line]] = []
    for name in names:
        for index, path in sorted(_files(deployments, name, worker).items()):
            texts, place = _tail(path, count, whole=places is not None)
            if places is not None and place is not None:
                places[name, index] = place
            if len(texts) < count:
                texts = _tail(path.with_name(path.name + ".1"), count - len(texts))[0] + texts
            parts.append(list(_stamped(name, index, texts)))
    return list(heapq.merge(*parts, key=lambda line: line.stamp))


def follow(
    deployments: Deployments,
    names: Callable[[], Sequence[str]],
    worker: int | None = None,
    *,
    places: Places | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[Line | None]:
    """Lines as they are printed, by workers that are started later too; None again and again where there are none.

    Ends when *names* gives none any more, or *stop* says so.

    Args:
        places: where each file was read up to; from its start where none is given.
    """
    readers: dict[tuple[str, int], _Reader] = {}
    try:
        while True:
            wanted = names()
            files = {(name, i): path for name in wanted for i, path in _files(deployments, name, worker).items()}
            for key, path in files.items():
                if key not in readers:
                    readers[key] = _Reader(path, (places or {}).get(key))
            quiet = True
            for (name, index), reader in sorted(readers.items()):
                for text in reader.lines():
                    quiet = False
                    yield Line(name, index, text)
            if not wanted or stop():
                return
            for key in readers.keys() - files.keys():
                readers.pop(key).close()
            if quiet:
                yield None
                time.sleep(_LOOK_S)
    finally:
        for reader in readers.values():
            reader.close()


class _Reader:
    """Reads what is appended to a file that may be replaced (the rest of the old one first) or cut to nothing."""

    def __init__(self, path: Path, place: tuple[int, int] | None) -> None:
        self._path = path
        self._rest = b""
        self._file = self._open()
        if self._file is not None and place is not None and os.fstat(self._file.fileno()).st_ino == place[0]:
            self._file.seek(place[1])

    def _open(self) -> BinaryIO | None:
        try:
            return self._path.open("rb")
        except FileNotFoundError:
            return None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def lines(self) -> Iterator[str]:
        """Whole lines that have come since the last call."""
        file = self._file or self._open()
        self._file = file
        if file is None:
            return
        yield from self._appended(file)
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return
        if there.st_ino != os.fstat(file.fileno()).st_ino:
            yield from self._appended(file)  # its last words before it was replaced
            file.close()
            self._file = fresh = self._open()
            if fresh is not None:
                yield from self._appended(fresh)
        elif there.st_size < file.tell():
            file.seek(0)
            yield from self._appended(file)

    def _appended(self, file: BinaryIO) -> Iterator[str]:
        while chunk := file.read(_CHUNK):
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
            if len(self._rest) > _CHUNK:
                yield self._rest.decode(errors="replace")
                self._rest = b""


def _files(deployments: Deployments, name: str, worker: int | None) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in deployments.run_dir(name).glob("worker-*.log"):
        match = _FILE.fullmatch(path.name)
        if match is not None and worker in (None, int(match[1])):
            found[int(match[1])] = path
    return found


def _tail(path: Path, count: int, *, whole: bool = False) -> tuple[list[str], tuple[int, int] | None]:
    """The last *count* lines of a file, read from its end, and (inode, offset) behind them."""
    try:
        with path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            at = end = file.seek(0, os.SEEK_END)
            raw = b""
            while at > 0 and raw.count(b"\n") <= count:
                step = min(_CHUNK, at)
                at -= step
                file.seek(at)
                raw = file.read(step) + raw
    except FileNotFoundError:
        return [], None
    if whole:
        unfinished = len(raw) - (raw.rfind(b"\n") + 1)
        raw, end = raw[: len(raw) - unfinished], end - unfinished
    texts = raw.decode(errors="replace").splitlines()
    return texts[-count:] if count else [], (inode, end)


def _stamped(name: str, index: int, texts: Sequence[str]) -> Iterator[Line]:
    stamp = ""
    for text in texts:
        if (match := _STAMP.match(text)) is not None:
            stamp = match[1].replace("T", " ").replace(",", ".")
        yield Line(name, index, text, stamp)
