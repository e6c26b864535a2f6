"""What the demo surveys: the Python files of a folder, and the survey of them that one loop makes without Kafka."""

from __future__ import annotations

import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llmagentos.cli.demo.measure import Measures, measure, pieces
from llmagentos.streams.errors import InputError

__all__ = ["Expected", "Source", "find_sources", "standard_library", "survey"]

#: Other programs' code, and what is no source.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "node_modules", ".venv", ".git"}


@dataclass(frozen=True, slots=True)
class Source:
    """A file: its path below the folder, with `/`, and its text."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Expected:
    """What the survey must say of a file: its measures and the number of its pieces; None, 0 where Python can't
    parse it."""

    measures: Measures | None
    pieces: int


def standard_library() -> Path:
    """The folder of the running Python's own library."""
    return Path(sysconfig.get_paths()["stdlib"])


def find_sources(folder: Path, *, limit_bytes: int) -> tuple[list[Source], list[str]]:
    """The files to survey, by path, and why others are left out.

    Args:
        limit_bytes: a file over it does not fit a record.

    Raises:
        InputError: *folder* is no folder, or holds no Python file.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder", fix="give a folder with Python files, or none")
    sources: list[Source] = []
    left_out: list[str] = []
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if _SKIPPED_FOLDERS.intersection(relative.parts):
            continue
        try:
            with tokenize.open(path) as file:
                text = file.read()
        except (SyntaxError, UnicodeDecodeError, OSError) as error:
            why = error.msg.split(" for ")[0] if isinstance(error, SyntaxError) else str(error)
            left_out.append(f"{relative}: {why}")
            continue
        if len(text.encode(errors="surrogatepass")) > limit_bytes:
            left_out.append(f"{relative}: over {limit_bytes:,} bytes")
        else:
            sources.append(Source(relative.as_posix(), text))
    if not sources:
        raise InputError(f"{folder} holds no Python file that can be read", fix="give another folder")
    return sources, left_out


def survey(sources: Iterable[Source]) -> Iterator[tuple[str, Expected]]:
    """Each file's path and what must be said of it: one loop, no Kafka."""
    for source in sources:
        try:
            yield source.path, Expected(measure(source.text), len(pieces(source.text)))
        except (SyntaxError, ValueError):
            yield source.path, Expected(None, 0)
