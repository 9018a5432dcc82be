"""The logs metadata role against a real Kubernetes API server, beside the real OpenTelemetry Collector."""

import asyncio
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from support.backend import Backend
from support.kube_apiserver import ADMIN_TOKEN, ApiServer
from support.kubernetes import pod
from support.otelcol import needs_otelcol, running_otelcol
from support.otlp import log_batch
from support.process import Role, free_port, lockgate, until

from lockgate.components.processors.k8sattributes.settings import Metadata

pytestmark = pytest.mark.peers

PRESET = Path(sys.modules["lockgate"].__path__[0]) / "presets" / "logs_metadata.yaml"
CONTEXT = "the-one-to-use"
Object = dict[str, Any]
Owner = tuple[str, str, str]
"""(kind, name, uid)"""


def kubeconfig(server: ApiServer, path: Path) -> Path:
    """A kubeconfig whose current context leads nowhere: only the named one may be used."""
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "nowhere",
                "contexts": [
                    {"name": CONTEXT, "context": {"cluster": "real", "user": "admin"}},
                    {"name": "nowhere", "context": {"cluster": "nowhere", "user": "admin"}},
                ],
                "clusters": [
                    {"name": "real", "cluster": {"server": server.base_url, "certificate-authority": str(server.ca_file)}},
                    {"name": "nowhere", "cluster": {"server": "https://127.0.0.1:1"}},
                ],
                "users": [{"name": "admin", "user": {"token": ADMIN_TOKEN}}],
            }
        )
    )
    return path


