"""`--where`: an expression over a record's fields, compiled once."""

from __future__ import annotations

import ast
import difflib
import warnings
from collections.abc import Mapping
from typing import Any

from simpleeval import DEFAULT_FUNCTIONS, EvalWithCompoundTypes

from llmagentos.streams.errors import InputError

__all__ = ["FIELDS", "Where"]

#: What an expression may name: the place of the record, then the fields of its message.
FIELDS: tuple[str, ...] = (
    "topic", "partition", "offset", "timestamp", "key", "error",
    "message_id", "conversation_id", "root_conversation", "type", "sender", "recipient", "tenant", "sequence",
    "created_at", "deadline", "priority", "caused_by", "reply_to", "attempt",
    "content_type", "body", "attributes", "usage", "checksum", "cause",
)  # fmt: skip

_FUNCTIONS: dict[str, Any] = {
    name: DEFAULT_FUNCTIONS[name] for name in ("int", "float", "str") if name in DEFAULT_FUNCTIONS
} | {"len": len, "abs": abs, "min": min, "max": max, "round": round}

_FIX = (
    "an expression is Python's: type == 'error' and body.amount > 100, 'timeout' in body, attributes.team == 'a';"
    f" fields: {', '.join(FIELDS)}"
)


class Where:
    """A compiled expression; :meth:`matches` says whether a record is wanted.

    A field that a record lacks, or that is of another type than the expression needs, makes it no match; how
    often that happened, and first why, is in `failed` and `reason`.

    Raises:
        InputError: the expression is wrong; names it, and where in it.
    """

    def __init__(self, expression: str) -> None:
        self.expression = expression.strip()
        self.failed = 0
        self.reason = ""
        try:
            with warnings.catch_warnings(action="ignore"):  # of a strange escape, say: it is no code of ours
                tree = ast.parse(self.expression, mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            at = getattr(error, "offset", None) or len(self.expression) + 1  # 0: more was expected at the end
            raise self._wrong(getattr(error, "msg", str(error)), at) from None
        bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        called = {id(n.func): n.func for n in ast.walk(tree) if isinstance(n, ast.Call)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Name) or node.id in bound or node.id in ("True", "False", "None"):
                continue
            known = tuple(_FUNCTIONS) if id(node) in called else FIELDS
            if node.id not in known:
                close = difflib.get_close_matches(node.id, known, 1)
                what = "function" if id(node) in called else "field"
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise self._wrong(f"there is no {what} {node.id!r}{hint}", node.col_offset + 1)
        self._evaluator = EvalWithCompoundTypes(functions=dict(_FUNCTIONS))
        for node in ast.walk(tree):
            if isinstance(node, ast.expr) and type(node) not in (self._evaluator.nodes or {}):
                raise self._wrong(
                    f"{type(node).__name__.lower()} is more than an expression may do", node.col_offset + 1
                )
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                raise self._wrong(f"{node.attr!r} is not a field", (node.end_col_offset or 1) - len(node.attr) + 1)
        with warnings.catch_warnings(action="ignore"):
            self._parsed = self._evaluator.parse(self.expression)

    def matches(self, fields: Mapping[str, Any]) -> bool:
        """Whether the record with these *fields* is wanted."""
        self._evaluator.names = fields
        try:
            return bool(self._evaluator.eval(self.expression, previously_parsed=self._parsed))
        except Exception as error:  # noqa: BLE001 - whatever the expression does with this record
            self.failed += 1
            self.reason = self.reason or str(error).replace(f" in expression '{self.expression}'", "")
            return False

    def _wrong(self, why: str, at: int) -> InputError:
        return InputError(
            f"--where is wrong at character {at}: {why}\n  {self.expression}\n  {' ' * (at - 1)}^", fix=_FIX
        )
