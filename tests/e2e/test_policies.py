"""The network policies that `lockgate netpol` renders, as rules of a real kernel between real processes in network namespaces.

Every needed connection passes and every other one does not; without policies all of them pass (else a broken network would do as well);
without any one rule something needed breaks; with any one rule wider something unneeded passes.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.logs_cluster import (
    API,
    BOTH,
    CLUSTER,
    DNS,
    ENVIRONMENT,
    METADATA,
    NEEDED,
    PLACES,
    PORTS,
    PRESETS,
    ROLES,
    allowed,
    behind,
    concerns,
    matrix,
)
from support.netns import Network, missing
from support.policies import Connection, narrowed, rules, widened
from support.process import wait_until


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if missing:
        pytest.skip(missing)
    with Network(CLUSTER) as made:
        made.listen(PORTS)
        yield made


@pytest.mark.parametrize("blocks_see_services", [False, True], ids=["after DNAT", "before DNAT"])
def test_exactly_the_needed_connections_pass(network: Network, blocks_see_services: bool) -> None:
    network.enforce(CLUSTER)
    assert network.reachable(matrix(), matrix()) == matrix()  # without policies everything passes
    cluster = CLUSTER.under(BOTH, blocks_see_services=blocks_see_services)
    network.enforce(cluster)
    passed = network.reachable(matrix(), allowed(cluster))
    assert passed == allowed(cluster)  # the kernel and our reading of the policies agree
    assert passed >= NEEDED
    unneeded = {connection for connection in passed if concerns(connection)} - behind(NEEDED)
    # The backend is known by name alone: what is on the internet may be it.
    assert unneeded == {("metadata", "internet", "TCP", 443)}
    assert {connection for connection in matrix() if not concerns(connection)} <= passed  # nobody else is touched


def test_without_any_one_rule_or_any_one_port_of_it_something_needed_breaks() -> None:
    tried = 0
    for rule in rules(BOTH):
        for changed in narrowed(BOTH, rule):
            tried += 1
            assert any(
                not cluster.allows(*needed)
                for seen in (False, True)
                for cluster in [CLUSTER.under(changed, blocks_see_services=seen)]
                for needed in NEEDED
            ), f"nothing needs all of {rule}"
    assert tried >= 9


def test_with_any_one_rule_wider_something_unneeded_passes_when_its_side_is_judged_alone() -> None:
    tried = 0
    for rule in rules(BOTH):

        def judged(policies: list[dict[str, Any]], namespace: str = BOTH[rule[0]]["metadata"]["namespace"]) -> list[set[Connection]]:
            # Alone: the other end's policy would hide what this one opens.
            own = [each for each in policies if each["metadata"]["namespace"] == namespace]
            return [allowed(CLUSTER.under(own, blocks_see_services=seen)) for seen in (False, True)]

        usual = judged(BOTH)
        for changed in widened(BOTH, rule):
            tried += 1
            assert any(wider > before for wider, before in zip(judged(changed), usual, strict=True)), changed[rule[0]]["spec"]
    assert tried >= 30


def test_the_kernel_agrees_with_the_reading_of_changed_policies_too(network: Network) -> None:
    for rule in list(rules(BOTH))[::3]:
        changed = next(widened(BOTH, rule))
        network.enforce(CLUSTER.under(changed))
        expected = allowed(CLUSTER.under(changed))
        assert network.reachable(matrix(), expected) == expected


def test_logs_reach_the_backend_under_the_policies_and_not_when_they_deny_everything(tmp_path: Path) -> None:
    if missing:
        pytest.skip(missing)
    with Network(CLUSTER, name_server=DNS) as network, open(tmp_path / "log", "ab") as output:
        # Before anything is connected: what stands would go on.
        network.enforce(CLUSTER.under([policy for policy in BOTH if policy["metadata"]["name"].endswith("-deny")]))
        names = {
            "receivers.example.com": PLACES["backend"].address,
            "kubernetes.default.svc": API,
            "logs-metadata.sumo.svc.cluster.local": METADATA,
        }
        records = [f"--address=/{name}/{address}" for name, address in names.items()]
        network.start("dns", ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--user=root", *records], output)
        lockgate = [sys.executable, "-P", "-m", "lockgate.cli.main"]
        state, pods = tmp_path / "backend", tmp_path / "pods"
        pods.mkdir()  # as on any node: what is not there at start, the agent's sandbox keeps closed
        common = {"LOCKGATE_HOST": "0.0.0.0", "LOCKGATE_LOG_ROOT": str(pods)}
        backend = {**common, "LOCKGATE_BACKEND_PORT": "443", "LOCKGATE_STATE": str(state)}
        network.start("backend", [*lockgate, "run", "--config", "backend"], output, backend)
        sample = [*lockgate, "run", "--config", "sample", "--set", "extensions.sample_cluster.endpoint=0.0.0.0:6443"]
        network.start("api", sample, output, common)
        for role in ROLES:
            environment = {**common, **ENVIRONMENT[role], "LOCKGATE_STATE": str(tmp_path / role)}
            network.start(role, [*lockgate, "run", "--config", PRESETS[role]], output, environment)

        def ask(name: str, *command: str) -> str:
            return subprocess.run([*network.inside(name), *command], capture_output=True, text=True, check=False).stdout

        def delivered() -> int:
            sql = "SELECT count(*) AS n FROM logs WHERE pod != '' AND resource LIKE '%k8s.pod.uid%'"
            answer = ask("backend", *lockgate, "query", "--state", str(state), "--format", "json", sql)
            return int(json.loads(answer.splitlines()[0])["n"]) if answer.strip() else -1

        status = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:13133/status').status)"
        for name in ("backend", "api", *ROLES):
            wait_until(lambda name=name: ask(name, sys.executable, "-c", status).strip() == "200", what=f"{name} runs")
        wait_until(lambda: delivered() == 0, what="the backend answers")
        network.enforce(CLUSTER.under(BOTH))
        # Agent and API watch have met dropped packets until now: each may be within a look-up of 10 s, and its longest pause behind it.
        wait_until(lambda: delivered() > 0, 120, lambda: f"logs arrive; the roles say\n{(tmp_path / 'log').read_text()[-8000:]}")

        def check(role: str) -> subprocess.CompletedProcess[str]:
            pod = {"KUBERNETES_SERVICE_HOST": API, "KUBERNETES_SERVICE_PORT": "443", **ENVIRONMENT[role]}
            command = [*network.inside(role), *lockgate, "netcheck", "--config", PRESETS[role], "--seconds", "1"]
            return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **pod})

        fine = check("agent")
        assert fine.returncode == 0 and "logs-metadata.sumo.svc.cluster.local:4318 should be open" in fine.stdout, fine.stdout
        assert f"ok    {API}:443 should be closed: {API}: no answer in 1 s: dropped" in fine.stdout
        assert check("metadata").returncode == 0
        # A cluster that enforces nothing, and one in which a rule is missing.
        network.enforce(CLUSTER)
        open_ = check("agent")
        assert open_.returncode == 1 and "A canary was reached" in open_.stdout
        without = copy.deepcopy(BOTH)
        del without[1]["spec"]["egress"][-1]
        network.enforce(CLUSTER.under(without))
        broken = check("agent")
        assert broken.returncode == 1 and "should be open: 10.96.0.20: no answer in 1 s: dropped on the way" in broken.stdout
