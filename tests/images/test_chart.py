"""The chart in the images: its pods as rendered, under its policies as rendered, from the nodes' files and the API to a TLS backend."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import shutil
import socket
import ssl
import struct
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cramjam
import pytest
import trustme
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from support import container, helm, journal, netns, pods, span_clients
from support.backend import Backend
from support.chart_values import SEED, SEED_LISTENERS
from support.container import Container, Image, Process
from support.events_contract import event
from support.helm import Object, of_kind, overlay, workloads
from support.kubernetes import apply, sample_in_thread
from support.kubernetes import pod as pod_object
from support.netns import Network, enter, within
from support.otlp import log_batch, metric_request, set_attributes
from support.pods import Node, Pod
from support.policies import Cluster, Place, Vip
from support.process import wait_until

from lockgate.attributes.values import decode
from lockgate.kit.clock import SystemClock
from lockgate.sample.kubernetes_store import ObjectStore
from lockgate.wire.protobuf import delimited, varint

missing = container.missing or helm.missing or netns.missing
pytestmark = [pytest.mark.images, pytest.mark.skipif(bool(missing), reason=missing)]

DNS, API, LOGS, METRICS, TRACES = (f"10.96.0.{number}" for number in (10, 1, 21, 22, 23))
SERVICES = {"logs-metadata": LOGS, "metrics-metadata": METRICS, "traces": TRACES}
ADDRESSES = {
    "logs-collector": "10.244.1.2",
    "logs-metadata": "10.244.1.3",
    "metrics-metadata": "10.244.1.4",
    "traces": "10.244.1.5",
    "events": "10.244.1.7",
}
KUBELET = "token-of-the-kubelet"
UID = "01234567-89ab-cdef-0123-456789abcdef"
"""Of the application's pod."""
BACKEND = "receivers.example.com"
PORTS = {
    "logs-metadata": [("TCP", 4318), ("TCP", 4319)],
    "metrics-metadata": [("TCP", 4318), ("TCP", SEED_LISTENERS["metrics"]["prometheusRemoteWrite"])],
    "traces": [("TCP", 4318), *(("UDP" if port in (6831, 6832) else "TCP", port) for port in SEED_LISTENERS["traces"].values())],
}
"""Of their Services."""
SIGNALS = {"metrics-metadata": "metrics", "traces": "traces", "logs-metadata": "logs"}

_SANDBOXED = {"config": {"merge": {"service": {"sandbox": "require"}}}}
_APP = {"pods": {"app": "shop"}, "namespace": "shop"}
VALUES: dict[str, Any] = {
    "sumologic": {"logs": {"systemd": {"enabled": True}}},
    "otellogs": {**_SANDBOXED, "journalGroup": 190},
    "metadata": {"logs": _SANDBOXED, "metrics": _SANDBOXED},
    "otelcolInstrumentation": _SANDBOXED,
    "otelevents": _SANDBOXED,
    "networkPolicy": {
        "clients": {signal: [_APP] for signal in ("logs", "metrics", "traces")},
        "kubernetesApi": {"serviceCidrs": [f"{API}/32"], "endpointCidrs": ["172.18.0.2/32"]},
    },
}


def _documented(key: str) -> Any:
    """The values in docs/kubernetes.md that have this text."""
    blocks = re.findall(r"```yaml\n(.*?)```", (Path(__file__).parents[2] / "docs/kubernetes.md").read_text(), re.S)
    [found] = [block for block in blocks if key in block]
    return yaml.safe_load(found)


TRUSTING = _documented("/usr/local/share/ca-certificates")


