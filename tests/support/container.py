"""Images run by runc, as a kubelet's runtime runs them: a pod's security context becomes the container's configuration.

On the host's network, so that a test's loopback servers can be reached; without a cgroup of its own.
"""

import functools
import json
import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from support.process import Role

IMAGES = Path(__file__).parents[2] / "build/images"
RUNC = shutil.which("runc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SECURITY_CONTEXT: dict[str, Any] = {
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "runAsNonRoot": True,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""What Pod Security `restricted` asks for, and a root file system that cannot be written."""


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

    def rebuilt(self, directory: Path, files: Mapping[str, bytes]) -> "Image":
        """This image with these files copied into it, as `FROM` and `COPY` would."""
        copy = object.__new__(Image)
        copy.__dict__.update(self.__dict__, root=directory / "rebuilt")
        # Hard links: cheap, and what is replaced is unlinked first.
        shutil.copytree(self.root, copy.root, symlinks=True, copy_function=os.link)
        for path, content in files.items():
            (copy.root / path).unlink(missing_ok=True)
            (copy.root / path).write_bytes(content)
        return copy


class Container(Role):
    """A role in a container of this image, under this security context; `role.yaml` is mounted where a ConfigMap would be."""

    def __init__(self, image: Image, directory: Path, config: str, context: Mapping[str, Any] = SECURITY_CONTEXT) -> None:
        super().__init__(directory / "config", config)
        (directory / "config").chmod(0o755)
        self.configs = [f"--config=/etc/lockgate/{name}" for name in ("config.yaml", "common.yaml")]
        self._image, self._directory, self._context = image, directory, context
        self.id = f"lockgate-{os.getpid()}-{self.health_port}"

    def command(self) -> list[str]:
        arguments = [*self._image.config["config"]["Entrypoint"], "run", *self.configs]
        (bundle := self._directory / "bundle").mkdir()
        spec = specification(self._image, arguments, self._context, {"/etc/lockgate": self._directory / "config"})
        (bundle / "config.json").write_text(json.dumps(spec))
        return [*self._runc(), "run", "--bundle", str(bundle), self.id]

    def execute(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Runs a command in the container, as `kubectl exec` does."""
        return subprocess.run([*self._runc(), "exec", self.id, *command], capture_output=True, text=True, timeout=30, check=False)

    def pid(self) -> int:
        """The role's process, as the host counts."""
        state = subprocess.run([*self._runc(), "state", self.id], capture_output=True, text=True, timeout=30, check=True).stdout
        return int(json.loads(state)["pid"])

    def _runc(self) -> list[str]:
        assert RUNC
        return [RUNC, "--root", str(self._directory / "runc")]


def run(image: Image, directory: Path, command: Sequence[str], context: Mapping[str, Any]) -> "subprocess.CompletedProcess[str]":
    """Runs one command in a container to its end, as `RUN` does."""
    assert RUNC
    (bundle := directory / "bundle").mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps(specification(image, command, context, {})))
    name = f"lockgate-{os.getpid()}-run"
    whole = [RUNC, "--root", str(directory / "runc"), "run", "--bundle", str(bundle), name]
    return subprocess.run(whole, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)


def specification(image: Image, arguments: Sequence[str], context: Mapping[str, Any], mounts: Mapping[str, Path]) -> dict[str, Any]:
    """The runtime's configuration (OCI Runtime Specification 1.0) for this command under a container's securityContext."""
    assert RUNC
    with TemporaryDirectory() as empty:
        subprocess.run([RUNC, "spec"], cwd=empty, check=True, timeout=30)
        spec: dict[str, Any] = json.loads((Path(empty) / "config.json").read_text())
    user = context.get("runAsUser", 0)
    assert user or not context.get("runAsNonRoot"), "a kubelet would refuse this"
    drops_all = "ALL" in context.get("capabilities", {}).get("drop", ())
    kept = context.get("capabilities", {}).get("add", []) if drops_all else spec["process"]["capabilities"]["bounding"]
    spec["process"] |= {
        "terminal": False,
        "user": {"uid": user, "gid": context.get("runAsGroup", 0)},
        "args": list(arguments),
        "env": image.config["config"]["Env"],
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), kept),
        "noNewPrivileges": not context.get("allowPrivilegeEscalation", True),
        "rlimits": [],
    }
    spec["root"] = {"path": str(image.root), "readonly": bool(context.get("readOnlyRootFilesystem"))}
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["destination"] != "/sys/fs/cgroup"]
    spec["mounts"].append(
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "noexec", "mode=1777"]}
    )
    for place, source in mounts.items():
        spec["mounts"].append({"destination": place, "type": "bind", "source": str(source), "options": ["bind", "ro"]})
    spec["linux"]["namespaces"] = [space for space in spec["linux"]["namespaces"] if space["type"] not in ("network", "cgroup")]
    del spec["linux"]["resources"]
    if context.get("seccompProfile", {}).get("type") == "RuntimeDefault":
        spec["linux"]["seccomp"] = _seccomp(frozenset(kept))
    return spec


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
