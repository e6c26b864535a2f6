"""Measuring Python source: what the demo's agents compute piece by piece, and one loop computes at once."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Measures", "Piece", "add", "measure", "pieces"]

#: Statements and expressions at which control divides: those that McCabe's complexity counts (IEEE TSE 2(4), 1976).
_BRANCHES = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.IfExp,
    ast.comprehension,
    ast.match_case,
    ast.BoolOp,
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class Measures:
    """Of a piece of source, or of a file: counts, and the length in lines of its longest function."""

    functions: int = 0
    branches: int = 0
    docstrings: int = 0
    longest: int = 0

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Piece:
    """A top-level statement of a file, or a run of statements that define nothing: valid source by itself."""

    name: str
    source: str


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():  # of invalid escapes and the like: what is surveyed is not ours to mend
        warnings.simplefilter("ignore")
        return ast.parse(source)


def measure(source: str) -> Measures:
    """Measure *source*; raises SyntaxError or ValueError where Python can't parse it."""
    functions = branches = docstrings = longest = 0
    for node in ast.walk(_parse(source)):
        if isinstance(node, _FUNCTIONS):
            functions += 1
            longest = max(longest, (node.end_lineno or node.lineno) - node.lineno + 1)
            docstrings += ast.get_docstring(node, clean=False) is not None
        elif isinstance(node, ast.ClassDef):
            docstrings += ast.get_docstring(node, clean=False) is not None
        elif isinstance(node, _BRANCHES):
            branches += 1
    return Measures(functions, branches, docstrings, longest)


def add(parts: Iterable[Measures]) -> Measures:
    """The measures of a whole, from those of its parts."""
    parts = list(parts)
    return Measures(
        sum(p.functions for p in parts),
        sum(p.branches for p in parts),
        sum(p.docstrings for p in parts),
        max((p.longest for p in parts), default=0),
    )


def pieces(source: str) -> list[Piece]:
    """Cut a file into its top-level classes and functions, and what lies between them, in order.

    Raises SyntaxError or ValueError where Python can't parse it.
    """
    # ast counts lines at \\n, \\r and \\r\\n alone, str.splitlines at form feeds and others too.
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found: list[Piece] = []
    loose: list[str] = []

    def end_loose() -> None:
        if loose:
            found.append(Piece("(module)", "\n".join(loose)))
            loose.clear()

    shared = False  # whether the statement before ends on a line on which another begins: `a = 1; b = 2`
    end = 0
    for node in _parse(source).body:
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(d.lineno for d in decorators)])
        last = node.end_lineno or node.lineno
        shared = first <= end
        text = "\n".join(lines[first - 1 : last])
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)) and not shared:
            end_loose()
            found.append(Piece(node.name, text))
        elif shared:  # its line went with the statement before
            rest = "\n".join(lines[end:last])
            if rest:
                loose.append(rest) if loose else found.__setitem__(
                    -1, Piece(found[-1].name, f"{found[-1].source}\n{rest}")
                )
        else:
            loose.append(text)
        end = max(end, last)
    end_loose()
    return found
