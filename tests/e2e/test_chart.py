"""The Helm chart: what it renders is valid, hardened, and opens what the rendered configurations need and no more."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from functools import cache, reduce
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support import helm
from support.chart_values import CASES, SEED, SEED_SECRET_OVER_CERTS
from support.helm import CHART, Object, Refused, complete, of_kind, pod, workloads
from support.rungs import becoming, contained, needs_root, open_directory, place

from lockgate.collector.config import Configuration, load
from lockgate.kit.rungs import Grant, Process, Rung
from lockgate.lockdown import netpol, rbac
from lockgate.lockdown.facts import Facts
from lockgate.lockdown.flows import derive
from lockgate.pipeline.contract import Kind
from lockgate.pipeline.needs import Connect, Listen, Write

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(bool(helm.missing), reason=helm.missing)
every_case = pytest.mark.parametrize("case", CASES)
PRESETS = {
    "logs-collector": "logs_collector",
    "logs-metadata": "logs_metadata",
    "metrics-metadata": "metrics_metadata",
    "traces": "traces",
    "events": "events",
}
LISTENERS = {"logs-collector": "logsCollector", "logs-metadata": "logs", "metrics-metadata": "metrics", "traces": "traces"}


@cache
def _rendered(case: str) -> str:
    return json.dumps(helm.render(CASES[case]))


def rendered(case: str) -> list[Object]:
    objects: list[Object] = json.loads(_rendered(case))
    return objects


def component(thing: Object) -> str:
    return str(thing["metadata"]["labels"]["app.kubernetes.io/component"])


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The configuration that a workload's pod would run, with the environment that the pod would have."""

    def configuration(workload: Object, objects: list[Object], values: Any) -> Configuration:
        own = workload["metadata"]
        text = next(
            each["data"]["lockgate.yaml"]
            for each in of_kind(objects, "ConfigMap")
            if (each["metadata"]["name"], each["metadata"]["namespace"]) == (own["name"], own["namespace"])
        )
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "KUBERNETES_SERVICE_HOST"):
            monkeypatch.delenv(name, raising=False)
        url = f"https://receivers.example.com:{values['backend']['port']}/receiver/v1/otlp/SECRET"
        secrets = {"LOCKGATE_BACKEND_URL": url, "LOCKGATE_NODE": "node-1"}
        environment = {
            each["name"]: each.get("value", secrets.get(each["name"])).replace("$(KUBERNETES_SERVICE_HOST)", "10.96.0.1")
            for each in pod(workload)["containers"][0].get("env") or []
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        path = tmp_path / f"{own['name']}.yaml"
        path.write_text(text)
        return load([str(path)], environment=environment)

    return configuration


def facts(role: str, configuration: Configuration, values: Any, objects: list[Object]) -> Facts:
    """What the values say of the cluster, in the words of `lockgate netpol --facts`."""
    placed = {name: (each["metadata"], each["spec"]["selector"]["matchLabels"]) for name, each in workloads(objects).items()}
    own, labels = placed[role]
    policy = values["networkPolicy"]

    def peers(given: list[Any]) -> list[Any]:
        return [{re.sub("([A-Z])", r"_\1", key).lower(): value for key, value in peer.items()} for peer in given]

    services, clients = {}, {}
    needs = configuration.needs()
    if role == "logs-collector":
        metadata, metadata_labels = placed["logs-metadata"]
        services[f"{metadata['name']}.{metadata['namespace']}"] = {"pods": metadata_labels, "namespace": metadata["namespace"]}
    else:
        backend = policy["backend"]
        if backend["pods"] or backend["namespace"]:
            [host] = {need.host for who, need in needs if isinstance(need, Connect) and who.startswith("exporters/")}
            services[host] = {key: backend[key] for key in ("pods", "namespace", "ports")}
        for who, need in needs:
            if isinstance(need, Listen) and who.startswith("receivers/"):
                clients[need.port] = [] if who == "receivers/otlp/journald" else peers(policy["clients"][LISTENERS[role]])
                containers = values["sumologic"]["logs"]["container"]["enabled"] and need.port == values["listeners"]["logs"]["otlpHttp"]
                if role == "logs-metadata" and (who == "receivers/otlp/journald" or containers):
                    collector, collector_labels = placed["logs-collector"]
                    clients[need.port] += [{"pods": collector_labels, "namespace": collector["namespace"]}]
    api = policy["kubernetesApi"]
    return Facts.model_validate(
        {
            "name": own["name"],
            "namespace": own["namespace"],
            "pods": labels,
            "dns": {"kind": policy["dns"]["kind"], "nodelocal_cidrs": policy["dns"]["nodelocalCidrs"]},
            "kubernetes_api": {
                "service_cidrs": api["serviceCidrs"],
                "service_port": api["servicePort"],
                "endpoint_cidrs": api["endpointCidrs"],
                "endpoint_port": api["endpointPort"],
            },
            "backend": {"cidrs": policy["backend"]["cidrs"]},
            "services": services,
            "clients": clients,
            "scrapers": peers(policy["scrapers"]),
            "nodes": policy["nodes"],
        }
    )


def plain(thing: Object) -> Object:
    """Without labels, and with rules in an order of their own: it means nothing."""
    thing = json.loads(json.dumps(thing))
    thing["metadata"].pop("labels", None)
    for direction in ("ingress", "egress"):
        if direction in thing.get("spec", {}):
            for rule in thing["spec"][direction]:
                rule["ports"].sort(key=json.dumps)
            thing["spec"][direction].sort(key=lambda rule: json.dumps(rule, sort_keys=True))
    return thing


def by_name(things: list[Object]) -> list[Object]:
    return sorted(map(plain, things), key=lambda each: (each["kind"], each["metadata"]["name"]))


def nested(keys: list[str], value: Any) -> Any:
    """The value below these keys."""
    return {keys[0]: nested(keys[1:], value)} if keys else value


def test_helm_finds_no_fault() -> None:
    assert "0 chart(s) failed" in helm.helm("lint", "--strict", str(CHART))


@cache  # most objects are the same in most cases, and a validation takes 20 ms
def validate(thing: str) -> None:
    kubernetes_validate.validate(json.loads(thing), "1.37", strict=True)


@every_case
def test_every_object_is_one_of_kubernetes(case: str) -> None:
    objects = rendered(case)
    names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in objects]
    assert len(set(names)) == len(names)
    for each in objects:
        if each["kind"] != "SecurityContextConstraints":  # OpenShift's
            validate(json.dumps(each))
    for each in workloads(objects).values():
        spec = pod(each)
        volumes = {volume["name"] for volume in spec["volumes"]} | {
            claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", [])
        }
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            mounts = container["volumeMounts"]
            assert {mount["name"] for mount in mounts} <= volumes
            paths = [mount["mountPath"].rstrip("/") for mount in mounts]
            assert len(set(paths)) == len(paths)


