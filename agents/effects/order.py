"""What decides the order of steps: tasks side by side, sets, and who finishes first."""

from __future__ import annotations

import ast
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from llmagentos.agents.effects.calls import Calls, Did, Follows
from llmagentos.agents.effects.scopes import Comprehension, Function, inside
from llmagentos.agents.effects.values import SET, Dotted, Frame

__all__ = ["Order"]

#: Of the context, what gives an awaitable.
_AWAITED = tuple(
    Dotted(f"<ctx>.{name}")
    for name in (
        *("ask", "gather", "map", "step", "sleep", "approve", "version", "history"),
        *("reply", "tell", "emit", "publish"),
    )
)

_SPAWNERS = ("asyncio.create_task", "asyncio.ensure_future", "asyncio.TaskGroup().create_task")

_ORDERED_COPIES = ("builtins.list", "builtins.tuple", "builtins.iter", "builtins.enumerate", "builtins.reversed")


class Order(Calls):
    """Sees loops, and the coroutines of a `gather`."""

    def __init__(self, reader: Follows, node: Function, frame: Frame, via: tuple[str, ...], *, cleanup: bool) -> None:
        super().__init__(reader, node, frame, via, cleanup=cleanup)
        self.looped = False
        self.spawned: dict[str, list[tuple[ast.Call, set[str]]]] = {}  # tasks, by what makes them

    # --- not at all

    def visit_Expr(self, node: ast.Expr) -> None:
        """A statement that is a call alone: what it gives is dropped, and of a coroutine nothing is done."""
        call = node.value
        waits = isinstance(self.node, ast.AsyncFunctionDef)  # a plain function's calls block
        if waits and isinstance(call, ast.Call) and self._value(call.func) in _AWAITED:
            shown = ast.unparse(call.func)
            self._report(call, "E208", f"`{shown}(...)` is not awaited: it does nothing", f"`await {shown}(...)`")
        self.generic_visit(node)

    # --- side by side

    def read(self) -> Did:
        """Read all, and compare the tasks that were made."""
        did = super().read()
        for calls in self.spawned.values():
            self._parallel(calls[-1][0], [names for _, names in calls])
        return did

    def _handed(self, node: ast.Call, name: str) -> None:
        if name == "asyncio.gather":
            self._gathered(node)
        elif name in _SPAWNERS and node.args:
            with self._names() as names:
                super()._handed(node, name)
            made_by = ast.unparse(node.func)
            self.spawned.setdefault(made_by, []).extend([(node, names)] * (2 if self.looped else 1))
        else:
            super()._handed(node, name)

    def _gathered(self, node: ast.Call) -> None:
        branches: list[set[str]] = []
        direct: set[str] = set()
        for arg in node.args:
            if isinstance(arg, ast.Starred):
                for part, repeated in self._parts(arg.value):
                    direct |= self._branch(part, branches, times=1 + repeated)
                self.visit(arg.value)
            else:
                direct |= self._branch(arg, branches)
        for word in node.keywords:
            self.visit(word.value)
        self._parallel(node, [*branches, direct])

    def _branch(self, part: ast.expr, branches: list[set[str]], *, times: int = 1) -> set[str]:
        """Add the steps of one coroutine; those of a step itself are returned: they are named in the order written."""
        frame = self.frame
        with self._names() as names:
            if isinstance(part, Comprehension):
                self.frame = self._within(part)
                part = part.value if isinstance(part, ast.DictComp) else part.elt
            self.visit(part)
        at_once = isinstance(part, ast.Call) and self._value(part.func) == Dotted("<ctx>.step")
        self.frame = frame
        if at_once:
            return names
        branches.extend([names] * times)
        return set()

    def _parts(self, node: ast.expr) -> list[tuple[ast.expr, bool]]:
        """The coroutines that a starred argument stands for, and whether each stands for many."""
        if isinstance(node, ast.Name):
            home, bindings = self.module.bindings(node, self.frame)
            if home is self.frame and bindings and bindings[0].value is not None:
                return self._parts(bindings[0].value) if not isinstance(bindings[0].value, ast.Name) else []
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
            return [(node, True)]
        if isinstance(node, ast.List | ast.Tuple):
            return [(part, False) for part in node.elts]
        return []

    def _within(self, node: Comprehension) -> Frame:
        return Frame(self.module.scopes[node], self.frame)

    def _parallel(self, node: ast.Call, branches: Sequence[set[str]]) -> None:
        seen: set[str] = set()
        twice: set[str] = set()
        for names in branches:
            twice |= seen & names
            seen |= names
        for name in sorted(twice):
            self._report(
                node,
                "E203",
                f"steps named {name!r} are taken in several tasks at once, and which comes first is up to their speed",
                f'give each a name of its own: `{{ctx}}.step(f"{name}-{{key}}", ...)`',
            )

    # --- one after the other

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        before = self.ordered
        with self._looping():
            for statement in node.body:
                self.visit(statement)
        self._in_order(node.iter, before)
        for statement in node.orelse:
            self.visit(statement)

    visit_AsyncFor = visit_For

    def visit_While(self, node: ast.While) -> None:
        before = self.ordered
        with self._looping():
            self.visit(node.test)
            for statement in node.body:
                self.visit(statement)
        for part in inside(node) if self.ordered > before else ():
            if isinstance(part, ast.Call) and self._value(part.func) == Dotted(f"{SET.name}.pop"):
                self._disorder(part, ast.unparse(part.func))
        for statement in node.orelse:
            self.visit(statement)

    @contextmanager
    def _looping(self) -> Generator[None]:
        before, self.looped = self.looped, True
        yield
        self.looped = before

    def _comprehension(self, node: Comprehension) -> None:
        outer, before = self.frame, self.ordered
        self.visit(node.generators[0].iter)
        self.frame = self._within(node)
        with self._looping():
            for at, generator in enumerate(node.generators):
                if at:
                    self.visit(generator.iter)
                for condition in generator.ifs:
                    self.visit(condition)
            for part in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
                self.visit(part)
        for at, generator in enumerate(node.generators):
            self.frame = self._within(node) if at else outer
            self._in_order(generator.iter, before)
        self.frame = outer

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def _in_order(self, iterated: ast.expr, before: int) -> None:
        inner = iterated
        while isinstance(inner, ast.Call) and inner.args:
            called = self._value(inner.func)
            if not (isinstance(called, Dotted) and called.name in _ORDERED_COPIES):
                break
            inner = inner.args[0]
        if self.ordered > before and self._value(inner) == SET:
            self._disorder(iterated, ast.unparse(inner))

    def _disorder(self, node: ast.expr, written: str) -> None:
        self._report(
            node,
            "E204",
            f"`{written}` is a set, whose order is another one in every process, and decides the order of steps",
            "iterate over `sorted(...)` of it",
        )
