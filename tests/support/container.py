"""Images, and what runc makes of them: a container with its own namespaces, capabilities, seccomp filter and mounts.

Without a cgroup of its own, so that no host's cgroups need be written.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

IMAGES = Path(__file__).parents[2] / "build/images"
RUNC = shutil.which("runc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
missing = "" if RUNC and os.geteuid() == 0 else "runc, and root's rights to run it (see tests/install-debian.sh)"
DEFAULT_CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP", "NET_BIND_SERVICE"),
    *("SYS_CHROOT", "KILL", "AUDIT_WRITE"),
)
"""What containerd and Docker leave to a container that says nothing."""


class Image:
    """An archive that `make images` wrote: its layer unpacked in `root`, its configuration in `config`."""

    def __init__(self, name: str, directory: Path) -> None:
        self.archive, self.root = IMAGES / f"{name}.tar", directory / name
        if not self.archive.exists():
            pytest.skip(f"{self.archive} is not there; `make images` builds it")
        with tarfile.open(self.archive) as tar:
            (manifest,) = json.load(_member(tar, "manifest.json"))
            self.config: dict[str, Any] = json.load(_member(tar, manifest["Config"]))
            (layer,) = manifest["Layers"]
            self.layer_bytes = tar.getmember(layer).size
            with tarfile.open(fileobj=_member(tar, layer), mode="r:gz") as content:
                self.entries = content.getmembers()
                content.extractall(self.root)

    def rebuilt(self, directory: Path, files: Mapping[str, bytes]) -> Image:
        """This image with these files copied into it, as `FROM` and `COPY` would."""
        copy = object.__new__(Image)
        copy.__dict__.update(self.__dict__, root=directory / "rebuilt")
        # Hard links: cheap, and what is replaced is unlinked first.
        shutil.copytree(self.root, copy.root, symlinks=True, copy_function=os.link)
        for path, content in files.items():
            (copy.root / path).unlink(missing_ok=True)
            (copy.root / path).write_bytes(content)
        return copy


@dataclass(frozen=True)
class Process:
    """What is run, and as whom. The defaults are those of `RUN` in an image's build."""

    arguments: Sequence[str]
    environment: Sequence[str] = ()
    uid: int = 0
    gid: int = 0
    groups: Sequence[int] = ()
    capabilities: Sequence[str] = DEFAULT_CAPABILITIES
    """Their names in Kubernetes, without CAP_."""
    no_new_privileges: bool = False
    seccomp: bool = True
    """Whether the runtime's own filter is in force."""


