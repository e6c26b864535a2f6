"""The names that each scope of a module binds, and the places where it does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Binding", "Comprehension", "Function", "Scope", "inside", "scope_of"]

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclass(frozen=True, slots=True)
class Binding:
    """One place where a name gets a value."""

    place: tuple[int, int]
    value: ast.expr | None = None
    annotation: ast.expr | None = None
    defined: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | None = None
    imported: str = ""
    parameter: bool = False


@dataclass(slots=True, eq=False)
class Scope:
    """The names that a module, a function, a lambda or a comprehension binds."""

    node: ast.Module | Function | Comprehension
    names: dict[str, list[Binding]] = field(default_factory=dict[str, list[Binding]])
    globals: set[str] = field(default_factory=set[str])
    nonlocals: set[str] = field(default_factory=set[str])
    stars: list[str] = field(default_factory=list[str])


def scope_of(node: ast.Module | Function | Comprehension) -> Scope:
    """The scope that *node* makes."""
    scope = Scope(node)
    _Binder(scope).fill()
    return scope


def inside(node: ast.AST) -> Iterator[ast.AST]:
    """Everything below *node* that runs when it does: not what is within functions and classes defined there."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield from inside(child)


class _Binder(ast.NodeVisitor):
    """Collects the bindings of one scope, without those of functions inside it."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def fill(self) -> None:
        node = self.scope.node
        if isinstance(node, ast.Module):
            self.generic_visit(node)
            return
        if isinstance(node, Comprehension):
            for generator in node.generators:
                self._target(generator.target, None)
            return
        args = node.args
        positional = [*args.posonlyargs, *args.args]
        defaults: list[ast.expr | None] = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
        for arg, default in (
            *zip(positional, defaults, strict=True),
            *zip(args.kwonlyargs, args.kw_defaults, strict=True),
        ):
            self._bind(arg.arg, arg, value=default, annotation=arg.annotation, parameter=True)
        for arg in (args.vararg, args.kwarg):
            if arg is not None:
                self._bind(arg.arg, arg)
        for statement in [node.body] if isinstance(node, ast.Lambda) else node.body:
            self.visit(statement)

    def _bind(
        self,
        name: str,
        at: ast.AST,
        *,
        value: ast.expr | None = None,
        annotation: ast.expr | None = None,
        defined: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | None = None,
        imported: str = "",
        parameter: bool = False,
    ) -> None:
        place = (getattr(at, "lineno", 0), getattr(at, "col_offset", 0))
        if value is not None and not parameter:  # a name in the value still has its earlier meaning
            place = (value.end_lineno or place[0], value.end_col_offset or place[1])
        self.scope.names.setdefault(name, []).append(Binding(place, value, annotation, defined, imported, parameter))

    def _target(self, target: ast.expr, value: ast.expr | None) -> None:
        match target:
            case ast.Name(id=name):
                self._bind(name, target, value=value)
            case ast.Starred(value=inner):
                self._target(inner, None)
            case ast.Tuple(elts=targets) | ast.List(elts=targets):
                values: list[ast.expr | None] = [None] * len(targets)
                if isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(targets):
                    values = list(value.elts)
                for part, given in zip(targets, values, strict=True):
                    self._target(part, given)
            case _:
                self.visit(target)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            first = alias.name.split(".", 1)[0]
            self._bind(alias.asname or first, node, imported=alias.name if alias.asname else first)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = "." * node.level + (node.module or "")
        for alias in node.names:
            if alias.name == "*":
                self.scope.stars.append(module)
            else:
                self._bind(alias.asname or alias.name, node, imported=f"{module}.{alias.name}")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._bind(node.name, node, defined=node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._bind(node.name, node, defined=node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._bind(node.name, node, defined=node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """A scope of its own."""

    def visit_Global(self, node: ast.Global) -> None:
        self.scope.globals.update(node.names)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self.scope.nonlocals.update(node.names)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self._target(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
        if isinstance(node.target, ast.Name):
            self._bind(node.target.id, node.target, value=node.value, annotation=node.annotation)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Leaves a name with the kind of value that it had."""
        self.visit(node.value)
        if isinstance(node.target, ast.Name):
            self._bind(node.target.id, node.target, value=ast.copy_location(ast.Name(node.target.id), node.target))

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self._target(node.target, node.value)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self._target(node.target, None)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    visit_AsyncFor = visit_For

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """Its own names are bound only within."""
        self.visit(node.iter)
        for condition in node.ifs:
            self.visit(condition)

    def visit_withitem(self, node: ast.withitem) -> None:
        self.visit(node.context_expr)
        if node.optional_vars is not None:
            self._target(node.optional_vars, node.context_expr)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self._bind(node.name, node)
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        if node.name:
            self._bind(node.name, node)
        self.generic_visit(node)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        if node.name:
            self._bind(node.name, node)