@every_case
def test_every_configuration_is_valid_and_promises_what_it_says(case: str, configured: Any) -> None:
    objects, values = rendered(case), complete(CASES[case])
    found = workloads(objects)
    assert found
    for role, each in found.items():
        configuration = configured(each, objects, values)
        assert not configuration.warnings, role
        container = pod(each)["containers"][0]
        listens = [need for _, need in configuration.needs() if isinstance(need, Listen)]
        listening = {(need.port, need.protocol.upper()) for need in listens if need.host != "127.0.0.1"}
        assert {(port["containerPort"], port["protocol"]) for port in container["ports"]} == listening
        assert container["args"] == ["run", "--config", "/etc/lockgate/configuration/lockgate.yaml"]
        # What it writes is on a volume: the root file system is read-only.
        writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
        for path in {need.path for _, need in configuration.needs() if isinstance(need, Write)} - {"/dev/null"}:
            assert any(Path(path).is_relative_to(mount) for mount in writable), path


@every_case
def test_the_policies_are_those_that_netpol_derives_from_the_rendered_configurations(case: str, configured: Any) -> None:
    objects, values = rendered(case), complete(CASES[case])
    expected = []
    for role, each in workloads(objects).items():
        configuration = configured(each, objects, values)
        known = facts(role, configuration, values, objects)
        expected += netpol.policies(derive(configuration.needs(), known).flows, known)
    assert by_name(of_kind(objects, "NetworkPolicy")) == by_name(expected)


@every_case
def test_the_roles_are_those_that_rbac_derives_from_the_rendered_configurations(case: str, configured: Any) -> None:
    objects, values = rendered(case), complete(CASES[case])
    expected = []
    for each in workloads(objects).values():
        own = each["metadata"]
        needs = configured(each, objects, values).needs()
        granted, warnings = rbac.manifests(needs, f"{own['namespace']}-{own['name']}", own["namespace"], own["name"])
        assert not warnings
        expected += granted
        # A token only where the API is asked.
        assert pod(each)["automountServiceAccountToken"] is bool(granted)
    assert by_name(of_kind(objects, "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")) == by_name(expected)
    if values["rbac"]["namespace"]:
        assert not of_kind(objects, "ClusterRole", "ClusterRoleBinding")


@every_case
def test_everything_but_the_logs_collector_is_restricted(case: str) -> None:
    found = workloads(rendered(case))
    for role, each in found.items():
        containers = [*pod(each).get("initContainers", []), *pod(each)["containers"]]
        assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in containers)
        assert all(container["resources"] for container in containers)
        if role != "logs-collector":
            assert not_restricted(each) == []
    if "logs-collector" in found:
        assert "volume pods" in not_restricted(found["logs-collector"]) or "volume journal" in not_restricted(found["logs-collector"])


def not_restricted(workload: Object) -> list[str]:
    return helm.not_restricted(pod(workload))


@pytest.mark.parametrize(
    ("case", "added"),
    [
        ("defaults", {"changeowner": ["CHOWN"], "otelcol": None}),
        ("rung-root", {"otelcol": None}),
        ("rung-capability", {"changeowner": ["CHOWN"], "otelcol": ["DAC_READ_SEARCH"]}),
    ],
)
def test_the_logs_collector_has_the_rung_that_was_chosen_and_no_more(case: str, added: dict[str, Any]) -> None:
    objects = rendered(case)
    collector = workloads(objects)["logs-collector"]
    spec = pod(collector)
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    assert {each["name"]: each["securityContext"]["capabilities"].get("add") for each in containers} == added
    assert all(each["securityContext"]["capabilities"]["drop"] == ["ALL"] for each in containers)
    assert not any(each["securityContext"]["allowPrivilegeEscalation"] for each in containers)
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsNonRoot"]) == (
        (10001, True) if case == "defaults" else (0, False)
    )
    assert spec["securityContext"].get("supplementalGroups") == ([0] if case == "defaults" else None)
    paths = {volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    assert paths <= {"/var/log/pods", "/var/lib/lockgate", "/var/lib/docker/containers"}
    for container in spec["containers"]:
        assert all(
            mount.get("readOnly") for mount in container["volumeMounts"] if mount["mountPath"].startswith(("/var/log", "/var/lib/d"))
        )


def values_of(lines: list[str]) -> dict[str, Any]:
    """What a user writes who is told to set these keys."""
    values: dict[str, Any] = {}
    for line in lines:
        path, _, value = line.partition(": ")
        *above, last = path.split(".")
        reduce(lambda inner, key: inner.setdefault(key, {}), above, values)[last] = yaml.safe_load(value)
    return values


@needs_root
@pytest.mark.parametrize(
    ("grant", "files"),
    [
        pytest.param(Grant(Rung.GROUP), [(0o640, 0, 0)], id="group"),
        pytest.param(Grant(Rung.GROUP, frozenset({190})), [(0o640, 0, 190)], id="journal"),
        pytest.param(Grant(Rung.GROUP, frozenset({4, 190})), [(0o640, 0, 190), (0o640, 0, 4)], id="groups"),
        pytest.param(Grant(Rung.ROOT), [(0o600, 0, 0)], id="root"),
        pytest.param(Grant(Rung.ROOT, frozenset({190})), [(0o600, 0, 0), (0o640, 5, 190)], id="root-in-a-group"),
        pytest.param(Grant(Rung.CAPABILITY), [(0o600, 5, 5)], id="capability"),
    ],
)
def test_with_the_keys_that_an_agent_names_its_pod_has_just_what_it_asked_for(grant: Grant, files: list[tuple[int, int, int]]) -> None:
    with open_directory() as directory:
        for number, (mode, uid, gid) in enumerate(files):
            place(directory / f"{number}.log", mode, uid, gid, "")
        settings = {
            "receivers": {"filelog": {"include": [f"{directory}/*.log"]}},
            "exporters": {"debug": {}},
            "service": {"pipelines": {"logs": {"receivers": ["filelog"], "exporters": ["debug"]}}},
        }
        place(directory / "config.yaml", 0o644, text=json.dumps(settings))

        def found(prefix: list[str]) -> Any:
            program = [sys.executable, "-P", "-m", "lockgate.cli.main", "privileges", "--format", "json"]
            command = [*prefix, *program, "--config", str(directory / "config.yaml")]
            return json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout)

        told = found(becoming(10001, 10001))
        assert (told["verdict"], told["least"]["values"]) == ("too little", grant.values)
        values = values_of(told["least"]["values"])
        assert not [line for line in helm.notes(values).splitlines() if "otellogs.privilege" in line or "supplementalGroups" in line]
        spec = pod(workloads(helm.render(values))["logs-collector"])
        security = spec["securityContext"]
        expected = Process(10001, 10001, frozenset()).on(grant.rung, grant.groups)
        assert security["runAsUser"] == expected.uid
        assert {security["runAsGroup"], 0, *security.get("supplementalGroups", [])} == set(expected.groups)
        after = found(contained(security, spec["containers"][0]["securityContext"]))
        assert (after["verdict"], after["advice"], after["reads"]) == ("enough", [], {"files": len(files), "directories": 1})
        assert after["capabilities"] == (["DAC_READ_SEARCH"] if expected.reads_all else [])