@dataclass
class Container:
    """One process in this image; `directory` is where runc keeps what it knows of it."""

    id: str
    directory: Path
    image: Image
    process: Process
    mounts: Sequence[Mapping[str, Any]] = ()
    """As in the runtime's configuration."""
    has_read_only_root: bool = False
    network: str = ""
    """The path of a network namespace; the host's where it is empty."""
    hostname: str = field(default="container")

    def command(self) -> list[str]:
        """What runs it to its end; signals are passed on."""
        bundle = self.directory / f"{self.id}.bundle"
        bundle.mkdir(parents=True)
        (bundle / "config.json").write_text(json.dumps(self._specification()))
        return [*self._runc(), "run", "--bundle", str(bundle), self.id]

    def run(self) -> subprocess.CompletedProcess[str]:
        """Runs it to its end."""
        return subprocess.run(self.command(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the running container, as `kubectl exec` does."""
        return subprocess.run([*self._runc(), "exec", self.id, *command], capture_output=True, text=True, timeout=60, check=False)

    def pid(self) -> int:
        """The process, as the host counts."""
        state = subprocess.run([*self._runc(), "state", self.id], capture_output=True, text=True, timeout=30, check=True).stdout
        return int(json.loads(state)["pid"])

    def _runc(self) -> list[str]:
        assert RUNC
        return [RUNC, "--root", str(self.directory / "runc")]

    def _specification(self) -> dict[str, Any]:
        """The runtime's configuration (OCI Runtime Specification 1.0)."""
        assert RUNC
        with TemporaryDirectory() as empty:
            subprocess.run([RUNC, "spec"], cwd=empty, check=True, timeout=30)
            spec: dict[str, Any] = json.loads((Path(empty) / "config.json").read_text())
        own = self.process
        capabilities = [f"CAP_{name}" for name in own.capabilities]
        spec["process"] |= {
            "terminal": False,
            "user": {"uid": own.uid, "gid": own.gid, "additionalGids": list(own.groups)},
            "args": list(own.arguments),
            "env": [*self.image.config["config"]["Env"], *own.environment],
            "cwd": self.image.config["config"]["WorkingDir"],
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": own.no_new_privileges,
            "rlimits": [],
        }
        spec["root"] = {"path": str(self.image.root), "readonly": self.has_read_only_root}
        spec["hostname"] = self.hostname
        spec["mounts"] = [each for each in spec["mounts"] if each["destination"] != "/sys/fs/cgroup"]
        # What is mounted below another mount comes after it.
        spec["mounts"] += sorted(self.mounts, key=lambda each: str(each["destination"]).rstrip("/").count("/"))
        spaces = [each for each in spec["linux"]["namespaces"] if each["type"] not in ("network", "cgroup")]
        spec["linux"]["namespaces"] = spaces + [{"type": "network", "path": self.network}] * bool(self.network)
        del spec["linux"]["resources"]
        if own.seccomp:
            spec["linux"]["seccomp"] = _seccomp(frozenset(capabilities))
        return spec


def bind(source: Path, destination: str, *, read_only: bool = False) -> dict[str, Any]:
    """A mount of this directory or file."""
    options = ["rbind", "rprivate", "ro" if read_only else "rw"]
    return {"destination": destination, "type": "bind", "source": str(source), "options": options}


def _seccomp(capabilities: frozenset[str]) -> dict[str, Any]:
    """The profile that Podman and CRI-O run containers under by default, for these capabilities; it has the form of Docker's."""
    profile = json.loads(_profile().read_text())
    machine = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"), "aarch64": ("arm64", "SCMP_ARCH_AARCH64")}[platform.machine()]
    (archs,) = [entry for entry in profile["archMap"] if entry["architecture"] == machine[1]]
    rules = []
    for rule in profile["syscalls"]:
        includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
        if "arches" in includes and machine[0] not in includes["arches"]:
            continue
        if not capabilities >= set(includes.get("caps", ())) or capabilities & set(excludes.get("caps", ())):
            continue
        rules.append({key: rule[key] for key in ("names", "action", "args", "errnoRet") if rule.get(key) is not None})
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": [archs["architecture"], *archs["subArchitectures"]],
        "syscalls": rules,
    }


@functools.cache
def _profile() -> Path:
    """From Debian's package of it, unpacked beside the peers: installing it would bring the network plugins along."""
    installed = Path("/usr/share/containers/seccomp.json")
    if installed.exists():
        return installed
    folder = Path(os.environ.get("LOCKGATE_PEERS") or Path.home() / ".cache/lockgate-peers") / "containers-common"
    if not (found := folder / "usr/share/containers/seccomp.json").exists():
        with TemporaryDirectory() as work:
            Path(work).chmod(0o777)  # apt fetches as a user of its own
            done = subprocess.run(
                ["apt-get", "download", "golang-github-containers-common"],
                cwd=work,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            if done.returncode != 0:
                pytest.skip(f"the runtime's seccomp profile cannot be had: {done.stderr.strip()[-300:]}")
            (deb,) = Path(work).glob("*.deb")
            subprocess.run(["dpkg-deb", "--extract", str(deb), str(folder)], check=True, timeout=60)
    return found


def _member(tar: tarfile.TarFile, name: str) -> Any:
    found = tar.extractfile(name)
    assert found is not None
    return found
