"""`lockgate netcheck`: tests/e2e/test_policies.py asks it behind real policies; here what it says of its canaries."""

import socket

import pytest

from lockgate.lockdown.netcheck import check, default_canaries
from lockgate.pipeline.needs import Kubernetes, Need

ASKS: list[tuple[str, Need]] = [("processors/k8sattributes", Kubernetes(("list",), "", "pods", "finds pods"))]
API = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def test_the_api_server_is_the_canary_where_nothing_asks_it() -> None:
    assert default_canaries([], API) == [("10.96.0.1", 443)]
    assert default_canaries(ASKS, API) == [("kube-dns.kube-system.svc", 9153)]


@pytest.mark.parametrize(("canary", "is_sure"), [(("127.0.0.1", 0), True), (default_canaries(ASKS, API)[0], False)])
async def test_a_canary_that_may_not_be_there_says_so(canary: tuple[str, int], is_sure: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = canary
        [checked] = await check([], [(host, port or server.getsockname()[1])], 0.5)
    assert any("name another with --canary" in reason for reason in checked.reasons) is not is_sure
    assert checked.is_good is not is_sure
