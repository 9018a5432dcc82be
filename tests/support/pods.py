"""The chart's pods as a kubelet and its container runtime run them: rendered pod templates become volumes and containers, in our image.

Followed are the Kubernetes documentation ("Configure a Security Context", "Volumes", "Define Environment Variables", "Define a Command and
Arguments") and the kubelet's and containerd's own defaults: a container's context over its pod's, an image's user where neither names one,
fsGroup on what the kubelet makes and on no hostPath, files of ConfigMaps and Secrets as links through `..data`. A field that is not
translated here fails the test. Not there: cgroups, so limits of CPU and memory do nothing.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.container import DEFAULT_CAPABILITIES, Container, Image, Process, bind
from support.helm import Object, of_kind, pod
from support.netns import within

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass
class Node:
    """What pods on one machine find there."""

    root: Path
    """The machine's file system, as far as hostPath volumes show it."""
    images: Mapping[str, Image]
    """By the repository's last word."""
    secrets: dict[tuple[str, str], Mapping[str, bytes]] = field(default_factory=dict)
    """By (namespace, name)."""
    resolv_conf: str = ""
    api: tuple[str, int] = ("", 443)
    """The address of the Service `kubernetes`, which every pod is told."""
    api_ca: bytes = b""
    tokens: dict[tuple[str, str], str] = field(default_factory=dict)
    """By (namespace, service account)."""

    def image(self, reference: str) -> Image:
        return self.images[re.split("[:@]", reference.rpartition("/")[2])[0]]


