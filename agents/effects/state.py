"""State of the process that a handler changes: what other workers don't see, and a rerun changes once more."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from llmagentos.agents.effects.calls import Calls, Follows
from llmagentos.agents.effects.scopes import Function
from llmagentos.agents.effects.table import find
from llmagentos.agents.effects.values import CTX, Dotted, Frame, Instance

__all__ = ["State"]

_MUTATORS = frozenset(
    (
        *("add", "append", "appendleft", "clear", "discard", "extend", "extendleft", "insert", "pop", "popitem"),
        *("popleft", "remove", "reverse", "rotate", "setdefault", "sort", "subtract", "update", "move_to_end"),
        *("difference_update", "intersection_update", "symmetric_difference_update"),
    )
)

_CONTAINERS = frozenset(
    f"{name}()"
    for name in (
        *("builtins.list", "builtins.dict", "builtins.set", "builtins.bytearray", "collections.deque"),
        *("collections.defaultdict", "collections.Counter", "collections.OrderedDict", "collections.ChainMap"),
        *("typing.List", "typing.Dict", "typing.MutableMapping", "collections.abc.MutableMapping"),
        *("weakref.WeakKeyDictionary", "weakref.WeakValueDictionary"),
    )
)


class State(Calls):
    """Sees what is stored, and where."""

    def __init__(self, reader: Follows, node: Function, frame: Frame, via: tuple[str, ...], *, cleanup: bool) -> None:
        super().__init__(reader, node, frame, via, cleanup=cleanup)
        self.unset: list[str] = []  # what an `if` around found to be not there yet

    def _outside(self, node: ast.Call, name: str) -> None:
        super()._outside(node, name)
        self._mutated_by(node, name)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._assigned(node.targets, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._assigned([node.target], node.value)

    def _assigned(self, targets: Sequence[ast.expr], value: ast.expr) -> None:
        before, self.deferred = self.deferred, True  # a lambda with a name runs where the name is called
        self.visit(value)
        self.deferred = before
        for target in targets:
            self._stored(target, value)
            if not isinstance(target, ast.Name):
                self.visit(target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        self._stored(node.target, node.value)
        self.visit(node.target)

    def visit_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self._stored(target, None)
            self.visit(target)

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        match node.test:
            case ast.Compare(left=tested, ops=[ast.Is()], comparators=[ast.Constant(value=None)]):
                unset = ast.unparse(tested)
            case ast.UnaryOp(op=ast.Not(), operand=tested):
                unset = ast.unparse(tested)
            case ast.Compare(left=key, ops=[ast.NotIn()], comparators=[table]):
                unset = f"{ast.unparse(table)}[{ast.unparse(key)}]"
            case _:
                unset = ""
        self.unset.append(unset)
        for statement in node.body:
            self.visit(statement)
        self.unset.pop()
        for statement in node.orelse:
            self.visit(statement)

    def _stored(self, target: ast.expr, value: ast.expr | None) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            for part in target.elts:
                self._stored(part, None)
            return
        if isinstance(target, ast.Starred):
            self._stored(target.value, None)
            return
        if isinstance(target, ast.Name):
            if target.id not in self.frame.scope.globals | self.frame.scope.nonlocals:
                return
        elif not isinstance(target, ast.Attribute | ast.Subscript):
            return
        written = ast.unparse(target)
        either = isinstance(value, ast.BoolOp) and ast.unparse(value.values[0]) == written  # x = x or made()
        if self._is_outer(target) and written not in self.unset and not either:
            self._changed(target, written)

    def _mutated_by(self, node: ast.Call, name: str) -> None:
        owner, _, method = name.rpartition(".")
        if method in _MUTATORS and owner in _CONTAINERS and isinstance(node.func, ast.Attribute):
            changed = node.func.value
        elif name == "builtins.next" and node.args and self._value(node.args[0]) == Dotted("itertools.count()"):
            changed = node.args[0]
        else:
            return
        if self._is_outer(changed):
            self._changed(node, ast.unparse(changed))

    def _is_outer(self, node: ast.expr) -> bool:
        """Whether it belongs to something that is there before the handler runs, and after."""
        root = node
        while isinstance(root, ast.Attribute | ast.Subscript):
            inner = self._value(root)
            if isinstance(inner, Dotted) and (find(inner.name, read=True) or inner.name.startswith("<ctx>")):
                return False
            root = root.value
        if not isinstance(root, ast.Name):
            return False
        value = self._value(root)
        if value == CTX or (
            isinstance(value, Dotted) and (value.name.startswith("<ctx>") or find(value.name, read=True))
        ):
            return False
        if isinstance(value, Instance) and root is not node:
            made = self.node.name == "__init__" if isinstance(self.node, ast.FunctionDef) else False
            return value.shared and not made
        home = self.module.home(root.id, self.frame)
        return home is not None and home.outer

    def _changed(self, node: ast.expr, written: str) -> None:
        self._report(
            node,
            "E205",
            f"changes `{written}`, which belongs to this process: other workers don't see it, a rerun changes it again",
            "keep what belongs to the conversation in `{ctx}.memory`",
        )