class Cluster:
    """A namespace with one pod of each kind of workload; `pods` by name."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.server, self.namespace = server, namespace
        self.pods: dict[str, Object] = {}

    async def owner(self, plural: str, kind: str, name: str, spec: Object, owner: Owner | None = None) -> Owner:
        labels, group = {"app": name}, "batch/v1" if kind in ("Job", "CronJob") else "apps/v1"
        meta: Object = {"name": name, "labels": labels | {"kind": kind}, "annotations": {"of": name}}
        if owner:
            above = {"kind": owner[0], "name": owner[1], "uid": owner[2], "controller": True, "apiVersion": group}
            meta["ownerReferences"] = [above]
        made = await self.server.create(f"/apis/{group}/namespaces/{self.namespace}/{plural}", {"metadata": meta, "spec": spec})
        return kind, name, made["metadata"]["uid"]

    async def pod(self, name: str, **more: Any) -> Object:
        ip = f"10.{len(self.pods)}.{uuid.uuid4().int % 250}.{uuid.uuid4().int % 250}"
        made = await self.server.create(f"/api/v1/namespaces/{self.namespace}/pods", pod(name, self.namespace, **({"ip": ip} | more)))
        self.pods[name] = made
        return made


@pytest.fixture
async def cluster(api_server: ApiServer) -> AsyncIterator[Cluster]:
    namespace = f"roles-{uuid.uuid4().hex[:8]}"
    annotations = {"owner": "team-a", "empty": ""}
    await api_server.create("/api/v1/namespaces", {"metadata": {"name": namespace, "annotations": annotations, "labels": {"env": "prod"}}})
    made = Cluster(api_server, namespace)
    container = {"name": "main", "image": "r.io/app:1.2"}
    template = {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [container]}}
    selected: Object = {"selector": {"matchLabels": {"app": "x"}}, "template": template}
    job: Object = {"template": {"spec": {"containers": [container], "restartPolicy": "Never"}}}
    deployment = await made.owner("deployments", "Deployment", "web", selected)
    replica_set = await made.owner("replicasets", "ReplicaSet", "web-5db86d8867", selected, deployment)
    stateful_set = await made.owner("statefulsets", "StatefulSet", "db", selected | {"serviceName": "db"})
    daemon_set = await made.owner("daemonsets", "DaemonSet", "dns", selected)
    cron_job = await made.owner("cronjobs", "CronJob", "nightly", {"schedule": "0 0 * * *", "jobTemplate": {"spec": job}})
    of_cron_job = await made.owner("jobs", "Job", "nightly-29000000", job, cron_job)
    labels = {
        "app": "web",
        "pod-template-hash": "5db86d8867",
        "app.kubernetes.io/name": "shop",
        "app.kubernetes.io/version": "7",
        "empty": "",
    }
    await made.pod("web-5db86d8867-abcde", owner=replica_set, labels=labels, annotations={"a": "b", "resource.opentelemetry.io/x.y": "z"})
    await made.pod("db-0", owner=stateful_set, labels={"app.kubernetes.io/instance": "main-db"})
    await made.pod("dns-xyz", owner=daemon_set)
    await made.pod("nightly-29000000-qqq", owner=of_cron_job)
    await made.pod("bare", labels={"team": "a"}, hostname="bare-host")
    await made.pod("host", hostNetwork=True, ip="10.200.0.1")
    two = [{"name": "one", "image": "nginx"}, {"name": "two", "image": "localhost:5000/a/b:v1@sha256:" + "1" * 64}]
    await made.pod("two", containers=two)
    statuses = [
        {
            "name": each["name"],
            "image": each["image"],
            "imageID": f"r.io/x@sha256:{number}{'0' * 63}",
            "containerID": f"cri-o://{uuid.uuid4().hex}",
        }
        | {"ready": True, "restartCount": 3 * number}
        for number, each in enumerate(two)
    ]
    await api_server.change(f"/api/v1/namespaces/{namespace}/pods/two/status", {"status": {"containerStatuses": statuses}})
    await made.pod("done", phase="Succeeded")
    await made.pod("jaeger-agent-1")
    yield made


def post(port: int, payload: bytes) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/logs", payload, {"Content-Type": "application/x-protobuf"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def value(any_value: Any) -> Any:
    which = any_value.WhichOneof("value")
    if which == "array_value":
        return [value(each) for each in any_value.array_value.values]
    return getattr(any_value, which) if which else None


def resources(backend: Backend) -> dict[str, Object]:
    """The resource attributes that each body arrived with."""
    return {
        record.body.string_value: {attribute.key: value(attribute.value) for attribute in resource.resource.attributes}
        for _, _, message in list(backend.requests)
        for resource in message.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    }


class MetadataRole:
    """The preset's role, ready, before a backend."""

    def __init__(self, directory: Path, config: str = "", environment: dict[str, str] | None = None, **options: Any) -> None:
        self.backend, self.port = Backend(), free_port()
        given = {"LOCKGATE_HOST": "127.0.0.1", "LOCKGATE_BACKEND_URL": self.backend.url, "LOCKGATE_OTLP_HTTP_PORT": str(self.port)}
        self.role = Role(directory, config, given | (environment or {}), preset="logs_metadata", **options)

    async def __aenter__(self) -> "MetadataRole":
        self.backend.__enter__()
        await self.role.__aenter__()
        await until(lambda: "everything has started" in self.role.log.read_text(), 20, "everything has started, ready or not")
        return self

    async def __aexit__(self, *raised: Any) -> None:
        try:
            await self.role.__aexit__(*raised)
        finally:
            self.backend.__exit__(*raised)

    async def enriched(self, made: Object) -> Object:
        """What a line of this pod arrives with."""
        body = uuid.uuid4().hex
        assert await asyncio.to_thread(post, self.port, log_batch(body, resource={"k8s.pod.uid": made["metadata"]["uid"]}).payload) == 200
        await until(lambda: body in resources(self.backend), 20, "the line arrived")
        return resources(self.backend)[body]

    def blocked(self) -> list[str]:
        return [entry["reason"] for entry in self.role.get("/status")[1]["blocked"]]