class Pod:
    """`with Pod(...) as pod:` runs the init containers to their end, then the container, ready; leaving stops it as a kubelet does.
    Entered again, it is the StatefulSet's next pod: it has the same claims.

    `took` is how many seconds the container needed to be ready, the runtime's own among them.
    """

    def __init__(self, node: Node, workload: Object, objects: Sequence[Object], network: str, directory: Path) -> None:
        self._node, self._objects, self._directory, self._network = node, objects, directory, network
        self.workload, self.spec = workload, pod(workload)
        self.namespace: str = workload["metadata"]["namespace"]
        self.name = f"{workload['metadata']['name']}-0"
        self.log = directory / "container.log"
        self._volumes: dict[str, Path] = {}
        self._numbers = itertools.count()
        [self._settings] = self.spec["containers"]
        self.container: Container
        self.process: subprocess.Popen[bytes]
        self.took = 0.0

    # The kubelet's part: volumes.

    def _make_volumes(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        for name in ("hosts", "hostname", "resolv.conf", "termination-log"):
            (self._directory / name).write_text(
                {"hosts": "127.0.0.1\tlocalhost\n", "hostname": f"{self.name}\n", "resolv.conf": self._resolv_conf()}.get(name, "")
            )
        (self._directory / "termination-log").chmod(0o666)
        for volume in self.spec["volumes"]:
            self._volumes[volume["name"]] = self._volume({key: value for key, value in volume.items() if key != "name"}, volume["name"])
        for claim in self.workload["spec"].get("volumeClaimTemplates", []):
            self._volumes[claim["metadata"]["name"]] = self._directory_volume(claim["metadata"]["name"], 0o755)  # as mkfs leaves it
        if self.spec["automountServiceAccountToken"]:
            token = self._node.tokens[self.namespace, self.spec["serviceAccountName"]]
            files = {"token": token.encode(), "ca.crt": self._node.api_ca, "namespace": self.namespace.encode()}
            self._volumes["kube-api-access"] = self._files("kube-api-access", files)

    def _resolv_conf(self) -> str:
        options = " ".join(f"{each['name']}:{each['value']}" for each in self.spec["dnsConfig"]["options"])
        search = f"{self.namespace}.svc.cluster.local svc.cluster.local cluster.local"
        return f"search {search}\n{self._node.resolv_conf}options {options}\n"

    def _volume(self, source: Object, name: str) -> Path:
        match source:
            case {"configMap": {"name": found, **rest}} if not rest:
                [content] = [
                    each["data"]
                    for each in of_kind(self._objects, "ConfigMap")
                    if (each["metadata"]["namespace"], each["metadata"]["name"]) == (self.namespace, found)
                ]
                return self._files(name, {key: text.encode() for key, text in content.items()})
            case {"secret": {"secretName": found, **options}} if not options.keys() - {"items"}:
                secret = self._node.secrets[self.namespace, found]
                items: Any = options.get("items") or [{"key": key, "path": key} for key in secret]
                return self._files(name, {item["path"]: secret[item["key"]] for item in items})
            case {"emptyDir": {**rest}} if not rest:
                return self._directory_volume(name, 0o777)
            case {"hostPath": {"path": path, "type": kind}}:
                there = self._node.root / str(path).lstrip("/")
                if kind == "DirectoryOrCreate" and not there.exists():
                    there.mkdir(parents=True, mode=0o755)
                assert there.is_dir(), f"hostPath type check failed: {path} is not a directory"
                return there
        raise AssertionError(f"a volume that this kubelet does not know: {source}")

    def _directory_volume(self, name: str, mode: int) -> Path:
        found = self._directory / "volumes" / name
        if not found.exists():  # a claim outlives its pod
            found.mkdir(parents=True)
            found.chmod(mode)
            self._give_to_group(found)
        return found

    def _files(self, name: str, files: Mapping[str, bytes]) -> Path:
        found = self._directory / "volumes" / name
        shutil.rmtree(found, ignore_errors=True)
        (version := found / "..2026").mkdir(parents=True)
        for key, content in files.items():
            (version / key).write_bytes(content)
            (version / key).chmod(0o644 if key != "token" else 0o600)
            (found / key).symlink_to(f"..data/{key}")
        (found / "..data").symlink_to(version.name)
        for path in (found, version, *version.iterdir()):
            self._give_to_group(path, writable=False)
        return found

    def update(self, volume: str, key: str, content: bytes) -> None:
        """A changed ConfigMap or Secret, as the kubelet shows it: a new directory, to which `..data` leads from one moment to the next."""
        found = self._volumes[volume]
        before = found / (found / "..data").readlink()
        shutil.copytree(before, now := found / f"..{next(self._numbers)}")
        (now / key).write_bytes(content)
        for path in (now, *now.iterdir()):
            self._give_to_group(path, writable=False)
        (found / "..data_tmp").symlink_to(now.name)
        (found / "..data_tmp").rename(found / "..data")
        shutil.rmtree(before)

    def _give_to_group(self, path: Path, *, writable: bool = True) -> None:
        """As the kubelet gives a volume to the pod's fsGroup (pkg/volume, SetVolumeOwnership)."""
        if (group := self.spec["securityContext"].get("fsGroup")) is not None:
            shutil.chown(path, 0, group)
            bits = 0o660 if writable else 0o440
            path.chmod(path.stat().st_mode | bits | (0o2110 if path.is_dir() else 0))

    # The runtime's part: containers.

    def _container(self, settings: Object) -> Container:
        known = {"name", "image", "imagePullPolicy", "command", "args", "env", "securityContext", "resources", "volumeMounts", "ports"}
        assert settings.keys() <= known | {"livenessProbe", "readinessProbe", "startupProbe"}, settings.keys()
        image = self._node.image(settings["image"])
        own = image.config["config"]
        if "command" in settings:
            arguments = [*settings["command"], *settings.get("args", [])]
        else:
            arguments = [*own["Entrypoint"], *settings.get("args", own.get("Cmd") or [])]
        mounts = [bind(self._directory / name, f"/etc/{name}") for name in ("hosts", "hostname", "resolv.conf")]
        mounts.append(bind(self._directory / "termination-log", "/dev/termination-log"))
        for mount in settings.get("volumeMounts", []):
            assert mount.keys() <= {"name", "mountPath", "readOnly"}, mount
            mounts.append(bind(self._volumes[mount["name"]], mount["mountPath"], read_only=mount.get("readOnly", False)))
        if self.spec["automountServiceAccountToken"]:
            mounts.append(bind(self._volumes["kube-api-access"], SERVICE_ACCOUNT, read_only=True))
        environment = [f"{name}={value}" for name, value in self._environment(settings).items()]
        process, has_read_only_root = self._process(settings, own["User"], arguments, environment)
        return Container(
            f"{self.name}-{settings['name']}-{self._directory.stat().st_ino}-{next(self._numbers)}",
            self._directory,
            image,
            process,
            mounts,
            has_read_only_root,
            self._network,
            self.name,
        )

    def _environment(self, settings: Object) -> dict[str, str]:
        host, port = self._node.api
        found = {"HOSTNAME": self.name, "KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": str(port)}
        for each in settings.get("env", []):
            match each:
                case {"name": name, "value": value}:
                    found[name] = re.sub(r"\$\((\w+)\)", lambda match: found.get(match[1], match[0]), value)
                case {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}:
                    found[name] = self._node.secrets[self.namespace, secret][key].decode()
                case {"name": name, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}:
                    found[name] = "node-1"
                case _:
                    raise AssertionError(f"an environment variable that this kubelet does not know: {each}")
        return found

    def _process(self, settings: Object, image_user: str, arguments: Sequence[str], environment: Sequence[str]) -> tuple[Process, bool]:
        """(what runs, whether its root is read-only), after the container's securityContext and its pod's."""
        common, own = self.spec["securityContext"], settings["securityContext"]
        assert common.keys() <= {
            *("runAsUser", "runAsGroup", "runAsNonRoot", "fsGroup", "fsGroupChangePolicy", "supplementalGroups", "seccompProfile")
        }, common
        assert own.keys() <= {
            *("runAsUser", "runAsGroup", "runAsNonRoot", "allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"),
            "seccompProfile",
        }, own
        merged = {**common, **own}
        image_uid, _, image_gid = image_user.partition(":")
        uid = merged.get("runAsUser", int(image_uid))
        gid = merged.get("runAsGroup", int(image_gid) if "runAsUser" not in merged else 0)
        assert uid or not merged.get("runAsNonRoot"), "container has runAsNonRoot and image will run as root"
        # The first group is among the others as well, or a file that it may not read could be read (CVE-2022-36109).
        groups = [gid, *common.get("supplementalGroups", []), *([common["fsGroup"]] if "fsGroup" in common else [])]
        capabilities = set(DEFAULT_CAPABILITIES)
        chosen = own.get("capabilities", {})
        capabilities = set() if "ALL" in chosen.get("drop", []) else capabilities - set(chosen.get("drop", []))
        capabilities |= set(chosen.get("add", []))
        seccomp = merged.get("seccompProfile", {"type": "Unconfined"})
        assert seccomp in ({"type": "RuntimeDefault"}, {"type": "Unconfined"}), seccomp
        process = Process(
            arguments,
            environment,
            uid,
            gid,
            groups,
            sorted(capabilities),
            no_new_privileges=not own.get("allowPrivilegeEscalation", True),
            seccomp=seccomp["type"] == "RuntimeDefault",
        )
        return process, own.get("readOnlyRootFilesystem", False)

    # Its life.

    def start(self, probe: str = "readinessProbe") -> None:
        """Returns when this probe succeeds."""
        self._make_volumes()
        for settings in self.spec.get("initContainers", []):
            done = self._container(settings).run()
            assert done.returncode == 0, f"init container {settings['name']}: exit status {done.returncode}: {done.stderr}"
        self.container = self._container(self._settings)
        command = self.container.command()
        started = time.monotonic()
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            self.wait_for(self._settings[probe]["httpGet"]["path"], 40)
        except BaseException:
            self.process.terminate()  # killed, runc would leave the container running
            self.process.wait(30)
            raise
        self.took = time.monotonic() - started

    @contextmanager
    def alive(self) -> Iterator[Self]:
        """As `with` the pod, for one that is not to be ready."""
        self.start("livenessProbe")
        try:
            yield self
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        self.__exit__(None, None, None)

    def wait_for(self, path: str, seconds: float) -> None:
        """Until this path of health_check answers 200."""
        deadline = time.monotonic() + seconds

        def wait() -> None:
            while True:
                try:
                    if self._get(path)[0] == 200:
                        return
                except OSError:
                    pass
                assert self.process.poll() is None and time.monotonic() < deadline, f"not ready:\n{self.log.read_text()}"
                time.sleep(0.02)

        within(self._network, wait)

    def get(self, path: str) -> tuple[int, Any]:
        """(status, JSON) of a path of health_check."""
        return within(self._network, lambda: self._get(path))

    def _get(self, path: str) -> tuple[int, Any]:
        [port] = [each["containerPort"] for each in self._settings["ports"] if each["name"] == "health"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def kernel_status(self) -> dict[str, str]:
        """What the kernel says of the role (/proc/PID/status): of what the runtime took from it, and of what it gave up itself."""
        return _fields(Path(f"/proc/{self.container.pid()}/status").read_text())

    def kernel_status_of_another(self) -> dict[str, str]:
        """What it says of another process in the container: of what the runtime took alone."""
        return _fields(self.container.execute("/usr/bin/python3.11", "-c", "print(open('/proc/self/status').read())").stdout)

    def reasons(self) -> Iterator[str]:
        """Why each component is blocked."""
        for entry in self.get("/status")[1]["blocked"]:
            yield f"{entry['component']}: {entry['reason']}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            status = self.process.wait(30)
            if error is None:
                assert status == 0, f"exit status {status}:\n{self.log.read_text()}"
        if error is not None:
            sys.stderr.write(self.log.read_text())


def _fields(status: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+):\s*(.*)$", status, re.M))