@dataclass
class Site:
    """A cluster's network with a name server, an API server, a backend behind TLS, an application; and one node."""

    network: Network
    node: Node
    backend: Backend
    ours: trustme.CA
    """Of the backend, which no system knows."""
    directory: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def render(self, *values: Any) -> list[Object]:
        """These values on top of VALUES; their policies are in force from now on."""
        whole: Any = VALUES
        for each in values:
            whole = overlay(whole, each)
        objects = helm.render(whole)
        self.network.enforce(self.network.cluster.under(of_kind(objects, "NetworkPolicy")))
        return objects

    def pod(self, role: str, objects: list[Object], node: Node | None = None) -> Pod:
        directory = self.directory / f"pod-{next(self._numbers)}"
        return Pod(node or self.node, workloads(objects)[role], objects, self.network.path(role), directory)

    def say(self, text: str) -> None:
        """An event with this message, of the node's kubelet."""
        said = event(text.replace(" ", "-"), "shop", message=text)
        headers = {"Authorization": f"Bearer {KUBELET}", "Content-Type": "application/json"}
        post = urllib.request.Request(f"https://{API}/api/v1/namespaces/shop/events", json.dumps(said).encode(), headers)
        context = ssl.create_default_context(cadata=self.node.api_ca.decode())
        assert within(self.network.path("app"), lambda: _status(post, context)) == 201

    def send(self, role: str, text: str) -> None:
        """An application's request to this role's Service."""
        resource = {"k8s.pod.uid": UID}
        match role:
            case "logs-metadata":
                payload = log_batch(text, resource=resource).payload
            case "metrics-metadata":
                request, scope = metric_request(resource)
                scope.metrics.add(name=text).gauge.data_points.add(as_int=1, time_unix_nano=1_700_000_000_000_000_000)
                payload = request.SerializeToString()
            case _:
                spans = ExportTraceServiceRequest()
                entry = spans.resource_spans.add()
                set_attributes(entry.resource.attributes, resource)
                entry.scope_spans.add().spans.add(name=text, trace_id=b"t" * 16, span_id=b"s" * 8)
                payload = spans.SerializeToString()
        url = f"http://{SERVICES[role]}:4318/v1/{SIGNALS[role]}"
        post = urllib.request.Request(url, payload, {"Content-Type": "application/x-protobuf"})
        assert within(self.network.path("app"), lambda: _status(post)) == 200

    def arrived(self) -> dict[str, dict[str, Any]]:
        """The resource's attributes by a log's text, a metric's or a span's name."""
        return {
            _name(record): {each.key: decode(each.value) for each in entry.resource.attributes}
            for _, _, message in list(self.backend.requests)
            for entry in _repeated(message)
            for scope in _repeated(entry)
            for record in _repeated(scope)
        }


def _status(request: urllib.request.Request, context: ssl.SSLContext | None = None) -> int:
    with urllib.request.urlopen(request, timeout=20, context=context) as answer:
        status: int = answer.status
        return status


def _repeated(message: Any) -> Any:
    """The list in it: resource_logs in a request, scope_logs in these, log_records in those, and alike."""
    return next(value for field, value in message.ListFields() if field.name.startswith(("resource_", "scope_")) or field.name in _RECORDS)


_RECORDS = ("log_records", "metrics", "spans")


