"""Builds the peers that tests and benchmarks run against, from Go modules, into a cache outside the tree: `make peers`.

Each is built once per recipe (its function, files and compiler), into `$LOCKGATE_PEERS/bin` (default: ~/.cache/lockgate-peers/bin).
What cannot be built is said with its reason, and is no failure: what needs it then skips.
"""

import hashlib
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
PEERS = Path(os.environ.get("LOCKGATE_PEERS") or Path.home() / ".cache/lockgate-peers")
GO_BUILD = ["go", "build", "-trimpath", "-ldflags=-s -w"]
TIMEOUT_SECONDS = 3600
"""A cold build of the API server took three minutes on two cores, the collector's two."""


def go(*command: str, cwd: Path, cgo: bool = False) -> str:
    """What the command printed."""
    flags = f"{os.environ.get('GOFLAGS', '')} -buildvcs=false".strip()
    env = os.environ | {"CGO_ENABLED": str(int(cgo)), "GOFLAGS": flags}
    return subprocess.run(command, cwd=cwd, env=env, check=True, capture_output=True, text=True, timeout=TIMEOUT_SECONDS).stdout


def etcd(binary: Path, work: Path) -> None:
    go(*GO_BUILD, "-o", str(binary), "go.etcd.io/etcd/server/v3", cwd=HERE / "kubernetes")


def kube_apiserver(binary: Path, work: Path) -> None:
    module = HERE / "kubernetes"
    version = go("go", "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes", cwd=module).strip()
    named = [*GO_BUILD[:-1], f"{GO_BUILD[-1]} -X k8s.io/component-base/version.gitVersion={version}"]
    go(*named, "-o", str(binary), "k8s.io/kubernetes/cmd/kube-apiserver", cwd=module)


def otelcol(binary: Path, work: Path) -> None:
    builder = "go.opentelemetry.io/collector/cmd/builder@v0.149.0"
    go("go", "run", builder, "--config", str(HERE / "otelcol/manifest.yaml"), cwd=work)
    (work / "sources/otelcol").replace(binary)


def otelcol_traces(binary: Path, work: Path) -> None:
    builder = "go.opentelemetry.io/collector/cmd/builder@v0.145.0"
    go("go", "run", builder, "--config", str(HERE / "otelcol/traces.yaml"), cwd=work)
    (work / "sources/otelcol").replace(binary)


def opencensus(binary: Path, work: Path) -> None:
    go(*GO_BUILD, "-o", str(binary), ".", cwd=HERE / "opencensus")


def policies(binary: Path, work: Path) -> None:
    go(*GO_BUILD, "-o", str(binary), ".", cwd=HERE / "policies")


def prometheus(binary: Path, work: Path) -> None:
    # Without its web pages: they are built by npm, and no test looks at them.
    go(*GO_BUILD, "-o", str(binary), "github.com/prometheus/prometheus/cmd/prometheus", cwd=HERE / "prometheus")


def prometheus_decode(binary: Path, work: Path) -> None:
    go(*GO_BUILD, "-o", str(binary), "./decode", cwd=HERE / "prometheus")


def vlagent(binary: Path, work: Path) -> None:
    # As its releases for amd64 and arm64 are built: zstd is then the library in C.
    go(*GO_BUILD, "-o", str(binary), "github.com/VictoriaMetrics/VictoriaLogs/app/vlagent", cwd=HERE / "vlagent", cgo=True)


def vmagent(binary: Path, work: Path) -> None:
    go(*GO_BUILD, "-o", str(binary), "github.com/VictoriaMetrics/VictoriaMetrics/app/vmagent", cwd=HERE / "vmagent", cgo=True)


RECIPES: dict[str, tuple[Callable[[Path, Path], None], list[str]]] = {
    "etcd": (etcd, ["kubernetes/go.mod", "kubernetes/go.sum"]),
    "kube-apiserver": (kube_apiserver, ["kubernetes/go.mod", "kubernetes/go.sum"]),
    "otelcol": (otelcol, ["otelcol/manifest.yaml"]),
    "otelcol-traces": (otelcol_traces, ["otelcol/traces.yaml"]),
    "opencensus": (opencensus, ["opencensus/go.mod", "opencensus/go.sum", "opencensus/main.go"]),
    "policies": (policies, ["policies/go.mod", "policies/go.sum", "policies/main.go"]),
    "prometheus": (prometheus, ["prometheus/go.mod", "prometheus/go.sum"]),
    "prometheus-decode": (prometheus_decode, ["prometheus/go.mod", "prometheus/go.sum", "prometheus/decode/main.go"]),
    "vlagent": (vlagent, ["vlagent/go.mod", "vlagent/go.sum"]),
    "vmagent": (vmagent, ["vmagent/go.mod", "vmagent/go.sum"]),
}


def build(name: str) -> str:
    """What became of the peer, in one line or, if its build failed, with the end of what that printed."""
    if not shutil.which("go"):
        return "not built: no Go here"
    recipe, files = RECIPES[name]
    commands = [go("go", "version", cwd=HERE), repr(GO_BUILD), inspect.getsource(go), inspect.getsource(recipe)]
    inputs = [*(each.encode() for each in commands), *((HERE / file).read_bytes() for file in files)]
    recipe_id = hashlib.sha256(b"\0".join(inputs)).hexdigest()
    binary, stamp = PEERS / "bin" / name, PEERS / "stamps" / name
    if binary.exists() and stamp.exists() and stamp.read_text() == recipe_id:
        return "there"
    for folder in (binary.parent, stamp.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=PEERS) as work:
        fresh = Path(work) / "fresh" / name
        fresh.parent.mkdir()
        try:
            recipe(fresh, Path(work))
        except subprocess.CalledProcessError as error:
            return f"not built: {' '.join(error.cmd)} failed:\n{(error.stderr or error.stdout)[-2000:]}"
        except subprocess.TimeoutExpired as error:
            return f"not built: {' '.join(error.cmd)} took more than {TIMEOUT_SECONDS} s"
        fresh.replace(binary)
    stamp.write_text(recipe_id)
    return "built"


if __name__ == "__main__":
    for peer in sys.argv[1:] or RECIPES:
        sys.stdout.write(f"{peer}: ")
        sys.stdout.flush()
        sys.stdout.write(f"{build(peer)}\n")
        sys.stdout.flush()
