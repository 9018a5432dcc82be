"""What is added to which resource. Rows give a cluster, settings and a resource, and the whole resource that comes out."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from pydantic import ValidationError
from support import FakeHost, Sink, VirtualClock, batch, context, resource_attributes
from support.kubernetes import Faults, Object, apply, meta, pod, put, sample

from lockgate.batch import Batch, Signal
from lockgate.components.processors.k8sattributes import K8sAttributesProcessor
from lockgate.components.processors.k8sattributes.extraction import canonical_image, parse_image
from lockgate.components.processors.k8sattributes.settings import K8sAttributesSettings
from lockgate.kube import association
from lockgate.kube.access import Access
from lockgate.kube.resources import NAMESPACES, PODS, REPLICA_SETS
from lockgate.pipeline.needs import Connect, Kubernetes
from lockgate.sample.kubernetes_store import ObjectStore

UID = {"sources": [{"from": "resource_attribute", "name": "k8s.pod.uid"}]}
NAME = {"sources": [{"from": "resource_attribute", "name": "k8s.namespace.name"}, {"from": "resource_attribute", "name": "k8s.pod.name"}]}
CONNECTION = {"sources": [{"from": "connection"}]}


def cluster(store: ObjectStore) -> None:
    """A shop: a Deployment, a StatefulSet, a CronJob's Job, an agent on the host's network, and a pod that wants to be left alone."""
    for item in (
        meta("v1", "Namespace", "shop", "ns-shop", labels={"team": "a", "empty": ""}, annotations={"cost": "42"}),
        meta("v1", "Node", "node-1", "node-uid", labels={"zone": "z1"}, annotations={"rack": "r9"}),
        meta("apps/v1", "Deployment", "web", "dep-uid", "shop", labels={"tier": "front"}, annotations={"revision": "3"}),
        meta("apps/v1", "ReplicaSet", "web-5db86d8867", "rs-uid", "shop", ("Deployment", "web", "dep-uid")),
        meta("apps/v1", "StatefulSet", "db", "sts-uid", "shop", labels={"tier": "data"}),
        meta("batch/v1", "Job", "backup-28573", "job-uid", "shop", ("CronJob", "backup", "cron-uid"), labels={"kind": "nightly"}),
    ):
        apply(store, item)

    def run(item: Object, uid: str) -> None:
        item["metadata"] |= {"uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z"}
        apply(store, {"apiVersion": "v1", "kind": "Pod"} | item)

    labels = {"app": "web", "app.kubernetes.io/name": "shopfront", "app.kubernetes.io/version": "7"}
    annotations = {"team/owner": "me", "resource.opentelemetry.io/cart": "big", "note": ""}
    owner = ("ReplicaSet", "web-5db86d8867", "rs-uid")
    run(pod("web-1", "shop", ip="10.0.0.1", labels=labels, annotations=annotations, owner=owner, hostname="web"), "u-web")
    run(pod("db-0", "shop", ip="10.0.0.2", owner=("StatefulSet", "db", "sts-uid")), "u-db")
    run(pod("backup-28573-x", "shop", ip="10.0.0.3", owner=("Job", "backup-28573", "job-uid")), "u-job")
    run(pod("agent", "shop", ip="10.0.0.4", hostNetwork=True, owner=("DaemonSet", "agent", "ds-uid")), "u-agent")
    run(pod("shy", "shop", ip="10.0.0.5", annotations={"opentelemetry.io/k8s-processor/ignore": "True"}), "u-shy")
    run(pod("jaeger-agent-1", "shop", ip="10.0.0.6"), "u-jaeger")
    two = pod("two", "shop", ip="10.0.0.7")
    digest = "sha256:" + "a" * 64
    two["spec"]["containers"] = [{"name": "main", "image": f"r.io:5000/team/app:2.0@{digest}"}, {"name": "side", "image": "Bad Image"}]
    two["status"]["containerStatuses"] = [
        {"name": "main", "containerID": "containerd://c-main", "imageID": f"team/app@{digest}", "restartCount": 3},
        {"name": "side", "containerID": "cri-o://c-side", "imageID": "sha256:0", "restartCount": 0},
    ]
    run(two, "u-two")


@asynccontextmanager
async def running(
    access: Access, settings: Object, clock: Any = None, host: Any = None, signal: Signal = Signal.LOGS
) -> AsyncIterator[tuple[K8sAttributesProcessor, Sink]]:
    settings = {"auth_type": "none", "api_server": access.url, "wait_for_metadata": True} | settings
    processor = K8sAttributesProcessor(K8sAttributesSettings(**settings), context("k8sattributes", clock=clock, host=host, signal=signal))
    processor.next = sink = Sink()
    async with processor:
        yield processor, sink


def resource(attributes: dict[str, Any], peer: str = "") -> Batch:
    request = ExportLogsServiceRequest()
    entry = request.resource_logs.add()
    for key, value in attributes.items():
        added = entry.resource.attributes.add(key=key).value
        if isinstance(value, int):
            added.int_value = value
        else:
            added.string_value = value
    entry.scope_logs.add().log_records.add().body.string_value = "line"
    return batch(Signal.LOGS, request, peer)


async def enriched(settings: Object, attributes: dict[str, Any], peer: str = "") -> dict[str, Any]:
    async with sample() as (store, access):
        cluster(store)
        async with running(access, settings) as (processor, sink):
            await processor.consume(resource(attributes, peer))
        (found,) = resource_attributes(sink.batches[0])
        assert sink.count == 1 and len(sink.batches[0].message.resource_logs[0].resource.attributes) == len(found)
        return found


def only(*names: str, **extract: Any) -> Object:
    """Settings that find pods by UID and add these attributes."""
    return {"extract": {"metadata": list(names) or ["k8s.pod.name"]} | extract, "pod_association": [UID]}


WEB = {"k8s.pod.uid": "u-web"}
IMAGE = {"container.image.name": "r.io/app", "container.image.tag": "1.2"}


@pytest.mark.parametrize(
    ("settings", "attributes", "added"),
    [
        pytest.param(
            {"pod_association": [UID]},
            WEB,
            {
                "k8s.pod.name": "web-1",
                "k8s.namespace.name": "shop",
                "k8s.pod.start_time": "2026-01-01T00:00:00Z",
                "k8s.deployment.name": "web",
                "k8s.node.name": "node-1",
            }
            | IMAGE,
            id="defaults",
        ),
        pytest.param(only("k8s.pod.name"), {"k8s.pod.uid": "nobody"}, {}, id="unknown-pod"),
        pytest.param(only("k8s.pod.name"), WEB | {"k8s.pod.name": "mine"}, {}, id="what-is-there-stays"),
        pytest.param(only("k8s.pod.name"), {"k8s.pod.name": "", **WEB}, {"k8s.pod.name": "web-1"}, id="what-is-there-but-empty-does-not"),
        pytest.param(only("k8s.pod.name"), {"k8s.pod.uid": "u-shy"}, {}, id="ignored-by-annotation"),
        pytest.param(only("k8s.pod.name"), {"k8s.pod.uid": "u-jaeger"}, {}, id="excluded-by-default"),
        pytest.param(only() | {"exclude": {"pods": [{"name": "^web"}]}}, WEB, {}, id="excluded-by-name"),
        pytest.param(
            only() | {"exclude": {"pods": []}}, {"k8s.pod.uid": "u-jaeger"}, {"k8s.pod.name": "jaeger-agent-1"}, id="nothing-excluded"
        ),
        pytest.param(
            only("k8s.pod.hostname", "k8s.pod.ip", "k8s.node.uid", "k8s.cluster.uid", "k8s.replicaset.name", "k8s.replicaset.uid"),
            WEB,
            {
                "k8s.pod.hostname": "web",
                "k8s.pod.ip": "10.0.0.1",
                "k8s.node.uid": "node-uid",
                "k8s.cluster.uid": "CLUSTER",
                "k8s.replicaset.name": "web-5db86d8867",
                "k8s.replicaset.uid": "rs-uid",
            },
            id="pod-node-cluster-replicaset",
        ),
        pytest.param(
            only("k8s.deployment.name", "k8s.deployment.uid"),
            WEB,
            {"k8s.deployment.name": "web", "k8s.deployment.uid": "dep-uid"},
            id="deployment-through-replicaset",
        ),
        pytest.param(
            only("k8s.deployment.name", deployment_name_from_replicaset=True), WEB, {"k8s.deployment.name": "web"}, id="deployment-by-hash"
        ),
        pytest.param(
            only("k8s.statefulset.name", "k8s.statefulset.uid", "k8s.deployment.name"),
            {"k8s.pod.uid": "u-db"},
            {"k8s.statefulset.name": "db", "k8s.statefulset.uid": "sts-uid"},
            id="statefulset",
        ),
        pytest.param(
            only("k8s.job.name", "k8s.job.uid", "k8s.cronjob.name", "k8s.cronjob.uid"),
            {"k8s.pod.uid": "u-job"},
            {"k8s.job.name": "backup-28573", "k8s.job.uid": "job-uid", "k8s.cronjob.name": "backup", "k8s.cronjob.uid": "cron-uid"},
            id="cronjob",
        ),
        pytest.param(
            only("k8s.daemonset.name", "k8s.daemonset.uid"),
            {"k8s.pod.uid": "u-agent"},
            {"k8s.daemonset.name": "agent", "k8s.daemonset.uid": "ds-uid"},
            id="host-network-by-uid",
        ),
        pytest.param(only(labels=[{"key": "app"}]), WEB, {"k8s.pod.name": "web-1", "k8s.pod.labels.app": "web"}, id="label"),
        pytest.param(
            only(labels=[{"key": "app", "tag_name": "a"}, {"key": "none"}]), WEB, {"k8s.pod.name": "web-1", "a": "web"}, id="label-renamed"
        ),
        pytest.param(
            only(annotations=[{"key_regex": "team/(.*)", "tag_name": "t_$1"}]), WEB, {"k8s.pod.name": "web-1", "t_owner": "me"}, id="regex"
        ),
        pytest.param(
            only(labels=[{"key_regex": r"app\.kubernetes\.io/(?P<what>n.*)", "tag_name": "${what}!$$$0$9"}]),
            WEB,
            {"k8s.pod.name": "web-1", "name!$app.kubernetes.io/name": "shopfront"},
            id="regex-named-whole-dollar-and-unknown-group",
        ),
        pytest.param(
            only(labels=[{"key_regex": "ap."}]), WEB, {"k8s.pod.name": "web-1", "k8s.pod.labels.app": "web"}, id="regex-matches-whole-keys"
        ),
        pytest.param(
            only(labels=[{"key_regex": "ap(.)"}]), WEB, {"k8s.pod.name": "web-1", "k8s.pod.labels.app": "web"}, id="regex-without-tag-name"
        ),
        pytest.param(
            only(annotations=[{"key_regex": "no(.*)", "tag_name": "n$1"}, {"key": "note"}]),
            WEB,
            {"k8s.pod.name": "web-1", "k8s.pod.annotations.note": ""},
            id="an-empty-value-by-key-but-not-by-regex",
        ),
        pytest.param(only(otel_annotations=True), WEB, {"k8s.pod.name": "web-1", "cart": "big"}, id="otel-annotations"),
        pytest.param(
            only(
                labels=[{"from": "namespace", "key_regex": "(t.*)", "tag_name": "ns_$1"}, {"from": "node", "key": "zone"}],
                annotations=[{"from": "namespace", "key": "cost"}, {"from": "node", "key": "rack"}],
            ),
            WEB,
            {
                "k8s.pod.name": "web-1",
                "ns_team": "a",
                "k8s.namespace.annotations.cost": "42",
                "k8s.node.labels.zone": "z1",
                "k8s.node.annotations.rack": "r9",
            },
            id="namespace-and-node",
        ),
        pytest.param(
            only(
                labels=[{"from": "deployment", "key": "tier"}, {"from": "statefulset", "key": "tier", "tag_name": "s"}],
                annotations=[{"from": "deployment", "key": "revision"}],
            ),
            WEB,
            {"k8s.pod.name": "web-1", "k8s.deployment.label.tier": "front", "k8s.deployment.annotation.revision": "3"},
            id="workload-labels",
        ),
        pytest.param(
            only(labels=[{"from": "statefulset", "key": "tier"}, {"from": "job", "key": "kind"}]),
            {"k8s.pod.uid": "none", "k8s.statefulset.uid": "sts-uid", "k8s.job.uid": "job-uid"},
            {"k8s.statefulset.label.tier": "data", "k8s.job.label.kind": "nightly"},
            id="workload-labels-by-the-resources-own-uid",
        ),
        pytest.param(
            only("service.namespace", labels=[{"from": "namespace", "key": "team"}, {"from": "node", "key": "zone"}]),
            {"k8s.namespace.name": "shop", "k8s.node.name": "node-1"},
            {"service.namespace": "shop", "k8s.namespace.labels.team": "a", "k8s.node.labels.zone": "z1"},
            id="surroundings-without-a-pod",
        ),
        pytest.param(
            only("service.name", "service.namespace", "service.version", "service.instance.id"),
            WEB,
            {
                "service.name": "shopfront",
                "service.namespace": "shop",
                "service.version": "7",
                "service.instance.id": "shop.web-1.main",
            },
            id="service-by-labels",
        ),
        pytest.param(only("service.name"), {"k8s.pod.uid": "u-job"}, {"service.name": "backup"}, id="service-by-cronjob"),
        pytest.param(only("service.name"), {"k8s.pod.uid": "u-db"}, {"service.name": "db"}, id="service-by-statefulset"),
        pytest.param(only("service.name"), {"k8s.pod.uid": "u-two"}, {"service.name": "two"}, id="service-by-pod"),
        pytest.param(
            only("service.version"),
            {"k8s.pod.uid": "u-two", "k8s.container.name": "main"},
            {"service.version": "2.0@sha256:" + "a" * 64},
            id="service-version-by-image",
        ),
        pytest.param(
            only("container.id", "container.image.name", "container.image.tag", "k8s.container.name"),
            {"k8s.pod.uid": "u-two", "k8s.container.name": "main"},
            {"container.id": "c-main", "container.image.name": "r.io:5000/team/app", "container.image.tag": "2.0"},
            id="container-by-name",
        ),
        pytest.param(
            only("container.id", "k8s.container.name"),
            {"k8s.pod.uid": "u-two", "container.id": "c-side"},
            {"k8s.container.name": "side"},
            id="container-by-id",
        ),
        pytest.param(only("k8s.container.name"), {"k8s.pod.uid": "u-two"}, {}, id="which-of-two-containers"),
        pytest.param(only("k8s.container.name"), WEB, {"k8s.container.name": "main"}, id="the-only-container"),
        pytest.param(
            only("container.id"),
            {"k8s.pod.uid": "u-two", "k8s.container.name": "main", "k8s.container.restart_count": 3},
            {"container.id": "c-main"},
            id="container-id-of-this-run",
        ),
        pytest.param(
            only("container.id"),
            {"k8s.pod.uid": "u-two", "k8s.container.name": "main", "k8s.container.restart_count": "2"},
            {},
            id="container-id-of-an-earlier-run",
        ),
        pytest.param(
            only("container.image.name", "container.image.tag"),
            {"k8s.pod.uid": "u-two", "k8s.container.name": "side"},
            {},
            id="an-image-that-is-none",
        ),
    ],
)
async def test_what_is_added(settings: Object, attributes: dict[str, Any], added: dict[str, Any]) -> None:
    found = await enriched(settings, attributes)
    if "k8s.cluster.uid" in added:
        added = added | {"k8s.cluster.uid": found["k8s.cluster.uid"]}
        assert len(found["k8s.cluster.uid"]) == 36
    assert found == attributes | added


async def test_a_log_collectors_resource_gets_what_the_source_processor_needs() -> None:
    """The seed's example of a pod that is found by its name: owners, and labels of pod and namespace under a prefix."""
    settings = {
        "extract": {
            "metadata": ["k8s.pod.uid", "k8s.node.name", "k8s.deployment.name", "k8s.replicaset.name"],
            "labels": [
                {"from": "pod", "key_regex": "(.*)", "tag_name": "pod_labels_$1"},
                {"from": "namespace", "key_regex": "(.*)", "tag_name": "namespace_labels_$1"},
            ],
        },
        "pod_association": [UID, NAME],
    }
    attributes = {"k8s.pod.name": "web-1", "k8s.namespace.name": "shop"}
    assert await enriched(settings, attributes) == attributes | {
        "k8s.pod.uid": "u-web",
        "k8s.node.name": "node-1",
        "k8s.deployment.name": "web",
        "k8s.replicaset.name": "web-5db86d8867",
        "pod_labels_app": "web",
        "pod_labels_app.kubernetes.io/name": "shopfront",
        "pod_labels_app.kubernetes.io/version": "7",
        "namespace_labels_team": "a",
    }


