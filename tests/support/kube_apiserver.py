"""A real Kubernetes API server on loopback: kube-apiserver and etcd as `make peers` built them, with RBAC, without kubelet or controllers.

Nothing but the test changes an object: no pod gets an IP, no default ServiceAccount appears, a deleted namespace stays `Terminating`.
"""

import asyncio
import json
import os
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trustme

PEERS = Path(os.environ.get("LOCKGATE_PEERS") or Path.home() / ".cache/lockgate-peers")
ADMIN_TOKEN = "admin-token"
_START_SECONDS = 60

Object = dict[str, Any]


class ApiServer:
    """What a client needs (`base_url`, `ca_file`, `ssl`, `token`) and what stands in for the rest of a cluster.

    `token` is an administrator's; `service_account` gives tokens that may do less. A refusal is an HTTPError.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1", "localhost", "kubernetes.default.svc")
        self.ca_file = directory / "ca.pem"
        authority.cert_pem.write_to_path(self.ca_file)
        certificate.private_key_pem.write_to_path(directory / "key.pem")
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(directory / "certificate.pem", append=True)
        (directory / "tokens.csv").write_text(f'{ADMIN_TOKEN},admin,admin,"system:masters"\n')
        self.ssl = ssl.create_default_context(cafile=self.ca_file)
        self.token = ADMIN_TOKEN
        self._etcd_port, self._port, peer_port = _free_ports(3)
        self.base_url = f"https://127.0.0.1:{self._port}"
        self._etcd_url = f"http://127.0.0.1:{self._etcd_port}"
        peer = f"http://127.0.0.1:{peer_port}"
        self._etcd = self._spawn(
            "etcd",
            f"--data-dir={directory / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        )
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the server is ready."""
        self._server = self._spawn(
            "kube-apiserver",
            f"--etcd-servers={self._etcd_url}",
            "--etcd-compaction-interval=0",  # history is forgotten when a test says so
            "--bind-address=127.0.0.1",
            f"--secure-port={self._port}",
            "--endpoint-reconciler-type=none",  # it refuses to publish a loopback address
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--tls-cert-file={self._directory / 'certificate.pem'}",
            f"--tls-private-key-file={self._directory / 'key.pem'}",
            f"--token-auth-file={self._directory / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",  # it wants what only a controller makes
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._directory / 'key.pem'}",
            f"--service-account-signing-key-file={self._directory / 'key.pem'}",
        )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._request("GET", "/readyz")
                return
            except (urllib.error.URLError, ConnectionError) as error:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    log = self._directory / "kube-apiserver.log"
                    raise RuntimeError(f"kube-apiserver did not become ready ({error}): {log.read_text()[-2000:]}") from error
                time.sleep(0.1)

    def stop(self) -> None:
        _end(self._server)
        self._server = None

    def close(self) -> None:
        """Stops everything; may be called twice."""
        self.stop()
        _end(self._etcd)

    async def forget_history(self) -> None:
        """Every earlier resourceVersion and continue token expires, as after five minutes of a real cluster. Open watches end.

        etcd is compacted and the server started anew, because its watch cache goes back further than etcd.
        """
        revision = int((await self.request("GET", "/api/v1/pods?limit=1"))["metadata"]["resourceVersion"])
        await asyncio.to_thread(self.stop)
        compaction = json.dumps({"revision": revision, "physical": True}).encode()
        await asyncio.to_thread(self._send, urllib.request.Request(f"{self._etcd_url}/v3/kv/compaction", compaction, method="POST"))
        await asyncio.to_thread(self.start)

    async def request(self, method: str, path: str, body: Object | None = None, content_type: str = "application/json") -> Any:
        """The parsed answer."""
        return json.loads(await asyncio.to_thread(self._request, method, path, body, content_type))

    async def create(self, collection: str, manifest: Object) -> Object:
        """Creates in a collection such as `/api/v1/namespaces/shop/pods`; a `status` in the manifest is then set as a kubelet would."""
        created: Object = await self.request("POST", collection, manifest)
        if "status" in manifest:
            created = await self.change(f"{collection}/{created['metadata']['name']}/status", {"status": manifest["status"]})
        return created

    async def change(self, path: str, merge_patch: Object) -> Object:
        """Changes what a JSON merge patch names (null removes); the object as it then is."""
        changed: Object = await self.request("PATCH", path, merge_patch, "application/merge-patch+json")
        return changed

    async def delete(self, path: str) -> None:
        """Removes at once: no kubelet is there to confirm a graceful end."""
        await self.request("DELETE", f"{path}?gracePeriodSeconds=0")

    async def service_account(self, name: str, rules: Sequence[Mapping[str, Sequence[str]]]) -> str:
        """A token, valid for an hour, of a new ServiceAccount in `default` that may do what these ClusterRole rules say and no more."""
        rbac = "/apis/rbac.authorization.k8s.io/v1"
        await self.create("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": name}})
        await self.create(f"{rbac}/clusterroles", {"metadata": {"name": name}, "rules": list(rules)})
        binding = {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}],
        }
        await self.create(f"{rbac}/clusterrolebindings", binding)
        answer = await self.create(f"/api/v1/namespaces/default/serviceaccounts/{name}/token", {"spec": {"expirationSeconds": 3600}})
        token: str = answer["status"]["token"]
        return token

    def _request(self, method: str, path: str, body: Object | None = None, content_type: str = "application/json") -> bytes:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": content_type}
        data = None if body is None else json.dumps(body).encode()
        return self._send(urllib.request.Request(self.base_url + path, data, headers, method=method))

    def _send(self, request: urllib.request.Request) -> bytes:
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.ssl) as response:
                content: bytes = response.read()
        except urllib.error.HTTPError as error:
            with error:
                error.add_note(error.read().decode(errors="replace"))
            raise
        return content

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._directory / f"{program}.log").open("ab") as log:
            return subprocess.Popen([PEERS / "bin" / program, *arguments], stdout=log, stderr=log, cwd=self._directory)


@contextmanager
def running_api_server(directory: Path) -> Iterator[ApiServer]:
    """A server that is ready, with an empty cluster; its files and logs are in `directory`."""
    server = ApiServer(directory)
    try:
        server.start()
        yield server
    finally:
        server.close()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is None:
        return
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
