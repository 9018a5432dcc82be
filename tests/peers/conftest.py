"""Real peers, built by `make peers`."""

from collections.abc import Iterator

import pytest
from support.kube_apiserver import PEERS, ApiServer, running_api_server

pytest.register_assert_rewrite("support.kubernetes_contract", "support.events_contract")


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A real Kubernetes API server; tests share it, so each keeps to namespaces of its own."""
    for program in ("etcd", "kube-apiserver"):
        if not (PEERS / "bin" / program).exists():
            pytest.skip(f"no {program}: `make peers` has not built it")
    with running_api_server(tmp_path_factory.mktemp("kube")) as server:
        yield server