def test_on_openshift_the_ids_are_left_to_restricted_v2() -> None:
    objects = rendered("openshift")
    [constraints] = of_kind(objects, "SecurityContextConstraints")
    assert constraints["users"] == ["system:serviceaccount:sumo-nodes:r-lockgate-logs-collector"]
    assert (constraints["allowPrivilegedContainer"], constraints["allowedCapabilities"]) == (False, ["CHOWN"])
    for role, each in workloads(objects).items():
        assert bool(pod(each)["securityContext"].keys() & {"runAsUser", "runAsGroup", "fsGroup"}) is (role == "logs-collector")


def test_the_logs_collector_lives_in_a_namespace_of_its_own() -> None:
    objects = rendered("defaults")
    own = {
        each["metadata"]["namespace"]
        for each in objects
        if each["metadata"].get("labels", {}).get("app.kubernetes.io/component") == "logs-collector"
    }
    assert own == {"sumo-nodes"}
    [namespace] = of_kind(objects, "Namespace")
    assert namespace["metadata"] == {"name": "sumo-nodes", "labels": {"pod-security.kubernetes.io/enforce": "privileged"}}
    assert not of_kind(rendered("one-namespace-for-all"), "Namespace")


@pytest.mark.parametrize("signal", ["logs", "metrics", "traces", "events"])
def test_a_pipeline_that_is_off_renders_nothing(signal: str) -> None:
    off = {"sumologic": {signal: {"enabled": False}}}
    roles = {component(each) for each in helm.render(off) if each["kind"] != "Namespace"}
    assert roles == {role for role in PRESETS if signal not in role}


def test_with_everything_off_nothing_at_all_is_rendered() -> None:
    off = {"sumologic": {signal: {"enabled": False} for signal in ("logs", "metrics", "traces", "events")}}
    assert helm.render(off) == []
    assert "Nothing is on" in helm.notes(off)


def test_nothing_is_a_hook() -> None:
    assert not any("helm.sh/hook" in each["metadata"].get("annotations", {}) for case in CASES for each in rendered(case))


@pytest.mark.parametrize("role", PRESETS)
def test_by_default_a_role_is_its_preset(role: str, configured: Any) -> None:
    values = {
        "sumologic": {"logs": {"systemd": {"enabled": True}}, "events": {"persistence": {"maxQueueSize": "4GiB"}}},
        "otellogs": {"dockerContainers": True},
        "metadata": {"persistence": {"maxQueueSize": "4GiB"}},
    }
    objects = helm.render(values)
    built = configured(workloads(objects)[role], objects, complete(values))
    journals = {"logs-collector": ["journald"], "logs-metadata": ["journald_metadata"]}
    environment = {
        "LOCKGATE_BACKEND_URL": "https://receivers.example.com:443/receiver/v1/otlp/SECRET",
        "LOCKGATE_NODE": "node-1",
        "LOCKGATE_JOURNAL": "/var/log/journal",
        "LOCKGATE_LOGS_METADATA_URL": "http://r-lockgate-logs-metadata.sumo.svc.cluster.local:4318",
        "LOCKGATE_JOURNALD_METADATA_URL": "http://r-lockgate-logs-metadata.sumo.svc.cluster.local:4319",
        "LOCKGATE_STATE": "/var/lib/lockgate/storage",
    }
    preset = load([PRESETS[role], *journals.get(role, [])], environment=environment)
    assert {each.id: each for each in built.pipelines}.keys() == {each.id: each for each in preset.pipelines}.keys()
    assert built.components.keys() == preset.components.keys()
    for key, expected in preset.components.items():
        # What a trace's source is called is the collection's choice, and the journal's queue is bounded like the containers'.
        if (role, key[1]) not in {("traces", "source"), ("logs-collector", "otlphttp/journald")}:
            assert built.components[key].settings == expected.settings, key


def test_one_pod_alone_reads_events_and_nobody_may_send_it_anything() -> None:
    objects = [
        each for each in rendered("everybody-named") if each["metadata"].get("labels", {}).get("app.kubernetes.io/component") == "events"
    ]
    assert sorted({each["kind"] for each in objects}) == [
        *("ClusterRole", "ClusterRoleBinding", "ConfigMap", "NetworkPolicy", "Service", "ServiceAccount", "StatefulSet")
    ]
    [workload] = of_kind(objects, "StatefulSet")
    assert workload["spec"]["replicas"] == 1
    [allow] = [each for each in of_kind(objects, "NetworkPolicy") if each["metadata"]["name"].endswith("-allow")]
    assert [[port["port"] for port in rule["ports"]] for rule in allow["spec"]["ingress"]] in ([[13133], [8888]], [[8888], [13133]])


