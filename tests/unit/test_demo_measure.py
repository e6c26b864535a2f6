"""Cutting a file into pieces and adding up their measures gives what one loop over the whole file gives."""

from __future__ import annotations

import sysconfig
import tokenize
from pathlib import Path

import pytest

from llmagentos.cli.demo.measure import Measures, add, measure, pieces

STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])


@pytest.mark.parametrize("folder", ["asyncio", "json", "email", "collections", "importlib"])
def test_parts_add_up_to_the_whole(folder: str) -> None:
    for path in sorted((STANDARD_LIBRARY / folder).rglob("*.py")):
        with tokenize.open(path) as file:
            source = file.read()
        assert add(measure(piece.source) for piece in pieces(source)) == measure(source), path


@pytest.mark.parametrize(
    "source",
    [
        "",
        "# only a comment\n",
        "a = 1; b = 2 if a else 3\n",
        "a = 1; b = (2 if a else\n 3); c = [x for x in ()\n if x]\n",
        "@one\n@two(\n 3)\ndef f():\n  'doc'\n  if f: pass\n\nclass C:\n  'doc'\n  def m(self): return 1 and 2\n",
        "if a:\n  def f():\n    pass\nelse:\n  pass\n",
        "x = '''\nclass NotOne:\n'''\r\ndef f(): pass\r\n",
        "def f():\n  return '\\x0c'\n\x0cdef g(): pass\n",
    ],
)
def test_odd_layouts(source: str) -> None:
    assert add(measure(piece.source) for piece in pieces(source)) == measure(source)


def test_what_is_counted() -> None:
    source = (
        "def f(a):\n  'doc'\n  if a and f:\n    return [b for b in a]\n\n\nclass C:\n  async def g(self):\n    pass\n"
    )
    assert measure(source) == Measures(functions=2, branches=3, docstrings=1, longest=4)
    assert [piece.name for piece in pieces(source)] == ["f", "C"]
