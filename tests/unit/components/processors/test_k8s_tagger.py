"""What k8s_tagger writes on which resource. Rows give settings and a resource, and the whole resource that comes out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from pydantic import ValidationError
from support import Sink, batch, context, resource_attributes
from support.kubernetes import Object, apply, meta, pod, sample

from lockgate.attributes.values import encode
from lockgate.batch import Batch, Signal
from lockgate.components.processors.k8s_tagger import K8sTaggerProcessor
from lockgate.components.processors.k8s_tagger.settings import ATTRIBUTES, K8sTaggerSettings
from lockgate.kube.access import Access
from lockgate.kube.cache import Cache
from lockgate.kube.resources import ENDPOINT_SLICES
from lockgate.pipeline.needs import Kubernetes
from lockgate.sample.kubernetes_store import ObjectStore

CHART = {
    "extract": {
        "annotations": [{"key": "*", "tag_name": "pod_annotations_%s"}],
        "delimiter": "_",
        "labels": [{"key": "*", "tag_name": "pod_labels_%s"}],
        "metadata": [
            *("daemonSetName", "deploymentName", "hostName", "namespace", "nodeName", "podId", "podName", "replicaSetName"),
            *("serviceName", "statefulSetName"),
        ],
        "namespace_annotations": [{"key": "*", "tag_name": "namespace_annotations_%s"}],
        "namespace_labels": [{"key": "*", "tag_name": "namespace_labels_%s"}],
    },
    "owner_lookup_enabled": True,
    "passthrough": False,
    "pod_association": [{"from": "build_hostname"}],
}
"""The chart's, for logs."""


def endpoint_slice(name: str, service: str, *pods: str, namespace: str = "shop", kind: str = "Pod", pods_in: str = "") -> Object:
    item = meta("discovery.k8s.io/v1", "EndpointSlice", name, f"es-{namespace}-{name}", namespace)
    item["metadata"]["labels"] = {"kubernetes.io/service-name": service}
    references = [{"kind": kind, "name": each, "namespace": pods_in or namespace} for each in pods]
    return item | {"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"], "targetRef": each} for each in references]}


def cluster(store: ObjectStore) -> None:
    """Two namespaces with a db-0 each, a Deployment in two services, a CronJob's Job, an agent on its node's network, a shy pod."""
    for item in (
        meta("v1", "Namespace", "shop", "ns-shop", labels={"team": "a"}, annotations={"cost": "42"}),
        meta("v1", "Namespace", "other", "ns-other"),
        meta("apps/v1", "ReplicaSet", "web-7d9", "rs-uid", "shop", ("Deployment", "web", "dep-uid")),
        meta("batch/v1", "Job", "backup-28573", "job-uid", "shop", ("CronJob", "backup", "cron-uid")),
        endpoint_slice("web-1", "web", "web-7d9-abcde"),
        endpoint_slice("web-2", "web", "web-7d9-abcde"),
        endpoint_slice("int-1", "web-int", "web-7d9-abcde"),
        endpoint_slice("db-1", "db", "db-0"),
        endpoint_slice("nodes", "metal", "web-7d9-abcde", kind="Node"),
        endpoint_slice("theft", "stolen", "db-0", namespace="other", pods_in="shop"),
    ):
        apply(store, item)

    def run(item: Object, uid: str) -> None:
        item["metadata"] |= {"uid": uid, "creationTimestamp": "2020-01-01T00:00:00Z"}
        apply(store, {"apiVersion": "v1", "kind": "Pod"} | item)

    owner = ("ReplicaSet", "web-7d9", "rs-uid")
    web: Any = {"labels": {"app": "web"}, "annotations": {"git": "APP=web SHA=58a1e39"}, "container_id": "docker://c1"}
    run(pod("web-7d9-abcde", "shop", ip="10.0.0.1", owner=owner, **web), "u-1")
    run(pod("db-0", "shop", ip="10.0.0.2", owner=("StatefulSet", "db", "sts-uid"), hostname="db-host"), "u-db")
    run(pod("db-0", "other", ip="10.0.0.3", owner=("StatefulSet", "db", "sts-2")), "u-db-2")
    run(pod("backup-28573-x", "shop", ip="10.0.0.4", owner=("Job", "backup-28573", "job-uid")), "u-job")
    run(pod("agent.v1", "shop", ip="10.9.9.9", hostNetwork=True, owner=("DaemonSet", "agent", "ds-uid")), "u-agent")
    run(pod("shy", "shop", ip="10.0.0.6", annotations={"opentelemetry.io/k8s-processor/ignore": " True"}), "u-shy")


