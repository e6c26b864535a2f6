"""What the names in a module stand for, as far as its text tells: imports, functions, classes, what calls give.

Nothing is run. A name that the text does not settle has no value (None), and nothing is said about it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field, replace
from typing import TypeGuard

from llmagentos.agents.effects.scopes import Binding, Comprehension, Function, Scope, inside, scope_of
from llmagentos.agents.effects.table import EFFECTS, RESULTS, find

__all__ = ["CTX", "SET", "Const", "Dotted", "Frame", "Func", "Function", "Instance", "Klass", "Module", "Value"]


#: How deep one name may lead to the next: what is deeper is a circle, or nothing that a person reads either.
DEEPEST = 30

#: How many expressions one value may depend on; where circles cross, the ways through them double at each turn.
LONGEST = 500


@dataclass(frozen=True, slots=True)
class Dotted:
    """Something of another module, or of Python's own: `time.time`, `httpx.Client().get`, `builtins.open`."""

    name: str


@dataclass(frozen=True, slots=True)
class Const:
    """A text, a number, a truth value or None that stands in the source."""

    value: str | bytes | float | bool | None


@dataclass(frozen=True, slots=True)
class Func:
    """A function of this file, where it was defined, and what it has been given already."""

    node: Function
    frame: Frame
    receiver: Instance | None = None
    given: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class Klass:
    """A class of this file."""

    node: ast.ClassDef
    frame: Frame


@dataclass(frozen=True, slots=True)
class Instance:
    """An object of a class of this file; `shared` where it outlives the handler's run."""

    klass: Klass
    shared: bool = False
    above: bool = False  # super(): its class's own members are passed over


Value = Dotted | Const | Func | Klass | Instance | None

CTX = Dotted("<ctx>")
SET = Dotted("builtins.set()")

#: A name with more dots than this was made by a function that calls itself with a part of what it was given.
MOST_DOTS = 8

#: The modules whose names say something here: those of the table, and those that hand over what is theirs.
_TELLING = frozenset(
    {
        *(name.split(".", 1)[0] for effect in EFFECTS for name in (*effect.calls, *effect.reads)),
        *("<ctx>", "collections", "contextlib", "functools", "itertools", "llmagentos", "typing", "weakref"),
        *("logging", "loguru", "structlog", "warnings"),
    }
)

_LIST = Dotted("builtins.list()")
_DICT = Dotted("builtins.dict()")

_CONTEXTS = frozenset({"llmagentos.agents.Context", "llmagentos.agents.context.Context"})
#: Annotations that say how a value is handed over, and not what it is.
_WRAPPERS = ("Iterator()", "Iterable()", "Generator()", "Awaitable()", "Coroutine()")

_AGENT_OF = "llmagentos.agents.agent()"


@dataclass(slots=True, eq=False)
class Frame:
    """A scope with the values of its parameters; `outer` where it is not a run of a handler's but around it."""

    scope: Scope
    parent: Frame | None
    given: dict[str, Value] = field(default_factory=dict[str, Value])
    outer: bool = False