def test_what_a_user_says_of_events_is_what_is_rendered(configured: Any) -> None:
    values = CASES["events-as-told"]
    objects = rendered("events-as-told")
    workload = workloads(objects)["events"]
    source: Any = configured(workload, objects, complete(values)).components[Kind.PROCESSOR, "source"].settings
    assert (source.source_name, source.source_category, source.source_category_replace_dash) == ("k8s", "ops/a-b", "_")
    claim = workload["spec"]["volumeClaimTemplates"][0]
    assert (claim["spec"]["storageClassName"], claim["spec"]["accessModes"]) == ("fast", ["ReadWriteMany"])
    assert (claim["spec"]["resources"]["requests"]["storage"], claim["metadata"]["labels"]) == ("2Gi", {"e": "5"})
    spec = pod(workload)
    assert (spec["nodeSelector"], spec["priorityClassName"]) == ({"disk": "ssd"}, "high")
    assert spec["containers"][0]["image"] == "r/l:7" and {"name": "A", "value": "b"} in spec["containers"][0]["env"]
    without = helm.notes(CASES["events-in-memory"])
    assert "sumologic.events.persistence.enabled: without it the position goes with the pod" in without
    assert "endpoint-events-otlp" in helm.notes({})


def test_a_changed_configuration_rolls_the_pods_and_nothing_else_does() -> None:
    def checksums(values: Any) -> dict[str, str]:
        return {
            role: each["spec"]["template"]["metadata"]["annotations"]["checksum/configuration"]
            for role, each in workloads(helm.render(values)).items()
        }

    before = checksums({})
    after = checksums({"metadata": {"logs": {"logLevel": "debug"}, "metrics": {"statefulset": {"replicaCount": 5}}}})
    assert {role for role in before if before[role] != after[role]} == {"logs-metadata"}


def test_the_keys_of_the_security_document_work_as_it_shows_them() -> None:
    objects = rendered("seed")
    found = workloads(objects)
    logs, metrics, collector = pod(found["logs-metadata"]), pod(found["metrics-metadata"]), pod(found["logs-collector"])
    assert logs["securityContext"]["fsGroup"] == metrics["securityContext"]["fsGroup"] == 999
    assert {"mountPath": "/tmp/", "name": "tmp-volume-logs"} in logs["containers"][0]["volumeMounts"]
    assert (collector["securityContext"]["runAsUser"], collector["securityContext"]["runAsNonRoot"]) == (0, False)
    [certificates] = metrics["initContainers"]
    mounts = {mount["name"]: mount for mount in certificates["volumeMounts"]}
    assert mounts["root-ca-cert"]["readOnly"] is True
    assert "readOnly" not in mounts["certs"]  # it is filled there; read-only it could not be
    assert {"name": "certs", "mountPath": "/etc/ssl/certs/", "readOnly": True} in metrics["containers"][0]["volumeMounts"]
    events = pod(found["events"])
    assert events["securityContext"]["fsGroup"] == 998
    assert events["containers"][0]["securityContext"]["runAsUser"] == 998
    for spec in (logs, metrics, collector, events):
        assert spec["containers"][0]["image"].endswith("-fips")
    ports = {role: {port["containerPort"] for port in pod(each)["containers"][0]["ports"]} for role, each in found.items()}
    assert (2020 in ports["logs-collector"], 24321 in ports["logs-metadata"], 55681 in ports["traces"]) == (True, True, True)
    told = helm.notes(SEED)
    assert "no effect" not in told
    assert "update-certificates mounts the emptyDir certs read-only" in told


def test_the_forms_that_were_silently_ignored_mean_what_they_say() -> None:
    spec = pod(workloads(helm.render(SEED_SECRET_OVER_CERTS))["metrics-metadata"])
    assert {"name": "certs", "secret": {"secretName": "root-ca-cert"}} in spec["volumes"]
    assert {"name": "certs", "mountPath": "/etc/ssl/certs/", "readOnly": True} in spec["containers"][0]["volumeMounts"]


@pytest.mark.parametrize(
    ("image", "own", "rendered_as"),
    [
        pytest.param({}, {}, "lockgate:VERSION", id="loaded-into-the-nodes"),
        pytest.param({"repository": "r:5000/l"}, {}, "r:5000/l:VERSION", id="registry"),
        pytest.param({"repository": "r/l", "tag": "1"}, {"tag": "2"}, "r/l:2", id="of-one-role"),
        pytest.param({"addFipsSuffix": True}, {}, "lockgate:VERSION-fips", id="fips"),
        pytest.param({"repository": "r/l", "tag": "1", "addFipsSuffix": True}, {}, "r/l:1-fips", id="fips-of-a-tag"),
        pytest.param({"tag": "1-fips", "addFipsSuffix": True}, {}, "lockgate:1-fips", id="fips-once"),
        pytest.param({"addFipsSuffix": True}, {"repository": "r/l", "tag": "2"}, "r/l:2-fips", id="fips-of-one-role"),
    ],
)
def test_the_image_is_the_one_that_was_meant(image: Any, own: Any, rendered_as: str) -> None:
    values = {"sumologic": {"otelcolImage": image}, "metadata": {"image": own}}
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert pod(workloads(helm.render(values))["logs-metadata"])["containers"][0]["image"] == rendered_as.replace("VERSION", version)
    assert ("sumologic.otelcolImage.repository: not set; nodes find" in helm.notes(values)) is ("repository" not in image)


def test_one_key_mounts_certificates_into_the_roles_that_connect_and_says_which_are_needed(configured: Any) -> None:
    values = CASES["mutual-tls"]
    objects = rendered("mutual-tls")
    for role, each in workloads(objects).items():
        secured = {
            key for key in ("receivers/otlp", "receivers/otlp/journald", "exporters/otlphttp", "exporters/otlphttp/journald")
            if any(who == key and str(getattr(need, "path", "")).startswith("/etc/lockgate/mutual-tls")
                   for who, need in configured(each, objects, complete(values)).needs())
        }  # fmt: skip
        assert (
            secured
            == {
                "logs-collector": {"exporters/otlphttp", "exporters/otlphttp/journald"},
                "logs-metadata": {"receivers/otlp", "receivers/otlp/journald"},
                "metrics-metadata": {"receivers/otlp"},
                "traces": set(),
                "events": set(),
            }[role]
        )
        mounted = [volume["secret"]["secretName"] for volume in pod(each)["volumes"] if "secret" in volume]
        assert mounted == ["ours"] * bool(secured)
    told = helm.notes(values)
    assert "The Secret ours in sumo-nodes must hold tls.crt, tls.key and ca.crt of r-lockgate-logs-collector.\n" in told
    assert "of r-lockgate-logs-metadata, valid for r-lockgate-logs-metadata.sumo.svc.cluster.local.\n" in told
    assert "listeners.logs.fluentForward: mutualTls does not secure it" in told
    assert "networkPolicy.clients.metrics: with mutualTls these need a certificate" in told