def resource(attributes: dict[str, Any], peer: str = "") -> Batch:
    request = ExportLogsServiceRequest()
    entry = request.resource_logs.add()
    for key, value in attributes.items():
        entry.resource.attributes.add(key=key, value=encode(value))
    entry.scope_logs.add().log_records.add().body.string_value = "line"
    return batch(Signal.LOGS, request, peer)


def after(processor: K8sTaggerProcessor, attributes: dict[str, Any], peer: str = "") -> dict[str, Any]:
    result = processor.process(resource(attributes, peer))
    assert result.count == 1
    (found,) = resource_attributes(result)
    assert len(result.message.resource_logs[0].resource.attributes) == len(found), "a key stands twice"
    return found


@asynccontextmanager
async def running(access: Access, settings: Object) -> AsyncIterator[K8sTaggerProcessor]:
    settings = {"auth_type": "none", "api_server": access.url, "wait_for_metadata": True} | settings
    processor = K8sTaggerProcessor(K8sTaggerSettings.model_validate(settings), context("k8s_tagger", signal=Signal.LOGS))
    processor.next = Sink()
    async with processor:
        yield processor


async def tagged(settings: Object, attributes: dict[str, Any], peer: str = "") -> dict[str, Any]:
    async with sample() as (store, access):
        cluster(store)
        async with running(access, settings) as processor:
            return after(processor, attributes, peer)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


UID_WAY = {"from": "resource_attribute", "name": "k8s.pod.uid"}
WEB = {"k8s.pod.uid": "u-1"}


def only(*names: str, **more: Any) -> Object:
    """Settings that find pods by UID and extract these alone."""
    extract = {"metadata": list(names) or ["podName"]} | more.pop("extract", {})
    return {"extract": extract, "pod_association": [UID_WAY], "owner_lookup_enabled": True} | more


async def test_the_chart_s_settings_add_what_its_pipelines_expect() -> None:
    given = {"k8s.pod.name": "web-7d9-abcde", "k8s.namespace.name": "shop"}
    assert await tagged(CHART, given) == given | {
        "k8s.pod.uid": "u-1",
        "k8s.pod.hostname": "web-7d9-abcde",
        "k8s.node.name": "node-1",
        "k8s.deployment.name": "web",
        "k8s.replicaset.name": "web-7d9",
        "k8s.service.name": "web_web-int",
        "pod_labels_app": "web",
        "pod_annotations_git": "APP=web SHA=58a1e39",
        "namespace_labels_team": "a",
        "namespace_annotations_cost": "42",
    }


