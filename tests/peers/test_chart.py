"""The chart in a real API server: with Pod Security admission enforcing, and with the RBAC authorizer."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import helm
from support.backend import Backend
from support.chart_values import CASES, SEED
from support.helm import HELM, KUBECTL, Object, of_kind, pod, workloads
from support.kube_apiserver import ApiServer
from support.process import Role, free_port, until

pytestmark = [pytest.mark.peers, pytest.mark.skipif(not (HELM.exists() and KUBECTL.exists()), reason=helm.missing or "no kubectl")]

KINDS_ELSEWHERE = ("SecurityContextConstraints",)


def kubectl(server: ApiServer, *arguments: str, objects: list[Object] | None = None) -> "subprocess.CompletedProcess[str]":
    access = [
        "--server",
        server.base_url,
        "--token",
        server.token,
        "--certificate-authority",
        str(server.ca_file),
        "--kubeconfig=/dev/null",
    ]
    text = "\n---\n".join(json.dumps(each) for each in objects) if objects else None
    return subprocess.run([str(KUBECTL), *access, *arguments], input=text, capture_output=True, text=True, check=False, timeout=120)


class Installed:
    """The chart's objects in the server; the release's namespace enforces `restricted`."""

    def __init__(self, server: ApiServer, objects: list[Object]) -> None:
        self.server, self.objects = server, objects

    def as_pod(self, workload: Object, namespace: str = "") -> "subprocess.CompletedProcess[str]":
        """What a controller would create: admission looks at pods, and only warns of templates."""
        template = workload["spec"]["template"]
        name = workload["metadata"]["name"]
        spec = {**template["spec"], "volumes": list(template["spec"]["volumes"])}
        for claim in workload["spec"].get("volumeClaimTemplates", []):
            volume = claim["metadata"]["name"]
            spec["volumes"].append({"name": volume, "persistentVolumeClaim": {"claimName": f"{volume}-{name}-0"}})
        metadata = {**template["metadata"], "name": f"{name}-0", "namespace": namespace or workload["metadata"]["namespace"]}
        return kubectl(
            self.server, "create", "--filename=-", objects=[{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}]
        )

    async def token(self, workload: Object) -> str:
        own = workload["metadata"]
        path = f"/api/v1/namespaces/{own['namespace']}/serviceaccounts/{own['name']}/token"
        answer = await self.server.create(path, {"spec": {"expirationSeconds": 3600}})
        found: str = answer["status"]["token"]
        return found

    async def may(self, workload: Object, verb: str, group: str, resource: str, namespace: str = "", subresource: str = "") -> bool:
        own = workload["metadata"]
        asked = {"verb": verb, "group": group, "resource": resource, "namespace": namespace, "subresource": subresource}
        spec = {"user": f"system:serviceaccount:{own['namespace']}:{own['name']}", "resourceAttributes": asked}
        answer = await self.server.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", {"spec": spec})
        allowed: bool = answer["status"]["allowed"]
        return allowed


@pytest.fixture
async def installed(api_server: ApiServer) -> AsyncIterator[Any]:
    made: list[Installed] = []

    async def install(values: Object, namespace: str) -> Installed:
        label = {"pod-security.kubernetes.io/enforce": "restricted"}
        await api_server.create("/api/v1/namespaces", {"metadata": {"name": namespace, "labels": label}})
        text = helm.helm("template", helm.RELEASE, str(helm.CHART), "--namespace", namespace, values=values)
        objects = [each for each in yaml.safe_load_all(text) if each and each["kind"] not in KINDS_ELSEWHERE]
        done = await asyncio.to_thread(kubectl, api_server, "apply", "--server-side", "--filename=-", objects=objects)
        assert done.returncode == 0, done.stderr
        warnings = [line for line in done.stderr.splitlines() if "PodSecurity" in line]
        assert warnings == []
        made.append(Installed(api_server, objects))
        return made[-1]

    yield install
    for each in made:
        roles = of_kind(each.objects, "ClusterRole", "ClusterRoleBinding")
        await asyncio.to_thread(kubectl, api_server, "delete", "--filename=-", "--wait=false", objects=roles)


@pytest.mark.parametrize(
    ("namespace", "values"),
    [
        pytest.param("chart-default", {}, id="default"),
        pytest.param("chart-seed", SEED, id="security-document"),
        pytest.param(
            "chart-journal",
            {"sumologic": {"logs": {"systemd": {"enabled": True}}}, "backend": {"tokenKey": "token"}},
            id="journal-and-token",
        ),
        pytest.param(
            "chart-memory", {"metadata": {"persistence": {"enabled": False}}, "otellogs": {"privilege": "capability"}}, id="memory"
        ),
        pytest.param("chart-mutual-tls", CASES["mutual-tls"], id="mutual-tls"),
        pytest.param("chart-ports", CASES["every-port"], id="every-port"),
    ],
)
async def test_every_pod_is_admitted_where_it_belongs_and_refused_where_it_asks_for_more(
    installed: Any, namespace: str, values: Object
) -> None:
    chart: Installed = await installed(values, namespace)
    found = workloads(chart.objects)
    for role, each in found.items():
        done = await asyncio.to_thread(chart.as_pod, each)
        assert done.returncode == 0, f"{role}: {done.stderr}"
    # The control: admission does enforce here.
    refused = await asyncio.to_thread(chart.as_pod, found["logs-collector"], namespace)
    assert refused.returncode and 'violates PodSecurity "restricted:latest"' in refused.stderr and "hostPath" in refused.stderr
    for role in found.keys() - {"logs-collector"}:
        for key in ("allowPrivilegeEscalation", "capabilities"):
            weaker = json.loads(json.dumps(found[role]))
            weaker["metadata"]["name"] += "-weaker"
            del pod(weaker)["containers"][0]["securityContext"][key]
            refused = await asyncio.to_thread(chart.as_pod, weaker)
            assert refused.returncode and key in refused.stderr


async def test_each_role_may_do_what_it_needs_and_nothing_else(installed: Any) -> None:
    chart: Installed = await installed({}, "chart-rbac")
    found = workloads(chart.objects)
    enrichment = {("", "pods"), ("", "namespaces"), ("apps", "replicasets")}
    needed = dict.fromkeys(found, enrichment) | {"logs-collector": set(), "events": {("", "events")}}
    others = {
        ("", "secrets"), ("", "configmaps"), ("", "nodes"), ("", "services"), ("", "events"), ("apps", "deployments"), ("batch", "jobs"),
    }  # fmt: skip
    for role, each in found.items():
        for verb in ("get", "list", "watch", "create", "patch", "delete"):
            for group, resource in enrichment | others:
                expected = (group, resource) in needed[role] and verb in ("list", "watch")
                assert await chart.may(each, verb, group, resource) is expected, (role, verb, resource)
        assert not await chart.may(each, "get", "", "nodes", subresource="proxy")
        assert not await chart.may(each, "create", "", "pods", "chart-rbac", "exec")


async def test_one_namespace_alone_is_asked_about(installed: Any) -> None:
    chart: Installed = await installed({"rbac": {"namespace": "chart-one"}}, "chart-one")
    logs = workloads(chart.objects)["logs-metadata"]
    assert await chart.may(logs, "list", "", "pods", "chart-one")
    assert not await chart.may(logs, "list", "", "pods", "default")
    assert not await chart.may(logs, "list", "", "pods")
    events = workloads(chart.objects)["events"]
    assert await chart.may(events, "watch", "", "events", "chart-one")
    assert not await chart.may(events, "watch", "", "events", "default")
    assert not of_kind(chart.objects, "ClusterRole")


ROLES = ["logs-metadata", "metrics-metadata", "traces", "events"]


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as it:
        yield it


@pytest.mark.parametrize(("role", "namespaced"), [*((role, False) for role in ROLES), ("logs-metadata", True), ("events", True)])
async def test_each_role_runs_with_its_own_token_and_says_which_permission_it_lost(
    installed: Any, backend: Backend, tmp_path: Path, role: str, namespaced: bool
) -> None:
    namespace = f"chart-run-{role}-{'one' if namespaced else 'all'}"
    chart: Installed = await installed({"rbac": {"namespace": namespace if namespaced else ""}}, namespace)
    workload = workloads(chart.objects)[role]
    own = workload["metadata"]
    text = next(each["data"]["lockgate.yaml"] for each in of_kind(chart.objects, "ConfigMap") if each["metadata"]["name"] == own["name"])
    configuration = yaml.safe_load(text)
    access = {"api_server": chart.server.base_url, "ca_file": str(chart.server.ca_file), "token_file": str(tmp_path / "token")}
    if role == "events":
        configuration["receivers"]["raw_k8s_events"] |= access
    else:
        configuration["processors"]["k8sattributes"] |= access | {"wait_for_metadata_timeout": "1s"}
    configuration["extensions"]["file_storage"]["directory"] = str(tmp_path / "storage")
    configuration["extensions"]["ledger"]["endpoint"] = f"127.0.0.1:{free_port()}"
    for protocol in configuration["receivers"].get("otlp", {"protocols": {}})["protocols"].values():
        protocol["endpoint"] = f"127.0.0.1:{free_port()}"
    (tmp_path / "token").write_text(await chart.token(workload))
    environment = {"LOCKGATE_BACKEND_URL": backend.url}  # the server makes events of its own, which must not be what blocks
    async with Role(tmp_path / "with", json.dumps(configuration), environment) as running:
        await until(lambda: "everything has started" in running.log.read_text(), 20, "everything has started")
        assert await asyncio.to_thread(running.get, "/ready") == (200, {"ready": True, "blocked": []})

    [granted] = [each for each in of_kind(chart.objects, "ClusterRole", "Role") if each["metadata"]["name"].endswith(own["name"])]
    resources = [resource for rule in granted["rules"] for resource in rule["resources"]]
    enrichment = ["pods", "replicasets"] if namespaced else ["namespaces", "pods", "replicasets"]
    assert sorted(resources) == (["events"] if role == "events" else enrichment)
    for lost in resources:
        fewer = [{**rule, "resources": [each for each in rule["resources"] if each != lost]} for rule in granted["rules"]]
        less = {**granted, "rules": [rule for rule in fewer if rule["resources"]]}
        done = await asyncio.to_thread(kubectl, chart.server, "replace", "--filename=-", objects=[less])
        assert done.returncode == 0, done.stderr
        async with Role(tmp_path / f"without-{lost}", json.dumps(configuration), environment, expect_ready=False) as running:

            def missing(running: Role = running) -> list[str]:
                said = [str(each["reason"]) for each in running.get("/ready")[1]["blocked"]]
                return [reason for reason in said if "grant this service account" in reason]

            await until(missing, 20, f"the missing permission for {lost} is named")
            [reason] = await asyncio.to_thread(missing)
            named = [each for each in resources if f'on resource "{each}"' in reason]
            assert named == [lost], reason
            assert running.process.poll() is None