async def test_arrays_of_the_images_digest_and_tag() -> None:
    async with sample() as (store, access):
        cluster(store)
        settings = only("container.image.repo_digests", "container.image.tags")
        async with running(access, settings) as (processor, sink):
            await processor.consume(resource({"k8s.pod.uid": "u-two", "k8s.container.name": "main"}))
    found = {each.key: each.value for each in sink.batches[0].message.resource_logs[0].resource.attributes}
    assert [each.string_value for each in found["container.image.tags"].array_value.values] == ["2.0"]
    (digest,) = found["container.image.repo_digests"].array_value.values
    assert digest.string_value == "docker.io/team/app@sha256:" + "a" * 64


POD = {"k8s.pod.name": "web-1"}


@pytest.mark.parametrize(
    ("associations", "attributes", "peer", "added"),
    [
        pytest.param([], {}, "10.0.0.1", POD, id="default-connection"),
        pytest.param([], {}, "::ffff:10.0.0.1", POD, id="default-connection-mapped"),
        pytest.param([], {"k8s.pod.ip": "10.0.0.1"}, "10.0.0.2", POD, id="default-pod-ip-before-connection"),
        pytest.param([], {"ip": "10.0.0.1"}, "10.0.0.2", POD, id="default-ip-before-connection"),
        pytest.param([], {"host.name": "10.0.0.1"}, "", POD, id="default-host-name-that-is-an-ip"),
        pytest.param([], {"host.name": "web"}, "", {}, id="default-host-name-that-is-none"),
        pytest.param([], {}, "10.0.0.4", {}, id="host-network-has-no-ip"),
        pytest.param([UID, NAME], {"k8s.pod.name": "web-1", "k8s.namespace.name": "shop"}, "", {}, id="name-and-namespace"),
        pytest.param([UID, CONNECTION], {"k8s.pod.uid": "nobody"}, "10.0.0.1", {}, id="the-first-that-applies-decides"),
        pytest.param([UID, CONNECTION], {}, "10.0.0.1", POD, id="the-next-where-the-first-does-not-apply"),
        pytest.param(
            [{"sources": [{"from": "resource_attribute", "name": "container.id"}]}],
            {"container.id": "shop-web-1-0"},
            "",
            POD,
            id="container",
        ),
        pytest.param([{"sources": [{"from": "resource_attribute", "name": "ip"}]}], {"ip": "10.0.0.1"}, "", POD, id="ip-attribute"),
        pytest.param(
            [{"sources": [{"from": "resource_attribute", "name": "k8s.pod.uid"}, {"from": "connection"}]}],
            WEB,
            "10.0.0.2",
            {},
            id="both-must-be-of-one-pod",
        ),
        pytest.param(
            [{"sources": [{"from": "resource_attribute", "name": "k8s.pod.uid"}, {"from": "connection"}]}],
            WEB,
            "10.0.0.1",
            POD,
            id="both-are-of-one-pod",
        ),
        pytest.param(
            [{"sources": [{"from": "resource_attribute", "name": "k8s.pod.labels.app"}]}],
            {"k8s.pod.labels.app": "web"},
            "",
            POD,
            id="a-label",
        ),
    ],
)
async def test_how_a_pod_is_found(associations: list[Object], attributes: dict[str, str], peer: str, added: dict[str, str]) -> None:
    settings = {"extract": {"metadata": ["k8s.pod.name"], "labels": [{"key": "app"}]}, "pod_association": associations}
    label = {"k8s.pod.labels.app": "web"} if added or "k8s.pod.name" in attributes else {}
    assert await enriched(settings, attributes, peer) == attributes | added | label