class Module:
    """The names of one file."""

    def __init__(self, tree: ast.Module) -> None:
        self.scopes: dict[ast.AST, Scope] = {}
        self._left = LONGEST
        self._returned: dict[tuple[Func, tuple[Value, ...]], Value] = {}
        self._attributes: dict[ast.ClassDef, dict[str, list[_Assigned]]] = {}
        self._ways_out: dict[Function, list[ast.expr]] = {}
        self.top = Frame(self._scope(tree), None, outer=True)
        for node in ast.walk(tree):
            if isinstance(node, Function | Comprehension):
                scope = self._scope(node)
                for name in scope.globals & scope.names.keys():
                    self.top.scope.names.setdefault(name, []).extend(scope.names.pop(name))

    def _scope(self, node: ast.Module | Function | Comprehension) -> Scope:
        scope = self.scopes[node] = scope_of(node)
        return scope

    def outer_frame(self, node: Function, parent: Frame) -> Frame:
        """The frame of a function that no handler runs, but that has one inside."""
        return Frame(self.scopes[node], parent, outer=True)

    # --- names

    def home(self, name: str, frame: Frame) -> Frame | None:
        """The frame that binds *name*, as seen from *frame*; None for a name of Python's own."""
        at: Frame | None = frame
        while at is not None:
            if name in at.scope.globals:
                return self.top
            if name in at.scope.names and name not in at.scope.nonlocals:
                return at
            at = at.parent
        return None

    def bindings(self, node: ast.Name, frame: Frame) -> tuple[Frame, list[Binding]]:
        """The frame that binds a name, and the places that may have given it its value here, likeliest first."""
        home = self.home(node.id, frame)
        if home is None:
            return self.top, []
        found = home.scope.names.get(node.id, [])
        if home is not frame:
            return home, found[::-1]
        before = [b for b in found if b.place < (node.lineno, node.col_offset)]
        return home, [max(before, key=lambda b: b.place)] if before else found[:1]

    def _name(self, node: ast.Name, frame: Frame, depth: int) -> Value:
        home, bindings = self.bindings(node, frame)
        if not bindings:
            from_star = (f"{module}.{node.id}" for module in self.top.scope.stars)
            return Dotted(next((name for name in from_star if _known(name)), f"builtins.{node.id}"))
        values = [self._bound(node.id, binding, home, depth) for binding in bindings]
        known = [value for value in values if value is not None]
        value = next((value for value in known if value != Const(None)), known[0] if known else None)
        return replace(value, shared=True) if home.outer and isinstance(value, Instance) else value

    def _bound(self, name: str, binding: Binding, home: Frame, depth: int) -> Value:
        if binding.parameter and name in home.given:
            return home.given[name]
        if binding.imported:
            return _dotted(binding.imported)
        if isinstance(binding.defined, ast.ClassDef):
            return Klass(binding.defined, home)
        if binding.defined is not None:
            return Func(binding.defined, home)
        value = self.annotated(binding.annotation, home, depth + 1) if binding.annotation is not None else None
        if value is None and binding.value is not None:
            at = home.parent or home if binding.parameter else home  # a default is worked out around the function
            value = self.value(binding.value, at, depth + 1)
        return value

    def annotated(self, node: ast.expr, frame: Frame, depth: int = 0) -> Value:
        """What an annotation says of a value."""
        if depth > DEEPEST:
            return None
        match node:
            case ast.Constant(value=str(text)):
                try:
                    inner = ast.parse(text, mode="eval").body
                except (SyntaxError, ValueError):
                    return None
                return self.annotated(ast.fix_missing_locations(_placed(inner, node)), frame, depth + 1)
            case ast.BinOp(op=ast.BitOr()):
                return self.annotated(node.left, frame, depth + 1) or self.annotated(node.right, frame, depth + 1)
            case ast.Subscript():
                base = self.value(node.value, frame, depth + 1)
                if isinstance(base, Dotted) and base.name.rsplit(".", 1)[-1] in ("Optional", "Annotated", "Final"):
                    inner = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
                    return self.annotated(inner, frame, depth + 1)
                return self.annotated(node.value, frame, depth + 1)
            case ast.Name() | ast.Attribute():
                named = self.value(node, frame, depth + 1)
                if isinstance(named, Klass):
                    return Instance(named)
                if isinstance(named, Dotted):
                    return CTX if named.name in _CONTEXTS else _dotted(f"{named.name}()")
            case _:
                pass
        return None

    # --- expressions

    def value(self, node: ast.expr, frame: Frame, depth: int = 0) -> Value:
        """What an expression stands for in *frame*; None where the text does not tell."""
        self._left = LONGEST if depth == 0 else self._left - 1
        if depth > DEEPEST or self._left < 0:
            return None
        match node:
            case ast.Name():
                return self._name(node, frame, depth)
            case ast.Constant(value=str() | bytes() | int() | float() | bool() | None as constant):
                return Const(constant)
            case ast.Attribute():
                return self._attribute(self.value(node.value, frame, depth + 1), node.attr, depth)
            case ast.Await() | ast.NamedExpr() | ast.Starred():
                return self.value(node.value, frame, depth + 1)
            case ast.Call():
                return self._result(node, frame, depth)
            case ast.Lambda():
                return Func(node, frame)
            case ast.Set() | ast.SetComp():
                return SET
            case ast.List() | ast.ListComp():
                return _LIST
            case ast.Dict() | ast.DictComp():
                return _DICT
            case ast.IfExp():
                return self.value(node.body, frame, depth + 1) or self.value(node.orelse, frame, depth + 1)
            case ast.BoolOp():
                values = (self.value(part, frame, depth + 1) for part in node.values)
                return next((value for value in values if value is not None and value != Const(None)), None)
            case ast.BinOp():
                left, right = self.value(node.left, frame, depth + 1), self.value(node.right, frame, depth + 1)
                return _operated(node.op, left, right)
            case _:
                return None

    def _attribute(self, base: Value, name: str, depth: int) -> Value:
        match base:
            case Dotted(prefix):
                return _dotted(f"{prefix}.{name}")
            case Instance():
                value = self.member(base.klass, name, base, depth, above=base.above)
                return replace(value, shared=True) if base.shared and isinstance(value, Instance) else value
            case Klass():
                return self.member(base, name, None, depth)
            case _:
                return None

    def member(
        self, klass: Klass, name: str, receiver: Instance | None, depth: int = 0, *, above: bool = False
    ) -> Value:
        """A method or attribute of a class: defined, or assigned in its body or to `self` in a method."""
        self._left = LONGEST if depth == 0 else self._left
        if depth > DEEPEST:
            return None
        for statement in () if above else klass.node.body:
            match statement:
                case ast.FunctionDef(name=found) | ast.AsyncFunctionDef(name=found) if found == name:
                    kinds = {ast.unparse(d).rsplit(".", 1)[-1] for d in statement.decorator_list}
                    method = Func(statement, klass.frame, None if "staticmethod" in kinds else receiver)
                    if kinds & {"property", "cached_property"}:
                        return self.returned(method, (), depth + 1)
                    return method
                case ast.ClassDef(name=found) if found == name:
                    return Klass(statement, klass.frame)
                case ast.AnnAssign(target=ast.Name(id=found)) if found == name:
                    value = self.annotated(statement.annotation, klass.frame, depth + 1)
                    return value or (self.value(statement.value, klass.frame, depth + 1) if statement.value else None)
                case ast.Assign(targets=[ast.Name(id=found)]) if found == name:
                    return self.value(statement.value, klass.frame, depth + 1)
                case _:
                    pass
        if klass.node not in self._attributes:
            self._attributes[klass.node] = _attributes(klass.node)
        for method, assigned in () if above else self._attributes[klass.node].get(name, ()):
            frame = Frame(self.scopes[method], klass.frame)
            if receiver is not None:
                frame.given[method.args.args[0].arg] = receiver
            value = self.value(assigned, frame, depth + 1)
            if value is not None and value != Const(None):
                return value
        for base in klass.node.bases:
            parent = self.value(base, klass.frame, depth + 1)
            if isinstance(parent, Klass):
                value = self.member(parent, name, receiver, depth + 1)
                if value is not None:
                    return value
        return None

    def _result(self, node: ast.Call, frame: Frame, depth: int) -> Value:
        called = self.value(node.func, frame, depth + 1)
        match called:
            case Dotted("functools.partial") if node.args:
                first = self.value(node.args[0], frame, depth + 1)
                if isinstance(first, Func):
                    rest = tuple(self.value(arg, frame, depth + 1) for arg in node.args[1:])
                    return replace(first, given=first.given + rest)
                return first
            case Dotted("builtins.super"):
                own = next((value for value in frame.given.values() if isinstance(value, Instance)), None)
                return replace(own, above=True) if own is not None else None
            case Dotted(name) if name == _AGENT_OF and node.args:
                return self.value(node.args[0], frame, depth + 1)
            case Dotted(name):
                return _dotted(f"{name}()")
            case Klass():
                return Instance(called)
            case Func():
                return self.returned(called, tuple(self.value(arg, frame, depth + 1) for arg in node.args), depth)
            case _:
                return None

    def returned(self, func: Func, arguments: tuple[Value, ...], depth: int) -> Value:
        """What a function of this file gives back, or yields to a `with`."""
        key = (func, arguments)
        if depth > DEEPEST or key in self._returned:
            return self._returned.get(key)
        self._returned[key] = None  # for a function that returns what it returns
        value = self._returned[key] = self._returns(func, arguments, depth)
        return value

    def _returns(self, func: Func, arguments: tuple[Value, ...], depth: int) -> Value:
        if not isinstance(func.node, ast.Lambda) and func.node.returns is not None:
            said = self.annotated(func.node.returns, func.frame, depth + 1)
            if said is not None and not (isinstance(said, Dotted) and said.name.endswith(_WRAPPERS)):
                return said
        frame = Frame(self.scopes[func.node], func.frame, self.parameters(func, arguments, {}))
        if isinstance(func.node, ast.Lambda):
            return self.value(func.node.body, frame, depth + 1)
        if func.node not in self._ways_out:
            ways = (node.value for node in inside(func.node) if isinstance(node, ast.Return | ast.Yield))
            self._ways_out[func.node] = [way for way in ways if way is not None]
        values = (self.value(way, frame, depth + 1) for way in self._ways_out[func.node])
        return next((value for value in values if value is not None and value != Const(None)), None)

    def parameters(self, func: Func, arguments: tuple[Value, ...], keywords: dict[str, Value]) -> dict[str, Value]:
        """The values of a function's parameters when it is called so; those that nobody knows are left out."""
        known = func.node.args
        names = [arg.arg for arg in (*known.posonlyargs, *known.args)]
        receiver: tuple[Value, ...] = () if func.receiver is None else (func.receiver,)
        given = dict(zip(names, (*receiver, *func.given, *arguments), strict=False))
        by_name = {*names, *(arg.arg for arg in known.kwonlyargs)}
        given.update((name, value) for name, value in keywords.items() if name in by_name)
        return {name: value for name, value in given.items() if value is not None}


