"""The source processor: every rule of the original's behaviour, and where ours differs."""

import json
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from support import batch, context, resource_attributes

from lockgate.attributes.formats import go_format
from lockgate.attributes.values import encode
from lockgate.batch import Batch, Signal
from lockgate.components.processors.source import SourceProcessor, SourceSettings, unpack_docker

NS, UID = "k8s.namespace.name", "k8s.pod.uid"
BASE = {NS: "ns-1", UID: "123asd"}
POD_NOTE, NS_NOTE = "k8s.pod.annotation.sumologic.com/", "k8s.namespace.annotation.sumologic.com/"


def processor(**settings: Any) -> SourceProcessor:
    return SourceProcessor(SourceSettings.model_validate(settings), context("source", signal=Signal.LOGS))


def a_batch(attributes: dict[str, Any], *bodies: str) -> Batch:
    request = ExportLogsServiceRequest()
    entry = request.resource_logs.add()
    for key, value in attributes.items():
        entry.resource.attributes.add(key=key, value=encode(value))
    records = entry.scope_logs.add().log_records
    for body in bodies or ("line",):
        records.add().body.string_value = body
    return batch(Signal.LOGS, request)


def after(settings: dict[str, Any], attributes: dict[str, Any]) -> dict[str, Any]:
    result = processor(**settings).process(a_batch(attributes))
    return resource_attributes(result)[0] if result.count else {}


CATEGORIES = [
    pytest.param({}, {"k8s.namespace.name": "a-b", "k8s.pod.name": "web-0"}, "kubernetes/a/b/web", id="defaults"),
    pytest.param(
        {"source_category": "source-%{k8s.namespace.name}-%{k8s.pod.uid}-cat", "source_category_prefix": "%{k8s.pod.name}/prefix/"},
        BASE | {"k8s.pod.name": "ABCD"},
        "ABCD/prefix/source/ns/1/123asd/cat",
        id="placeholders-in-prefix-and-category",
    ),
    *(
        pytest.param(
            {},
            BASE
            | {
                "k8s.pod.name": "ABC",
                note + "sourceCategory": "sc-from-annot-%{k8s.namespace.name}-%{k8s.pod.uid}",
                note + "sourceCategoryPrefix": "%{k8s.pod.name}-%{k8s.pod.uid}-Prefix:",
                note + "sourceCategoryReplaceDash": "#",
            },
            "ABC#123asd#Prefix:sc#from#annot#ns#1#123asd",
            id=f"{level}-annotations",
        )
        for level, note in (("pod", POD_NOTE), ("namespace", NS_NOTE))
    ),
    pytest.param(
        {"source_category_prefix": "prefix"},
        {NS: "ns-1", "k8s.pod.pod_name": "ABC", POD_NOTE + "sourceCategoryPrefix": ""},
        "ns/1/ABC",
        id="empty-prefix-annotation-counts",
    ),
    pytest.param(
        {"source_category_prefix": "prefix"},
        {NS: "ns-1", "k8s.pod.pod_name": "ABC", POD_NOTE + "sourceCategoryPrefix": "", POD_NOTE + "sourceCategoryReplaceDash": ""},
        "ns1/ABC",
        id="empty-dash-annotation-counts",
    ),
    pytest.param(
        {"source_category_prefix": "prefix"},
        {
            NS: "ns-1",
            "k8s.pod.pod_name": "ABC",
            POD_NOTE + "sourceCategoryPrefix": "",
            POD_NOTE + "sourceCategoryReplaceDash": "",
            POD_NOTE + "sourceCategory": "",
        },
        "",
        id="empty-category-annotation-counts",
    ),
    pytest.param(
        {"source_category_prefix": "prefix/", "source_category_replace_dash": "#"},
        {NS: "namespace-1", "k8s.pod.name": "pod-5db86d8867-sdqlj", "k8s.pod.label.pod-template-hash": "5db86d8867"},
        "prefix/namespace#1/pod",
        id="pod-name-without-generated-endings",
    ),
    pytest.param({"source_category_prefix": "prefix/"}, {UID: "123asd"}, "prefix/undefined/undefined", id="unknown-reads-undefined"),
    pytest.param(
        {"source_category": "%{n}"},
        {NS: "other", NS_NOTE + "sourceCategory": "from-ns", POD_NOTE + "sourceCategoryPrefix": "p:", "n": "config"},
        "p:config",
        id="one-pod-annotation-hides-the-namespace",
    ),
    pytest.param({"source_category": "%{a}"}, {"a": "%{b}", "b": "no"}, "kubernetes/%{b}", id="one-pass"),
    pytest.param({"source_category": "%{a-b}%{a}"}, {"a": 5}, "kubernetes/%{a/b}", id="dash-is-no-name-and-numbers-read-empty"),
]


