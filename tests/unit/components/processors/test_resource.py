"""The resource processor: the resource tier, the cache, and what it must not touch."""

from typing import Any

import pytest
from pydantic import ValidationError
from support import context, logs, resource_attributes

from lockgate.attributes.cache import EditCache
from lockgate.components.processors.resource import ResourceProcessor, ResourceSettings


def processor(*actions: dict[str, Any]) -> ResourceProcessor:
    return ResourceProcessor(ResourceSettings.model_validate({"attributes": list(actions)}), context("resource"))


def test_resources_change_and_records_are_the_same_bytes() -> None:
    given = logs("one", "two", a="1")
    result = processor({"action": "upsert", "key": "cluster", "value": "c"}, {"action": "delete", "key": "a"}).process(given)
    assert resource_attributes(result) == [{"cluster": "c"}]
    assert (result.count, result.id) == (2, given.id)
    assert given.message.resource_logs[0].scope_logs == result.message.resource_logs[0].scope_logs
    assert resource_attributes(given) == [{"a": "1"}]


def test_an_edit_that_changes_nothing_gives_back_the_same_batch() -> None:
    given = logs("one", a="1")
    assert processor({"action": "update", "key": "b", "value": "c"}).process(given) is given


def test_a_batch_without_a_resource_gets_one() -> None:
    assert resource_attributes(processor({"action": "insert", "key": "a", "value": 1}).process(logs("x"))) == [{"a": 1}]


def test_what_depends_on_the_peer_is_cached_by_peer() -> None:
    tested = processor({"action": "upsert", "key": "ip", "from_context": "client.address"})
    for peer in ("10.0.0.1", "10.0.0.2", "10.0.0.1"):
        assert resource_attributes(tested.process(logs("x", a="1", peer=peer))) == [{"a": "1", "ip": peer}]


def test_actions_must_be_given() -> None:
    with pytest.raises(ValidationError):
        ResourceSettings.model_validate({"attributes": []})


def test_the_cache_edits_once_and_starts_over_at_its_bound() -> None:
    asked: list[bytes] = []

    def edit(raw: bytes, key: str) -> bytes:
        asked.append(raw)
        return raw + key.encode()

    cache = EditCache(edit, max_bytes=2000)
    for _ in range(3):
        assert cache.bound("k")(b"a") == b"ak"
        assert cache.bound("j")(b"a") == b"aj"
    assert asked == [b"a", b"a"]
    for number in range(1000):
        cache.bound("k")(b"%d" % number)
        held = sum(len(known) for known in cache._known.values())
        assert held * 300 <= 2000 + 400
    assert cache.bound("j")(b"a") == b"aj" and cache.bound("k")(b"a") == b"ak"


def test_a_removal_is_cached_too() -> None:
    asked: list[bytes] = []
    cache: EditCache[None] = EditCache(lambda raw, _: asked.append(raw))
    assert cache.bound(None)(b"a") is None and cache.bound(None)(b"a") is None
    assert asked == [b"a"]