ADDED = [
    pytest.param(
        {"pod_association": [UID_WAY], "owner_lookup_enabled": True},
        WEB,
        {
            "k8s.container.id": "docker://c1",
            "k8s.container.image": "r.io/app:1.2",
            "k8s.container.name": "main",
            "k8s.deployment.name": "web",
            "k8s.pod.hostname": "web-7d9-abcde",
            "k8s.namespace.name": "shop",
            "k8s.node.name": "node-1",
            "k8s.pod.name": "web-7d9-abcde",
            "k8s.replicaset.name": "web-7d9",
            "k8s.service.name": "web, web-int",
            "k8s.pod.startTime": "2020-01-01 00:00:00 +0000 UTC",
        },
        id="defaults",
    ),
    pytest.param(
        {"pod_association": [UID_WAY], "extract": {"namespace_labels": [{"key": "*"}], "metadata": ["deploymentName", "podName"]}},
        WEB,
        {"k8s.pod.name": "web-7d9-abcde"},
        id="no-owners-services-or-namespaces-unless-asked-for",
    ),
    pytest.param(only("hostName"), {"k8s.pod.uid": "u-db"}, {"k8s.pod.hostname": "db-host"}, id="hostname-of-the-spec"),
    pytest.param(
        only("jobName", "cronJobName"),
        {"k8s.pod.uid": "u-job"},
        {"k8s.job.name": "backup-28573", "k8s.cronjob.name": "backup"},
        id="cronjob-through-job",
    ),
    pytest.param(only("statefulSetName", "deploymentName"), {"k8s.pod.uid": "u-db"}, {"k8s.statefulset.name": "db"}, id="statefulset"),
    pytest.param(only("daemonSetName"), {"k8s.pod.uid": "u-agent"}, {"k8s.daemonset.name": "agent"}, id="daemonset-on-the-host-s-network"),
    pytest.param(only("serviceName"), {"k8s.pod.uid": "u-db"}, {"k8s.service.name": "db"}, id="service-of-this-namespace-s-pod"),
    pytest.param(only("serviceName"), {"k8s.pod.uid": "u-db-2"}, {"k8s.service.name": ""}, id="not-of-the-other-namespace-s"),
    pytest.param(only("podName"), WEB | {"k8s.pod.name": 7}, {"k8s.pod.name": "web-7d9-abcde"}, id="what-is-there-is-replaced"),
    pytest.param(
        only("k8s.pod.name", "host.name", "container.id"),
        WEB,
        {"k8s.pod.name": "web-7d9-abcde", "k8s.pod.hostname": "web-7d9-abcde", "k8s.container.id": "docker://c1"},
        id="opentelemetry-s-names",
    ),
    pytest.param(
        only("podName", "jobName", extract={"tags": {"PODNAME": "pod", "jobname": "job", "nodeName": "n"}}),
        {"k8s.pod.uid": "u-job"},
        {"pod": "backup-28573-x", "job": "backup-28573"},
        id="tags",
    ),
    pytest.param(only("clusterName"), WEB, {}, id="cluster-name-gives-nothing"),
    pytest.param(
        only(extract={"labels": [{"key": "app"}, {"key": "none"}, {"key": "app", "tag_name": "a"}]}),
        WEB,
        {"k8s.pod.name": "web-7d9-abcde", "k8s.labels.app": "web", "a": "web"},
        id="labels-by-key",
    ),
    pytest.param(
        only(extract={"labels": [{"key": "*"}], "annotations": [{"key": "*"}], "namespace_annotations": [{"key": "*"}]}),
        WEB,
        {
            "k8s.pod.name": "web-7d9-abcde",
            "k8s.labels.app": "web",
            "k8s.annotations.git": "APP=web SHA=58a1e39",
            "k8s.namespace_annotations.cost": "42",
        },
        id="all-keys-under-default-names",
    ),
    pytest.param(
        only(extract={"namespace_labels": [{"key": "team", "tag_name": "%s"}], "labels": [{"key": "*", "tag_name": "<%s>%%"}]}),
        WEB,
        {"k8s.pod.name": "web-7d9-abcde", "%s": "a", "<app>%": "web"},
        id="printf-for-all-keys-alone",
    ),
    pytest.param(
        only(extract={"annotations": [{"key": "git", "tag_name": name, "regex": f"{name}=(?P<value>\\w+)"} for name in ("SHA", "CI")]}),
        WEB,
        {"k8s.pod.name": "web-7d9-abcde", "SHA": "58a1e39", "CI": ""},
        id="part-of-a-value-or-nothing",
    ),
    pytest.param(only("podName"), {"k8s.pod.uid": "u-shy"}, {}, id="ignored-by-annotation"),
    pytest.param(only("podName", exclude={"pods": [{"name": "7d9-"}]}), WEB, {}, id="excluded-by-name"),
    pytest.param(only("podName", filter={"namespace": "other"}), WEB, {}, id="filtered-by-namespace"),
    pytest.param(only("podName", filter={"labels": [{"key": "app", "op": "exists"}]}), WEB, {"k8s.pod.name": "web-7d9-abcde"}, id="exists"),
    pytest.param(only("podName", filter={"labels": [{"key": "app", "op": "not-exists"}]}), WEB, {}, id="not-exists"),
    pytest.param(
        only("deploymentName", filter={"labels": [{"key": "app", "value": "web"}]}),
        WEB,
        {"k8s.deployment.name": "web"},
        id="filters-of-pods-are-not-for-owners",
    ),
    pytest.param(only("podName"), {"k8s.pod.uid": "nobody"}, {}, id="unknown-pod"),
]


@pytest.mark.parametrize(("settings", "given", "added"), ADDED)
async def test_what_is_added(settings: Object, given: dict[str, Any], added: dict[str, Any]) -> None:
    assert await tagged(settings, given) == given | added


