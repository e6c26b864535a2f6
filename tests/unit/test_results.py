"""Results of steps come back as they were, or are refused with the place and the reason."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmagentos.agents import results
from llmagentos.agents.blobs import Blobs
from llmagentos.agents.results import decode_result, encode_result, result_type
from llmagentos.streams.errors import ResultError, SettingsError
from llmagentos.streams.message import Message
from llmagentos.streams.settings import Settings


class Quote(pydantic.BaseModel):
    price: float
    at: datetime.datetime | None = None


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(results, "_by_type", dict(results._by_type))
    monkeypatch.setattr(results, "_by_name", dict(results._by_name))
    result_type("quote")(Quote)
    result_type("pair")(Pair)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary()
    | st.datetimes()
    | st.dates()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.builds(Quote, price=st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.just("$"), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN)
def test_what_is_recorded_comes_back(value: Any) -> None:
    assert decode_result(*encode_result(value)) == value


def test_tuples_are_lists_and_messages_messages() -> None:
    message = Message.create(b"\xff\x00", to="poet", attributes={"$": "yes"})
    found = decode_result(*encode_result({"pair": (1, 2), "message": message}))
    assert found["pair"] == [1, 2]
    assert found["message"].record == message.record


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Odd(), "the result is <RuntimeError in its repr> of type .*Odd, which can't be recorded"),
        ({"rows": [1, {2, 3}]}, r"the result\['rows'\]\[1\] is \{2, 3\} of type builtins.set"),
        ({1: "one"}, "the result has the key 1 of type int"),
        (2**63, "the result is 9223372036854775808 of type builtins.int"),
        ([float("nan")], r"the result\[0\] is nan"),
        (Quote(price=float("inf")), r"the result\['price'\] is inf"),
        (Pair(1, 2**70), r"the result\['right'\]"),
        ("\ud800", "the result is text that UTF-8 can't say"),
        (nested(300), "nested deeper than 250"),
        (open, "the result is <built-in function open>"),
        (ValueError("x"), "the result is ValueError"),
    ],
    ids=lambda value: "value" if not isinstance(value, str) else "",
)
def test_what_can_not_be_kept_is_refused_with_its_place(value: Any, says: str) -> None:
    with pytest.raises(ResultError, match=says) as refused:
        encode_result(value)
    assert refused.value.fix


def test_one_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ResultError, match="holds itself"):
        encode_result(value)


def test_a_type_that_is_not_known_any_more_or_otherwise_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = encode_result([Quote(price=3)])
    monkeypatch.delitem(results._by_name, "quote")
    with pytest.raises(ResultError, match="of type 'quote', which this process doesn't know") as unknown:
        decode_result(*kept)
    assert "@result_type" in unknown.value.fix

    class Changed(pydantic.BaseModel):
        amount: int

    result_type("quote")(Changed)
    with pytest.raises(ResultError, match="(?s)can't be read as application/json.*amount") as changed:
        decode_result(*kept)
    assert changed.value.kept
    for torn in (kept[0][:-3], b"\xff"):
        with pytest.raises(ResultError, match="can't be read"):
            decode_result(torn, kept[1])


def test_a_name_is_one_class_s_but_a_module_may_be_loaded_anew() -> None:
    with pytest.raises(ResultError, match="two classes want to be the result type 'quote'"):
        result_type("quote")(Pair)
    again = type("Quote", (pydantic.BaseModel,), {"__module__": Quote.__module__, "__qualname__": Quote.__qualname__})
    result_type("quote")(again)
    with pytest.raises(ResultError, match="no Pydantic model and no dataclass"):
        result_type("number")(int)


# -- blobs --------------------------------------------------------------------------------------------------------


def blobs(tmp_path: Path, **changed: Any) -> Blobs:
    return Blobs(Settings.load(**{"home": tmp_path, "max_message_bytes": 2_000, "max_result_bytes": 5_000} | changed))


async def test_a_large_result_is_kept_beside_a_local_node_and_checked(tmp_path: Path) -> None:
    store = blobs(tmp_path)
    assert await store.keep(b"x" * 1_000) == ""
    name = await store.keep(b"x" * 1_001)
    assert await store.keep(b"x" * 1_001) == name
    (file,) = (file for file in (tmp_path / "blobs").rglob("*") if file.is_file())
    assert await store.read(name) == file.read_bytes() == b"x" * 1_001
    file.write_bytes(b"x" * 900)
    with pytest.raises(ResultError, match=f"blob {name} in .*blobs.* 900 bytes that are not what was written"):
        await store.read(name)
    file.unlink()
    with pytest.raises(ResultError, match=f"blob {name}, can't be read from .*No such file") as gone:
        await store.read(name)
    assert "put it back" in gone.value.fix
    assert gone.value.kept


async def test_any_store_of_fsspec(tmp_path: Path) -> None:
    store = blobs(tmp_path, blobs="memory://results/of/steps", brokers="elsewhere:9092")
    name = await store.keep(b"y" * 4_000)
    assert await store.read(name) == b"y" * 4_000


async def test_what_is_too_large_or_has_no_store_is_said(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"it is 5,001 bytes; the limit is 5,000 \(setting max_result_bytes\)"):
        await blobs(tmp_path).keep(b"x" * 5_001)
    with pytest.raises(ResultError, match=r"there is no store for larger ones \(setting blobs\)") as nowhere:
        await blobs(tmp_path, brokers="elsewhere:9092").keep(b"x" * 1_001)
    assert "LLMAGENTOS_BLOBS" in nowhere.value.fix
    (tmp_path / "file").touch()
    with pytest.raises(ResultError, match="can't be written to .*file/blobs"):
        await blobs(tmp_path, blobs=str(tmp_path / "file" / "blobs")).keep(b"x" * 1_001)
    with pytest.raises(ResultError, match=r"its result is blob '\.\./\.\./etc'"):
        await blobs(tmp_path).read("../../etc")


def test_a_store_that_can_not_be_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"blobs = 'nosuch://x'.*nosuch") as refused:
        blobs(tmp_path, blobs="nosuch://x")
    assert "LLMAGENTOS_BLOBS" in refused.value.fix