async def test_the_role_follows_a_named_context_through_a_restart_of_the_server(cluster: Cluster, tmp_path: Path) -> None:
    config = kubeconfig(cluster.server, tmp_path / "kubeconfig")
    environment = {"LOCKGATE_KUBE_AUTH": "kubeConfig", "LOCKGATE_KUBE_CONTEXT": CONTEXT, "LOCKGATE_KUBECONFIG": str(config)}
    async with MetadataRole(tmp_path / "role", environment=environment | {"KUBECONFIG": "/nowhere"}) as metadata:
        web = await metadata.enriched(cluster.pods["web-5db86d8867-abcde"])
        expected = {
            "k8s.namespace.name": cluster.namespace,
            "k8s.pod.name": "web-5db86d8867-abcde",
            "k8s.deployment.name": "web",
            "k8s.replicaset.name": "web-5db86d8867",
            "k8s.node.name": "node-1",
            "k8s.pod.label.app": "web",
            "k8s.pod.annotation.a": "b",
            "k8s.namespace.annotation.owner": "team-a",
            "_sourceCategory": f"kubernetes/{cluster.namespace.replace('-', '/')}/web",
        }
        assert {name: web.get(name) for name in expected} == expected
        await asyncio.to_thread(cluster.server.stop)
        await until(metadata.blocked, 20, "the outage shows in the status")
        assert (await metadata.enriched(cluster.pods["db-0"]))["k8s.statefulset.name"] == "db", "what is known stays known"
        await asyncio.to_thread(cluster.server.start)
        late = await cluster.pod("late", labels={"app": "late"})
        await until(lambda: not metadata.blocked(), 60, "the status is clear again")
        async with asyncio.timeout(30):
            while (await metadata.enriched(late)).get("k8s.pod.label.app") != "late":
                await asyncio.sleep(0.1)


def permissions() -> list[dict[str, Any]]:
    """What `lockgate needs` says that the preset asks of the Kubernetes API."""
    needs = json.loads(lockgate("needs", "--config", "logs_metadata", "--format", "json").stdout)
    return [need for need in needs if need["need"] == "kubernetes"]


def rules(needs: Sequence[dict[str, Any]]) -> list[dict[str, list[str]]]:
    return [{"apiGroups": [need["group"]], "resources": [need["resource"]], "verbs": need["verbs"]} for need in needs]