IP, NAMED = {"k8s.pod.ip": "10.0.0.2"}, {"k8s.pod.name": "db-0", "k8s.namespace.name": "shop"}
HOST, BUILT = {"from": "resource_attribute", "name": "host.name"}, {"from": "build_hostname", "name": "id"}
ASSOCIATIONS = [
    pytest.param([], IP | {"ip": "10.0.0.1"}, "10.0.0.3", {}, True, id="default-k8s-pod-ip"),
    pytest.param([], {"ip": "10.0.0.2"}, "10.0.0.3", IP, True, id="default-ip"),
    pytest.param([], {"host.name": "10.0.0.3"}, "::ffff:10.0.0.2", IP, True, id="default-connection"),
    pytest.param([], {"host.name": "10.0.0.2"}, "", IP, True, id="default-host-name"),
    pytest.param([], {"host.name": "db-0"}, "", {}, False, id="default-host-name-that-is-no-ip"),
    pytest.param([], {"ip": "10.8.8.8"}, "", {"k8s.pod.ip": "10.8.8.8"}, False, id="written-even-if-no-pod-has-it"),
    pytest.param([], {"ip": "10.9.9.9"}, "", {"k8s.pod.ip": "10.9.9.9"}, False, id="a-node-s-ip-is-no-pod-s"),
    pytest.param([{"from": "connection"}], {"ip": "10.0.0.3"}, "10.0.0.2", IP, True, id="connection"),
    pytest.param([HOST], {"host.name": "10.0.0.2"}, "", IP, True, id="host-name"),
    pytest.param([HOST, UID_WAY], {"host.name": "x", "k8s.pod.uid": "u-db"}, "", {}, True, id="the-next-way"),
    pytest.param([UID_WAY, HOST], {"k8s.pod.uid": "none", "host.name": "10.0.0.2"}, "", {}, False, id="the-first-that-gives-something"),
    pytest.param([{"from": "resource_attribute", "name": "who"}], {"who": "db-0.shop"}, "", {}, True, id="attribute-with-a-full-name"),
    pytest.param([{"from": "resource_attribute", "name": "who"}], {"who": "10.0.0.2"}, "", {}, True, id="attribute-with-an-ip"),
    pytest.param([{"from": "resource_attribute", "name": "who"}], {"who": 7}, "", {}, False, id="attribute-that-is-no-string"),
    pytest.param([BUILT], NAMED, "", {"id": "db-0.shop"}, True, id="built"),
    pytest.param([{"from": "build_hostname"}], NAMED, "", {}, True, id="built-and-written-nowhere"),
    pytest.param([BUILT, {"from": "connection"}], {"k8s.pod.name": "db-0"}, "10.0.0.2", {}, False, id="not-built-ends-the-search"),
]


@pytest.mark.parametrize(("ways", "given", "peer", "written", "found"), ASSOCIATIONS)
async def test_pods_are_found_and_what_they_were_found_by_is_written(
    ways: list[Object], given: dict[str, Any], peer: str, written: dict[str, Any], found: bool
) -> None:
    settings = {"pod_association": ways, "extract": {"metadata": ["podId"], "tags": {"podId": "uid"}}}
    assert await tagged(settings, given, peer) == given | written | ({"uid": "u-db"} if found else {})
    async with K8sTaggerProcessor(
        K8sTaggerSettings.model_validate(settings | {"passthrough": True}), context("k8s_tagger", signal=Signal.LOGS)
    ) as passing:
        assert after(passing, given, peer) == given | written


async def test_a_pod_name_may_have_dots() -> None:
    settings = {"pod_association": [{"from": "resource_attribute", "name": "who"}], "extract": {"metadata": ["podId"]}}
    assert await tagged(settings, {"who": "agent.v1.shop"}) == {"who": "agent.v1.shop", "k8s.pod.uid": "u-agent"}


