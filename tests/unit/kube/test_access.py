"""Where the API server is: the pod's own cluster, a named context, an address; and nothing ambient."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lockgate.kube.access import Access, AccessError, KubernetesClientSettings, from_kubeconfig
from lockgate.net.tls import TlsClientSettings
from lockgate.pipeline.needs import Connect, Read

KUBECONFIG = """
current-context: production
contexts:
  - {name: production, context: {cluster: prod, user: admin}}
  - {name: test, context: {cluster: test, user: tester}}
  - {name: cloud, context: {cluster: test, user: cloud}}
clusters:
  - {name: prod, cluster: {server: "https://prod:6443"}}
  - name: test
    cluster: {server: "https://test:6443/", certificate-authority: ca.pem, proxy-url: "http://proxy:3128", tls-server-name: kubernetes}
users:
  - {name: admin, user: {token: secret}}
  - {name: tester, user: {tokenFile: /tokens/test}}
  - {name: cloud, user: {exec: {command: aws}}}
"""


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_text(KUBECONFIG)
    return path


def test_a_named_context_is_used_with_files_beside_it(kubeconfig: Path) -> None:
    tls = TlsClientSettings(ca_file=str(kubeconfig.parent / "ca.pem"), server_name_override="kubernetes")
    expected = Access("https://test:6443", token_file="/tokens/test", tls=tls, proxy="http://proxy:3128")
    assert from_kubeconfig(kubeconfig, "test") == expected


@pytest.mark.parametrize(
    ("context", "complaint"),
    [
        pytest.param("prodution", "has no context 'prodution'; known: cloud, production, test", id="unknown"),
        pytest.param("cloud", "uses exec for context cloud, which Lockgate does not", id="plugin"),
    ],
)
def test_what_cannot_be_used_is_said(kubeconfig: Path, context: str, complaint: str) -> None:
    with pytest.raises(AccessError, match=complaint):
        from_kubeconfig(kubeconfig, context)


def test_an_ambient_kubeconfig_is_not_read(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    settings = KubernetesClientSettings(auth_type="kubeConfig", context="production", kubeconfig="/nowhere/config")
    with pytest.raises(AccessError, match="cannot read the kubeconfig /nowhere/config"):
        settings.access()


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        pytest.param({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}, "https://10.0.0.1:443", id="ipv4"),
        pytest.param({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}, "https://[fd00::1]:443", id="ipv6"),
    ],
)
def test_a_pod_finds_its_own_cluster(environment: dict[str, str], url: str) -> None:
    access = KubernetesClientSettings().access(environment)
    assert (access.url, access.token_file) == (url, "/var/run/secrets/kubernetes.io/serviceaccount/token")


def test_outside_a_cluster_the_way_out_is_named() -> None:
    with pytest.raises(AccessError, match=r"not in a Kubernetes pod.*set api_server, or auth_type: kubeConfig"):
        KubernetesClientSettings().access({})


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"auth_type": "kubeConfig"}, id="no-context"),
        pytest.param({"context": "test"}, id="context-alone"),
        pytest.param({"api_server": "10.0.0.1:6443"}, id="no-scheme"),
        pytest.param({"auth_type": "magic"}, id="unknown"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        KubernetesClientSettings(**settings)


def test_a_missing_token_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="automountServiceAccountToken"):
        Access("http://x", str(tmp_path / "token")).bearer()


def test_a_token_never_prints(kubeconfig: Path) -> None:
    assert "secret" not in repr(from_kubeconfig(kubeconfig, "production"))


def test_needs_name_the_address_and_the_credentials() -> None:
    settings = KubernetesClientSettings(api_server="https://10.0.0.1:6443", token_file="/t/token", ca_file="/t/ca.crt")
    connect, *reads = settings.api_needs("why")
    assert connect == Connect("10.0.0.1", 6443, "why")
    assert [need.path for need in reads if isinstance(need, Read)] == ["/t", "/t"]