def with_account(cluster: Cluster, directory: Path, token: str) -> str:
    """The configuration of a role that uses this token as a pod would."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "token").write_text(token)
    account = {"api_server": cluster.server.base_url, "token_file": str(directory / "token"), "ca_file": str(cluster.server.ca_file)}
    return yaml.safe_dump({"processors": {"k8sattributes": account | {"wait_for_metadata_timeout": "1s"}}})


async def test_a_service_account_with_exactly_what_needs_lists_is_enough(cluster: Cluster, tmp_path: Path) -> None:
    token = await cluster.server.service_account(f"exact-{cluster.namespace}", rules(permissions()))
    async with MetadataRole(tmp_path / "role", with_account(cluster, tmp_path / "account", token)) as metadata:
        found = await metadata.enriched(cluster.pods["web-5db86d8867-abcde"])
        assert (found["k8s.deployment.name"], found["k8s.namespace.annotation.owner"]) == ("web", "team-a")
        assert metadata.blocked() == []


@pytest.mark.parametrize("verb", ["list", "watch"])
@pytest.mark.parametrize("resource", ["pods", "namespaces", "replicasets"])
async def test_a_permission_that_is_missing_is_named_and_nothing_ends(cluster: Cluster, tmp_path: Path, resource: str, verb: str) -> None:
    """A WatchList (which the server offers) asks for `watch` alone, so a missing `list` shows where that is not."""
    needs = permissions()
    assert {need["resource"] for need in needs} == {"pods", "namespaces", "replicasets"}
    less = [need | {"verbs": [v for v in need["verbs"] if (need["resource"], v) != (resource, verb)]} for need in needs]
    token = await cluster.server.service_account(f"less-{verb}-{resource}-{cluster.namespace}", rules(less))
    metadata = MetadataRole(tmp_path / "role", with_account(cluster, tmp_path / "account", token), expect_ready=False)
    async with metadata:
        found = await metadata.enriched(cluster.pods["web-5db86d8867-abcde"])
        if verb == "watch":
            await until(lambda: any("403" in reason for reason in metadata.blocked()), 20, "the refusal shows")
            assert any(f'the verb "{verb}" on resource "{resource}"' in reason for reason in metadata.blocked()), metadata.blocked()
            assert metadata.role.get("/ready")[0] == 503
        else:
            await until(lambda: not metadata.blocked(), 20, "a WatchList needs no list")
        expected = {"pods": "k8s.pod.label.app", "namespaces": "k8s.namespace.annotation.owner", "replicasets": "k8s.deployment.name"}
        lost = set() if verb == "list" else set(expected) if resource == "pods" else {resource}
        assert {name for name, attribute in expected.items() if attribute not in found} == lost
        assert metadata.role.process.poll() is None
        assert "Traceback" not in metadata.role.log.read_text()


async def test_up_collects_from_the_cluster_of_a_named_context(cluster: Cluster, tmp_path: Path) -> None:
    config, state = kubeconfig(cluster.server, tmp_path / "kubeconfig"), tmp_path / "state"
    command = [sys.executable, "-m", "lockgate.cli.main", "up", "--context", CONTEXT, "--kubeconfig", str(config), "--state", str(state)]
    with (tmp_path / "out").open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        await until(lambda: re.search(r"logs metadata +ready", (tmp_path / "out").read_text()), 40, "the role is ready")
        payload = log_batch("over there", resource={"k8s.pod.uid": cluster.pods["db-0"]["metadata"]["uid"]}).payload
        assert await asyncio.to_thread(post, port_of(state, "logs_metadata"), payload) == 200
        sql = "SELECT pod FROM logs WHERE body = 'over there'"
        await until(lambda: lockgate("query", "--state", str(state), "--format", "csv", sql).stdout == "pod\ndb-0\n", 20, "it is enriched")
    finally:
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0, (tmp_path / "out").read_text()


def port_of(state: Path, preset: str) -> int:
    """Where a role of `up` takes OTLP over HTTP."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and preset.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
            variables = dict(each.partition(b"=")[::2] for each in (entry / "environ").read_bytes().split(b"\0"))
            if variables.get(b"LOCKGATE_STATE") == str(state / preset).encode():
                return int(variables[b"LOCKGATE_OTLP_HTTP_PORT"])
    raise AssertionError(f"no {preset} of {state}")


def collector(endpoint: str, backend: Backend, k8sattributes: Object) -> Object:
    """A configuration that both understand."""
    return {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": endpoint}}}},
        "processors": {"k8sattributes": k8sattributes | {"auth_type": "kubeConfig", "context": CONTEXT, "wait_for_metadata": True}},
        "exporters": {"otlphttp": {"endpoint": backend.url, "compression": "gzip"}},
        "service": {"pipelines": {"logs": {"receivers": ["otlp"], "processors": ["k8sattributes"], "exporters": ["otlphttp"]}}},
    }


EVERYTHING: Object = {
    "extract": {
        "metadata": sorted({*get_args(Metadata)} - {"container.image.tags"}),  # which needs a feature gate there
        "labels": [
            {"from": "pod", "key_regex": "(.*)", "tag_name": "pod.label.$$1"},
            {"from": "pod", "key": "app"},
            {"from": "namespace", "key_regex": ".*"},
            {"from": "deployment", "key": "kind", "tag_name": "d.kind"},
            {"from": "statefulset", "key_regex": "k(.*)"},
            {"from": "daemonset", "key": "app"},
            {"from": "job", "key": "kind"},
        ],
        "annotations": [
            {"from": "pod", "key_regex": "(.*)", "tag_name": "pod.annotation.$$1"},
            {"from": "namespace", "key_regex": "(.*)", "tag_name": "namespace.annotation.$$1"},
            {"from": "deployment", "key": "of"},
        ],
        "otel_annotations": True,
    },
    "pod_association": [
        {"sources": [{"from": "resource_attribute", "name": "k8s.pod.uid"}]},
        {"sources": [{"from": "resource_attribute", "name": name} for name in ("k8s.pod.name", "k8s.namespace.name")]},
        {"sources": [{"from": "resource_attribute", "name": "container.id"}]},
        {"sources": [{"from": "resource_attribute", "name": "k8s.pod.ip"}]},
        {"sources": [{"from": "resource_attribute", "name": "host.name"}]},
    ],
}


