"""Which records `include` and `exclude` select."""

from typing import Any

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import ResourceMetrics
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span
from pydantic import ValidationError

from lockgate.attributes.matching import MatchProperties, selection
from lockgate.attributes.values import encode
from lockgate.batch import Signal


def fill(attributes: Any, values: dict[str, Any]) -> None:
    for key, value in values.items():
        attributes.add(key=key, value=encode(value))


def log(properties: dict[str, Any], body: Any = "body", severity: int = 0, text: str = "", **attributes: Any) -> bool:
    entry = ResourceLogs()
    fill(entry.resource.attributes, {"service.name": "shop", "zone": 3})
    scope = entry.scope_logs.add()
    scope.scope.name, scope.scope.version = "lib", "1.2"
    record = scope.log_records.add(severity_number=severity, severity_text=text, body=encode(body))
    fill(record.attributes, attributes)
    return MatchProperties.model_validate({"match_type": "strict"} | properties).compile(Signal.LOGS)(entry, scope, record)


LOGS = [
    pytest.param({"attributes": [{"key": "a"}]}, {"a": 1}, True, id="key-alone"),
    pytest.param({"attributes": [{"key": "a"}]}, {}, False, id="key-missing"),
    pytest.param({"attributes": [{"key": "a", "value": 1}]}, {"a": 1}, True, id="equal"),
    pytest.param({"attributes": [{"key": "a", "value": "1"}]}, {"a": 1}, False, id="type-differs"),
    pytest.param({"attributes": [{"key": "a", "value": 1}]}, {"a": True}, False, id="one-is-not-true"),
    pytest.param({"attributes": [{"key": "a", "value": [1, "x"]}]}, {"a": [1, "x"]}, True, id="lists-equal"),
    pytest.param({"attributes": [{"key": "a"}, {"key": "b"}]}, {"a": 1}, False, id="all-attributes"),
    pytest.param({"match_type": "regexp", "attributes": [{"key": "a", "value": "o+$"}]}, {"a": "foo"}, True, id="found-anywhere"),
    pytest.param({"match_type": "regexp", "attributes": [{"key": "a", "value": "^1"}]}, {"a": 12}, True, id="text-of-a-number"),
    pytest.param({"match_type": "regexp", "attributes": [{"key": "a", "value": "."}]}, {"a": [1]}, False, id="lists-have-no-text"),
    pytest.param({"match_type": "regexp", "attributes": [{"key": "a", "value": "$^"}]}, {"a": ""}, True, id="nothing-matches-nothing"),
    pytest.param({"match_type": "regexp", "attributes": [{"key": "a", "value": "$^"}]}, {"a": "x"}, False, id="nothing-matches-no-text"),
    pytest.param({"resources": [{"key": "zone", "value": 3}]}, {}, True, id="resource"),
    pytest.param({"resources": [{"key": "zone", "value": 3}, {"key": "none"}]}, {}, False, id="all-of-resource"),
    pytest.param({"libraries": [{"name": "lib"}]}, {}, True, id="any-version"),
    pytest.param({"libraries": [{"name": "lib", "version": ""}]}, {}, False, id="no-version"),
    pytest.param({"libraries": [{"name": "x"}, {"name": "lib", "version": "1.2"}]}, {}, True, id="one-library"),
    pytest.param({"log_bodies": ["other", "body"]}, {}, True, id="one-body"),
    pytest.param({"log_bodies": ['{"a":1}']}, {"body": {"a": 1}}, True, id="a-map-as-json"),
    pytest.param({"log_severity_texts": ["WARN"]}, {"text": "WARN"}, True, id="severity-text"),
    pytest.param({"log_severity_number": {"min": "warn"}}, {"severity": 13}, True, id="severity-name"),
    pytest.param({"log_severity_number": {"min": "WARN2"}}, {"severity": 13}, False, id="severity-below"),
    pytest.param({"log_severity_number": {"min": 9}}, {"severity": 0}, False, id="severity-undefined"),
    pytest.param({"log_severity_number": {"min": "9", "match_undefined": True}}, {"severity": 0}, True, id="undefined-matches"),
    pytest.param({"log_bodies": ["body"], "attributes": [{"key": "a"}]}, {}, False, id="all-properties"),
]


