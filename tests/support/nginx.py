"""A real nginx on loopback: TLS in front of a backend over HTTP/1.1 and gRPC, and what it answers by itself."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import trustme

from support.process import free_port, wait_until

NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (see tests/install-debian.sh)")

_CONFIG = """
{user}
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log notice;
events {{ worker_connections 256; }}
http {{
    access_log {directory}/access.log;
    {temporary}
    server {{
        listen 127.0.0.1:{port} ssl http2;
        ssl_certificate {directory}/{name}.pem;
        ssl_certificate_key {directory}/{name}.key;
        {server}
        location / {{ proxy_pass http://127.0.0.1:{http}; }}
        location /opentelemetry.proto.collector. {{ grpc_pass grpc://127.0.0.1:{grpc}; }}
    }}
}}
"""


class Nginx:
    """`with Nginx(directory, http=PORT, grpc=PORT) as nginx:` serves TLS at `port`; `extra` goes into its server block.

    Its certificate is for 127.0.0.1 and backend.invalid, signed by `ca`, whose certificate is in `ca_file`.
    """

    def __init__(self, directory: Path, *, http: int = 1, grpc: int = 1, organization: str = "Lockgate's tests") -> None:
        directory.mkdir()
        self._directory, self._http, self._grpc = directory, http, grpc
        self.port = free_port()
        self._certificates = 0
        self._extra = ""
        self.present(trustme.CA(organization_name=organization))

    def present(self, ca: trustme.CA) -> None:
        """The certificate to present from the next (re)start on is a new one of this authority."""
        self._certificates += 1
        name = f"certificate-{self._certificates}"
        certificate = ca.issue_cert("127.0.0.1", "backend.invalid")
        certificate.private_key_pem.write_to_path(self._directory / f"{name}.key")
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(self._directory / f"{name}.pem", append=True)
        self.ca_pem = ca.cert_pem.bytes()

    def _write(self) -> None:
        paths = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        text = _CONFIG.format(
            user="user root;" if os.geteuid() == 0 else "",
            directory=self._directory,
            temporary="".join(f"{name}_temp_path {self._directory}/{name};\n    " for name in paths),
            port=self.port,
            name=f"certificate-{self._certificates}",
            server=self._extra,
            http=self._http,
            grpc=self._grpc,
        )
        (self._directory / "nginx.conf").write_text(text)

    def reload(self, extra: str = "") -> None:
        """Takes the newest certificate, and this in its server block; returns when it serves with both."""
        self._extra = extra
        self._write()
        log = self._directory / "error.log"
        before = log.stat().st_size
        self._process.send_signal(signal.SIGHUP)
        # Logged by the old worker, which goes when the new one has come.
        wait_until(lambda: "gracefully shutting down" in log.read_text()[before:], what="nginx reloads")

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        assert NGINX
        self._write()
        command = [NGINX, "-p", str(self._directory), "-e", str(self._directory / "error.log"), "-c", str(self._directory / "nginx.conf")]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not (self._directory / "nginx.pid").exists():
            assert self._process.poll() is None and time.monotonic() < deadline, (self._directory / "error.log").read_text()
            time.sleep(0.02)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()  # at once: workers go with their connections
        self._process.wait(10)