@pytest.mark.parametrize(
    ("settings", "added"),
    [
        pytest.param({"passthrough": True}, {"k8s.pod.ip": "10.9.9.9"}, id="passthrough"),
        pytest.param({"passthrough": True, "pod_association": [UID]}, {}, id="passthrough-without-connection"),
        pytest.param({"extract": {"metadata": ["k8s.pod.ip"]}}, {"k8s.pod.ip": "10.9.9.9"}, id="asked-for"),
        pytest.param({"extract": {"metadata": ["k8s.pod.name"]}}, {}, id="not-asked-for"),
    ],
)
async def test_the_connections_ip_is_kept_where_it_is_wanted(settings: Object, added: dict[str, str]) -> None:
    assert await enriched(settings, {}, "10.9.9.9") == added


@pytest.mark.parametrize(
    ("filter_", "found"),
    [
        pytest.param({"node": "node-1"}, True, id="node"),
        pytest.param({"node": "node-2"}, False, id="other-node"),
        pytest.param({"namespace": "shop"}, True, id="namespace"),
        pytest.param({"namespace": "default"}, False, id="other-namespace"),
        pytest.param({"labels": [{"key": "app", "value": "web"}]}, True, id="label"),
        pytest.param({"labels": [{"key": "app", "value": "web", "op": "not-equals"}]}, False, id="label-differs"),
        pytest.param({"labels": [{"key": "app", "op": "exists"}]}, True, id="label-exists"),
        pytest.param({"labels": [{"key": "app", "op": "does-not-exist"}]}, False, id="label-missing"),
        pytest.param({"fields": [{"key": "status.phase", "value": "Running"}]}, True, id="field"),
        pytest.param({"fields": [{"key": "status.phase", "value": "Running", "op": "not-equals"}]}, False, id="field-differs"),
        pytest.param({"node_from_env_var": "TEST_NODE"}, True, id="node-from-environment"),
    ],
)
async def test_only_the_filtered_pods_are_known(filter_: Object, found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_NODE", "node-1")
    assert ("k8s.pod.name" in await enriched(only() | {"filter": filter_}, WEB)) is found


async def test_an_unset_node_variable_is_an_error_and_not_the_whole_cluster() -> None:
    with pytest.raises(ValueError, match="NO_SUCH_VARIABLE is not set"):
        await enriched(only() | {"filter": {"node_from_env_var": "NO_SUCH_VARIABLE"}}, WEB)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def test_a_cached_edit_is_made_anew_when_pod_namespace_or_owner_change() -> None:
    settings = only("k8s.deployment.name", labels=[{"key": "app"}, {"from": "namespace", "key": "team"}])
    async with sample() as (store, access):
        cluster(store)
        async with running(access, settings) as (processor, _):
            item = resource(WEB)

            def now() -> tuple[Any, Any, Any]:
                (found,) = resource_attributes(processor.process(item))
                return found.get("k8s.pod.labels.app"), found.get("k8s.namespace.labels.team"), found.get("k8s.deployment.name")

            assert now() == ("web", "a", "web")
            store.merge(PODS, "shop", "web-1", {"metadata": {"labels": {"app": "api"}}})
            await until(lambda: now() == ("api", "a", "web"))
            store.merge(NAMESPACES, "", "shop", {"metadata": {"labels": {"team": "b"}}})
            await until(lambda: now() == ("api", "b", "web"))
            store.delete(REPLICA_SETS, "shop", "web-5db86d8867")
            await until(lambda: now() == ("api", "b", None))
            store.delete(PODS, "shop", "web-1", 0)
            # Deleted, but in its grace period.
            assert now() == ("api", "b", None)


async def test_a_reused_ip_gets_the_new_pods_metadata_although_the_edit_was_cached() -> None:
    async with sample() as (store, access):
        put(store, PODS, pod("old", ip="10.0.0.1"))
        async with running(access, {"extract": {"metadata": ["k8s.pod.name"]}}) as (processor, _):
            item = resource({}, "10.0.0.1")

            def name() -> Any:
                return resource_attributes(processor.process(item))[0].get("k8s.pod.name")

            assert name() == "old"
            store.delete(PODS, "default", "old", 0)
            await until(lambda: name() is None)
            put(store, PODS, pod("new", ip="10.0.0.1"))
            await until(lambda: name() == "new")


async def test_an_edit_is_not_repeated_and_the_peer_is_part_of_it() -> None:
    async with sample() as (store, access):
        cluster(store)
        async with running(access, {"extract": {"metadata": ["k8s.pod.name"]}}) as (processor, _):
            edited: list[str] = []
            original = processor._edits._edit

            def edit(raw: bytes, peer: str, ask: association.Ask) -> bytes:
                edited.append(peer)
                return original(raw, peer, ask)

            processor._edits._edit = edit
            for peer in ("10.0.0.1", "10.0.0.2", "10.0.0.1"):
                processor.process(resource({}, peer))
    assert edited == ["10.0.0.1", "10.0.0.2"]


async def test_kept_edits_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(association, "MAX_BYTES", 5_000)
    async with sample() as (_, access), running(access, only()) as (processor, _):
        for number in range(100):
            processor.process(resource({"k8s.pod.uid": f"u-{number}"}))
        kept = processor._edits
        assert 0 < len(kept._edits) < 10
        assert kept._bytes == sum(edit.size for edit in kept._edits.values()) <= 5_000


async def test_resources_of_one_batch_keep_their_records_and_order() -> None:
    async with sample() as (store, access):
        cluster(store)
        request = ExportLogsServiceRequest()
        for uid in ("u-web", "u-none", "u-db", "u-web"):
            entry = request.resource_logs.add()
            entry.resource.attributes.add(key="k8s.pod.uid").value.string_value = uid
            entry.scope_logs.add().log_records.add().body.string_value = f"of {uid}"
        async with running(access, only()) as (processor, sink):
            await processor.consume(batch(Signal.LOGS, request))
    assert sink.bodies() == ["of u-web", "of u-none", "of u-db", "of u-web"]
    assert [each.get("k8s.pod.name") for each in resource_attributes(sink.batches[0])] == ["web-1", None, "db-0", "web-1"]


async def test_processors_with_equal_queries_share_one_watch() -> None:
    faults, host = Faults(), FakeHost()
    async with sample(faults=faults) as (_, access), running(access, only(), host=host), running(access, only("k8s.pod.uid"), host=host):
        assert len([request for request in faults.requests if request.path.endswith("/pods")]) == 1


async def test_after_the_timeout_it_goes_on_blocked_until_everything_is_known() -> None:
    clock, faults, granted = VirtualClock(), Faults(), list[bool]()
    async with sample(faults=faults, may=lambda *_: bool(granted)) as (store, access):
        cluster(store)
        settings = {"auth_type": "none", "api_server": access.url, "wait_for_metadata": True, "wait_for_metadata_timeout": "3s"} | only()
        processor = K8sAttributesProcessor(K8sAttributesSettings(**settings), context("k8sattributes", clock=clock))
        processor.next = sink = Sink()
        entering = asyncio.ensure_future(processor.__aenter__())
        await until(lambda: len(clock._sleepers) == 2)
        assert not entering.done()
        await clock.advance(3)
        await entering
        assert "waits for Kubernetes metadata (pods)" in processor.context.status.blocked["metadata"][0]
        await processor.consume(resource(WEB))
        assert resource_attributes(sink.batches[0]) == [WEB]
        granted.append(True)
        await clock.advance(60)
        await until(lambda: not processor.context.status.blocked)
        await processor.consume(resource(WEB))
        assert resource_attributes(sink.batches[1]) == [WEB | POD]
        await processor.__aexit__(None, None, None)


def needs(settings: Object) -> list[tuple[tuple[str, ...], str, str, str]]:
    needed = K8sAttributesSettings(**{"auth_type": "none", "api_server": "http://127.0.0.1:1"} | settings).needs()
    return [(need.verbs, need.group, need.resource, need.namespace) for need in needed if isinstance(need, Kubernetes)]


def rows(*resources: str, namespace: str = "") -> Iterator[tuple[tuple[str, ...], str, str, str]]:
    for qualified in resources:
        plural, _, group = qualified.partition(".")
        yield ("list", "watch"), group, plural, namespace if plural not in ("nodes", "namespaces") else ""


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({}, rows("pods", "replicasets.apps"), id="defaults"),
        pytest.param({"passthrough": True}, rows(), id="passthrough"),
        pytest.param({"extract": {"deployment_name_from_replicaset": True}}, rows("pods"), id="deployment-by-hash"),
        pytest.param(only("k8s.pod.name"), rows("pods"), id="pods-alone"),
        pytest.param(only("k8s.node.uid", "k8s.cluster.uid"), rows("pods", "namespaces", "nodes"), id="uids"),
        pytest.param(only("k8s.cronjob.uid"), rows("pods", "jobs.batch"), id="cronjob"),
        pytest.param(
            only(labels=[{"from": "deployment", "key": "a"}, {"from": "daemonset", "key": "a"}]),
            rows("pods", "replicasets.apps", "deployments.apps", "daemonsets.apps"),
            id="workloads",
        ),
        pytest.param(
            {"filter": {"namespace": "shop"}, "extract": {"labels": [{"from": "node", "key": "a"}]}},
            [*rows("pods", namespace="shop"), *rows("nodes"), *rows("replicasets.apps", namespace="shop")],
            id="one-namespace",
        ),
    ],
)
def test_needs_are_what_the_options_require(settings: Object, expected: Iterator[Any]) -> None:
    assert needs(settings) == list(expected)