def asked(cluster: Cluster) -> dict[str, Object]:
    """Resources to enrich, by what they try."""
    found: dict[str, Object] = {}
    for name, made in cluster.pods.items():
        found[f"{name} by uid"] = {"k8s.pod.uid": made["metadata"]["uid"]}
        found[f"{name} by name"] = {"k8s.pod.name": name, "k8s.namespace.name": cluster.namespace}
        found[f"{name} by container id"] = {"container.id": f"{cluster.namespace}-{name}-0"}
        found[f"{name} by ip"] = {"k8s.pod.ip": made["status"]["podIP"]}
        found[f"{name} by host name"] = {"host.name": made["status"]["podIP"]}
        found[f"{name} with a container"] = found[f"{name} by uid"] | {"k8s.container.name": "main"}
        found[f"{name} with a container of another run"] = found[f"{name} with a container"] | {"k8s.container.restart_count": "3"}
    uid = found["two by uid"]
    return found | {
        "the second container": uid | {"k8s.container.name": "two"},
        "a container there is not": uid | {"k8s.container.name": "three"},
        "attributes that are there": found["db-0 by uid"] | {"k8s.pod.name": "mine", "k8s.statefulset.name": "", "service.name": "mine"},
        "an unknown pod": {"k8s.pod.uid": str(uuid.uuid4())},
        "an unknown pod of a known namespace": {"k8s.pod.uid": str(uuid.uuid4()), "k8s.namespace.name": cluster.namespace},
        "nothing": {},
    }


def settings_of_the_preset() -> Object:
    text = re.sub(r"\$\{env:[^}]*\}", "0", PRESET.read_text())
    settings: Object = yaml.safe_load(text)["processors"]["k8sattributes"]
    return {key: value for key, value in settings.items() if key in ("extract", "pod_association")}


@needs_otelcol
@pytest.mark.parametrize("which", ["preset", "everything"])
async def test_resources_are_enriched_as_the_collector_enriches_them(cluster: Cluster, tmp_path: Path, which: str) -> None:
    settings = settings_of_the_preset() if which == "preset" else EVERYTHING
    config, resources_asked = kubeconfig(cluster.server, tmp_path / "kubeconfig"), asked(cluster)
    ports = [free_port(), free_port()]
    with Backend() as ours, Backend() as theirs:
        text = yaml.safe_dump(collector(f"127.0.0.1:{ports[0]}", ours, settings | {"kubeconfig": str(config)}))
        async with Role(tmp_path / "role", text.replace("service:", "service:\n  extensions: [health_check]")):
            with ExitStack() as stack:
                theirs_config = collector(f"127.0.0.1:{ports[1]}", theirs, settings)
                started = running_otelcol(tmp_path / "otelcol", theirs_config, {"KUBECONFIG": str(config)})
                await asyncio.to_thread(stack.enter_context, started)
                for name, attributes in resources_asked.items():
                    for port in ports:
                        assert await asyncio.to_thread(post, port, log_batch(name, resource=attributes).payload) == 200
                for backend in (ours, theirs):
                    await until(lambda backend=backend: len(resources(backend)) == len(resources_asked), 30, "all arrived")  # type: ignore[misc]
    differences = {
        name: {key: (got.get(key), expected.get(key)) for key in got.keys() | expected.keys() if got.get(key) != expected.get(key)}
        for name in resources_asked
        if (got := resources(ours)[name]) != (expected := resources(theirs)[name])
    }
    if which == "everything":
        # docs/differences.md: an address that others share, or may have by now, is nobody's.
        for name in ("host by ip", "host by host name", "done by ip", "done by host name"):
            assert differences.pop(name).items() >= {"service.name": (None, name.split()[0])}.items()
            assert resources(ours)[name] == resources_asked[name]
    assert differences == {}
