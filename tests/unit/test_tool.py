"""`@tool`: the schema of a function, and what it refuses."""

from __future__ import annotations

import datetime
import math
from typing import Annotated, Any

import pydantic
import pytest

from llmagentos.agents import agent
from llmagentos.agents.tools import Limits, agent_tool, tool
from llmagentos.agents.tools.signature import WrongArguments, parse
from llmagentos.agents.tools.tool import as_text, permitted
from llmagentos.streams.errors import AgentError


class Place(pydantic.BaseModel):
    title: str
    position: tuple[float, float] | None = None


def book(place: Place, day: datetime.date, guests: Annotated[int, pydantic.Field(ge=1)] = 2) -> str:
    """Book a table.

    It is held for an hour.

    :param day: which
        day
    :param int guests: how many come
    :return: a number
    """
    return f"{place.title} {day:%d} {guests}"


def test_a_schema_says_what_the_function_does() -> None:
    made = tool()(book)
    assert made.description == "Book a table.\n\nIt is held for an hour."
    assert made.parameters["required"] == ["place", "day"]
    properties = made.parameters["properties"]
    assert properties["day"] == {"type": "string", "format": "date", "description": "which day"}
    assert properties["guests"]["minimum"] == 1
    assert properties["guests"]["default"] == 2
    assert properties["guests"]["description"] == "how many come"
    # titles are left out, and a field of that name is not
    assert list(made.parameters["$defs"]["Place"]["properties"]) == ["title", "position"]
    assert "title" not in made.parameters
    values = made.check({"place": {"title": "Roma"}, "day": "2026-12-24"})
    assert made(**values) == "Roma 24 2"
    with pytest.raises(WrongArguments, match=r"place.title: Field required; guests: Input should be greater than"):
        made.check({"place": {}, "day": "2026-12-24", "guests": 0})


def test_a_model_gives_json_or_is_told() -> None:
    assert parse("") == {}
    assert parse('{"a": 1}') == {"a": 1}
    with pytest.raises(WrongArguments, match="not JSON"):
        parse('{"a": ')
    with pytest.raises(WrongArguments, match="list in JSON, not an object"):
        parse("[1]")


def test_results_are_texts() -> None:
    assert as_text("as it is") == "as it is"
    assert as_text(Place(title="Roma")) == '{"title":"Roma","position":null}'
    assert as_text([datetime.date(2026, 12, 24), math.nan]) == '["2026-12-24",NaN]'
    with pytest.raises(TypeError, match="JSON can't say"):
        as_text(object())


def untyped(city) -> str:  # type: ignore[no-untyped-def]
    return city


def many(*cities: str) -> str:
    return "".join(cities)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: tool()(untyped), "parameter 'city' of tool 'untyped' has no type"),
        (lambda: tool()(many), "no JSON schema can say"),
        (lambda: tool("a b")(book), "can't be a tool's name"),
        (lambda: tool(book), "missing its parentheses"),  # type: ignore[arg-type]
        (lambda: tool(isolation="thread")(book), "isolation = 'thread'"),  # type: ignore[arg-type]
        (lambda: tool(limits=Limits())(book), "limits or env"),
        (lambda: tool(timeout=math.inf)(book), "timeout = inf"),
        (lambda: tool(approve={"price": 1})(book), r"approve names \['price'\]"),
        (lambda: tool("inner", isolation="process")(lambda: 1), "can't find"),
        (lambda: agent_tool("shop", "Sells.", {"type": "string"}), "schema is of type 'string'"),
        (
            lambda: agent_tool("shop", "Sells.", {"type": "object", "properties": 3}),
            "JSON schema of tool 'shop' is none",
        ),
        (lambda: agent("x", tools=[tool()(book), tool()(book)])(_handler), "two tools named 'book'"),
        (lambda: agent("x", tools=[book])(_handler), "as a tool, which is none"),
    ],
)
def test_what_can_be_no_tool_is_refused(make: Any, said: str) -> None:
    with pytest.raises(AgentError, match=said):
        make()


async def _handler(message: Any, ctx: Any) -> None:
    pass


def test_a_policy_goes_by_the_first_pattern_that_fits() -> None:
    policy = {"acme/*/pay": "allow", "clerk/pay": "deny", "read_*": "allow", "*": "deny"}
    assert permitted({}, "t", "clerk", "pay")
    assert permitted(policy, "acme", "clerk", "pay")
    assert not permitted(policy, "t", "clerk", "pay")
    assert permitted(policy, "t", "clerk", "read_file")
    assert not permitted(policy, "t", "other", "pay")
