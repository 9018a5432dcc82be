"""The actions on attributes: a table of input, action and the whole outcome."""

import hashlib
from typing import Any

import pytest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from pydantic import ValidationError

from lockgate.attributes.actions import Action, asks_peer, compile_actions
from lockgate.attributes.values import decode, encode


def apply(given: dict[str, Any], *actions: dict[str, Any], peer: str = "") -> dict[str, Any]:
    resource = Resource()
    for key, value in given.items():
        resource.attributes.add(key=key, value=encode(value))
    compile_actions([Action.model_validate(action) for action in actions])(resource.attributes, peer)
    return {attribute.key: decode(attribute.value) for attribute in resource.attributes}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


ACTIONS = [
    pytest.param({}, {"action": "insert", "key": "a", "value": "x"}, {"a": "x"}, id="insert-missing"),
    pytest.param({"a": 1}, {"action": "insert", "key": "a", "value": "x"}, {"a": 1}, id="insert-existing"),
    pytest.param({}, {"action": "update", "key": "a", "value": "x"}, {}, id="update-missing"),
    pytest.param({"a": 1}, {"action": "update", "key": "a", "value": "x"}, {"a": "x"}, id="update-existing"),
    pytest.param({}, {"action": "UPSERT", "key": "a", "value": True}, {"a": True}, id="upsert-missing-in-capitals"),
    pytest.param({"a": 1}, {"action": "upsert", "key": "a", "value": 2.5}, {"a": 2.5}, id="upsert-existing"),
    pytest.param({"a": 1}, {"action": "upsert", "key": "a", "value": ""}, {"a": ""}, id="empty-text-is-a-value"),
    pytest.param({}, {"action": "upsert", "key": "a", "value": False}, {"a": False}, id="false-is-a-value"),
    pytest.param({}, {"action": "insert", "key": "a", "value": {"b": [1, "x"]}}, {"a": {"b": [1, "x"]}}, id="lists-and-maps"),
    pytest.param({"b": 7}, {"action": "insert", "key": "a", "from_attribute": "b"}, {"b": 7, "a": 7}, id="from-attribute"),
    pytest.param({}, {"action": "insert", "key": "a", "from_attribute": "b"}, {}, id="from-a-missing-attribute"),
    pytest.param({"a": 7}, {"action": "upsert", "key": "a", "from_attribute": "a"}, {"a": 7}, id="from-itself"),
    pytest.param({"a": 1, "b": 2}, {"action": "delete", "key": "a"}, {"b": 2}, id="delete"),
    pytest.param({"a.x": 1, "b": 2, "ba.": 3}, {"action": "delete", "pattern": r"a\."}, {"b": 2}, id="delete-pattern-anywhere"),
    pytest.param({"a.x": 1, "b": 2, "c": 3}, {"action": "delete", "key": "b", "pattern": "^a"}, {"c": 3}, id="delete-key-and-pattern"),
    pytest.param({"": 1, "a": 2}, {"action": "delete", "pattern": "a"}, {"": 1}, id="no-key-is-not-the-empty-key"),
    pytest.param({"a": "x", "b": "y"}, {"action": "hash", "key": "a"}, {"a": sha(b"x"), "b": "y"}, id="hash-text"),
    pytest.param({"a": 1}, {"action": "hash", "key": "a"}, {"a": sha(b"\x01" + bytes(7))}, id="hash-int"),
    pytest.param({"a": True}, {"action": "hash", "key": "a"}, {"a": sha(b"\x01")}, id="hash-bool"),
    pytest.param({"a": 1.0}, {"action": "hash", "key": "a"}, {"a": sha(bytes(6) + b"\xf0\x3f")}, id="hash-double"),
    pytest.param({"a": [1]}, {"action": "hash", "key": "a"}, {"a": ""}, id="hash-list"),
    pytest.param({"a": "x", "ab": "x"}, {"action": "hash", "pattern": "b$"}, {"a": "x", "ab": sha(b"x")}, id="hash-pattern"),
    pytest.param(
        {"u": "kubelet.service", "_n": 1},
        {"action": "extract", "key": "u", "pattern": r"^(?P<_n>[a-z]+)\.(?P<kind>.+)$"},
        {"u": "kubelet.service", "_n": "kubelet", "kind": "service"},
        id="extract",
    ),
    pytest.param({"u": 5}, {"action": "extract", "key": "u", "pattern": "(?P<n>.)"}, {"u": 5}, id="extract-from-text-only"),
    pytest.param({"u": "x"}, {"action": "extract", "key": "u", "pattern": "(?P<a>x)(?P<b>y)?"}, {"u": "x", "a": "x", "b": ""}, id="empty"),
    pytest.param({"u": "x"}, {"action": "extract", "key": "u", "pattern": "(?P<a>y)"}, {"u": "x"}, id="extract-no-match"),
    *(
        pytest.param({"a": before}, {"action": "convert", "key": "a", "converted_type": to}, {"a": after}, id=f"convert-{before!r}-{to}")
        for before, to, after in [
            ("12", "int", 12), ("-12", "int", -12), ("1_2", "int", "1_2"), ("1.5", "int", "1.5"), (str(2**63), "int", str(2**63)),
            (1.9, "int", 1), (-1.9, "int", -1), (True, "int", 1), (1e300, "int", 1e300), (float("inf"), "int", float("inf")),
            ([1], "int", [1]), ("1e3", "double", 1000.0), ("1_0", "double", "1_0"), (" 1", "double", " 1"), ("1e999", "double", "1e999"),
            (2, "double", 2.0), (False, "double", 0.0), (5, "string", "5"), (True, "string", "true"), (1.5, "string", "1.5"),
            (5.0, "string", "5"), (1e21, "string", "1e+21"), (1e-7, "string", "1e-7"), (1e20, "string", "100000000000000000000"),
            ({"b": 1, "a": "<"}, "string", '{"a":"\\u003c","b":1}'), (b"\x00", "string", "AA=="), ("x", "string", "x"),
        ]
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "action", "outcome"), ACTIONS)
def test_action(given: dict[str, Any], action: dict[str, Any], outcome: dict[str, Any]) -> None:
    found = apply(given, action)
    assert found == outcome
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in outcome.items()}


