"""What a handler does outside of its steps, found by reading its text: the code behind `llmagentos check`.

A handler may run again, after a crash or a wait. What a step did is then taken from the journal; what stands outside
is done again, and may come out otherwise. Nothing is imported or run: a file is read from its text alone, from each
handler into the functions and methods of the same file that it calls.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

from llmagentos.agents.agent import NAME
from llmagentos.agents.effects.reading import Finding, Handler, Reader
from llmagentos.agents.effects.table import CODES
from llmagentos.agents.effects.values import Const, Dotted, Frame, Func, Instance, Klass, Module

__all__ = ["CODES", "Finding", "Report", "read"]

_AGENT = Dotted("llmagentos.agents.agent")

#: What `agent("name")` gives: it makes an agent of a function.
_MAKES = Dotted("llmagentos.agents.agent()")

_IGNORE = re.compile(r"#\s*llmagentos:\s*ignore(?:\[([^\]]*)\])?")

#: The methods by which a class handles messages, in place of all that take (self, message, ctx).
_ENTRIES = ("__call__", "handle")


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in one file.

    Attributes:
        agents: the names of its agents, in the order in which they stand there.
        findings: by line.
        ignored: how many findings a comment in the file silences.
    """

    agents: tuple[str, ...]
    findings: tuple[Finding, ...]
    ignored: int = 0


def read(text: str) -> Report:
    """Read the source of a module."""
    try:
        tree = ast.parse(text)
        module = Module(tree)
        reader = Reader(module)
        definitions = list(_definitions(tree, module))
        for definition in definitions:
            reader.read(definition.handler)
        found = [*reader.found.values(), *_refused(definitions, tree)]
    except SyntaxError as error:
        line = error.lineno or 1
        said = f"it can't be read as Python: {error.msg}"
        return Report((), (Finding(line, error.offset or 1, "E001", said, "mend the file", line),))
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes; expressions thousands deep
        said = f"it can't be read as Python: {error or 'its expressions are too deep'}"
        return Report((), (Finding(1, 1, "E001", said, "mend the file", 1),))
    ignored = _ignored(text)
    spans = _spans(tree)
    kept = [finding for finding in found if not _silenced(finding, ignored, spans)]
    names = dict.fromkeys(definition.handler.agent for definition in definitions)
    return Report(tuple(names), tuple(sorted(kept)), len(found) - len(kept))


# --- which functions are handlers


@dataclass(frozen=True, slots=True)
class _Definition:
    """A handler, and the expression that makes an agent of it; `bare` where that is `@agent` without parentheses."""

    handler: Handler
    at: ast.expr
    bare: bool = False


def _definitions(tree: ast.Module, module: Module) -> Iterator[_Definition]:
    for node, frame in _framed(tree, module, module.top):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for decorator in node.decorator_list:
                value = module.value(decorator, frame)
                if value in (_MAKES, _AGENT):
                    made = Klass(node, frame) if isinstance(node, ast.ClassDef) else Func(node, frame)
                    for handler in _handlers(made, decorator, module, frame):
                        yield _Definition(handler, decorator, value == _AGENT)
        elif isinstance(node, ast.Call) and node.args and module.value(node.func, frame) == _MAKES:
            made = module.value(node.args[0], frame)
            if isinstance(made, Func | Klass):
                for handler in _handlers(made, node.func, module, frame):
                    yield _Definition(handler, node.func)


def _framed(node: ast.AST, module: Module, frame: Frame) -> Iterator[tuple[ast.AST, Frame]]:
    for child in ast.iter_child_nodes(node):
        yield child, frame
        inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _framed(child, module, module.outer_frame(child, frame) if inner else frame)