async def test_services_follow_their_slices_and_namespaces_their_labels() -> None:
    async with sample() as (store, access):
        cluster(store)
        async with running(access, CHART) as processor:

            def now(key: str) -> Any:
                return after(processor, NAMED).get(key)

            assert now("k8s.service.name") == "db"
            apply(store, endpoint_slice("db-2", "db-read", "db-0"))
            await until(lambda: now("k8s.service.name") == "db_db-read")
            apply(store, endpoint_slice("db-2", "db-read", "db-1"))
            await until(lambda: now("k8s.service.name") == "db")
            store.delete(ENDPOINT_SLICES, "shop", "db-1")
            await until(lambda: now("k8s.service.name") == "")
            apply(store, meta("v1", "Namespace", "shop", "ns-shop", labels={"team": "b"}))
            await until(lambda: now("namespace_labels_team") == "b")


def rows(settings: Object) -> set[tuple[str, str]]:
    needs = list(K8sTaggerSettings.model_validate(settings).needs())
    assert all(need.verbs == ("list", "watch") for need in needs if isinstance(need, Kubernetes))
    return {(need.resource, need.namespace) for need in needs if isinstance(need, Kubernetes)}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param(CHART, {("pods", ""), ("namespaces", ""), ("replicasets", ""), ("endpointslices", "")}, id="chart"),
        pytest.param({"passthrough": True}, set(), id="passthrough"),
        pytest.param({}, {("pods", "")}, id="no-owners"),
        pytest.param(only("podName", "daemonSetName", "replicaSetName", "jobName"), {("pods", "")}, id="owners-of-the-pod-itself"),
        pytest.param(only("cronJobName"), {("pods", ""), ("jobs", "")}, id="cronjobs"),
        pytest.param(
            CHART | {"filter": {"namespace": "shop"}},
            {("pods", "shop"), ("namespaces", ""), ("replicasets", "shop"), ("endpointslices", "shop")},
            id="one-namespace",
        ),
    ],
)
def test_it_asks_the_api_for_no_more_than_it_needs(settings: Object, expected: set[tuple[str, str]]) -> None:
    assert rows(settings) == expected


async def test_what_it_follows_is_what_it_says_it_needs() -> None:
    async with sample() as (_, access), running(access, CHART) as processor:
        assert processor._pods is not None and processor._services is not None
        caches: list[Cache[Any]] = [processor._pods, processor._services, *processor._metas.values()]
        assert {cache.query.resource.plural for cache in caches} == {resource for resource, _ in rows(CHART)}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        pytest.param({"extract": {"metadata": ["podname"]}}, "did you mean podName", id="metadata"),
        pytest.param({"extract": {"tags": {"podNome": "x"}}}, "did you mean podName", id="tag"),
        pytest.param({"extract": {"tags": {"podName": ""}}}, "needs the name", id="empty-tag"),
        pytest.param({"extract": {"labels": [{"key": "a", "regex": "(a)"}]}}, "named value", id="unnamed-group"),
        pytest.param({"extract": {"labels": [{"key": "a", "regex": "(?P<value>a)(b)"}]}}, "exactly one group", id="two-groups"),
        pytest.param({"extract": {"labels": [{"tag_name": "a"}]}}, "key", id="no-key"),
        pytest.param({"pod_association": [{"from": "resource_attribute"}]}, "needs name", id="attribute-without-name"),
        pytest.param({"pod_association": [{"from": "labels"}]}, "build_hostname", id="unknown-way"),
        pytest.param({"filter": {"fields": [{"key": "status.phase", "op": "exists"}]}}, "equals", id="field-operator"),
    ],
)
def test_wrong_settings_are_refused(wrong: Object, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        K8sTaggerSettings.model_validate(wrong)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        pytest.param({"extract": {"metadata": ["clusterName"]}}, "clusterName gives nothing", id="cluster-name"),
        pytest.param({"limit": 50}, "limit has no effect", id="limit"),
        pytest.param(CHART | {"owner_lookup_enabled": False}, "serviceName, statefulSetName, namespace_labels", id="owners-not-looked-up"),
        pytest.param(CHART | {"limit": 200}, "", id="nothing-to-say"),
        pytest.param({}, "", id="defaults"),
    ],
)
def test_what_gives_nothing_is_warned_of(settings: Object, says: str) -> None:
    warnings = " ".join(K8sTaggerSettings.model_validate(settings).warnings())
    assert says in warnings and bool(says) == bool(warnings)


def test_every_default_attribute_is_another_spelling_of_its_name() -> None:
    settings = K8sTaggerSettings.model_validate({"extract": {"metadata": list(ATTRIBUTES.values())}})
    assert settings.extract.attributes == ATTRIBUTES