@pytest.mark.parametrize(("settings", "attributes", "category"), CATEGORIES)
def test_source_category(settings: dict[str, Any], attributes: dict[str, Any], category: str) -> None:
    assert after(settings, attributes)["_sourceCategory"] == category


NOTES = {"enabled": True}
CONTAINERS = [
    pytest.param(NOTES, {POD_NOTE + "web.sourceCategory": "raw-%{k8s.pod.name}"}, "raw-%{k8s.pod.name}", id="taken-raw"),
    pytest.param(NOTES | {"enabled": False}, {POD_NOTE + "web.sourceCategory": "raw"}, "kubernetes/cat", id="off"),
    pytest.param(
        NOTES | {"prefixes": ["sumologic.com/", "customAnno_prefix:"]},
        {"k8s.pod.annotation.customAnno_prefix:web.sourceCategory": "THIRD_s-c!"},
        "THIRD_s-c!",
        id="a-later-prefix",
    ),
    pytest.param(
        NOTES | {"prefixes": ["a/", "b/"]},
        {"k8s.pod.annotation.a/web.sourceCategory": "", "k8s.pod.annotation.b/web.sourceCategory": "second"},
        "kubernetes/cat",
        id="found-but-empty-ends-the-search",
    ),
    pytest.param(NOTES, {POD_NOTE + "other.sourceCategory": "raw"}, "kubernetes/cat", id="another-container"),
    pytest.param(NOTES | {"container_name_key": "c"}, {"c": "x", POD_NOTE + "x.sourceCategory": "own"}, "own", id="name-key"),
]


@pytest.mark.parametrize(("settings", "attributes", "category"), CONTAINERS)
def test_container_annotation(settings: dict[str, Any], attributes: dict[str, Any], category: str) -> None:
    given = {"k8s.container.name": "web"} | attributes
    assert after({"source_category": "cat", "container_annotations": settings}, given)["_sourceCategory"] == category


PODS = [
    pytest.param("pod-5db86d8867-sdqlj", "5db86d8867", "pod", id="hash"),
    pytest.param("pod-5db86d8867-sdqlj", None, "pod-5db86d8867", id="no-hash"),
    pytest.param("pod-other-sdqlj", "5db86d8867", "pod-other", id="another-hash"),
    pytest.param("web-7f9bbc9bf-x", "1", "web-7f9bbc9bf", id="not-the-safe-encoding"),
    pytest.param("web-" + "x" + "-abcde", "1", "web-x", id="one-letter"),
    pytest.param("web-" + "bcdfghjklmnpqrstvwxz2456789"[ord("1") % 27] + "-abcde", "1", "web", id="safe-encoding"),
    pytest.param("web-0", None, "web", id="stateful-set"),
    pytest.param("hash-5db", "hash", "hash", id="two-parts-never-by-hash"),
    pytest.param("nginx", None, None, id="plain"),
]


@pytest.mark.parametrize(("pod", "template_hash", "name"), PODS)
def test_pod_name(pod: str, template_hash: str | None, name: str | None) -> None:
    given = {"k8s.pod.name": pod} | ({"k8s.pod.label.pod-template-hash": template_hash} if template_hash else {})
    assert after({}, given).get("k8s.pod.pod_name") == name


def test_fields_are_set_in_order_so_that_later_templates_see_earlier_ones() -> None:
    found = after(
        {"collector": "c-1", "source_host": "%{_collector}-h", "source_category": "%{_sourceHost}", "source_name": "%{_sourceCategory}!"},
        {},
    )
    assert found == {"_collector": "c-1", "_sourceHost": "c-1-h", "_sourceCategory": "kubernetes/c/1/h", "_sourceName": "kubernetes/c/1/h!"}


def test_only_a_uid_known_reads_undefined() -> None:
    found = after({"source_category_prefix": "prefix/"}, {UID: "1"})
    assert (found["_sourceHost"], found["_sourceName"]) == ("undefined", "undefined.undefined.undefined")


