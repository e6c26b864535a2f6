"""Results of steps, as bytes and back: text, bytes, JSON, messages, and types that somebody registered.

What comes back is what a rerun is given, so the run that computed it is given that too: a tuple is a list for both.
Nothing is ever unpickled: of a type that is no plain JSON only the registered name is kept, and the function that was
registered for it in this process makes a value of it again.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import math
import uuid
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, Final, NamedTuple, TypeVar, cast

import orjson
import pydantic

from llmagentos.streams.errors import ResultError
from llmagentos.streams.message import BYTES, JSON, TEXT, Message

__all__ = ["decode_result", "encode_result", "result_type"]

T = TypeVar("T")

#: In JSON, an object with this one key is a value of a registered type: {"$": [name, value]}.
_MARK: Final = "$"
#: What JSON and 64 bits can say; other numbers would come back as others.
_LONGEST: Final = 2**63
#: As deep as orjson writes.
_DEEPEST: Final = 250


class _Kind(NamedTuple):
    name: str
    lower: Callable[[Any], Any]
    restore: Callable[[Any], Any]


_by_type: dict[type, _Kind] = {}
_by_name: dict[str, _Kind] = {}


def result_type(name: str) -> Callable[[type[T]], type[T]]:
    """Let steps return values of a class: a Pydantic model or a dataclass.

        @result_type("quote")
        class Quote(BaseModel):
            price: float

    Args:
        name: what stands in the journal for it; other workers and later versions must know it by the same name.

    Raises:
        ResultError: it is neither, or another class has that name.
    """

    def register(kind: type[T]) -> type[T]:
        if not (issubclass(kind, pydantic.BaseModel) or is_dataclass(kind)):
            raise ResultError(
                f"{kind.__qualname__} can't be a result type: it is no Pydantic model and no dataclass",
                fix="make it one, or let the step return plain values",
            )
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(kind)
        _add(kind, name, lambda value: adapter.dump_python(value, mode="json"), adapter.validate_python)
        return kind

    return register


def _add(kind: type, name: str, lower: Callable[[Any], Any], restore: Callable[[Any], Any]) -> None:
    known = _by_name.get(name)
    other = next((found for found, registered in _by_type.items() if registered is known), None)
    # A module that is loaded anew defines its classes anew.
    if other is not None and (other.__module__, other.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ResultError(
            f"two classes want to be the result type {name!r}: {other.__module__}.{other.__qualname__} and"
            f" {kind.__module__}.{kind.__qualname__}",
            fix="give them different names",
        )
    _by_type[kind] = _by_name[name] = _Kind(name, lower, restore)


_add(datetime.datetime, "datetime", datetime.datetime.isoformat, datetime.datetime.fromisoformat)
_add(datetime.date, "date", datetime.date.isoformat, datetime.date.fromisoformat)
_add(datetime.timedelta, "timedelta", datetime.timedelta.total_seconds, lambda s: datetime.timedelta(seconds=s))
_add(uuid.UUID, "uuid", str, uuid.UUID)
_add(decimal.Decimal, "decimal", str, decimal.Decimal)
_add(bytes, "bytes", lambda raw: base64.b64encode(raw).decode(), base64.b64decode)
_add(Message, "message", lambda message: message.record, Message)


def encode_result(value: object) -> tuple[bytes, str]:
    """*value* as (body, content type).

    Raises:
        ResultError: a part of it can't be kept; names the part and its type.
    """
    if type(value) is str:
        return _lower(value, 0).encode(), TEXT
    if type(value) is bytes:
        return value, BYTES
    return orjson.dumps(_lower(value, 0)), JSON


def decode_result(body: bytes, content_type: str) -> Any:
    """The value that :func:`encode_result` made *body* of.

    Raises:
        ResultError: it is of a type that this process doesn't know, or knows otherwise.
    """
    try:
        if content_type == TEXT:
            return body.decode()
        return body if content_type == BYTES else _restore(orjson.loads(body))
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # orjson's and Pydantic's are ValueErrors
        raise ResultError(
            f"a recorded result of {len(body):,} bytes can't be read as {content_type}: {error}",
            kept="the result, in the journal",
            fix="deploy code whose result types take what was recorded",
        ) from error


def _lower(value: Any, depth: int, where: str = "the result") -> Any:
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ResultError(f"{where} is text that UTF-8 can't say: {error}", fix="return bytes") from None
        return value
    if kind is int and -_LONGEST <= value < _LONGEST:
        return value
    if kind is float and math.isfinite(value):
        return value
    if depth > _DEEPEST:
        raise ResultError(f"{where} is nested deeper than {_DEEPEST}, or holds itself", fix="return something flatter")
    if kind is list or kind is tuple:
        return [_lower(item, depth + 1, f"{where}[{n}]") for n, item in enumerate(value)]
    if kind is dict:
        return _lower_mapping(value, depth, where)
    known = _by_type.get(kind)
    if known is None:
        raise ResultError(
            f"{where} is {_shown(value)} of type {kind.__module__}.{kind.__qualname__}, which can't be recorded",
            fix="let the step return text, numbers, lists and mappings, or register its class with @result_type",
        )
    return {_MARK: [known.name, _lower(known.lower(value), depth + 1, where)]}


def _lower_mapping(value: dict[Any, Any], depth: int, where: str) -> dict[str, Any]:
    for key in value:
        if type(key) is not str:
            raise ResultError(
                f"{where} has the key {_shown(key)} of type {type(key).__qualname__}: only text can be a key",
                fix="make it text, or return a list of pairs",
            )
    lowered = {key: _lower(item, depth + 1, f"{where}[{key!r}]") for key, item in value.items()}
    return {_MARK: ["mapping", [[key, item] for key, item in lowered.items()]]} if _MARK in value else lowered


def _restore(value: Any) -> Any:
    if isinstance(value, list):
        return [_restore(item) for item in cast(list[Any], value)]
    if not isinstance(value, dict):
        return value
    found = cast(dict[str, Any], value)
    if _MARK not in found:
        return {key: _restore(item) for key, item in found.items()}
    name, inner = found[_MARK]
    if name == "mapping":
        return {key: _restore(item) for key, item in inner}
    known = _by_name.get(name)
    if known is None:
        raise ResultError(
            f"a recorded result is of type {name!r}, which this process doesn't know",
            kept="the result, in the journal",
            fix=f'deploy code that has @result_type("{name}")',
        )
    return known.restore(_restore(inner))


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - the value is another's
        text = f"<{type(error).__name__} in its repr>"
    return text if len(text) <= 80 else text[:77] + "..."  # a line of a terminal