def test_each_roles_ledger_is_where_the_values_say_or_nowhere(configured: Any) -> None:
    objects, values = rendered("ledger-elsewhere-or-off"), complete(CASES["ledger-elsewhere-or-off"])
    found = {}
    for role, each in workloads(objects).items():
        listens = {who: need.port for who, need in configured(each, objects, values).needs() if isinstance(need, Listen)}
        found[role] = listens.get("extensions/ledger")
    assert found == {"logs-collector": 13135, "logs-metadata": 13200, "metrics-metadata": None, "traces": 13134, "events": None}


def test_what_a_user_gives_lands_where_kubernetes_has_it() -> None:
    objects = rendered("everything-of-kubernetes")
    logs, collector = workloads(objects)["logs-metadata"], workloads(objects)["logs-collector"]
    template = logs["spec"]["template"]["metadata"]
    assert template["labels"] == {"team": "ops", **logs["spec"]["selector"]["matchLabels"]}  # a selector's labels cannot be taken over
    assert {"a": "1", "b": "2"}.items() <= template["annotations"].items()
    spec = pod(logs)
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["priorityClassName"] == "high"
    assert "requiredDuringSchedulingIgnoredDuringExecution" in spec["affinity"]["podAntiAffinity"]
    container = spec["containers"][0]
    assert {"name": "A", "value": "b"} in container["env"]
    assert container["readinessProbe"] == {
        "httpGet": {"path": "/ready", "port": "health"}, "periodSeconds": 7, "timeoutSeconds": 3, "failureThreshold": 3,
    }  # fmt: skip
    claim = logs["spec"]["volumeClaimTemplates"][0]
    assert (claim["spec"]["storageClassName"], claim["metadata"]["labels"]) == ("fast", {"e": "5"})
    scaler = next(each for each in of_kind(objects, "HorizontalPodAutoscaler") if component(each) == "logs-metadata")
    assert [metric["resource"]["name"] for metric in scaler["spec"]["metrics"]] == ["cpu", "memory"]
    budget = next(each for each in of_kind(objects, "PodDisruptionBudget") if component(each) == "logs-metadata")
    assert budget["spec"]["minAvailable"] == "50%"
    assert collector["spec"]["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": "20%"}
    assert {"key": "dedicated", "operator": "Exists"} in pod(collector)["tolerations"]


def test_the_sandbox_can_be_required_of_every_role(configured: Any) -> None:
    objects = rendered("sandbox-required")
    modes = {role: configured(each, objects, complete({})).service.sandbox for role, each in workloads(objects).items()}
    assert modes == dict.fromkeys(PRESETS, "require")


def test_regular_expressions_that_lockgate_knows_are_taken_as_they_are(configured: Any) -> None:
    exclude = {
        "excludeContainerRegex": "(?i)^istio|\\Qa.b",
        "excludeHostRegex": "a{2}$",
        "excludeNamespaceRegex": "|kube-.*",
        "excludePodRegex": r"\d+\.[^\]/\\]\pL",
    }
    values = {"sumologic": {"logs": {"container": exclude}}}
    objects = helm.render(values)
    logs = configured(workloads(objects)["logs-metadata"], objects, complete(values))
    source: Any = logs.components[Kind.PROCESSOR, "source"].settings
    assert sorted(source.exclude.values()) == sorted(exclude.values())


