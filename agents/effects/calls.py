"""The calls that a function makes: of the context, of the file's own functions, of everything else."""

from __future__ import annotations

import ast
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from llmagentos.agents.effects.scopes import Function
from llmagentos.agents.effects.table import Effect, find
from llmagentos.agents.effects.values import CTX, Const, Dotted, Frame, Func, Instance, Klass, Module, Value

__all__ = ["Calls", "Did", "Follows", "Node"]

#: An `asyncio.sleep` that is known to be shorter is not worth a timer of the journal: it is shorter than a failover.
SHORT_SLEEP_S = 1.0

#: What of the context only tells something: no order of calls depends on it.
_TELLING = frozenset(
    {"agent", "attempt", "conversation", "deadline", "forget", "log", "memory", "message", "tenant", "version"}
)

#: What of the context leaves the handler, and is no use while it is torn down.
_LEAVING = frozenset({"approve", "ask", "emit", "gather", "map", "publish", "reply", "sleep", "step", "tell"})

#: Of Python's own functions, those that call the function that they are given.
_CALLERS = frozenset(
    {"builtins.map", "builtins.filter", "builtins.sorted", "builtins.min", "builtins.max", "functools.reduce"}
)

#: What takes a value to a log or a screen, and nowhere else.
_LOGGERS = ("<ctx>.log.", "builtins.print", "logging.", "loguru.logger.", "structlog.", "warnings.warn")


@dataclass(frozen=True, slots=True)
class Did:
    """What a call of a function came to: the literal names of its steps, and whether it used the context in order."""

    steps: frozenset[str] = frozenset()
    ordered: bool = False


#: What a finding can be about.
Node = ast.expr | ast.stmt | ast.excepthandler


class Follows(Protocol):
    """What follows calls and keeps what is found: a reader of the whole file."""

    module: Module

    def run(self, func: Func, given: dict[str, Value], via: tuple[str, ...], *, cleanup: bool) -> Did:
        """Follow one call of a function of the file."""
        ...

    def report(self, node: Node, code: str, what: str, advice: str, *, via: tuple[str, ...], ctx: str | None) -> None:
        """Note a finding."""
        ...


