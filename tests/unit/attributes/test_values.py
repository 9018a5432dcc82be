"""Attribute values."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from lockgate.attributes.values import decode, encode, scalar_text, text

scalars = st.none() | st.text() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.binary()
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12)


@given(values)
def test_what_is_encoded_decodes_to_the_same(value: Any) -> None:
    assert decode(encode(value)) == value
    assert isinstance(text(encode(value)), str)


@pytest.mark.parametrize("value", [object(), {1, 2}, [object()]])
def test_what_otlp_cannot_hold_is_a_value_error(value: object) -> None:
    with pytest.raises(ValueError, match="cannot be an attribute's value"):
        encode(value)


@pytest.mark.parametrize("value", [2**63, {"a": [2**64]}])
def test_an_integer_that_does_not_fit_is_a_value_error(value: object) -> None:
    with pytest.raises(ValueError, match=r"out of range|64"):
        encode(value)


def test_text_of_what_has_no_text_for_expressions() -> None:
    texts: list[object] = [[1], {}, b"x", None]
    assert [scalar_text(encode(value)) for value in texts] == [None] * 4
    assert [scalar_text(encode(value)) for value in ("x", True, 5, 1e21, 0.5)] == ["x", "true", "5", "1000000000000000000000", "0.5"]
    assert text(AnyValue()) == ""
    assert [text(encode(value)) for value in (float("nan"), float("inf"), -0.0)] == ["NaN", "+Inf", "-0"]


def test_json_of_doubles_that_json_cannot_hold_is_still_text() -> None:
    assert text(encode({"a": [float("nan"), b"\x00", None]})) == '{"a":[NaN,"AA==",null]}'
