"""Where resources stand, against a plain reading of the same bytes; both forms of the kernel."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.wire.conftest import both_forms

from lockgate.wire.protobuf import delimited, varint

FORMS = [pytest.param(form, id="compiled" if form.compiled else "uncompiled") for form in both_forms("resources")]
SCOPES = delimited(2, b"\x12\x02\x1a\x00")


@pytest.mark.parametrize("kernel", FORMS)
class TestLocate:
    @given(blocks=st.lists(st.tuples(st.binary(max_size=300), st.lists(st.binary(max_size=300), max_size=3))))
    def test_plain_requests_are_located(self, kernel: ModuleType, blocks: list[tuple[bytes, list[bytes]]]) -> None:
        payload, expected = b"", []
        for resource, rest in blocks:
            behind = b"".join(delimited(2 + number, content) for number, content in enumerate(rest))
            payload += delimited(1, delimited(1, resource) + behind)
            expected.append((len(payload) - len(behind) - len(resource), len(payload) - len(behind), len(payload)))
        assert kernel.locate(payload) == expected

    @pytest.mark.parametrize(
        "payload",
        [
            pytest.param(delimited(1, SCOPES + delimited(1, b"")), id="resource-last"),
            pytest.param(delimited(1, delimited(1, b"") + SCOPES + delimited(1, b"")), id="split-resource"),
            pytest.param(delimited(1, delimited(1, b"") + b"\x8a\x00\x00"), id="split-resource-long-tag"),
            pytest.param(delimited(1, b""), id="no-resource"),
            pytest.param(delimited(1, delimited(1, b"")) + delimited(7, b""), id="another-field"),
            pytest.param(delimited(1, delimited(1, b"") + b"\x18\x01"), id="not-delimited"),
            pytest.param(b"\x0a\x05\x0a\x00", id="past-the-end"),
            pytest.param(b"\x0a\x02\x0a\x01", id="resource-past-its-message"),
            pytest.param(b"\x0a\x04\x0a\x00\x12\x01", id="scope-past-its-message"),
            pytest.param(b"\x0a" + varint(1 << 40), id="huge-length"),
            pytest.param(b"\x0a\xff", id="inside-a-length"),
            pytest.param(b"\x0a", id="tag-alone"),
        ],
    )
    def test_anything_else_is_left_to_the_general_way(self, kernel: ModuleType, payload: bytes) -> None:
        assert kernel.locate(payload) is None

    @given(payload=st.binary() | st.lists(st.sampled_from([b"\x0a", b"\x12", b"\x00", b"\x02", b"\x04", b"\x80", b"\xff"])).map(b"".join))
    def test_any_bytes_give_places_inside_or_none(self, kernel: ModuleType, payload: bytes) -> None:
        places = kernel.locate(payload)
        assert places == both_forms("resources")[1].locate(payload)
        start = 0
        for first, last, end in places or ():
            assert start < first <= last <= end <= len(payload)
            start = end


@pytest.mark.parametrize("kernel", FORMS)
def test_what_is_edited_and_joined_is_the_request_with_those_resources(kernel: ModuleType) -> None:
    block = [delimited(1, delimited(1, raw) + SCOPES) for raw in (b"a", b"b" * 200, b"a", b"c", b"d")]
    asked: list[bytes] = []

    def edit(raw: bytes) -> bytes | None:
        asked.append(raw)
        return {b"a": b"A" * 300, b"c": None}.get(raw, raw)

    edited, removed = kernel.resources(b"".join(block)).edited(edit)
    long = delimited(1, delimited(1, b"A" * 300) + SCOPES)
    assert asked == [b"a", b"b" * 200, b"c", b"d"]
    assert removed == [block[3]]
    assert edited.join() == long + block[1] + long + block[4]
    assert edited.edited(lambda raw: raw) is None
    again, removed = edited.edited(lambda raw: None if raw != b"d" else b"D")
    assert removed == [block[0], block[1], block[2]]
    assert again.join() == delimited(1, delimited(1, b"D") + SCOPES)