@pytest.mark.parametrize(("properties", "record", "matches"), LOGS)
def test_log_record(properties: dict[str, Any], record: dict[str, Any], matches: bool) -> None:
    assert log(properties, **record) is matches


@pytest.mark.parametrize(
    ("properties", "matches"),
    [
        ({"services": ["shop"]}, True),
        ({"services": ["<nil-service-name>"]}, False),
        ({"span_names": ["GET /"]}, True),
        ({"span_names": ["GET"]}, False),
        ({"span_names": ["^GET"], "match_type": "regexp"}, True),
        ({"span_kinds": ["SPAN_KIND_SERVER"]}, True),
        ({"span_kinds": ["CLIENT"], "match_type": "regexp"}, False),
    ],
)
def test_span(properties: dict[str, Any], matches: bool) -> None:
    entry = ResourceSpans()
    fill(entry.resource.attributes, {"service.name": "shop"})
    scope = entry.scope_spans.add()
    span = scope.spans.add(name="GET /", kind=Span.SPAN_KIND_SERVER)
    compiled = MatchProperties.model_validate({"match_type": "strict"} | properties).compile(Signal.TRACES)
    assert compiled(entry, scope, span) is matches


def test_a_resource_without_service_name_has_the_collectors_name_for_that() -> None:
    entry = ResourceSpans()
    scope = entry.scope_spans.add()
    compiled = MatchProperties(match_type="strict", services=["<nil-service-name>"]).compile(Signal.TRACES)
    assert compiled(entry, scope, scope.spans.add())


def test_metric_names() -> None:
    entry = ResourceMetrics()
    scope = entry.scope_metrics.add()
    compiled = MatchProperties(match_type="regexp", metric_names=["^up$"]).compile(Signal.METRICS)
    assert compiled(entry, scope, scope.metrics.add(name="up")) and not compiled(entry, scope, scope.metrics.add(name="ups"))


def test_what_is_included_may_still_be_excluded() -> None:
    entry = ResourceLogs()
    scope = entry.scope_logs.add()
    record = scope.log_records.add(severity_text="a", body=encode("b"))
    includes = MatchProperties(match_type="strict", log_severity_texts=["a"])
    excludes = MatchProperties(match_type="strict", log_bodies=["b"])
    rows = {(True, False): True, (True, True): False, (False, True): False}
    for (include, exclude), selected in rows.items():
        chosen = selection(includes if include else None, excludes if exclude else None, Signal.LOGS)
        assert chosen is not None and chosen(entry, scope, record) is selected
    assert selection(None, None, Signal.LOGS) is None


REFUSED = [
    pytest.param({"match_type": "strict"}, "names no property", id="nothing-given"),
    pytest.param({"log_bodies": ["a"]}, "match_type", id="no-match-type"),
    pytest.param({"match_type": "expr", "log_bodies": ["a"]}, "strict", id="unknown-match-type"),
    pytest.param({"match_type": "regexp", "log_bodies": ["("]}, "RE2", id="bad-expression"),
    pytest.param({"match_type": "regexp", "attributes": [{"key": "a", "value": 1}]}, "must be a string", id="expression-must-be-text"),
    pytest.param({"match_type": "strict", "attributes": [{"key": ""}]}, "at least 1", id="empty-key"),
    pytest.param({"match_type": "strict", "span_kinds": ["server"]}, "no such kind", id="unknown-kind"),
    pytest.param({"match_type": "strict", "log_severity_number": {"min": "LOUD"}}, "no severity", id="unknown-severity"),
    pytest.param({"match_type": "strict", "expressions": ["x"]}, "xtra", id="unknown-property"),
]


@pytest.mark.parametrize(("properties", "reason"), REFUSED)
def test_refused(properties: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        MatchProperties.model_validate(properties)


def test_properties_of_another_signal_are_refused() -> None:
    with pytest.raises(ValueError, match="span_names: logs have no such property"):
        MatchProperties(match_type="strict", span_names=["a"]).compile(Signal.LOGS)