def _name(record: Any) -> str:
    if not hasattr(record, "body"):
        return str(record.name)
    body = decode(record.body)
    return str(body["MESSAGE"] if isinstance(body, dict) else body)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Image("lockgate", tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def debug(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Image("lockgate-debug", tmp_path_factory.mktemp("debug"))


def _server_context(ca: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture(scope="module")
def site(image: Image, debug: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    objects = helm.render(VALUES)
    places = {
        role: Place(ADDRESSES[role], each["metadata"]["namespace"], each["spec"]["template"]["metadata"]["labels"])
        for role, each in workloads(objects).items()
    }
    places |= {
        "dns": Place("10.244.1.6", "kube-system", {"k8s-app": "kube-dns"}),
        "app": Place("10.244.2.1", "shop", {"app": "shop"}),
        "api": Place("172.18.0.2"),
        "backend": Place("203.0.113.10"),
    }
    vips = [Vip(DNS, 53, protocol, "dns", 53) for protocol in ("UDP", "TCP")]
    vips += [Vip(API, 443, "TCP", "api", 6443)]
    vips += [Vip(SERVICES[role], port, protocol, role, port) for role, ports in PORTS.items() for protocol, port in ports]
    store = ObjectStore(SystemClock())
    web = pod_object("web-0", "shop", ip="10.244.2.1", labels={"tier": "front"})
    for kind, found in (("Namespace", {"metadata": {"name": "shop"}}), ("Pod", overlay(web, {"metadata": {"uid": UID}}))):
        apply(store, {"apiVersion": "v1", "kind": kind, **found})
    ours, cluster_ca = trustme.CA(organization_name="Corporate"), trustme.CA(organization_name="The cluster")
    accounts = [(each["metadata"]["namespace"], each["metadata"]["name"]) for each in of_kind(objects, "ServiceAccount")]
    tokens = {f"token-{namespace}-{name}": f"system:serviceaccount:{namespace}:{name}" for namespace, name in accounts}
    urls = {f"endpoint-{signal}-otlp": f"https://{BACKEND}".encode() for signal in ("logs", "metrics", "traces", "events")}
    node = Node(
        directory / "node",
        {"lockgate": image, "busybox-curl": debug},
        {("sumo", "sumologic"): urls, ("sumo", "root-ca-cert"): dict.fromkeys(("cert.crt", "cert.pem"), ours.cert_pem.bytes())},
        f"nameserver {DNS}\n",
        (API, 443),
        cluster_ca.cert_pem.bytes(),
        {(namespace, name): f"token-{namespace}-{name}" for namespace, name in accounts},
    )
    names = {BACKEND: "203.0.113.10"} | {f"r-lockgate-{role}.sumo.svc.cluster.local": address for role, address in SERVICES.items()}
    records = [f"--address=/{name}/{address}" for name, address in names.items()]
    with Network(Cluster(places, vips=vips)) as network, open(directory / "dnsmasq.log", "ab") as output, ExitStack() as stack:
        network.enforce(network.cluster)
        network.start("dns", ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--user=root", *records], output)
        api = sample_in_thread(
            store,
            partial(enter, network.path("api")),
            "172.18.0.2",
            6443,
            _server_context(cluster_ca, API),
            tokens=tokens | {KUBELET: "system:node:node-1"},
            may=_granted(objects),
        )
        stack.enter_context(api)
        backend = within(network.path("backend"), lambda: Backend(443, "203.0.113.10", _server_context(ours, BACKEND)))
        yield Site(network, node, stack.enter_context(backend), ours, directory)


def _granted(objects: list[Object]) -> Any:
    """What the rendered ClusterRoles grant to whom, and Kubernetes to a node's kubelet."""
    rules = {each["metadata"]["name"]: each["rules"] for each in of_kind(objects, "ClusterRole")}
    granted = {
        (f"system:serviceaccount:{subject['namespace']}:{subject['name']}", verb, group, resource)
        for binding in of_kind(objects, "ClusterRoleBinding")
        for subject in binding["subjects"]
        for rule in rules[binding["roleRef"]["name"]]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    granted.add(("system:node:node-1", "create", "", "events"))
    return lambda user, verb, resource, namespace: (user, verb, resource.group, resource.plural) in granted


def write_log(site: Site, text: str, owner: int, mode: int) -> None:
    """As a container runtime does; who may read it differs among them."""
    log = site.node.root / f"var/log/pods/shop_web-0_{UID}/main/0.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(f"2026-01-01T00:00:00.000000000Z stdout F {text}\n")
    for path, bits in ((log, mode), (log.parent, mode | mode >> 2 & 0o110), (log.parent.parent, mode | mode >> 2 & 0o110)):
        os.chown(path, owner, owner)
        path.chmod(bits)


def write_journal(site: Site, text: str) -> None:
    """As systemd-journald does: for root and the group 190."""
    file = site.node.root / "var/log/journal" / ("a" * 32) / "system.journal"
    file.parent.mkdir(parents=True, exist_ok=True)
    journal.write(file, [{"MESSAGE": text, "PRIORITY": "6", "_SYSTEMD_UNIT": "kubelet.service", "_HOSTNAME": "node-1"}])
    os.chown(file, 0, 190)
    file.chmod(0o640)


def confined(role: Pod, uid: int, groups: set[int], capabilities: int = 0, gid: int | None = None) -> None:
    """What the kernel says of the process; what it can write, start and see. Its group has the user's number, unless told."""
    bounding = f"{capabilities:016x}"
    effective = bounding if uid == 0 else f"{0:016x}"
    # By the runtime alone, as the pod's contexts say; and the role, which gives up more by itself.
    for status, filters in ((role.kernel_status_of_another(), "1"), (role.kernel_status(), "2")):
        assert status["Uid"].split() == [str(uid)] * 4
        assert status["Gid"].split() == [str(uid if gid is None else gid)] * 4
        assert {int(group) for group in status["Groups"].split()} == groups
        assert [status[name] for name in ("CapBnd", "CapPrm", "CapEff")] == [bounding, effective, effective]
        assert {status["CapInh"], status["CapAmb"]} == {f"{0:016x}"}
        assert [status[name] for name in ("NoNewPrivs", "Seccomp", "Seccomp_filters")] == ["1", "2", filters]
    sandbox = role.get("/status")[1]["sandbox"]
    assert (sandbox["mode"], sandbox["lacking"]) == ("require", [])
    for path in ("/etc/x", "/usr/lib/x", "/etc/lockgate/configuration/x", "/var/x"):
        written = role.container.execute("/usr/bin/python3.11", "-c", f"open({path!r}, 'a')")
        assert "Read-only file system" in written.stderr, path
    for shell in ("sh", "/bin/sh", "bash", "busybox"):
        assert role.container.execute(shell, "-c", "true").returncode != 0, shell
    checked = role.container.execute("lockgate", "netcheck", "--config", "/etc/lockgate/configuration/lockgate.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@journal.needs_journal
@pytest.mark.parametrize(
    ("rung", "owner", "mode", "uid", "groups", "capabilities"),
    [
        pytest.param("group", 0, 0o640, 10001, {0, 190, 10001}, 0, id="group"),
        pytest.param("root", 0, 0o600, 0, {0}, 0, id="root"),
        pytest.param("capability", 4321, 0o600, 0, {0}, 1 << 2, id="capability"),
    ],
)
def test_the_nodes_logs_and_journal_come_to_the_backend_with_what_kubernetes_knows(
    site: Site, rung: str, owner: int, mode: int, uid: int, groups: set[int], capabilities: int
) -> None:
    shutil.rmtree(site.node.root, ignore_errors=True)
    line, entry = f"line on {rung}", f"entry on {rung}"
    write_log(site, line, owner, mode)
    write_journal(site, "before the start")
    stale = site.node.root / "var/lib/lockgate/storage/stale"  # of another uid's time: the init container gives it away
    stale.parent.mkdir(parents=True, mode=0o700)
    stale.touch(0o600)
    objects = site.render(TRUSTING, {"otellogs": {"privilege": rung}})
    with site.pod("logs-metadata", objects) as metadata, site.pod("logs-collector", objects) as collector:
        write_journal(site, entry)
        wait_until(lambda: {line, entry} <= site.arrived().keys(), 40, "delivery")
        found = site.arrived()
        assert {name: found[line].get(f"k8s.{name}") for name in ("pod.name", "namespace.name", "node.name", "pod.label.tier")} == {
            "pod.name": "web-0",
            "namespace.name": "shop",
            "node.name": "node-1",
            "pod.label.tier": "front",
        }
        assert (found[line]["_sourceCategory"], found[entry]["_sourceHost"]) == ("kubernetes/shop/web", "node-1")
        confined(collector, uid, groups, capabilities)
        confined(metadata, 10001, {10001})
        assert stale.stat().st_uid == uid
        counted = collector.container.execute("lockgate", "where")
        assert counted.returncode == 0, counted.stdout + counted.stderr
        # Who reads nothing of the API has nothing to ask it with.
        assert "No such file" in collector.container.execute("/usr/bin/python3.11", "-c", f"open('{pods.SERVICE_ACCOUNT}/token')").stderr


@pytest.mark.parametrize("role", ["metrics-metadata", "traces"])
def test_metrics_and_traces_come_to_the_backend_with_what_kubernetes_knows(site: Site, role: str) -> None:
    objects = site.render(TRUSTING)
    with site.pod(role, objects) as running:
        site.send(role, f"of {role}")
        wait_until(lambda: f"of {role}" in site.arrived(), 40, "delivery")
        found = site.arrived()[f"of {role}"]
        assert (found["k8s.pod.name"], found["k8s.pod.label.tier"], found["k8s.namespace.name"]) == ("web-0", "front", "shop")
        confined(running, 10001, {10001})


def test_a_span_by_each_protocol_comes_to_the_backend_with_what_kubernetes_knows(site: Site) -> None:
    strategies = {"service_strategies": [{"service": "checkout", "type": "ratelimiting", "param": 5}]}
    objects = site.render(TRUSTING, {"listeners": SEED_LISTENERS, "samplingStrategies": strategies})
    ports = {"otlpHttp": 4318, **SEED_LISTENERS["traces"]}
    sampling = ports.pop("jaegerSampling")
    app = site.network.path("app")
    with site.pod("traces", objects) as traces:
        span_clients.send(site.network.inside("app"), TRACES, ports, "by ")
        wait_until(lambda: {f"by {key}" for key in ports} <= site.arrived().keys(), 40, f"delivery; {list(traces.reasons())}")
        for key in ports:
            # By the address alone that it came from: the senders say nothing of their pod.
            found = site.arrived()[f"by {key}"]
            assert (found["k8s.pod.name"], found["k8s.pod.label.tier"]) == ("web-0", "front"), key

        def told() -> Any:
            with urllib.request.urlopen(f"http://{TRACES}:{sampling}/sampling?service=checkout", timeout=20) as answer:
                return json.load(answer)

        assert within(app, told) == {"strategyType": "RATE_LIMITING", "rateLimitingSampling": {"maxTracesPerSecond": 5}}
        traces.update(
            "configuration", "sampling_strategies.json", json.dumps({"default_strategy": {"type": "probabilistic", "param": 1}}).encode()
        )
        wait_until(lambda: "probabilisticSampling" in within(app, told), 40, "the new strategies")
        confined(traces, 10001, {10001})


REMOTE_WRITE = SEED_LISTENERS["metrics"]["prometheusRemoteWrite"]


def _write_request(name: str) -> bytes:
    """prometheus.WriteRequest with one sample (Remote Write 1.0)."""
    sample = b"\x09" + struct.pack("<d", 1.0) + b"\x10" + varint(1_700_000_000_000)
    series = delimited(1, delimited(1, b"__name__") + delimited(2, name.encode())) + delimited(2, sample)
    return bytes(cramjam.snappy.compress_raw(delimited(1, series)))


def test_remote_write_comes_to_the_backend_with_what_kubernetes_knows(site: Site) -> None:
    headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy", "X-Prometheus-Remote-Write-Version": "0.1.0"}
    post = urllib.request.Request(f"http://{METRICS}:{REMOTE_WRITE}/api/v1/write", _write_request("written_remotely"), headers)
    with site.pod("metrics-metadata", site.render(TRUSTING, {"listeners": SEED_LISTENERS})) as running:
        assert within(site.network.path("app"), lambda: _status(post)) == 204
        wait_until(lambda: "written_remotely" in site.arrived(), 40, f"delivery; {list(running.reasons())}")
        assert site.arrived()["written_remotely"]["k8s.pod.name"] == "web-0"
        confined(running, 10001, {10001})


def test_events_come_to_the_backend_once_each_also_those_from_while_no_pod_was_there(site: Site) -> None:
    role = site.pod("events", site.render(TRUSTING))
    with role:
        site.say("while it runs")
        wait_until(lambda: "while it runs" in site.arrived(), 40, f"delivery; {list(role.reasons())}")
        found = site.arrived()["while it runs"]
        assert (found["_sourceCategory"], found["_sourceName"], found["cluster"]) == ("kubernetes/events", "events", "kubernetes")
        confined(role, 10001, {10001})
        counted = role.container.execute("lockgate", "where")
        assert counted.returncode == 0, counted.stdout + counted.stderr
    site.say("while it is away")
    with role:  # the next pod has the same claim
        site.say("when it is back")
        wait_until(lambda: {"while it is away", "when it is back"} <= site.arrived().keys(), 40, f"delivery; {list(role.reasons())}")
    said = ["while it runs", "while it is away", "when it is back"]
    assert sorted(body for body in site.backend.bodies() if body in said) == sorted(said)


def test_every_role_runs_with_the_values_that_the_security_document_shows(site: Site) -> None:
    shutil.rmtree(site.node.root, ignore_errors=True)
    write_log(site, "as root", 0, 0o600)
    (site.node.root / "var/log/journal").mkdir()
    objects = site.render(SEED)
    with site.pod("logs-metadata", objects) as metadata, site.pod("logs-collector", objects) as collector:
        confined(collector, 0, {0, 190})
        confined(metadata, 10001, {10001, 999})
    for role in ("metrics-metadata", "traces"):
        with site.pod(role, objects) as running:
            confined(running, 10001, {10001, 999})
    events = site.pod("events", objects)
    with events.alive():  # it may have events to deliver at once, and does not trust the backend
        confined(events, 998, {10001, 998}, gid=10001)


@pytest.mark.parametrize("rung", ["group", "root"])
def test_a_rung_that_does_not_read_the_nodes_files_is_not_ready(site: Site, rung: str) -> None:
    shutil.rmtree(site.node.root, ignore_errors=True)
    write_log(site, f"not for {rung}", 4321, 0o600)
    (site.node.root / "var/log/journal").mkdir()
    collector = site.pod("logs-collector", site.render({"otellogs": {"privilege": rung}}))
    with collector.alive():
        wait_until(lambda: "Permission denied" in collector.log.read_text(), what="it says so")
        assert collector.get("/ready")[0] == 503
    assert f"not for {rung}" not in site.arrived()


@pytest.mark.parametrize("role", ADDRESSES)
def test_a_role_is_ready_in_two_seconds(site: Site, role: str) -> None:
    objects = site.render(TRUSTING)
    shutil.rmtree(site.node.root, ignore_errors=True)
    for directory in ("var/log/pods", "var/log/journal"):
        (site.node.root / directory).mkdir(parents=True)
    took: list[float] = []
    while not took or (min(took) >= 2 and len(took) < 5):  # the best of them: a machine with other work says little by one
        with site.pod(role, objects) as running:
            took.append(running.took)
    print(f"{role} is ready in {min(took):.2f} s")
    assert min(took) < 2, took


# A company's certificate, by each recipe of "Using a custom root CA for TLS interception".

FILL_CERTS = """
metadata:
  metrics:
    statefulset:
      initContainers:
        - name: update-certificates
          image: odise/busybox-curl
          command:
            - sh
            - -c
            - |
              cp /etc/ssl/certs/ca-certificates.crt /certs/ca-certificates.crt
              cat /root/ca-cert/cert.pem >> /certs/ca-certificates.crt
          volumeMounts:
            - {name: root-ca-cert, mountPath: /root/ca-cert/, readOnly: true}
            - {name: certs, mountPath: /certs/, readOnly: true}
      extraVolumes:
        - name: root-ca-cert
          secret: {secretName: root-ca-cert}
        - name: certs
          emptyDir: {}
      extraVolumeMounts:
        - {name: certs, mountPath: /etc/ssl/certs/, readOnly: true}
"""
"""As the document has it, but for the white space that it lost; its image is our debug image here."""


def delivers(site: Site, text: str, *values: Any, node: Node | None = None) -> None:
    with site.pod("metrics-metadata", site.render(*values), node) as role:
        site.send("metrics-metadata", text)
        wait_until(lambda: text in site.arrived(), 40, f"delivery; {list(role.reasons())}")


def rebuilt(site: Site, image: Image) -> Node:
    """The node with this image in the place of ours."""
    return replace(site.node, images={**site.node.images, "lockgate": image})


def test_without_the_certificate_nothing_is_delivered_and_its_issuer_is_named(site: Site) -> None:
    with site.pod("metrics-metadata", site.render()) as role:
        site.send("metrics-metadata", "untrusted")
        wait_until(lambda: "O=Corporate" in str(list(role.reasons())), what="the issuer is named")
        assert "untrusted" not in site.arrived()


def test_a_certificate_copied_into_the_image_suffices(site: Site, image: Image, tmp_path: Path) -> None:
    copied = image.rebuilt(tmp_path, {"usr/local/share/ca-certificates/cert.crt": site.ours.cert_pem.bytes()})
    delivers(site, "copied", node=rebuilt(site, copied))


@pytest.mark.parametrize(
    "recipe",
    [
        "cat /usr/local/share/ca-certificates/cert.crt >> /etc/ssl/certs/ca-certificates.crt",
        "update-ca-certificates",
    ],
    ids=["the-document's", "update-ca-certificates"],
)
def test_the_recipes_for_an_images_build_work_on_the_debug_image(site: Site, debug: Image, tmp_path: Path, recipe: str) -> None:
    image = debug.rebuilt(tmp_path, {"usr/local/share/ca-certificates/cert.crt": site.ours.cert_pem.bytes()})
    bundle = image.root / "etc/ssl/certs/ca-certificates.crt"
    content = bundle.read_bytes()
    bundle.unlink()  # one inode with the image's
    bundle.write_bytes(content)
    done = Container(f"run-{os.getpid()}", tmp_path / "run", image, Process(["sh", "-ec", recipe])).run()
    assert done.returncode == 0, done.stderr
    # By the bundle alone, as every other program would find it.
    (image.root / "usr/local/share/ca-certificates/cert.crt").unlink()
    delivers(site, f"by {recipe}", node=rebuilt(site, image))


def test_an_init_container_that_fills_an_empty_directory_suffices(site: Site) -> None:
    delivers(site, "filled", yaml.safe_load(FILL_CERTS))


def test_a_secret_over_the_systems_certificates_suffices(site: Site) -> None:
    certs = {
        "extraVolumes": [{"name": "certs", "secret": {"secretName": "root-ca-cert"}}],
        "extraVolumeMounts": [{"name": "certs", "mountPath": "/etc/ssl/certs/", "readOnly": True}],
    }
    delivers(site, "mounted", {"metadata": {"metrics": certs}})


# Mutual TLS, by its one key.


def pair(ca: trustme.CA, *names: str) -> dict[str, bytes]:
    """A Secret as cert-manager writes it."""
    leaf = ca.issue_cert(*names)
    chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
    return {"tls.crt": chain, "tls.key": leaf.private_key_pem.bytes(), "ca.crt": ca.cert_pem.bytes()}


@journal.needs_journal
def test_one_key_makes_the_roles_speak_mutual_tls(site: Site) -> None:
    shutil.rmtree(site.node.root, ignore_errors=True)
    write_log(site, "line in TLS", 0, 0o640)
    write_journal(site, "before the start")
    ca, stranger = trustme.CA(), trustme.CA()
    service, of_metrics = (f"r-lockgate-{role}-metadata.sumo.svc.cluster.local" for role in ("logs", "metrics"))
    secrets = {
        ("sumo", "lockgate-mutual-tls"): pair(ca, service, of_metrics),
        ("sumo-nodes", "lockgate-mutual-tls"): pair(ca, "logs-collector"),
    }
    node = replace(site.node, secrets={**site.node.secrets, **secrets})
    objects = site.render(TRUSTING, _documented("mutualTls"), {"listeners": {"metrics": SEED_LISTENERS["metrics"]}})

    def answer(context: ssl.SSLContext, host: str = LOGS, port: int = 4318, name: str = service) -> bytes:
        """What a client in this context, at a pod that the policies let through, is told on a port of logs (or other) metadata."""
        with socket.create_connection((host, port), 10) as plain, context.wrap_socket(plain, server_hostname=name) as secured:
            with suppress(ssl.SSLError, ConnectionError):  # in TLS 1.3 a server's refusal comes after the client's handshake
                secured.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                return secured.recv(100)
            return b""

    def client(certificate: trustme.LeafCert | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ca.configure_trust(context)
        if certificate is not None:
            certificate.configure_cert(context)
        return context

    with site.pod("logs-metadata", objects, node) as metadata, site.pod("logs-collector", objects, node) as collector:
        write_journal(site, "entry in TLS")
        wait_until(lambda: {"line in TLS", "entry in TLS"} <= site.arrived().keys(), 40, f"delivery; {list(collector.reasons())}")
        app = site.network.path("app")
        with pytest.raises((OSError, http.client.HTTPException)):
            site.send("logs-metadata", "in the clear")
        assert within(app, lambda: answer(client(None))) == within(app, lambda: answer(client(stranger.issue_cert("a")))) == b""
        assert within(app, lambda: answer(client(ca.issue_cert("a")))).startswith(b"HTTP/1.1 404")
        confined(metadata, 10001, {10001})
        confined(collector, 10001, {0, 190, 10001})
    with site.pod("metrics-metadata", objects, node):
        there = (METRICS, REMOTE_WRITE, of_metrics)
        assert within(app, lambda: answer(client(None), *there)) == b""
        assert within(app, lambda: answer(client(ca.issue_cert("a")), *there)).startswith(b"HTTP/1.1 404")
    with site.pod("events", objects, node) as events:  # nobody connects to it but who scrapes: it has no certificate, and needs none
        site.say("beside mutual tls")
        wait_until(lambda: "beside mutual tls" in site.arrived(), 40, f"delivery; {list(events.reasons())}")
        confined(events, 10001, {10001})
