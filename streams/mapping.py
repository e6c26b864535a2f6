"""From a line of someone's data to a message: which part of it fills which field.

A mapping is `FIELD=SOURCE`. A source is a path (`.conversation`, `.calls[0].method`, `."odd key"`, `.` for the whole
line), a template with paths in braces (`{.conversation}/{.turn}`), or else the value itself (`acme`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast, get_args

from llmagentos.streams.errors import InputError
from llmagentos.streams.message import Message, MessageType

__all__ = ["FIELDS", "Build", "Unfit", "compile_mapping"]

#: What a mapping may fill, besides `attributes.NAME`: `text` and `body` are two names for the content.
FIELDS: Final = (
    "text", "body", "conversation_id", "message_id", "type", "sender", "tenant", "sequence", "created_at", "deadline",
    "priority", "content_type",
)  # fmt: skip

_TYPES: Final = frozenset(get_args(MessageType))
_STEP: Final = re.compile(r"""\.?"((?:[^"\\]|\\.)*)"|\.([^.\[\]"{}]+)|\.?\[(\d+)\]|\.?\["((?:[^"\\]|\\.)*)"\]""")

_HELP: Final = (
    f"FIELD=SOURCE: a field is one of {', '.join(FIELDS)} or attributes.NAME; a source is a path such as .conversation"
    " or .calls[0].method, a template such as {.conversation}/{.turn}, or a value"
)


class Unfit(ValueError):
    """A line that makes no message; its text is the reason. Caught by who reads the lines, never a command's end."""


#: Stands for "the line has nothing there"; None is JSON's null.
_ABSENT: Final = object()
_Source = Callable[[Any], Any]

#: Makes the message of one line: (the line's value, its number among the messages) -> message.
Build = Callable[[Any, int], Message]


def compile_mapping(pairs: Iterable[str], *, to: str, conversation: str | None = None, sender: str = "client") -> Build:
    """The function that makes a message for agent *to* of each line's value.

    Args:
        pairs: mappings. With any, only what they name is read, and the whole line is the body where they name neither
            text nor body; with none, a line's own keys are the fields, and one of text and body must be there.
        conversation: of the lines that name none. None: a line that must name one (as a mapping says so) and does
            not is unfit; without a mapping it begins a conversation of its own.

    Raises:
        InputError: a mapping has an unknown field or a source that is no path.
    """
    sources, attributes = _parse(pairs)
    explicit = bool(sources or attributes)
    if not explicit:
        sources = {field: _path(f".{field}", field) for field in FIELDS}
        attributes = None
    content = [(field, sources.pop(field)) for field in ("text", "body") if field in sources]
    if explicit and not content:
        content = [("body", lambda line: line)]
    named = sources.pop("conversation_id", None)
    fields = [(field, source, _CHECKS[field]) for field, source in sources.items()]

    def build(line: Any, number: int) -> Message:
        if not isinstance(line, dict):
            raise Unfit(f"a line must be an object, not {_kind(line)}")
        read = ((field, source(line)) for field, source in content)
        there = ((field, value) for field, value in read if value is not _ABSENT and value is not None)
        field, body = next(there, ("", None))
        if not field:
            raise Unfit(f"it has no {' and no '.join(field for field, _ in content)}")
        if field == "text" and not isinstance(body, str):
            raise Unfit(f"text must be a string, not {_kind(body)}")
        chosen: dict[str, Any] = {"sequence": number, "sender": sender}
        for name, source, check in fields:
            value = source(line)
            if value is not _ABSENT and value is not None:
                chosen[name] = check(name, value)
            elif name == "message_id" and explicit:
                raise Unfit("it has no message_id where the mapping says")
        place = _ABSENT if named is None else named(line)
        if place is _ABSENT or place is None:
            if conversation is None and named is not None and explicit:
                raise Unfit("it has no conversation_id where the mapping says")
            place = conversation
        else:
            place = _identity("conversation_id", place)
        return Message.create(body, to=to, conversation=place, attributes=_attributes(line, attributes), **chosen)

    return build


