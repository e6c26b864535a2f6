"""Search in the standard library's sources: how fast it is, and how often it finds what a sentence speaks of.

500 queries, each the first sentence of a docstring that goes on behind it; that sentence is cut out of the sources
before they are added, so only the code and what is left of the docstring can be found by it. A hit is a passage of
that very function, method or class. BM25 alone and the vectors alone are measured beside their fusion, in the same run.
Docstrings of one sentence, of which nothing is left to be found but code, are a line of their own.

    python benchmarks/knowledge.py                 # makes the store (10,000 chunks; minutes), then measures
    python benchmarks/knowledge.py --modules 40    # a part, to try it

Where the time goes (processor time of one search, 10,852 chunks, 6 to 7 ms): two thirds are FTS5's, which scores every
chunk that has any of the words; a quarter is the comparison with all vectors. To leave out words that a tenth of the
chunks have saves 1.5 ms and costs one hit in a hundred. On a machine with other work the processor time is what to
compare.

The store is kept in the cache folder between runs: `add` embeds only what changed.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
import statistics
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from llmagentos.agents.knowledge import Knowledge, Passage
from llmagentos.streams.settings import Settings

QUERIES = 500
CHUNKS = 10_000
#: Words that a sentence has at least: "Return self." could be of any function.
WORDS = 5
#: And that are left of its docstring.
LEFT = 5
#: Not the library's own documentation: its tests, generated tables, and copies of other projects.
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "lib2to3", "idlelib", "encodings", "_vendor", "pydoc_data"}


WAYS = {"both": "both, fused (ours)", "words": "BM25 alone", "meaning": "vectors alone"}

#: (file, name, sentence, how many words of the docstring stand behind it).
Asked = tuple[str, str, str, int]


def sentences(source: str, stem: str) -> tuple[str, list[tuple[str, str, int]]]:
    """*source* without the first sentences of its docstrings; and these, with the names they are of."""
    tree = ast.parse(source)
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    data = bytearray(source.encode())
    found: list[tuple[str, str, int]] = []

    def look(parent: ast.Module | ast.ClassDef, above: str) -> None:
        for node in parent.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            name = f"{above}.{node.name}"
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                value = first.value
                if isinstance(value.value, str) and value.end_lineno and value.end_col_offset:
                    begin = starts[value.lineno - 1] + value.col_offset
                    end = starts[value.end_lineno - 1] + value.end_col_offset
                    cut(name, begin, bytes(data[begin:end]))
            if isinstance(node, ast.ClassDef):
                look(node, name)

    def cut(name: str, begin: int, literal: bytes) -> None:
        match = re.match(rb"""([rRuU]?("{3}|'{3}|"|')\\?)(\s*)(.+?[.!?])(?=\s|"|')""", literal, re.DOTALL)
        if match is None or b"\n\n" in match[4]:
            return
        left = len(re.findall(rb"\w+", literal[match.end(4) :]))
        found.append((name, " ".join(match[4].decode(errors="ignore").split()), left))
        for at in range(begin + match.start(4), begin + match.end(4)):
            if data[at] != 10:  # lines keep their numbers
                data[at] = 32

    look(tree, stem)
    return data.decode(), found


def prepare(folder: Path, modules: int) -> list[Asked]:
    """Write the sources to *folder*; the sentences that were cut out of them."""
    library = Path(ast.__file__).parent
    files = [path for path in sorted(library.rglob("*.py")) if not LEFT_OUT & set(path.relative_to(library).parts[:-1])]
    random.Random(6).shuffle(files)
    asked: list[Asked] = []
    for path in files[:modules]:
        source, found = sentences(path.read_text(encoding="utf-8"), path.stem)
        target = folder / path.relative_to(library)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source)
        asked += [(str(target.resolve()), *each) for each in found]
    return asked


def chosen(asked: list[Asked]) -> tuple[list[Asked], list[Asked]]:
    """The queries: sentences that say something, and stand in one place only. And those with nothing behind them."""
    times: dict[str, int] = {}
    for _, _, sentence, _ in asked:
        times[sentence.lower()] = times.get(sentence.lower(), 0) + 1
    good = [each for each in asked if times[each[2].lower()] == 1 and len(each[2].split()) >= WORDS]
    random.Random(7).shuffle(good)
    go_on = [each for each in good if each[3] >= LEFT]
    return go_on[:QUERIES], [each for each in good if each[3] == 0][:QUERIES]


def hit(passages: list[Passage], file: str, name: str) -> bool:
    """Whether one of them is of what the sentence was written about: it, or a method of that class."""
    return any(
        each.source == file and (each.title == name or each.title.startswith(f"{name}.")) for each in passages[:5]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", type=int, default=130, help="files of the standard library, drawn by chance")
    parser.add_argument("--missed", action="store_true", help="print what was not found")
    arguments = parser.parse_args()
    console = Console()
    settings = Settings.load()
    folder = settings.cache / "benchmark-knowledge"
    asked = prepare(folder / f"sources-{arguments.modules}", arguments.modules)
    with Knowledge(folder / f"store-{arguments.modules}.db", settings=settings) as knowledge:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("adding", total=None)
            began = time.perf_counter()
            added = knowledge.add(
                folder / f"sources-{arguments.modules}",
                progress=lambda done, total, _: bar.update(task, completed=done, total=total),
            )
            add_s = time.perf_counter() - began
        chunks = sum(each.chunks for each in knowledge.documents())
        queries, alone = chosen(asked)
        vectors = [knowledge.embed(each[2]) for each in queries]
        knowledge.find("warm", vectors[0])
        hits: dict[str, int] = dict.fromkeys(WAYS, 0)
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        cpus: dict[str, list[float]] = {way: [] for way in WAYS}
        for (file, name, sentence, _), vector in zip(queries, vectors, strict=True):
            for way in WAYS:
                began, cpu = time.perf_counter(), time.process_time()
                found = knowledge.find("" if way == "meaning" else sentence, None if way == "words" else vector, 5)
                times[way].append((time.perf_counter() - began) * 1_000)
                cpus[way].append((time.process_time() - cpu) * 1_000)
                hits[way] += hit(found, file, name)
                if way == "both" and arguments.missed and not hit(found, file, name):
                    console.print(f"{name}: {sentence}\n   {[each.title for each in found]}", markup=False)
        bare = sum(hit(knowledge.search(each[2]), each[0], each[1]) for each in alone)
    if added.chunks:
        console.print(f"added {added.chunks:,} chunks in {add_s:.0f} s ({added.chunks / add_s:.0f}/s)")
    table = Table(title=f"{len(queries)} queries, {chunks:,} chunks of {arguments.modules} files")
    for column in ("search", "hit in 5", "p50 ms", "p95 ms", "p50 CPU ms", "ratio of p50"):
        table.add_column(column, justify="left" if column == "search" else "right")
    rate = {way: round(hits[way] / len(queries), 4) for way in WAYS}
    p50 = {way: statistics.median(times[way]) for way in WAYS}
    cpu = {way: statistics.median(cpus[way]) for way in WAYS}
    for way, label in WAYS.items():
        p95 = statistics.quantiles(times[way], n=20)[-1]
        ratio = p50[way] / p50["both"]
        table.add_row(label, f"{rate[way]:.1%}", f"{p50[way]:.2f}", f"{p95:.2f}", f"{cpu[way]:.2f}", f"{ratio:.2f}")
    if alone:
        table.add_row("both, docstrings of one sentence", f"{bare / len(alone):.1%}", "", "", "", "")
    console.print(table)
    if chunks < CHUNKS:
        console.print(f"these are fewer than {CHUNKS:,} chunks", style="bold red")
    print(
        json.dumps(
            {
                "p50_ms": round(p50["both"], 3),
                "hit5": rate["both"],
                "bm25_hit5": rate["words"],
                "vector_hit5": rate["meaning"],
                "p50_cpu_ms": round(cpu["both"], 3),
                "chunks": chunks,
                "queries": len(queries),
                "one_sentence_hit5": round(bare / len(alone), 4) if alone else None,
            }
        )
    )


if __name__ == "__main__":
    main()