class Calls(ast.NodeVisitor):
    """One run of one function."""

    def __init__(self, reader: Follows, node: Function, frame: Frame, via: tuple[str, ...], *, cleanup: bool) -> None:
        self.reader = reader
        self.module = reader.module
        self.node = node
        self.frame = frame
        self.via = via
        self.cleanup = cleanup
        self.steps: set[str] = set()
        self.ordered = 0
        self.logged = False
        self.deferred = False

    def read(self) -> Did:
        for statement in [self.node.body] if isinstance(self.node, ast.Lambda) else self.node.body:
            self.visit(statement)
        return Did(frozenset(self.steps), self.ordered > 0)

    def _value(self, node: ast.expr) -> Value:
        return self.module.value(node, self.frame)

    def _report(self, node: Node, code: str, what: str, advice: str) -> None:
        frame: Frame | None = self.frame
        names: list[str] = []
        while frame is not None and not names:
            names = [name for name, value in frame.given.items() if value == CTX]
            frame = frame.parent
        self.reader.report(node, code, what, advice, via=self.via, ctx=names[0] if names else None)

    def _effect(self, node: ast.expr, effect: Effect, shown: str) -> None:
        if self.logged and effect.fleeting:
            return
        if self.cleanup:
            self._tearing(node, f"`{shown}` {effect.does}, ")
        else:
            self._report(node, effect.code, f"`{shown}` {effect.does}", effect.advice)

    def _tearing(self, node: ast.expr, what: str) -> None:
        self._report(
            node,
            "E202",
            f"{what}while the handler is torn down: also when it is only suspended, and again when it resumes",
            "do it after the work, or in `except Exception:`; leave `finally` to what frees memory and connections",
        )

    # --- calls

    def visit_Call(self, node: ast.Call) -> None:
        called = self._value(node.func)
        match called:
            case Dotted(name) if name.startswith("<ctx>."):
                self._context(node, name.split(".")[1], name)
            case Dotted(name):
                self._outside(node, name)
            case Func():
                self._arguments(node, deferred=True)
                self._run(called, node)
            case Klass():
                self._arguments(node, deferred=True)
                for method in ("__init__", "__post_init__"):
                    made = self.module.member(called, method, Instance(called))
                    if isinstance(made, Func):
                        self._run(made, node)
            case Instance():
                self._arguments(node, deferred=True)
                method = self.module.member(called.klass, "__call__", called)
                if isinstance(method, Func):
                    self._run(method, node)
            case _:
                self.visit(node.func)
                self._arguments(node)

    def _run(self, func: Func, node: ast.Call | None, *, cleanup: bool = False) -> Did:
        arguments: list[Value] = []
        for arg in node.args if node else ():
            if isinstance(arg, ast.Starred):
                break
            arguments.append(self._value(arg))
        keywords = {word.arg: self._value(word.value) for word in (node.keywords if node else ()) if word.arg}
        given = self.module.parameters(func, tuple(arguments), keywords)
        name = getattr(func.node, "name", "")
        did = self.reader.run(func, given, (*self.via, name) if name else self.via, cleanup=self.cleanup or cleanup)
        self.steps |= did.steps
        self.ordered += did.ordered
        return did

    def _arguments(self, node: ast.Call, *, deferred: bool = False, apart: ast.expr | None = None) -> None:
        """What is worked out for a call; with *deferred*, lambdas among it are run by who was called, if at all."""
        before, self.deferred = self.deferred, self.deferred or deferred
        for part in (*node.args, *(word.value for word in node.keywords)):
            if part is not apart:
                self.visit(part)
        self.deferred = before

    def _context(self, node: ast.Call, method: str, name: str) -> None:
        if method == "log":
            with self._logging():
                self._arguments(node)
            return
        if method not in _TELLING:
            self.ordered += 1
        if self.cleanup and method in _LEAVING and name.count(".") == 1:
            self._tearing(node, f"`{ast.unparse(node.func)}` is called ")
        if name == "<ctx>.step":
            self._step(node)
        else:
            self._arguments(node, deferred=True)

    def _step(self, node: ast.Call) -> None:
        words = {word.arg: word.value for word in node.keywords}
        label = node.args[0] if node.args else words.get("name")
        known = self._value(label) if label is not None else None
        if isinstance(known, Const) and isinstance(known.value, str):
            self.steps.add(known.value)
        function = node.args[1] if len(node.args) > 1 else words.get("fn")
        made = self._value(function.func) if isinstance(function, ast.Call) else None
        if isinstance(function, ast.Call) and isinstance(made, Func) and isinstance(made.node, ast.AsyncFunctionDef):
            call = ast.unparse(function.func)
            self._report(
                function,
                "E207",
                f"the step is given what `{call}(...)` returns, which is made outside of it and can't be made again",
                "hand over the function and its arguments: `{await}{ctx}.step(name, " + call + ", ...)`",
            )
            self._arguments(function, deferred=True)
        else:
            function = None
        self._arguments(node, deferred=True, apart=function)

    def _outside(self, node: ast.Call, name: str) -> None:
        """A call of something that isn't of this file."""
        effect = find(name)
        shown = f"{ast.unparse(node.func)}()" if len(ast.unparse(node.func)) < 60 else f"{name}()"
        if effect is not None and name.endswith(".sleep") and name != "time.sleep" and not self._is_long(node):
            effect = None
        if effect is not None and effect.argument and len(node.args) + len(node.keywords) >= effect.argument:
            effect = None
        if effect is not None:
            self._effect(node, effect, shown)
        else:
            self.visit(node.func)
        self._handed(node, name)

    def _handed(self, node: ast.Call, name: str) -> None:
        """What is handed to a call of something that isn't of this file, and run by it."""
        if name.startswith(_LOGGERS):
            with self._logging():
                self._arguments(node)
        else:
            self._arguments(node, deferred=name == "functools.partial")
        if name in _CALLERS:
            for part in (*node.args, *(word.value for word in node.keywords)):
                function = self._value(part)
                if isinstance(function, Func) and not isinstance(part, ast.Lambda):
                    self._run(function, None)

    def _is_long(self, node: ast.Call) -> bool:
        length = self._value(node.args[0]) if node.args else None
        value = length.value if isinstance(length, Const) else None
        return isinstance(value, int | float) and value >= SHORT_SLEEP_S

    @contextmanager
    def _logging(self) -> Generator[None]:
        before, self.logged = self.logged, True
        yield
        self.logged = before

    @contextmanager
    def _names(self) -> Generator[set[str]]:
        """The literal names of the steps that are taken meanwhile."""
        before, self.steps = self.steps, set()
        names = self.steps
        yield names
        self.steps = before | names

    # --- reads

    def visit_Name(self, node: ast.Name) -> None:
        self._read(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if self._read(node):
            return
        value = self._value(node.value)
        if isinstance(value, Instance):  # a property is a call
            member = self._property(value, node.attr)
            if member is not None:
                self._run(member, None)
        self.visit(node.value)

    def _property(self, owner: Instance, name: str) -> Func | None:
        for statement in owner.klass.node.body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and statement.name == name:
                kinds = {ast.unparse(d).rsplit(".", 1)[-1] for d in statement.decorator_list}
                return Func(statement, owner.klass.frame, owner) if kinds & {"property", "cached_property"} else None
        return None

    def _read(self, node: ast.Name | ast.Attribute) -> bool:
        value = self._value(node)
        effect = find(value.name, read=True) if isinstance(value, Dotted) else None
        if effect is not None:
            self._effect(node, effect, ast.unparse(node))
        return effect is not None

    # --- what is only defined here

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for part in (*node.decorator_list, *node.args.defaults, *(d for d in node.args.kw_defaults if d)):
            self.visit(part)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Its methods run where they are called."""

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """Runs where it stands, as far as can be told, unless it is for a step or a function of the file."""
        if not self.deferred:
            self._run(Func(node, self.frame), None)
