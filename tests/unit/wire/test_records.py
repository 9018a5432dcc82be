"""Log records by group, in both forms of the kernel, against what the processors do without it, with upb's messages."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from support import context
from support.otlp_requests import requests
from unit.wire.conftest import both_forms

from lockgate.attributes import records as attribute_records
from lockgate.batch import Batch, Signal
from lockgate.components.processors import filter as filtering
from lockgate.components.processors import groupbyattrs
from lockgate.wire import records
from lockgate.wire.protobuf import delimited, key_values, varint

FORMS = both_forms("records")
EACH_FORM = pytest.mark.parametrize("kernel", [pytest.param(form, id="compiled" if form.compiled else "uncompiled") for form in FORMS])

KEYS = ("a", "b", "key")
VALUES = [
    AnyValue(string_value="x"),
    AnyValue(string_value="y" * 9),
    AnyValue(string_value="y" * 8 + "z"),
    AnyValue(string_value="x" * 200),
    AnyValue(string_value="x" * 5000),  # more than what is remembered from one batch to the next
    AnyValue(int_value=7),
    AnyValue(),
]


def fill(draw: st.DrawFn, attributes: Any, keys: list[str]) -> None:
    for key in keys:
        attribute = attributes.add()
        if key:
            attribute.key = key
        if draw(st.integers(0, 5)):
            attribute.value.CopyFrom(draw(st.sampled_from(VALUES)))


@st.composite
def log_requests(draw: st.DrawFn, twice: bool = False) -> ExportLogsServiceRequest:
    """Few resources, scopes, keys and values, so that many are the same; `twice`: a key may occur twice in a record."""
    request = ExportLogsServiceRequest()
    for _ in range(draw(st.integers(0, 3))):
        entry = request.resource_logs.add(schema_url=draw(st.sampled_from(["", "u"])))
        if draw(st.booleans()):
            fill(draw, entry.resource.attributes, draw(st.lists(st.sampled_from(["a", "r"]), unique=True)))
        for _ in range(draw(st.integers(0, 3))):
            scope = entry.scope_logs.add(schema_url=draw(st.sampled_from(["", "v"])))
            scope.scope.name = draw(st.sampled_from(["", "lib"]))
            for _ in range(draw(st.integers(0, 4))):
                record = scope.log_records.add(time_unix_nano=draw(st.integers(0, 3)), flags=draw(st.integers(0, 1)))
                record.body.string_value = draw(st.sampled_from(["", "b", "b" * 130]))
                record.severity_number = draw(st.integers(0, 24))  # type: ignore[assignment]
                record.event_name = draw(st.sampled_from(["", "e"]))
                fill(draw, record.attributes, draw(st.lists(st.sampled_from([*KEYS, "", "other"]), unique=not twice, max_size=6)))
    return request


def batch(payload: bytes, count: int) -> Batch:
    return Batch(Signal.LOGS, payload, count, "id")


def count_of(request: Any) -> int:
    return sum(len(scope.log_records) for entry in request.resource_logs for scope in entry.scope_logs)


def group(given: Batch, keys: list[str]) -> Batch:
    made = groupbyattrs.GroupByAttrsSettings(keys=keys)
    processor = groupbyattrs.GroupByAttrsProcessor(made, context("groupbyattrs", signal=Signal.LOGS))
    first = processor.process(given)
    assert processor.process(given) == first  # now from what it remembers
    return first


def keep(given: Batch, logs: dict[str, Any]) -> Batch:
    made = filtering.FilterSettings.model_validate({"logs": logs})
    return filtering.FilterProcessor(made, context("filter", signal=Signal.LOGS)).process(given)


def without_kernel(work: Any, *arguments: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groupbyattrs, "index", lambda payload, keys: None)
        patch.setattr(records, "index", lambda payload, keys: None)
        return work(*arguments)


def with_kernel(kernel: ModuleType, work: Any, *arguments: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groupbyattrs, "index", kernel.index)
        patch.setattr(groupbyattrs, "gather", kernel.gather)
        patch.setattr(attribute_records, "gather", kernel.gather)
        patch.setattr(filtering, "records", kernel)
        patch.setattr(kernel, "compiled", True)  # else the filter would not ask it
        return work(*arguments)


def assert_same(kernel: ModuleType, work: Any, request: Any, how: Any) -> None:
    given = batch(request.SerializeToString(), count_of(request))
    expected, found = without_kernel(work, given, how), with_kernel(kernel, work, given, how)
    assert ExportLogsServiceRequest.FromString(found.payload) == ExportLogsServiceRequest.FromString(expected.payload)
    assert found.count == expected.count == count_of(found.message)


def condition(draw: st.DrawFn) -> dict[str, Any]:
    given: dict[str, Any] = {"match_type": draw(st.sampled_from(["strict", "regexp"]))}
    for name, keys in (("record_attributes", KEYS), ("resource_attributes", ("a", "r"))):
        if draw(st.booleans()):
            values = draw(st.sampled_from([None, "x", "y" * 9, "", ".+"]))
            given[name] = [{"key": draw(st.sampled_from(keys)), "value": values}]
    if not draw(st.integers(0, 4)):
        given["bodies"] = ["b"]  # not of a group: left to upb
    return given


conditions = st.composite(lambda draw: {name: condition(draw) for name in ("include", "exclude") if draw(st.booleans())})()
chosen_keys = st.lists(st.sampled_from([*KEYS, "absent"]), unique=True)


@EACH_FORM
@settings(max_examples=300, deadline=None)
@given(request=log_requests(twice=True), keys=chosen_keys)
def test_grouping_is_what_it_is_without_the_kernel(kernel: ModuleType, request: Any, keys: list[str]) -> None:
    assert_same(kernel, group, request, keys)


@EACH_FORM
@settings(max_examples=300, deadline=None)
@given(request=log_requests(twice=True), logs=conditions)
def test_filtering_is_what_it_is_without_the_kernel(kernel: ModuleType, request: Any, logs: dict[str, Any]) -> None:
    assert_same(kernel, keep, request, logs)


@EACH_FORM
@settings(max_examples=150, deadline=None)
@given(request_of=requests().filter(lambda drawn: drawn[0] is Signal.LOGS), keys=st.lists(st.text(max_size=3), unique=True, max_size=3))
def test_any_request_is_grouped_as_without_the_kernel(kernel: ModuleType, request_of: tuple[Signal, Any], keys: list[str]) -> None:
    assert_same(kernel, group, request_of[1], keys)


@EACH_FORM
@settings(max_examples=150, deadline=None)
@given(request=log_requests())
def test_groups_are_the_distinct_values_of_each_scope_in_order(kernel: ModuleType, request: Any) -> None:
    found = kernel.index(request.SerializeToString(), [key.encode() for key in KEYS])
    expected: dict[Any, int] = {}
    scopes = [(number, scope) for number, entry in enumerate(request.resource_logs) for scope in entry.scope_logs if scope.log_records]
    for number, (_, scope) in enumerate(scopes):
        for record in scope.log_records:
            held = {attribute.key: attribute.value.SerializeToString() for attribute in record.attributes}
            alike = (number, tuple(map(held.get, KEYS)))
            expected[alike] = expected.get(alike, 0) + 1
    assert found is not None
    assert [((group.scope, group.values), group.records) for group in found.groups] == list(expected.items())
    assert [entry for entry, _ in found.scopes] == [entry for entry, _ in scopes]


edits = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 3), st.binary(max_size=3)), max_size=3)


@settings(max_examples=500, deadline=None)
@given(log_requests(), edits, st.booleans())
def test_any_bytes_are_the_same_to_both_forms(request: Any, changes: list[tuple[int, int, bytes]], remove: bool) -> None:
    payload = request.SerializeToString()
    for at, cut, new in changes:
        at %= len(payload) + 1
        payload = payload[:at] + new + payload[at + cut :]
    outcomes: list[Any] = []
    for kernel in FORMS:
        found = kernel.index(payload, [b"a", b"key"])
        if found is None:
            outcomes.append(None)
            continue
        homes = [number % 3 - 1 for number in range(len(found.groups))]
        frames = [(b"", [(b"", home) for home in sorted(set(homes) - {-1})])]
        outcomes.append((found.groups, found.scopes, found.entries, kernel.gather(found, homes, frames, remove)))
    assert outcomes[0] == outcomes[1]


def of(*log_records: bytes) -> bytes:
    return delimited(1, delimited(2, b"".join(delimited(2, record) for record in log_records)))


KEY, VALUE = delimited(1, b"a"), delimited(2, delimited(1, b"x"))


@EACH_FORM
@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(of(delimited(6, VALUE + KEY)), id="value-before-key"),
        pytest.param(of(delimited(6, KEY + VALUE + VALUE)), id="split-value"),
        pytest.param(of(delimited(6, KEY + KEY + VALUE)), id="key-overwritten"),
        pytest.param(of(delimited(6, KEY + VALUE + b"\x18\x01")), id="another-field-in-an-attribute"),
        pytest.param(of(delimited(6, KEY + VALUE) * 2), id="key-twice"),
        pytest.param(of(b"\xb2\x00" + delimited(6, KEY)[1:]), id="long-tag"),
        pytest.param(of(b"\x0b\x0c"), id="group"),
        pytest.param(of(b"\x10" + b"\xff" * 10 + b"\x01"), id="endless-varint"),
        pytest.param(of(b"\x09123"), id="fixed-past-the-end"),
        pytest.param(delimited(1, delimited(2, delimited(2, b"") + delimited(1, b"") + delimited(2, b""))), id="scope-among-records"),
        pytest.param(delimited(1, delimited(2, b"") + delimited(1, b"") + delimited(2, b"")), id="resource-among-scopes"),
        pytest.param(delimited(7, b""), id="another-field-of-the-request"),
        pytest.param(delimited(1, delimited(1000, b"")), id="deprecated-scopes"),
        pytest.param(b"\x0a" + varint(1 << 40), id="huge-length"),
        pytest.param(b"\x0a\x02\x12\x01", id="past-the-end"),
        pytest.param(b"\x0a", id="tag-alone"),
        pytest.param(of(*(key_values(6, [("a", number)]) for number in range(257))), id="too-many-groups"),
    ],
)
def test_these_are_left_to_upb(kernel: ModuleType, payload: bytes) -> None:
    assert kernel.index(payload, [b"a"]) is None


@EACH_FORM
def test_there_may_be_a_group_for_two_records(kernel: ModuleType) -> None:
    several = [key_values(6, [("a", number)]) for number in range(400)]
    assert kernel.index(of(*several), [b"a"]) is None
    found = kernel.index(of(*several * 2), [b"a"])
    assert [group.records for group in found.groups] == [2] * 400


@EACH_FORM
@pytest.mark.parametrize("length", range(20))
def test_names_that_differ_in_their_last_digits_are_told_apart(kernel: ModuleType, length: int) -> None:
    found = kernel.index(of(*(key_values(6, [("a", "x" * length + str(number))]) for number in range(256))), [b"a"])
    assert found is not None
    assert len(found.groups) == 256


@EACH_FORM
@pytest.mark.parametrize("keys", [pytest.param([b""], id="empty"), pytest.param([b"%d" % i for i in range(33)], id="too-many")])
def test_keys_that_it_cannot_take_are_left_to_upb(kernel: ModuleType, keys: list[bytes]) -> None:
    assert kernel.index(b"", keys) is None


@EACH_FORM
@pytest.mark.parametrize("homes", [[], [0, 0], [-2]])
def test_homes_that_are_not_one_for_each_group_are_refused(kernel: ModuleType, homes: list[int]) -> None:
    with pytest.raises(ValueError, match="1 groups need as many homes"):
        kernel.gather(kernel.index(of(b""), []), homes, [], False)
