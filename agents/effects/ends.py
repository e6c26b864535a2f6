"""How a handler ends before its time: what swallows that, and what runs meanwhile."""

from __future__ import annotations

import ast
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from llmagentos.agents.effects.calls import Calls
from llmagentos.agents.effects.scopes import inside
from llmagentos.agents.effects.values import CTX, Dotted, Func, Instance

__all__ = ["Ends"]

_CANCELLED = ("asyncio.CancelledError", "asyncio.exceptions.CancelledError", "concurrent.futures.CancelledError")

_SWALLOWED = ("builtins.BaseException", *_CANCELLED)


class Ends(Calls):
    """Sees `try`, `with` and what they let through."""

    def visit_Try(self, node: ast.Try | ast.TryStar) -> None:
        for statement in node.body:
            self.visit(statement)
        interruptible = self._waits(node.body)
        let_through = False
        for handler in node.handlers:
            caught = self._caught(handler)
            raises = any(
                isinstance(part, ast.Raise)
                and (part.exc is None or (isinstance(part.exc, ast.Name) and part.exc.id == handler.name))
                for part in inside(handler)
            )
            if caught and interruptible and not let_through and not raises and not self._ends_own_task(node):
                self._report(
                    handler,
                    "E201",
                    f"`{caught}` swallows the end of a handler that is cancelled or suspended",
                    "catch `Exception`, or end the clause with `raise`",
                )
            for statement in handler.body:
                self.visit(statement)
            let_through = let_through or bool(caught)
        for statement in node.orelse:
            self.visit(statement)
        with self._torn():
            for statement in node.finalbody:
                self.visit(statement)
        for statement in node.finalbody if interruptible else ():
            for part in (statement, *inside(statement)):
                if isinstance(part, ast.Return):
                    self._report(
                        part,
                        "E201",
                        "`return` in `finally` swallows the end of a handler that is cancelled or suspended",
                        "return after the `try`",
                    )

    visit_TryStar = visit_Try

    def _caught(self, handler: ast.ExceptHandler) -> str:
        """How a clause is written that catches cancellation; empty for another."""
        if handler.type is None:
            return "except:"
        types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        wide = any(isinstance(v, Dotted) and v.name in _SWALLOWED for v in map(self._value, types))
        return f"except {ast.unparse(handler.type)}:" if wide else ""

    def _waits(self, body: Sequence[ast.stmt]) -> bool:
        """Whether cancellation or suspension can arrive there."""
        plain = not isinstance(self.node, ast.AsyncFunctionDef)
        for statement in body:
            for part in (statement, *inside(statement)):
                if isinstance(part, ast.Await | ast.AsyncFor | ast.AsyncWith):
                    return True
                if plain and isinstance(part, ast.Name) and self._value(part) == CTX:
                    return True
        return False

    def _ends_own_task(self, node: ast.Try | ast.TryStar) -> bool:
        """`task.cancel()`, then `await task`: the cancellation is the handler's own."""
        match node.body:
            case [ast.Expr(value=ast.Await(value=awaited))]:
                ends = f"{ast.unparse(awaited)}.cancel"
                calls = (part.func for part in inside(self.node) if isinstance(part, ast.Call))
                return any(ast.unparse(call) == ends for call in calls)
            case _:
                return False

    @contextmanager
    def _torn(self) -> Generator[None]:
        before, self.cleanup = self.cleanup, True
        yield
        self.cleanup = before

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            self.visit(item.context_expr)
            self._managed(item.context_expr, node.body)
            if item.optional_vars is not None:
                self.visit(item.optional_vars)
        for statement in node.body:
            self.visit(statement)

    visit_AsyncWith = visit_With

    def _managed(self, manager: ast.expr, body: Sequence[ast.stmt]) -> None:
        value = self._value(manager)
        if isinstance(value, Instance):
            for name in ("__enter__", "__aenter__", "__exit__", "__aexit__"):
                method = self.module.member(value.klass, name, value)
                if isinstance(method, Func):
                    self._run(method, None, cleanup=name.endswith("exit__"))
        if value != Dotted("contextlib.suppress()") or not isinstance(manager, ast.Call) or not self._waits(body):
            return
        if any(isinstance(v, Dotted) and v.name in _SWALLOWED for v in map(self._value, manager.args)):
            self._report(
                manager,
                "E201",
                f"`{ast.unparse(manager)}` swallows the end of a handler that is cancelled or suspended",
                "suppress `Exception`, or less",
            )