def test_templates_see_resource_attributes_and_not_record_attributes() -> None:
    assert after({"source_name": "x-%{_HOSTNAME}"}, {"_HOSTNAME": "h-1"})["_sourceName"] == "x-h-1"
    request = a_batch({}).copy_message()
    request.resource_logs[0].scope_logs[0].log_records[0].attributes.add(key="_HOSTNAME").value.string_value = "h-1"
    result = processor(source_name="x-%{_HOSTNAME}").process(batch(Signal.LOGS, request))
    assert resource_attributes(result)[0]["_sourceName"] == "x-undefined"


def test_host_and_name_come_from_pod_then_namespace_annotations_then_settings() -> None:
    settings = {"source_host": "conf"}
    assert after(settings, {POD_NOTE + "sourceHost": "p-%{a}", NS_NOTE + "sourceHost": "n", "a": "x"})["_sourceHost"] == "p-x"
    assert after(settings, {NS_NOTE + "sourceHost": "n-1"})["_sourceHost"] == "n-1"
    assert after(settings, {})["_sourceHost"] == "conf"


def test_an_empty_annotation_or_template_leaves_the_attribute_as_it_is() -> None:
    assert (
        after({"source_host": "conf"}, {POD_NOTE + "sourceHost": "", NS_NOTE + "sourceHost": "n", "_sourceHost": "old"})["_sourceHost"]
        == "old"
    )
    assert "_sourceHost" not in after({"source_host": ""}, {})


def test_an_existing_field_is_overwritten_in_place() -> None:
    result = processor(source_host="new").process(a_batch({"_sourceHost": "old", "z": "1"}))
    keys = [attribute.key for attribute in result.message.resource_logs[0].resource.attributes]
    assert keys.count("_sourceHost") == 1 and resource_attributes(result)[0]["_sourceHost"] == "new"


GO_FORMAT = [
    pytest.param("100%", [], "100%!(NOVERB)", id="no-verb"),
    pytest.param("%s%%", ["a"], "a%", id="percent"),
    pytest.param("%d-%s", ["a"], "%!d(string=a)-%!s(MISSING)", id="bad-verb-then-missing"),
    pytest.param("x", ["a", "b"], "x%!(EXTRA string=a, string=b)", id="extra"),
    pytest.param("[%-4s|%4s|%.2s]", ["a", "b", "cde"], "[a   |   b|cd]", id="width-and-precision"),
    pytest.param("50%{a-b}", [], "50%!{(MISSING)a-b}", id="not-a-placeholder"),
    pytest.param("%" + "9" * 400 + "s", [], "%!9(MISSING)" + "9" * 395 + "s", id="an-absurd-width-allocates-nothing"),
]


@pytest.mark.parametrize(("template", "arguments", "text"), GO_FORMAT)
def test_go_format(template: str, arguments: list[str], text: str) -> None:
    assert go_format(template, arguments) == text


def test_a_stray_percent_in_a_source_name_makes_the_noise_that_go_makes() -> None:
    assert after({"source_name": "100%"}, {})["_sourceName"] == "100%!(NOVERB)"
    assert after({"source_category": "100%"}, {})["_sourceCategory"] == "kubernetes/100%"


EXCLUSIONS = [
    pytest.param({}, {POD_NOTE + "exclude": "true"}, True, id="pod-excluded"),
    pytest.param({}, {POD_NOTE + "exclude": True}, True, id="pod-excluded-by-a-boolean"),
    pytest.param({}, {POD_NOTE + "exclude": "True"}, False, id="only-true-exactly"),
    pytest.param({}, {POD_NOTE + "exclude": "true", POD_NOTE + "include": "true"}, False, id="include-wins-on-the-same-object"),
    pytest.param({}, {NS_NOTE + "exclude": "true"}, True, id="namespace-excluded"),
    pytest.param({}, {NS_NOTE + "exclude": "true", POD_NOTE + "include": "true"}, False, id="pod-decides-before-namespace"),
    pytest.param({}, {NS_NOTE + "include": "true", POD_NOTE + "exclude": "true"}, True, id="pod-exclusion-decides-before-namespace"),
    pytest.param({"a": "^fo"}, {"a": "foo"}, True, id="expression"),
    pytest.param({"a": "oo$"}, {"a": "foo"}, True, id="expression-anywhere"),
    pytest.param({"a": "^o"}, {"a": "foo"}, False, id="no-match"),
    pytest.param({"a": ""}, {"a": "foo"}, False, id="an-empty-expression-is-none"),
    pytest.param({"a": "1"}, {"a": 1}, False, id="strings-only"),
    pytest.param({"a": "foo"}, {"a": "foo", POD_NOTE + "include": "true"}, False, id="included-before-expressions"),
    pytest.param({"_sourceHost": "undefined"}, {}, True, id="expressions-see-the-source-fields"),
    pytest.param({"a": "a$"}, {"a": "a\n"}, False, id="dollar-is-the-very-end"),
]