def _handlers(made: Func | Klass, decorator: ast.expr, module: Module, frame: Frame) -> Iterator[Handler]:
    options = _options(decorator, module, frame)
    name = options.get("name") or getattr(made.node, "name", "agent")
    blocking = options.get("blocking", "")
    if isinstance(made, Func):
        yield Handler(name, made, blocking)
        return
    receiver = Instance(made, shared=True)
    methods = [node for node in made.node.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    named = [method for method in methods if method.name in _ENTRIES]
    for method in named or [method for method in methods if len(method.args.posonlyargs + method.args.args) == 3]:
        yield Handler(name, Func(method, made.frame, receiver), blocking)


def _options(decorator: ast.expr, module: Module, frame: Frame) -> dict[str, str]:
    """The texts among the arguments of `agent(...)`, where the decorator is that call or names one."""
    if isinstance(decorator, ast.Name):
        _, bindings = module.bindings(decorator, frame)
        decorator = bindings[0].value if bindings and bindings[0].value is not None else decorator
    if not isinstance(decorator, ast.Call):
        return {}
    given = {word.arg: word.value for word in decorator.keywords if word.arg}
    if decorator.args:
        given["name"] = decorator.args[0]
    values = {key: module.value(value, frame) for key, value in given.items()}
    return {
        key: value.value for key, value in values.items() if isinstance(value, Const) and isinstance(value.value, str)
    }


def _refused(definitions: list[_Definition], tree: ast.Module) -> Iterator[Finding]:
    """What `deploy` would refuse, as far as the text tells."""
    lines: dict[str, int] = {}
    for definition in definitions:
        handler, at = definition.handler, definition.at
        for what, advice in _faults(definition):
            yield Finding(at.lineno, at.col_offset + 1, "E002", what, advice, at.end_lineno or at.lineno, handler.agent)
        if handler.func.node in tree.body and lines.setdefault(handler.agent, at.lineno) != at.lineno:
            what = f"two agents are named {handler.agent!r}: the first is in line {lines[handler.agent]}"
            last = at.end_lineno or at.lineno
            yield Finding(at.lineno, at.col_offset + 1, "E002", what, "give each its own name", last, handler.agent)


def _faults(definition: _Definition) -> Iterator[tuple[str, str]]:
    handler, node = definition.handler, definition.handler.func.node
    if not NAME.fullmatch(handler.agent):
        yield (
            f"the name {handler.agent!r} can't be part of a topic's name",
            "use letters, digits, - and _ (at most 100, beginning with a letter or digit)",
        )
    if definition.bare:
        yield "@agent is missing its parentheses", 'write @agent() or @agent("name")'
    if isinstance(node, ast.Lambda):
        return
    if isinstance(node, ast.AsyncFunctionDef) and handler.blocking:
        yield (
            f"the handler is async, and blocking={handler.blocking!r} is for others",
            f"leave blocking out, or write `def {node.name}(message, ctx):`",
        )
    elif isinstance(node, ast.FunctionDef) and not handler.blocking and isinstance(definition.at, ast.Call):
        yield (
            "the handler is not async",
            f"write `async def {node.name}(message, ctx):`, or @agent(..., blocking='thread') for one that waits or"
            " computes without async",
        )
    args = node.args
    places = len(args.posonlyargs) + len(args.args) - (handler.func.receiver is not None)
    required = any(default is None for default in args.kw_defaults)
    if required or places - len(args.defaults) > 2 or (places < 2 and args.vararg is None):
        yield "the handler can't be called with (message, ctx)", f"write `def {node.name}(message, ctx):`"


# --- comments that silence


def _ignored(text: str) -> dict[int, frozenset[str]]:
    """By line, the codes that a comment there silences; an empty set: all."""
    lines: dict[int, frozenset[str]] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        match = _IGNORE.search(token.string) if token.type == tokenize.COMMENT else None
        if match:
            codes = (match[1] or "").replace(",", " ").split()
            lines[token.start[0]] = frozenset(codes)
    return lines


def _spans(tree: ast.Module) -> dict[int, tuple[int, int]]:
    """By line, the lines of the simple statement, or of the head of the compound one, that stands there."""
    spans: dict[int, tuple[int, int]] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt | ast.excepthandler):
            continue
        body = getattr(node, "body", None)
        last = body[0].lineno - 1 if isinstance(body, list) and body else node.end_lineno or node.lineno
        last = max(last, node.lineno)
        for line in range(node.lineno, last + 1):
            known = spans.get(line)
            if known is None or known[1] - known[0] >= last - node.lineno:
                spans[line] = (node.lineno, last)
    return spans


def _silenced(finding: Finding, ignored: dict[int, frozenset[str]], spans: dict[int, tuple[int, int]]) -> bool:
    first, last = spans.get(finding.line, (finding.line, finding.line))
    lines = {finding.line, *range(first, last + 1)}
    if finding.code != "E201":  # a clause goes on over all that it guards
        lines.update(range(finding.line, finding.last_line + 1))
    codes = [ignored[line] for line in lines & ignored.keys()]
    return any(not silenced or finding.code in silenced for silenced in codes)