def test_a_configuration_is_merged_into_or_replaced(configured: Any) -> None:
    values = {
        "metadata": {"logs": {"config": {"merge": {"processors": {"memory_limiter": {"limit_percentage": 50}}}}}},
        "otelcolInstrumentation": {"config": {"override": yaml.safe_load((ROOT / "src/lockgate/presets/traces.yaml").read_text())}},
        "networkPolicy": {"extra": {"logs": {"egress": [{"ports": [{"protocol": "TCP", "port": 9092}]}]}}},
    }
    objects = helm.render(values)
    found = workloads(objects)
    logs = configured(found["logs-metadata"], objects, complete(values))
    limiter: Any = logs.components[Kind.PROCESSOR, "memory_limiter"].settings
    assert (limiter.limit_percentage, limiter.spike_limit_percentage) == (50, 20)
    assert configured(found["traces"], objects, complete(values)).components.keys() == load(["traces"], environment={}).components.keys()
    [policy] = [each for each in of_kind(objects, "NetworkPolicy") if each["metadata"]["name"] == "r-lockgate-logs-metadata-allow"]
    assert {"ports": [{"protocol": "TCP", "port": 9092}]} in policy["spec"]["egress"]
    assert "metadata.logs.config.merge: network policies and roles follow from the other values" in helm.notes(values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param({"sumologic": {"log": {"enabled": True}}}, "sumologic.log: unknown key; did you mean sumologic.logs?", id="typo"),
        pytest.param({"tracesGatewy": {}}, "tracesGatewy: unknown key; did you mean tracesGateway?", id="typo-in-what-moved"),
        pytest.param(
            {"metadata": {"metrics": {"statefulset": {"replicas": 2}}}},
            "metadata.metrics.statefulset.replicas: unknown key; did you mean metadata.metrics.statefulset.replicaCount?",
            id="nearly",
        ),
        pytest.param(
            {"backend": {"xyz": 1}},
            "backend.xyz: unknown key; backend takes existingSecret, exporter, keys, port, tokenKey, url",
            id="nothing-near",
        ),
        pytest.param({"sumologic": {"logs": {"enabled": "yes"}}}, "'/sumologic/logs/enabled': got string, want boolean", id="type"),
        pytest.param(
            {"otellogs": {"privilege": "rot"}}, "'/otellogs/privilege': value must be one of 'group', 'root', 'capability'", id="choice"
        ),
        pytest.param({"networkPolicy": {"nodes": ["10.0.0.1"]}}, "/networkPolicy/nodes/0", id="no-network"),
        *(
            pytest.param({"networkPolicy": {"nodes": [block]}}, "/networkPolicy/nodes/0", id=f"no-network-{block}")
            for block in ("999.1.1.1/32", "10.0.0.0/33", "fd00::/129", "10.0.0/8")
        ),
        *(
            pytest.param({"otellogs": {"state": {"path": path}}}, f"otellogs.state.path: all of {path} would be given", id=f"not-{path}")
            for path in ("/", "/etc", "/var/lib", "/var/lib/", "/var/log/pods", "/var/lib/kubelet/pods", "/var/lib/../..", "/opt")
        ),
        pytest.param({"otellogs": {"state": {"maxQueueSize": "lots"}}}, "'/otellogs/state/maxQueueSize'", id="no-size"),
        pytest.param({"metadata": {"logs": {"waitForMetadataTimeout": "10"}}}, "waitForMetadataTimeout'", id="no-duration"),
        pytest.param({"backend": {"url": "https://user:word@a.example"}}, "'/backend/url'", id="password-in-a-configmap"),
        pytest.param({"sumologic": {"clusterDNSDomain": "a b"}}, "'/sumologic/clusterDNSDomain'", id="no-domain"),
        *(
            pytest.param({"metadata": {"logs": {"statefulset": given}}}, f"metadata.logs.statefulset.{said}", id=said)
            for given, said in (
                ({"extraVolumes": [{"name": "tmp"}]}, "extraVolumes: tmp is the name of the chart's own volume"),
                ({"extraVolumes": [{"name": "a"}, {"name": "a"}]}, "extraVolumes: a is the name of another volume"),
                ({"extraVolumeMounts": [{"name": "a", "mountPath": "/a"}]}, "extraVolumeMounts: no volume is called a"),
                ({"extraVolumeMounts": [{"name": "state", "mountPath": "/var/lib/lockgate/"}]}, "extraVolumeMounts: the volume state is"),
            )
        ),
        pytest.param({"backend": {"existingSecret": "a, optional: true"}}, "'/backend/existingSecret'", id="no-name"),
        pytest.param({"sumologic": {"otelcolImage": {"tag": "a: b"}}}, "'/sumologic/otelcolImage/tag'", id="no-tag"),
        pytest.param({"metadata": {"persistence": {"size": "ten"}}}, "'/metadata/persistence/size'", id="no-quantity"),
        pytest.param({"networkPolicy": {"scrapers": [{"pod": {"a": "b"}}]}}, "additional properties 'pod' not allowed", id="peer"),
        pytest.param({"networkPolicy": {"scrapers": [{}]}}, "/networkPolicy/scrapers/0", id="peer-that-is-everybody"),
        pytest.param({"listeners": {"logs": {"health": 70000}}}, "'/listeners/logs/health': maximum: got 70,000, want 65,535", id="port"),
        pytest.param(
            {"listeners": {"traces": {"otlpGrpc": 4318}}},
            "listeners.traces.otlpHttp: port 4318 is that of listeners.traces.otlpGrpc",
            id="port-twice",
        ),
        pytest.param(
            {"listeners": {"logs": {"otlpGrpc": 443}}},
            "listeners.logs.otlpGrpc: a program without privileges cannot listen on port 443",
            id="low-port",
        ),
        pytest.param({"listeners": {"metrics": {"otlpHttp": 0}}}, "listeners.metrics: nothing is received", id="deaf"),
        pytest.param(
            {"listeners": {"logs": {"otlpHttp": 0, "otlpGrpc": 4317}}},
            "listeners.logs.otlpHttp: the logs collector sends to it",
            id="collector-without-peer",
        ),
        pytest.param(
            {"listeners": {"logsCollector": {"health": 13134}}},
            "listeners.logsCollector.ledger: port 13134 is that of listeners.logsCollector.health already",
            id="ledgers-port",
        ),
        pytest.param(
            {"listeners": {"events": {"ledger": 13133}}},
            "listeners.events.ledger: port 13133 is that of listeners.events.health already",
            id="ledgers-port-of-events",
        ),
        *(
            pytest.param({"sumologic": {"events": {"persistence": given}}}, f"'/sumologic/events/persistence/{said}'", id=f"events-{said}")
            for given, said in (
                ({"size": "ten"}, "size"),
                ({"maxQueueSize": "lots"}, "maxQueueSize"),
                ({"persistentVolume": {"accessMode": "Anyhow"}}, "persistentVolume/accessMode"),
            )
        ),
        *(
            pytest.param(given, f'{where}.{key}: "{said}" is no regular expression that Go (RE2) knows', id=f"{where}.{key}-{said}")
            for where, key, pattern, said in (
                ("sumologic.logs.container", "excludeNamespaceRegex", "kube-(system", "kube-(system"),
                ("sumologic.logs.container", "excludePodRegex", "[a-", "[a-"),
                ("sumologic.logs.container", "excludeContainerRegex", "(?!istio)", "(?!istio)"),
                ("sumologic.logs.container", "excludeHostRegex", "a)|(b", "a)|(b"),
                ("sumologic.metrics", "excludeNamespaceRegex", "*", "*"),
                ("otelcolInstrumentation.sourceMetadata", "excludePodRegex", "\\", "\\\\"),
            )
            for given in [nested([*where.split("."), key], pattern)]
        ),
        pytest.param({"otellogs": {"logLevel": "loud"}}, "'/otellogs/logLevel': value must be one of 'debug', 'info'", id="log-level"),
        pytest.param({"backend": {"keys": {"events": ""}}}, "'/backend/keys/events'", id="no-key"),
        pytest.param(
            {"otelevents": {"statefulset": {"extraVolumes": [{"name": "state"}]}}, "metadata": {"persistence": {"enabled": False}}},
            "otelevents.statefulset.extraVolumes: state is the name of the chart's own volume",
            id="volume-of-events",
        ),
        pytest.param(
            {"metadata": {"logs": {"statefulset": {"extraVolumes": [{"name": "mutual-tls"}]}}}, "mutualTls": {"enabled": True}},
            "metadata.logs.statefulset.extraVolumes: mutual-tls is the name of the chart's own volume",
            id="volume-of-certificates",
        ),
        pytest.param(
            {"mutualTls": {"enabled": True, "existingSecret": ""}},
            "mutualTls.existingSecret: mutualTls.enabled needs",
            id="no-certificates",
        ),
        pytest.param(
            {"sumologic": {"otelcolImage": {"repository": ""}}},
            "sumologic.otelcolImage.repository: nothing says where the image is",
            id="no-image",
        ),
        pytest.param(
            {"metadata": {"image": {"repository": "registry.example.com:5000/lockgate:0.1"}}},
            "metadata.image.repository: names a tag or digest as well; say that in metadata.image.tag",
            id="image-with-its-tag",
        ),
        pytest.param({"listeners": {"traces": {"health": 0}}}, "listeners.traces.health: 0 is no port", id="no-health"),
        pytest.param({"backend": {"existingSecret": ""}}, "backend.existingSecret: nothing says where data goes", id="no-backend"),
        pytest.param(
            {"backend": {"existingSecret": "", "url": "https://a.example", "tokenKey": "t"}},
            "backend.tokenKey: names a key of a Secret",
            id="token-of-no-secret",
        ),
        pytest.param(
            {"sumologic": {"otelcolImage": {"addFipsSuffix": True, "digest": "sha256:" + "a" * 64}}},
            "sumologic.otelcolImage.addFipsSuffix",
            id="suffix-to-a-digest",
        ),
        pytest.param(
            {"metadata": {"logs": {"podDisruptionBudget": {"minAvailable": 3}}}},
            "metadata.logs.podDisruptionBudget.minAvailable: with 3 replicas",
            id="undrainable",
        ),
        pytest.param(
            {"metadata": {"logs": {"podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": 1}}}},
            "maxUnavailable is set as well",
            id="two-budgets",
        ),
        pytest.param(
            {"metadata": {"logs": {"autoscaling": {"minReplicas": 11}}}},
            "metadata.logs.autoscaling.minReplicas: more than maxReplicas",
            id="autoscaling",
        ),
        pytest.param(
            {"metadata": {"logs": {"enabled": False}}},
            "metadata.logs.enabled: the logs collector sends to logs metadata",
            id="half-a-pipeline",
        ),
        pytest.param(
            {"metadata": {"logs": {"config": {"merge": {"a": 1}, "override": {"b": 1}}}}},
            "metadata.logs.config.merge",
            id="merge-and-override",
        ),
        pytest.param(
            {"rbac": {"namespace": "shop"}, "metadata": {"metrics": {"extractNodeLabels": True}}},
            "metadata.metrics.extractNodeLabels",
            id="nodes-in-a-namespace",
        ),
        pytest.param(
            {"rbac": {"namespace": "shop"}, "sumologic": {"logs": {"systemd": {"enabled": True}}}},
            "sumologic.logs.systemd.enabled",
            id="journal-in-a-namespace",
        ),
        pytest.param(
            {"otellogs": {"daemonset": {"securityContext": {"runAsUser": 0, "runAsNonRoot": True}}}},
            "otellogs.daemonset.securityContext.runAsNonRoot",
            id="root-and-not",
        ),
        pytest.param(
            {"otellogs": {"privilege": "capability", "daemonset": {"securityContext": {"runAsUser": 10001}}}},
            "otellogs.privilege: a capability does nothing",
            id="rung",
        ),
        pytest.param(
            {"networkPolicy": {"backend": {"cidrs": ["10.0.0.0/8"], "pods": {"a": "b"}}}}, "networkPolicy.backend.cidrs", id="backend-twice"
        ),
        pytest.param(
            {"networkPolicy": {"clients": {"traces": [{"cidrs": ["10.0.0.0/8"], "pods": {"a": "b"}}]}}},
            "networkPolicy.clients.traces[0]",
            id="peer-twice",
        ),
    ],
)
def test_bad_values_are_refused_by_the_name_of_the_key(values: Any, said: str) -> None:
    with pytest.raises(Refused) as refused:
        helm.render(values)
    assert said in str(refused.value)