@pytest.mark.parametrize(("exclude", "attributes", "dropped"), EXCLUSIONS)
def test_exclusion(exclude: dict[str, str], attributes: dict[str, Any], dropped: bool) -> None:
    tested = processor(exclude=exclude)
    result = tested.process(a_batch(attributes, "one", "two"))
    assert result.count == (0 if dropped else 2)
    assert tested.context.metrics.value("lockgate_processor_dropped_items", reason="excluded") == (2 if dropped else 0)


def test_an_excluded_resource_leaves_the_others_and_their_count() -> None:
    request = a_batch({"a": "stays"}, "1", "2").copy_message()
    request.MergeFrom(a_batch({"a": "goes"}, "3").copy_message())
    result = processor(exclude={"a": "goes"}).process(batch(Signal.LOGS, request))
    assert result.count == 2
    assert [found["a"] for found in resource_attributes(result)] == ["stays"]


def test_metrics_and_batches_without_a_resource_get_fields_too() -> None:
    request = ExportMetricsServiceRequest()
    request.resource_metrics.add().scope_metrics.add().metrics.add(name="m").gauge.data_points.add(as_int=1)
    result = processor().process(batch(Signal.METRICS, request))
    assert resource_attributes(result)[0]["_sourceHost"] == "undefined"


def test_a_wrong_expression_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ValueError, match="no regular expression that Go"):
        SourceSettings.model_validate({"exclude": {"a": "(?=x)"}})


def test_a_cached_resource_gets_the_same_result_and_no_other_resource_does() -> None:
    tested = processor(source_host="%{a}")
    for _ in range(2):
        assert resource_attributes(tested.process(a_batch({"a": "1"})))[0]["_sourceHost"] == "1"
        assert resource_attributes(tested.process(a_batch({"a": "2"})))[0]["_sourceHost"] == "2"


def docker(log: str, **keys: Any) -> str:
    return json.dumps({"log": log, "stream": "stdout", "time": "2024-01-01T00:00:00Z"} | keys)


def records(result: Batch) -> list[tuple[str, dict[str, str]]]:
    return [
        (record.body.string_value, {attribute.key: attribute.value.string_value for attribute in record.attributes})
        for record in result.message.resource_logs[0].scope_logs[0].log_records
    ]


def test_docker_json_becomes_body_stream_and_time() -> None:
    result = unpack_docker(a_batch({}, docker(" hi\n"), "plain", docker("\x1cx\u2003")))
    given = {"stream": "stdout", "time": "2024-01-01T00:00:00Z"}
    assert records(result) == [("hi", given), ("plain", {}), ("\x1cx", given)]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param('{"stream":"s","time":"t"}', id="a-key-missing"),
        pytest.param('{"log":"","stream":"s","time":"t"}', id="a-value-empty"),
        pytest.param('{"log":{"a":1},"stream":"s","time":"t"}', id="not-a-string"),
        pytest.param('{"log":"x","stream":"s","time":"t"', id="cut-off"),
        pytest.param('["log","stream","time"]', id="a-list"),
        pytest.param('{"log":' + "[" * 100_000 + '"stream""time"', id="nested-without-end"),
    ],
)
def test_what_is_not_docker_json_stays_and_takes_nothing_from_records_before(body: str) -> None:
    result = unpack_docker(a_batch({}, docker("first"), body))
    assert records(result)[1] == (body, {})


def test_a_batch_without_docker_json_is_not_parsed() -> None:
    given = a_batch({}, "plain", '{"level":"info","time":"t"}')
    assert unpack_docker(given) is given and not given._message
