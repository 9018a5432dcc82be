"""A real intercepting proxy: mitmproxy reads all TLS that goes through it, and signs for every server with its own authority.

It lives in a virtual environment of its own, because its dependencies are not ours; made once, beside the peers (`LOCKGATE_PEERS`).
"""

import os
import subprocess
import sys
import venv
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from support.process import free_port, wait_until

VERSION = "11.0.2"
"""The last that runs on Python 3.11."""

_FOLDER = Path(os.environ.get("LOCKGATE_PEERS") or Path.home() / ".cache/lockgate-peers") / f"mitmproxy-{VERSION}"
_ADDON = """
class LeadsTo:
    def load(self, loader):
        loader.add_option("leads_to", int, 0, "the loopback port that every host stands for")

    def server_connect(self, data):
        from mitmproxy import ctx
        data.server.address = ("127.0.0.1", ctx.options.leads_to)

addons = [LeadsTo()]
"""


def mitmdump() -> Path:
    """The program, installed when first asked for; skips the test, with the reason, where that fails."""
    program = _FOLDER / "bin/mitmdump"
    if not (_FOLDER / "complete").exists():
        venv.create(_FOLDER, clear=True, with_pip=True)
        command = [str(_FOLDER / "bin/python"), "-m", "pip", "install", "--quiet", f"mitmproxy=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            pytest.skip(f"mitmproxy {VERSION} cannot be installed for {sys.version.split()[0]}: {done.stderr.strip()[-300:]}")
        (_FOLDER / "complete").touch()
    return program


class MitmProxy:
    """`with MitmProxy(directory, PORT, ca) as proxy:` intercepts at `proxy.port`; whatever host is asked for, 127.0.0.1:PORT answers.

    It verifies that server by the authority in the file `upstream_ca`; its own is in `proxy.ca_file`.
    """

    def __init__(self, directory: Path, leads_to: int, upstream_ca: Path) -> None:
        self._program = mitmdump()
        directory.mkdir()
        self._directory = directory
        self.port = free_port()
        self.ca_file = directory / "mitmproxy-ca-cert.pem"
        self.log = directory / "proxy.log"
        (directory / "leads_to.py").write_text(_ADDON)
        options = {"confdir": directory, "leads_to": leads_to, "ssl_verify_upstream_trusted_ca": upstream_ca, "termlog_verbosity": "info"}
        self._command = [str(self._program), "--listen-host", "127.0.0.1", "--listen-port", str(self.port)]
        self._command += ["--scripts", str(directory / "leads_to.py")]
        self._command += [part for name, value in options.items() for part in ("--set", f"{name}={value}")]

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(lambda: self._process.poll() is not None or "listening at" in self.log.read_text(), 60, "mitmproxy listens")
        assert self._process.poll() is None, self.log.read_text()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(20)
        if error is not None:
            sys.stderr.write(self.log.read_text())