def test_an_empty_section_is_named_and_an_empty_list_or_mapping_is_one() -> None:
    """As where everything below a key is commented out: Helm then takes the chart's default away."""
    for key in (
        *("metadata.metrics", "networkPolicy", "networkPolicy.enabled", "otellogs.privilege", "sumologic.otelcolImage.repository"),
        *("otelevents", "otelevents.statefulset", "otelevents.logLevel", "sumologic.events.persistence", "listeners.events.ledger"),
    ):
        values: Any = None
        for part in reversed(key.split(".")):
            values = {part: values}
        with pytest.raises(Refused, match=re.escape(f"{key}: empty, which takes the chart's default away")):
            helm.render(values)
    empty = {
        "sumologic": {"podLabels": None, "tolerations": None, "affinity": None},
        "metadata": {"podLabels": None, "logs": {"statefulset": {"resources": None}, "config": {"merge": None}}},
        "otellogs": {"daemonset": {"tolerations": None, "labels": None}, "image": {"tag": None}},
        "otelevents": {"statefulset": {"resources": None, "podLabels": None}, "config": {"merge": None}, "image": {"tag": None}},
        "networkPolicy": {"clients": {"logs": None}},
    }
    found = workloads(helm.render(empty))
    assert "tolerations" not in pod(found["logs-collector"])
    assert pod(found["logs-metadata"])["containers"][0]["resources"] == pod(found["events"])["containers"][0]["resources"] == {}


def test_a_name_that_yaml_would_read_as_a_number_stays_a_name() -> None:
    names = {
        "backend": {"existingSecret": "123", "keys": {"logs": "456"}, "tokenKey": "789"},
        "otellogs": {"namespace": {"name": "007"}, "daemonset": {"priorityClassName": "1e3"}},
        "metadata": {"persistence": {"storageClass": "12"}, "logs": {"statefulset": {"priorityClassName": "true"}}},
    }
    objects = helm.render(names)
    for each in objects:
        validate(json.dumps(each))
    assert {each["metadata"]["namespace"] for each in of_kind(objects, "DaemonSet")} == {"007"}


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(Refused) as refused:
        helm.render({"sumologic": {"log": 1}, "metdata": 1, "rbac": {"creat": True}})
    assert str(refused.value).count("did you mean") == 3


