"""From a file to its sections: text, Markdown, HTML, PDF, code. What isn't what it says is refused, with its reason."""

from __future__ import annotations

import ast
import codecs
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import PurePath
from typing import Final, NamedTuple

from llmagentos.streams.errors import DocumentError

__all__ = ["Section", "is_document", "sections"]


class Section(NamedTuple):
    """A part of a document that belongs together.

    Attributes:
        title: the headings above it, or the name of the function; empty where there is none.
        line: the number of its first line; 0 where the document has pages.
        page: from 1; 0 where the document has lines.
    """

    text: str
    title: str
    line: int = 0
    page: int = 0


CODE: Final = frozenset(
    {
        ".py",
        ".pyi",
        ".js",
        ".jsx",
        ".mjs",
        ".ts",
        ".tsx",
        ".java",
        ".kt",
        ".scala",
        ".go",
        ".rs",
        ".c",
        ".h",
        ".cc",
        ".cpp",
        ".hpp",
        ".cs",
        ".rb",
        ".php",
        ".swift",
        ".lua",
        ".pl",
        ".r",
        ".jl",
        ".sh",
        ".bash",
        ".sql",
        ".proto",
        ".avsc",
        ".ex",
        ".exs",
        ".erl",
        ".hs",
        ".ml",
        ".clj",
        ".dart",
        ".vue",
        ".svelte",
        ".css",
        ".scss",
    }
)
TEXT: Final = frozenset(
    {
        ".txt",
        ".text",
        ".log",
        ".rst",
        ".adoc",
        ".org",
        ".tex",
        ".csv",
        ".tsv",
        ".json",
        ".jsonl",
        ".yaml",
        ".yml",
        ".toml",
        ".ini",
        ".cfg",
        ".conf",
        ".xml",
        ".srt",
        ".eml",
    }
)
MARKDOWN: Final = frozenset({".md", ".markdown", ".mdx"})
HTML: Final = frozenset({".html", ".htm", ".xhtml"})
#: Documents without a suffix that folders of code and of notes have.
NAMES: Final = frozenset({"README", "LICENSE", "NOTICE", "CHANGELOG", "CONTRIBUTING", "Makefile", "Dockerfile"})

#: How files begin (the formats' own definitions), and what a person calls them.
_BEGINNINGS: Final = (
    (b"\x89PNG\r\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive (or an Office document)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x7fELF", "a Linux program"),
    (b"MZ\x90", "a Windows program"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"RIFF", "a sound, video or WebP file"),
    (b"OggS", "an Ogg sound file"),
    (b"ID3", "an MP3 sound file"),
)


def is_document(path: PurePath) -> bool:
    """Whether a file of that name is read when its folder is added."""
    suffix = path.suffix.lower()
    return suffix == ".pdf" or path.name in NAMES or any(suffix in kind for kind in (CODE, TEXT, MARKDOWN, HTML))


def sections(name: str, data: bytes) -> list[Section]:
    """The parts of the document *name*, in order.

    Raises:
        DocumentError: it is empty, or isn't what its name says; the reason reads on after the file's name.
    """
    path = PurePath(name)
    suffix = path.suffix.lower()
    if not data.strip():
        raise DocumentError("is empty" if not data else "holds nothing but white space")
    if suffix == ".pdf":
        found = _pdf(data)
    else:
        what = _what(data)
        if what:
            raise DocumentError(f"says {suffix or 'text'}, but is {what}", fix="give it the suffix of what it is")
        text = _text(suffix, data)
        found = list(_KINDS.get(_kind(suffix), _plain)(text, path))
    found = [each for each in found if each.text.strip()]
    if not found:
        raise DocumentError(
            "has no text", fix="scanned pages need a text recognition first" if suffix == ".pdf" else ""
        )
    return found


def _kind(suffix: str) -> str:
    if suffix in (".py", ".pyi"):
        return "python"
    return "markdown" if suffix in MARKDOWN else "html" if suffix in HTML else "code" if suffix in CODE else "text"


def _what(data: bytes) -> str:
    """What it is by its first bytes; empty where they say nothing."""
    return next((what for beginning, what in _BEGINNINGS if data.startswith(beginning)), "")