def _parse(pairs: Iterable[str]) -> tuple[dict[str, _Source], dict[str, _Source] | None]:
    sources: dict[str, _Source] = {}
    attributes: dict[str, _Source] = {}
    for pair in pairs:
        field, equals, source = pair.partition("=")
        field = field.strip()
        name = field.removeprefix("attributes.")
        if not equals or (field not in FIELDS and (name == field or not name)):
            raise InputError(
                f"--map {pair!r}: {'there is no field ' + repr(field) if equals else 'there is no ='}", fix=_HELP
            )
        (sources if field in FIELDS else attributes)[name] = _source(source.strip(), pair)
    return sources, attributes


def _source(source: str, pair: str) -> _Source:
    if source.startswith("."):
        return _path(source, pair)
    if "{." not in source:
        return lambda line: source
    parts = re.split(r"\{(\.[^{}]*)\}", source)
    literals, paths = parts[::2], [_path(path, pair) for path in parts[1::2]]

    def fill(line: Any) -> Any:
        text = literals[0]
        for path, literal in zip(paths, literals[1:], strict=True):
            value = path(line)
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                return _ABSENT
            text += f"{value}{literal}"
        return text

    return fill


def _path(path: str, pair: str) -> _Source:
    steps: list[str | int] = []
    at = 0
    while at < len(path) and path != ".":
        step = _STEP.match(path, at)
        if step is None:
            raise InputError(f"--map {pair!r}: {path!r} is no path, from {path[at:]!r} on", fix=_HELP)
        quoted = step[1] if step[1] is not None else step[4]
        if quoted is not None:
            steps.append(re.sub(r"\\(.)", r"\1", quoted))
        else:
            steps.append(step[2] if step[2] is not None else int(step[3]))
        at = step.end()
    if len(steps) == 1 and isinstance(steps[0], str):  # most are
        key = steps[0]
        return lambda line: line.get(key, _ABSENT)

    def follow(line: Any) -> Any:
        value = line
        for step in steps:
            if isinstance(step, str) and isinstance(value, dict):
                value = cast(Mapping[str, Any], value).get(step, _ABSENT)
            elif isinstance(step, int) and isinstance(value, list) and step < len(cast(list[Any], value)):
                value = cast(list[Any], value)[step]
            else:
                return _ABSENT
        return value

    return follow


# -- what a field takes ---------------------------------------------------------------------------------------------


def _identity(field: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Unfit(f"{field} must be a string or a whole number, not {_kind(value)}")
    if value == "":
        raise Unfit(f"{field} is empty")
    return str(value)


def _type(field: str, value: Any) -> str:
    if not isinstance(value, str) or value not in _TYPES:
        raise Unfit(f"{field} is {value!r}, which is none of {', '.join(sorted(_TYPES))}")
    return value


def _whole(field: str, value: Any) -> int:
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            raise Unfit(f"{field} must be a whole number, not {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise Unfit(f"{field} must be a whole number of 64 bits, not {_kind(value)}")
    return value


def _priority(field: str, value: Any) -> int:
    value = _whole(field, value)
    if not 0 <= value <= 9:
        raise Unfit(f"{field} is {value}; it goes from 0 (last) to 9 (first)")
    return value


def _time(field: str, value: Any) -> int:
    """Milliseconds since the epoch, from such a number or ISO 8601; without a zone it is UTC."""
    if isinstance(value, str) and not value.lstrip("-").isdigit():
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise Unfit(f"{field} is {value!r}, neither ISO 8601 nor milliseconds since 1970") from None
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    return _whole(field, value)


_CHECKS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "message_id": _identity,
    "type": _type,
    "sender": _identity,
    "tenant": _identity,
    "sequence": _whole,
    "created_at": _time,
    "deadline": _time,
    "priority": _priority,
    "content_type": _identity,
}


def _attributes(line: dict[str, Any], sources: dict[str, _Source] | None) -> dict[str, str] | None:
    if sources is None:  # a line's own
        found = line.get("attributes")
        if found is None:
            return None
        if not isinstance(found, dict):
            raise Unfit(f"attributes must be an object, not {_kind(found)}")
        values = cast(dict[str, Any], found)
    else:
        values = {name: source(line) for name, source in sources.items()}
    return {
        name: _text(f"attributes.{name}", value)
        for name, value in values.items()
        if value is not _ABSENT and value is not None
    }


def _text(field: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise Unfit(f"{field} must be a string or a number, not {_kind(value)}")
    return str(value)


def _kind(value: Any) -> str:
    """*value*'s type in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"
