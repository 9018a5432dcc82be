"""Our reading of network policies beside the Kubernetes project's own engine (sigs.k8s.io/kube-network-policies): the same verdicts."""

import json
import subprocess
from collections.abc import Iterable

import pytest
from support.kube_apiserver import PEERS
from support.logs_cluster import BOTH, CLUSTER, PLACES, allowed, matrix
from support.policies import Connection, Policy, rules, widened

pytestmark = pytest.mark.peers

PROGRAM = PEERS / "bin" / "policies"
# The engine sees packets behind the Services, as they are forwarded.
CONNECTIONS = sorted(connection for connection in matrix() if connection[1] in PLACES)


def verdicts(policies: Iterable[Policy]) -> set[Connection]:
    """The connections that the engine lets pass."""
    pods = [
        {"address": place.address, "namespace": place.namespace, "labels": place.labels} for place in PLACES.values() if place.namespace
    ]
    asked = [
        {"source": PLACES[source].address, "target": PLACES[target].address, "protocol": protocol, "port": port}
        for source, target, protocol, port in CONNECTIONS
    ]
    question = json.dumps({"pods": pods, "policies": list(policies), "connections": asked})
    answer = subprocess.run([PROGRAM], input=question, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return {each for each, passed in zip(CONNECTIONS, json.loads(answer.stdout), strict=True) if passed}


def test_the_projects_own_engine_lets_the_same_connections_pass() -> None:
    if not PROGRAM.exists():
        pytest.skip("no policies: `make peers` has not built it")
    assert verdicts([]) == set(CONNECTIONS)
    passed = verdicts(BOTH)
    assert passed == allowed(CLUSTER.under(BOTH)) & set(CONNECTIONS)
    assert set() < passed < set(CONNECTIONS)
    for rule in rules(BOTH):
        for changed in widened(BOTH, rule):
            assert verdicts(changed) == allowed(CLUSTER.under(changed)) & set(CONNECTIONS)