def _text(suffix: str, data: bytes) -> str:
    encoding = "utf-8"
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            encoding = name
            break
    else:
        if suffix in HTML and (said := re.search(rb"<meta[^>]+charset=[\"']?([\w-]+)", data[:4_096], re.IGNORECASE)):
            encoding = said[1].decode("ascii", "replace")
        elif suffix in (".py", ".pyi"):
            try:
                encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0]
            except SyntaxError as error:
                raise DocumentError(f"names no encoding that Python knows: {error}", fix="save it as UTF-8") from None
    try:
        text = data.decode(encoding)
    except LookupError:
        raise DocumentError(
            f"says that it is encoded as {encoding!r}, which is unknown", fix="save it as UTF-8"
        ) from None
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"is not {encoding.upper()}: byte 0x{data[error.start]:02x} at {error.start:,} can't be decoded",
            fix="save it as UTF-8",
        ) from None
    if "\0" in text:
        raise DocumentError(
            f"is no text: it has a zero byte at {text.index(chr(0)):,}", fix="give it the suffix of what it is"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _plain(text: str, path: PurePath) -> Iterator[Section]:
    yield Section(text, "", 1)


def _markdown(text: str, path: PurePath) -> Iterator[Section]:
    """A section a heading, with the headings above it as its title; `#` inside of fenced code is no heading."""
    above: list[tuple[int, str]] = []
    lines: list[str] = []
    begin, fence = 1, ""
    for number, line in enumerate(text.split("\n"), 1):
        bare = line.lstrip()
        if fence:
            fence = "" if bare.startswith(fence) else fence
        elif bare.startswith(("```", "~~~")):
            fence = bare[:3]
        elif heading := re.match(r"(#{1,6})\s+(.+?)\s*#*$", line):
            yield Section("\n".join(lines), _path(above), begin)
            level = len(heading[1])
            above = [each for each in above if each[0] < level] + [(level, heading[2])]
            lines, begin = [], number
        lines.append(line)
    yield Section("\n".join(lines), _path(above), begin)


def _path(above: list[tuple[int, str]]) -> str:
    return " > ".join(title for _, title in above)


class _Page(HTMLParser):
    """Collects what a browser would show as text, by headings."""

    BLOCKS: Final = frozenset(
        {
            "p",
            "div",
            "li",
            "ul",
            "ol",
            "table",
            "tr",
            "br",
            "pre",
            "blockquote",
            "section",
            "article",
            "main",
            "dt",
            "dd",
            "figcaption",
            "hr",
            "header",
        }
    )
    UNSEEN: Final = frozenset({"script", "style", "noscript", "template", "svg", "head", "nav"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Section] = []
        self._above: list[tuple[int, str]] = []
        self._text: list[str] = []
        self._heading: list[str] | None = None
        self._unseen: list[str] = []
        self._begin = 1

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.UNSEEN:
            self._unseen.append(tag)
        elif re.fullmatch("h[1-6]", tag):
            self.end()
            self._heading, self._begin = [], self.getpos()[0]
        elif tag in self.BLOCKS:
            self._text.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._unseen:
            del self._unseen[self._unseen.index(tag) :]
        elif self._heading is not None and re.fullmatch("h[1-6]", tag):
            level, title = int(tag[1]), " ".join("".join(self._heading).split())
            self._above = [each for each in self._above if each[0] < level] + [(level, title)]
            self._heading = None
            self._text.append(title + "\n")
        elif tag in self.BLOCKS:
            self._text.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            (self._text if self._heading is None else self._heading).append(data)

    def end(self) -> None:
        """What came since the last heading is a section."""
        text = re.sub(r"[ \t]*\n\s*", "\n", re.sub(r"[ \t\xa0]+", " ", "".join(self._text))).strip()
        self.found.append(Section(text, _path(self._above), self._begin))
        self._text = []


def _html(text: str, path: PurePath) -> Iterator[Section]:
    page = _Page()
    page.feed(text)
    page.close()
    page.end()
    yield from page.found


def _python(text: str, path: PurePath) -> Iterator[Section]:
    """A section a function or method, with its full name as the title; and what lies between them."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # of another Python, or a draft: still text
        yield from _code(text, path)
        return
    lines = text.split("\n")
    at = 1
    for name, node in _definitions(tree, path.stem):
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        last = node.end_lineno or first
        if isinstance(node, ast.ClassDef):  # its head; the methods follow
            inner = next((body for body in node.body if isinstance(body, _NAMED)), None)
            if inner is not None:
                last = max(first, min([inner.lineno, *(each.lineno for each in inner.decorator_list)]) - 1)
        if first < at:
            continue  # two on one line
        yield Section("\n".join(lines[at - 1 : first - 1]), path.stem, at)
        yield Section("\n".join(lines[first - 1 : last]), name, first)
        at = last + 1
    yield Section("\n".join(lines[at - 1 :]), path.stem, at)


_NAMED: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _definitions(
    parent: ast.Module | ast.ClassDef, above: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    for node in parent.body:
        if isinstance(node, _NAMED):
            name = f"{above}.{node.name}"
            yield name, node
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, name)


def _code(text: str, path: PurePath) -> Iterator[Section]:
    """A section for each block that begins at the left margin after an empty line."""
    lines = text.split("\n")
    begin = 1
    for number, line in enumerate(lines, 1):
        if number > begin and line[:1].strip() and line[0] not in "})]" and not lines[number - 2].strip():
            yield Section("\n".join(lines[begin - 1 : number - 1]), path.stem, begin)
            begin = number
    yield Section("\n".join(lines[begin - 1 :]), path.stem, begin)


def _pdf(data: bytes) -> list[Section]:
    #: The header may stand behind other bytes, within the first 1,024 (ISO 32000-1, Annex H.3).
    if b"%PDF-" not in data[:1_024]:
        raise DocumentError(
            f"says .pdf, but is {_what(data) or 'no PDF document'}", fix="give it the suffix of what it is"
        )
    import logging

    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError:
        raise DocumentError("needs a reader of PDF", fix="pip install 'llmagentos[knowledge]'") from None

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of each slip that it can mend
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DocumentError("is encrypted", fix="save it without a password")
        return [Section(page.extract_text() or "", "", 0, number) for number, page in enumerate(reader.pages, 1)]
    # pypdf gives what it stumbles over in a broken file as it comes.
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OSError) as error:
        raise DocumentError(f"is a broken PDF document: {error or type(error).__name__}", fix="save it anew") from None


_KINDS: Final[dict[str, Callable[[str, PurePath], Iterator[Section]]]] = {
    "python": _python, "markdown": _markdown, "html": _html, "code": _code, "text": _plain,
}  # fmt: skip
