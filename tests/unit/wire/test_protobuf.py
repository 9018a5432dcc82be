"""The values that are encoded by hand, held against protobuf's own decoder."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from lockgate.wire.protobuf import nested_value

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text()
documents = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20)


def decoded(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case "kvlist_value":
            return {item.key: decoded(item.value) for item in value.kvlist_value.values}
        case "array_value":
            return [decoded(item) for item in value.array_value.values]
        case None:
            return None
        case kind:
            return getattr(value, kind)


@given(documents)
def test_what_json_can_say_comes_back_as_it_was(document: Any) -> None:
    assert decoded(AnyValue.FromString(nested_value(document))) == document


@pytest.mark.parametrize(("number", "as_float"), [(2**63, 2.0**63), (-(2**64), -(2.0**64))])
def test_integers_beyond_64_bits_are_floats(number: int, as_float: float) -> None:
    assert decoded(AnyValue.FromString(nested_value(number))) == as_float


def test_what_nests_deeper_is_text() -> None:
    assert decoded(AnyValue.FromString(nested_value({"a": [{"b": 1}]}, 2))) == {"a": ['{"b":1}']}