def test_keys_that_mean_nothing_here_are_named_with_what_to_do_instead() -> None:
    told = helm.notes({"sumologic": {"accessId": "x", "accessKey": "y"}, "falco": {"enabled": False}, "tracesGateway": {"enabled": True}})
    assert "sumologic.accessId, sumologic.accessKey: no effect here; there is no setup job; make the sources" in told
    assert "falco: no effect here; nothing else is installed with Lockgate" in told
    assert "tracesGateway: no effect here; one role takes" in told
    assert "no effect" not in helm.notes({})


def test_pods_that_a_restricted_namespace_would_refuse_are_told_of() -> None:
    for context in ({"runAsUser": 0}, {"runAsNonRoot": False}):
        assert "WARNING: metadata.securityContext: as root" in helm.notes({"metadata": {"securityContext": context}})
        told = helm.notes({"otelevents": {"statefulset": {"securityContext": context}}})
        assert "WARNING: otelevents.statefulset.securityContext: as root" in told and "metadata.securityContext" not in told
        assert "securityContext" not in helm.notes({"metadata": {"securityContext": context}, **CASES["only-events"]})
    assert "metadata.securityContext" not in helm.notes({"metadata": {"securityContext": {"fsGroup": 999, "runAsNonRoot": True}}})


def collection_values() -> dict[str, Any]:
    """The keys of the Sumo Logic Kubernetes Collection, with their defaults; None where there is none."""
    rows = [line.partition("\t") for line in (ROOT / "tests/data/collection_values.txt").read_text().splitlines()[1:]]
    return {key: json.loads(default) if default else None for key, _, default in rows}


def test_the_values_file_of_the_collection_moves_over_but_for_the_image(configured: Any) -> None:
    values: Any = {}
    for key, default in collection_values().items():
        if default is not None:
            nested: Any = default
            for part in reversed(key.removesuffix(".*").split(".")):
                nested = {part: nested}
            values = helm.overlay(values, nested)
    with pytest.raises(Refused, match=r"otelcolImage\.repository: .* is another program's image"):
        helm.render(values)
    del values["sumologic"]["otelcolImage"]["repository"], values["sumologic"]["otelcolImage"]["tag"]
    objects = helm.render(values)
    for role, each in workloads(objects).items():
        configuration = configured(each, objects, complete(values))
        assert not configuration.warnings, role
        if role == "logs-metadata":
            source: Any = configuration.components[Kind.PROCESSOR, "source"].settings
            assert source.source_name == "%{k8s.namespace.name}.%{k8s.pod.name}.%{k8s.container.name}"
            assert source.source_category == "%{k8s.namespace.name}/%{k8s.pod.pod_name}"
    assert workloads(objects).keys() == PRESETS.keys()


def test_every_key_of_the_collection_either_works_or_is_explained() -> None:
    schema = yaml.safe_load((CHART / "files/schema.yaml").read_text())
    moved = [key for group in yaml.safe_load((CHART / "files/moved.yaml").read_text()) for key in group["keys"]]
    assert len(set(moved)) == len(moved)

    def is_known(path: list[str], node: Any) -> bool:
        if not path or "properties" not in node:
            return True
        return path[0] in node["properties"] and is_known(path[1:], node["properties"][path[0]])

    lines = collection_values()
    assert len(lines) > 500
    for line in lines:
        key = line.removesuffix(".*")
        is_moved = any(key == each or key.startswith(f"{each}.") for each in moved)
        assert is_moved != is_known(key.split("."), schema), key
    for key in moved:
        assert any(line.startswith(key) for line in lines), key


def test_the_schema_is_the_one_that_the_templates_read() -> None:
    written = yaml.safe_load((CHART / "files/schema.yaml").read_text())
    del written["x-types"]
    assert json.loads((CHART / "values.schema.json").read_text()) == written, "run: python deploy/helm/schema.py"


def test_every_default_has_a_type_and_every_type_a_default() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def paths(node: Any, values: Any, path: str) -> set[tuple[str, str]]:
        if "properties" not in node or not isinstance(values, dict):
            return set()
        found = {("no type", f"{path}{key}") for key in values.keys() - node["properties"].keys()}
        found |= {("no default", f"{path}{key}") for key in node["properties"].keys() - values.keys()}
        for key in node["properties"].keys() & values.keys():
            found |= paths(node["properties"][key], values[key], f"{path}{key}.")
        return found

    found = {each for each in paths(schema, complete({}), "") if each[1] != "global"}
    assert {kind for kind, _ in found} <= {"no default"}
    # Alternative places, and what is taken from elsewhere where it is not given.
    elsewhere = r"(metadata\.\w+|otelcolInstrumentation)\.(extraVolumes|extraVolumeMounts|initContainers)"
    left_out = rf"{elsewhere}|.*image\.(repository|tag)|.*sourceMetadata\.sourceHost"
    assert [path for _, path in found if not re.fullmatch(left_out, path)] == []


def test_the_chart_carries_the_version_of_the_program() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == project["version"]


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/kubernetes.md").read_text(), re.S))
def test_the_values_in_the_documentation_render(text: str) -> None:
    assert helm.render(yaml.safe_load(text))


def test_the_state_directory_is_given_away_with_chown_alone(tmp_path: Path) -> None:
    command = pod(workloads(rendered("defaults"))["logs-collector"])["initContainers"][0]["command"]
    assert command[:2] == ["python3", "-IBc"]
    only_chown = ["setpriv", "--bounding-set=-all,+chown", "--inh-caps=-all", "--no-new-privs"]
    if subprocess.run([*only_chown, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root and setpriv")
    top = tmp_path / "state"
    (top / "storage").mkdir(parents=True)
    (top / "storage" / "positions").write_text("here")
    (top / "storage" / "link").symlink_to("/etc/passwd")
    for uid in (10001, 0, 10002):
        script = [sys.executable, *command[1:3], str(top), str(uid), str(uid)]
        done = subprocess.run([*only_chown, *script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        everything = [top, top / "storage", top / "storage" / "positions", top / "storage" / "link"]
        assert {path.lstat().st_uid for path in everything} == {uid}
        (top / "storage").chmod(0o700)
    assert Path("/etc/passwd").stat().st_uid == 0