def test_a_passthrough_connects_to_nothing() -> None:
    assert not [need for need in K8sAttributesSettings(passthrough=True).needs() if isinstance(need, Connect)]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"extract": {"metadata": ["k8s.pod.colour"]}}, id="metadata"),
        pytest.param({"extract": {"labels": [{"key": "a", "key_regex": "b"}]}}, id="key-and-regex"),
        pytest.param({"extract": {"labels": [{"tag_name": "a"}]}}, id="neither-key-nor-regex"),
        pytest.param({"extract": {"labels": [{"key_regex": "(?=a)"}]}}, id="not-re2"),
        pytest.param({"extract": {"labels": [{"key": "a", "from": "planet"}]}}, id="from"),
        pytest.param({"pod_association": [{"sources": []}]}, id="no-sources"),
        pytest.param({"pod_association": [{"sources": [{"from": "connection"}] * 5}]}, id="five-sources"),
        pytest.param({"pod_association": [{"sources": [{"from": "resource_attribute"}]}]}, id="no-name"),
        pytest.param({"pod_association": [{"sources": [{"from": "resource_attribute", "name": "k8s.node.uid"}]}]}, id="not-of-the-pod"),
        pytest.param({"filter": {"labels": [{"key": "a", "op": "in"}]}}, id="op"),
        pytest.param({"wait_for_metadata_timeout": 10}, id="no-unit"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: Object) -> None:
    with pytest.raises(ValidationError):
        K8sAttributesSettings(**settings)


def test_a_resync_period_is_accepted_with_a_warning() -> None:
    assert any("watch_sync_period" in each for each in K8sAttributesSettings(watch_sync_period="5m").warnings())


DIGEST = "sha256:" + "b" * 64


@pytest.mark.parametrize(
    ("image", "parsed", "canonical"),
    [
        pytest.param("nginx", ("nginx", "", ""), "", id="name"),
        pytest.param("r.io:5000/a/b:1", ("r.io:5000/a/b", "1", ""), "", id="port-and-tag"),
        pytest.param(f"nginx@{DIGEST}", ("nginx", "", DIGEST), f"docker.io/library/nginx@{DIGEST}", id="digest"),
        pytest.param(f"localhost/x:1@{DIGEST}", ("localhost/x", "1", DIGEST), f"localhost/x:1@{DIGEST}", id="both"),
        pytest.param(f"docker-pullable://nginx@{DIGEST}", None, "", id="old-docker"),
        pytest.param("UPPER/Case", None, "", id="case"),
        pytest.param("", None, "", id="empty"),
    ],
)
def test_image_references(image: str, parsed: tuple[str, str, str] | None, canonical: str) -> None:
    assert (parse_image(image), canonical_image(image)) == (parsed, canonical)
