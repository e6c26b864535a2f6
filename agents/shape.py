"""Shapes: what an agent's memory is declared to be, how a new one is made, and how it is written and read."""

from __future__ import annotations

from typing import Any, cast

import pydantic
from pydantic_core import PydanticSerializationError

from llmagentos.agents.results import decode_result, encode_result
from llmagentos.streams.errors import AgentError, ResultError, StateError
from llmagentos.streams.message import JSON

__all__ = ["Shape"]


class Shape:
    """How an agent's memory is made, written and read: a Pydantic model, or a plain mapping.

    Args:
        label: the agent's name, for errors.
        kind: `dict`, or a model whose fields all have defaults.

    Raises:
        AgentError: it is neither.
    """

    def __init__(self, label: str, kind: type, where: str = "") -> None:
        self.kind = kind
        self._label = label
        place = f" at {where}" if where else ""
        if kind is dict:
            return
        if not (isinstance(cast("Any", kind), type) and issubclass(kind, pydantic.BaseModel)):
            raise AgentError(
                f"agent {label!r}{place}: memory = {kind!r} is no Pydantic model and not dict",
                fix="write memory=dict, or a class that derives from pydantic.BaseModel",
            )
        required = [name for name, field in kind.model_fields.items() if field.is_required()]
        if required:
            raise AgentError(
                f"agent {label!r}{place}: field {required[0]!r} of its memory, {kind.__qualname__}, has no default"
                + (f" (nor have {', '.join(map(repr, required[1:]))})" if required[1:] else ""),
                fix="give every field one: a new conversation begins with all of them",
            )

    def fresh(self) -> Any:
        """What a new conversation has."""
        return self.kind()

    def encode(self, value: Any) -> bytes:
        """*value* as JSON.

        Raises:
            StateError: it is of another class, or a part of it can't be written; names the part.
        """
        if type(value) is not self.kind:
            raise StateError(f"ctx.memory is a {type(value).__qualname__}, not a {self.kind.__qualname__}")
        if self.kind is dict:
            try:
                return encode_result(value)[0]
            except ResultError as error:
                raise StateError(
                    error.what.replace("the result", "ctx.memory", 1),
                    fix="keep text, numbers, lists and mappings in it, or types that @result_type made known",
                ) from None
        try:
            return value.__pydantic_serializer__.to_json(value, warnings=False)
        except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
            raise StateError(f"{self._unwritable(value)}: {error}", fix="keep what JSON can say in it") from None

    def _unwritable(self, value: pydantic.BaseModel) -> str:
        """The field of *value* that can't be written."""
        for name in type(value).model_fields:
            try:
                value.model_dump_json(include={name}, warnings=False)
            except Exception:  # noqa: BLE001 - what it is, is said already
                return f"ctx.memory.{name} is a {type(getattr(value, name, None)).__qualname__} that can't be written"
        return "ctx.memory can't be written"

    def decode(self, body: bytes, content_type: str = JSON) -> Any:
        """The value that :meth:`encode` made *body* of.

        Raises:
            StateError: *body* is of another class, or of another version of it; names the fields.
        """
        if self.kind is dict:
            try:
                value = decode_result(body, content_type)
            except ResultError as error:
                raise StateError(error.what, fix=error.fix) from None
            if type(value) is not dict:
                raise StateError(f"it is a {type(value).__qualname__}, not a mapping")
            return cast("Any", value)
        try:
            return cast("type[pydantic.BaseModel]", self.kind).model_validate_json(body)
        except pydantic.ValidationError as error:
            wrong = [
                f"{'.'.join(map(str, each['loc'])) or 'all of it'} = {_short(each['input'])}: {each['msg']}"
                for each in error.errors(include_url=False, include_context=False)
            ]
            more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise StateError("; ".join(wrong[:3]) + more) from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."  # a line of a terminal