def test_later_actions_see_what_earlier_ones_did() -> None:
    assert apply({"a": 1}, {"action": "insert", "key": "b", "from_attribute": "a"}, {"action": "delete", "key": "a"}) == {"b": 1}


def test_delete_leaves_no_duplicate_of_a_key_behind() -> None:
    resource = Resource()
    for value in ("one", "two"):
        resource.attributes.add(key="secret").value.string_value = value
    compile_actions([Action(action="delete", key="secret")])(resource.attributes, "")
    assert not resource.attributes


def test_client_address_is_the_peer_and_a_missing_one_sets_nothing() -> None:
    action = {"action": "upsert", "key": "ip", "from_context": "client.address"}
    assert apply({}, action, peer="10.0.0.1") == {"ip": "10.0.0.1"}
    assert apply({}, action) == {}
    assert asks_peer([Action.model_validate(action)]) and not asks_peer([Action(action="delete", key="a")])


REFUSED = [
    pytest.param({"action": "insert", "key": "a"}, "exactly one of value", id="no-source"),
    pytest.param({"action": "insert", "key": "a", "value": "x", "from_attribute": "b"}, "exactly one of value", id="two-sources"),
    pytest.param({"action": "insert", "key": "a", "value": "", "from_attribute": "b"}, "exactly one of value", id="empty-text-is-a-source"),
    pytest.param({"action": "insert", "value": "x"}, "takes a key", id="no-key"),
    pytest.param({"action": "insert", "key": "a", "value": "x", "pattern": "y"}, "does not use pattern", id="pattern"),
    pytest.param({"action": "delete"}, "key or pattern", id="delete-nothing"),
    pytest.param({"action": "delete", "key": "a", "value": "x"}, "does not use value", id="delete-value"),
    pytest.param({"action": "hash", "pattern": "("}, "missing \\)", id="bad-pattern"),
    pytest.param({"action": "delete", "pattern": "(?=a)"}, "Go \\(RE2\\)", id="what-re2-lacks"),
    pytest.param({"action": "extract", "key": "a"}, "takes a pattern", id="extract-no-pattern"),
    pytest.param({"action": "extract", "key": "a", "pattern": "a(b)"}, "all have names", id="extract-unnamed"),
    pytest.param({"action": "extract", "key": "a", "pattern": "ab"}, "all have names", id="extract-no-group"),
    pytest.param({"action": "convert", "key": "a"}, "converted_type", id="convert-to-nothing"),
    pytest.param({"action": "convert", "key": "a", "converted_type": "bool"}, "converted_type", id="convert-to-bool"),
    pytest.param({"action": "insert", "key": "a", "from_context": "metadata.x"}, "client.address is", id="metadata"),
    pytest.param({"action": "insert", "key": "a", "from_context": "auth.subject"}, "client.address is", id="auth"),
    pytest.param({"action": "rename", "key": "a"}, "insert", id="unknown"),
]


@pytest.mark.parametrize(("action", "reason"), REFUSED)
def test_refused(action: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Action.model_validate(action)
