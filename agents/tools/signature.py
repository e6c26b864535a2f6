"""What a function takes, as a Pydantic model: the schema that a model is shown, and the check of what it gives.

Types are those of the annotations, descriptions those of the docstring: its text up to the first section, and of each
parameter what its `Args:` section (or `:param NAME:`) says.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson
import pydantic

from llmagentos.streams.errors import AgentError

__all__ = ["Signature", "WrongArguments", "check_by", "describe", "parse", "plain"]

#: The headings of a docstring behind which no description of the whole stands any more (Google's style).
_SECTION: Final = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Example|Examples|Note):\s*$", re.M)
_ARGS: Final = re.compile(r"^(?:Args|Arguments|Parameters):\s*$\n((?:[ \t]+.*\n?|\n)*)", re.M)
_ARG: Final = re.compile(r"^(\*{0,2}\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_FIELD: Final = re.compile(r"^:(?:param|parameter|arg)\s+(?:[^:]*\s)?(\w+):\s*((?:.*(?:\n[ \t]+.*)*))", re.M)

#: Of one wrong argument in the text for a model: enough to see which it was.
_SHOWN: Final = 100


class WrongArguments(Exception):
    """What a model gave is not what the tool takes; its text is for the model."""


class Signature:
    """What a function takes.

    Args:
        label: the tool's name, for errors.
        skip: parameters that are not the model's to give.

    Attributes:
        description: of the whole.
        parameters: the JSON schema of the arguments.

    Raises:
        AgentError: a parameter has no type, or one that has no JSON schema.
    """

    def __init__(self, label: str, function: Callable[..., Any], skip: frozenset[str] = frozenset()) -> None:
        text = inspect.cleandoc(function.__doc__ or "")
        said = _said_of_parameters(text)
        self.description = _summary(text)
        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except NameError as error:
            raise AgentError(
                f"tool {label!r}: a type of its parameters is not known: {error}",
                fix="import it where the function is written, not under `if TYPE_CHECKING`",
            ) from error
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if name in skip:
                continue
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise AgentError(
                    f"tool {label!r} takes {parameter}, which no JSON schema can say",
                    fix="give it named parameters, each with a type",
                )
            if name not in hints:
                raise AgentError(
                    f"parameter {name!r} of tool {label!r} has no type", fix=f"write `{name}: str`, or what it is"
                )
            default = ... if parameter.default is parameter.empty else parameter.default
            described = pydantic.Field(default, description=said.get(name))
            fields[name] = (hints[name], described if name in said else default)
        try:
            self._model = pydantic.create_model(
                label, __config__=pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=False), **fields
            )
            self.parameters: dict[str, Any] = plain(self._model.model_json_schema())
        except (pydantic.errors.PydanticUserError, NameError, TypeError) as error:
            raise AgentError(
                f"the parameters of tool {label!r} can't be a JSON schema: {str(error).splitlines()[0]}",
                fix="use types that Pydantic knows: str, int, float, bool, list, dict, Literal, Pydantic models, ...",
            ) from error

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """*arguments* as the function takes them.

        Raises:
            WrongArguments: naming each wrong one, and what it takes.
        """
        try:
            made = self._model.model_validate(arguments)
        except pydantic.ValidationError as error:
            raise WrongArguments(describe(error)) from error
        return {name: getattr(made, name) for name in type(made).model_fields}


def parse(arguments: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments as an object: a model gives them as JSON text.

    Raises:
        WrongArguments: it is not JSON, or no object.
    """
    given: Any = arguments
    if isinstance(arguments, str):
        try:
            given = orjson.loads(arguments or "{}")  # of a tool without parameters some models give nothing
        except orjson.JSONDecodeError as error:
            raise WrongArguments(f"the arguments are not JSON: {error}") from error
    if not isinstance(given, Mapping):
        raise WrongArguments(f"the arguments are {type(given).__name__} in JSON, not an object")
    return typing.cast("Mapping[str, Any]", given)


def describe(error: pydantic.ValidationError) -> str:
    """What is wrong with the arguments, for a model."""
    said: list[str] = []
    for each in error.errors(include_url=False):
        where = ".".join(map(str, each["loc"])) or "the arguments"
        given = "" if each["type"] == "missing" else f" (given: {str(each['input'])[:_SHOWN]!r})"
        said.append(f"{where}: {each['msg']}{given}")
    return "wrong arguments: " + "; ".join(said)


def plain(schema: dict[str, Any]) -> dict[str, Any]:
    """*schema* without titles: they repeat names, and each is paid for with every request."""

    def strip(node: Any, names: bool = False) -> Any:
        if isinstance(node, dict):
            pairs = typing.cast("dict[str, Any]", node).items()
            # Where keys are the names of fields, one may be called `title`.
            return {
                key: strip(value, not names and key in ("properties", "$defs"))
                for key, value in pairs
                if names or key != "title"
            }
        return [strip(each) for each in typing.cast("list[Any]", node)] if isinstance(node, list) else node

    schema = strip(schema)
    schema.pop("description", None)
    schema.setdefault("properties", {})
    return schema


def check_by(label: str, schema: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A check by a JSON schema that somebody gave.

    Raises:
        AgentError: it is none, or the package that checks is not installed.
    """
    try:
        from jsonschema import exceptions, validators
        from referencing import Registry
    except ImportError as error:
        raise AgentError(
            f"tool {label!r} has a JSON schema, and there is no package to check by it: {error}",
            fix="pip install 'llmagentos[tools]'",
        ) from error
    kind: Any = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except exceptions.SchemaError as error:
        raise AgentError(f"the JSON schema of tool {label!r} is none: {error.message}", fix="correct it") from error
    validator = kind(schema, registry=Registry())  # nothing is fetched that it refers to

    def check(arguments: Mapping[str, Any]) -> dict[str, Any]:
        said = [
            f"{'.'.join(map(str, each.absolute_path)) or 'the arguments'}: {each.message[: 3 * _SHOWN]}"
            for each in validator.iter_errors(dict(arguments))
        ]
        if said:
            raise WrongArguments("wrong arguments: " + "; ".join(said))
        return dict(arguments)

    return check


def _summary(text: str) -> str:
    ends = [found.start() for pattern in (_SECTION, _FIELD) if (found := pattern.search(text))]
    return text[: min(ends, default=len(text))].strip()


def _said_of_parameters(text: str) -> dict[str, str]:
    said = {name: " ".join(what.split()) for name, what in _FIELD.findall(text)}
    found = _ARGS.search(text)
    if found is None:
        return said
    name, indent = "", None
    for line in found[1].splitlines():
        depth = len(line) - len(line.lstrip())
        indent = depth if indent is None and line.strip() else indent
        start = _ARG.match(line.strip()) if depth == indent else None
        if start is not None:
            name = start[1].lstrip("*")
            said[name] = start[2].strip()
        elif name and line.strip():
            said[name] = f"{said[name]} {line.strip()}".strip()
    return said