def _known(name: str) -> bool:
    return find(name) is not None or name == "llmagentos.agents.agent"


def _dotted(name: str) -> Dotted | None:
    if name.split(".", 1)[0].removesuffix("()") not in _TELLING or name.count(".") > MOST_DOTS:
        return None
    if name.startswith("llmagentos.agents.agent.agent"):  # the module has the name of the function in it
        name = name.replace(".agent.agent", ".agent", 1)
    return Dotted(RESULTS.get(name, name))


def _operated(operator: ast.operator, left: Value, right: Value) -> Value:
    if isinstance(operator, ast.Div) and isinstance(left, Dotted):
        return left if left.name == "pathlib.Path()" else None
    if isinstance(operator, ast.BitOr | ast.BitAnd | ast.Sub | ast.BitXor) and SET in (left, right):
        return SET
    if not (isinstance(left, Const) and isinstance(right, Const)):
        return None
    if not (_is_number(left.value) and _is_number(right.value)):
        return None
    try:
        if isinstance(operator, ast.Mult):
            return Const(left.value * right.value)
        if isinstance(operator, ast.Add):
            return Const(left.value + right.value)
    except OverflowError:  # an integer that is no float
        return None
    return None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _placed(node: ast.expr, like: ast.expr) -> ast.expr:
    for part in ast.walk(node):
        if isinstance(part, ast.expr):
            ast.copy_location(part, like)
    return node


#: A value that is assigned to an attribute of `self`, and the method that does.
_Assigned = tuple[ast.FunctionDef | ast.AsyncFunctionDef, ast.expr]


def _attributes(klass: ast.ClassDef) -> dict[str, list[_Assigned]]:
    """What the methods of a class assign to `self`, by the attribute's name."""
    found: dict[str, list[_Assigned]] = {}
    for method in klass.body:
        if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) or not method.args.args:
            continue
        me = method.args.args[0].arg
        for node in inside(method):
            match node:
                case ast.Assign(targets=targets, value=value):
                    pass
                case ast.AnnAssign(target=target, value=ast.expr() as value):
                    targets = [target]
                case _:
                    continue
            for target in targets:
                if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == me:
                    found.setdefault(target.attr, []).append((method, value))
    return found
