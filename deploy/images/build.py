"""Builds Lockgate's images: `make images`. Python from Debian's packages, Lockgate and its libraries from wheels, and nothing else.

There is no Dockerfile, because a base image would bring a shell, a package manager and a daemon to build with. mmdebstrap fetches and
verifies Debian's packages; of these only the listed ones are unpacked, by this script, without their maintainer scripts. Written are an
OCI image layout in a tar (`podman load`, `docker load`, `skopeo copy oci-archive:...`) and a list of what is in it (CycloneDX), for
`lockgate` and for `lockgate-debug`, which has a shell (busybox), openssl and update-ca-certificates as well.

The same inputs give the same bytes: entries are sorted, times are SOURCE_DATE_EPOCH (by default the last commit's), owners are numbers,
libraries have the versions that the tests ran with.
"""

import compileall
import csv
import email
import gzip
import hashlib
import io
import json
import os
import platform
import py_compile
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "build/images"
SUITE = "bookworm"
UID = 10001
SITE = "usr/local/lib/python3.11/dist-packages"

PACKAGES = [
    *("ca-certificates", "libc6", "libpython3.11-minimal", "libpython3.11-stdlib", "libssl3", "python3.11-minimal", "tzdata", "zlib1g"),
    *("libbz2-1.0", "libexpat1", "libffi8", "gcc-12-base", "libgcc-s1", "liblzma5", "libstdc++6", "libuuid1", "netbase"),
]
DEBUG_PACKAGES = ["busybox-static", "openssl"]

UNUSED = (
    *("usr/share/doc-base", "usr/share/info", "usr/share/lintian", "usr/share/locale", "usr/share/man", "usr/share/bug"),
    *("usr/share/perl5", "usr/share/debconf", "usr/share/gcc", "usr/share/gdb", "usr/share/pixmaps", "usr/share/applications"),
    *("usr/share/binfmts", "usr/share/python3", "usr/share/zoneinfo/right", "usr/share/zoneinfo/posix", "usr/lib/valgrind", "usr/sbin"),
    *("usr/lib/binfmt.d", "usr/lib/python3.11/sitecustomize.py", "usr/lib/python3.11/turtle.py"),
    *("usr/lib/x86_64-linux-gnu/gconv", "usr/lib/aarch64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/engines-3", "usr/lib/ssl/misc"),
    *("var", "sbin", "etc/init.d", "etc/default", "etc/ld.so.conf.d", "etc/ca-certificates", "usr/bin/openssl", "usr/bin/c_rehash"),
    *("usr/bin/catchsegv", "usr/bin/getconf", "usr/bin/getent", "usr/bin/iconv", "usr/bin/ldd", "usr/bin/locale", "usr/bin/localedef"),
    *("usr/bin/pldd", "usr/bin/tzselect", "usr/bin/zdump", "etc/python3.11/sitecustomize.py"),
    *(
        f"usr/lib/python3.11/{name}"
        for name in ("lib2to3", "idlelib", "turtledemo", "pydoc_data", "ensurepip", "tkinter", "test", "venv", "distutils")
    ),
)
"""Of what those packages hold, what nothing here opens. Licences (usr/share/doc/*/copyright) stay."""

UNUSED_LIBRARIES = ("cython", "setuptools", "pip")
"""Cython is imported by kernels that were not compiled; here they are."""

PASSWD = f"root:x:0:0:root:/root:/sbin/nologin\nlockgate:x:{UID}:{UID}:Lockgate:/var/lib/lockgate:/sbin/nologin\n"
FILES = {
    "etc/passwd": PASSWD + "nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n",
    "etc/group": f"root:x:0:\nlockgate:x:{UID}:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
    "etc/os-release": f'PRETTY_NAME="Lockgate on Debian 12"\nNAME="Debian"\nID=debian\nVERSION_ID="12"\nVERSION_CODENAME={SUITE}\n',
    # -I: neither the environment nor the working directory says what is imported; -B: nothing is written beside the modules.
    "usr/local/bin/lockgate": "#!/usr/bin/python3.11 -IB\nfrom lockgate.cli.main import main\n\nraise SystemExit(main())\n",
}
DIRECTORIES = {
    "tmp": 0o1777,
    "var/lib/lockgate": 0o750,
    "usr/local/share/ca-certificates": 0o755,
    "proc": 0o555,
    "sys": 0o555,
    "dev": 0o755,
}


def main() -> int:
    if sys.version_info[:2] != (3, 11):
        sys.exit(f"the image's Python is 3.11, for which the wheels must be built; this one is {platform.python_version()}")
    for program in ("mmdebstrap", "dpkg-deb", "readelf", "cc"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is missing: apt-get install mmdebstrap dpkg binutils gcc")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    recipe = _recipe()
    stamp = OUTPUT / "recipe"
    if stamp.exists() and stamp.read_text() == recipe:
        print(f"{OUTPUT}: nothing has changed")
        return 0
    stamp.unlink(missing_ok=True)
    with TemporaryDirectory() as work:
        # World-readable: apt fetches as a user of its own.
        Path(work).chmod(0o755)
        debs = _debian(Path(work) / "debs")
        libraries = _libraries(Path(work))
        for name, packages in (("lockgate", PACKAGES), ("lockgate-debug", PACKAGES + DEBUG_PACKAGES)):
            _image(name, {package: debs[package] for package in packages}, libraries, Path(work) / name)
    stamp.write_text(recipe)
    return 0


def _recipe() -> str:
    """What the images follow from, but for Debian's updates: `make clean` fetches these."""
    files = [Path(__file__), ROOT / "pyproject.toml", ROOT / "setup.py"]
    files += [path for path in sorted((ROOT / "src").rglob("*")) if path.suffix in (".py", ".pxd", ".yaml")]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _run(*command: str | Path, environment: Mapping[str, str] | None = None) -> str:
    """What the command printed, to either stream; ends the build where it failed."""
    words = [str(part) for part in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stdout[-3000:]}")
    return done.stdout


def _debian(directory: Path) -> dict[str, Path]:
    """The packages' files by name, verified by apt."""
    directory.mkdir()
    keep = f'cp "$1"/var/cache/apt/archives/*.deb {directory}/'
    include = ",".join(PACKAGES + DEBUG_PACKAGES)
    _run("mmdebstrap", "--variant=extract", "--format=null", f"--extract-hook={keep}", f"--include={include}", SUITE, "/dev/null")
    return {path.name.split("_")[0]: path for path in sorted(directory.glob("*.deb"))}


def _libraries(work: Path) -> Path:
    """Lockgate and the libraries it runs with, as an installed tree; of the versions that are installed beside this interpreter."""
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    source = work / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "dist", "tests", "*.so", "*.c", "*.egg-info", "__pycache__"))
    environment = {**os.environ, "LOCKGATE_REQUIRE_KERNELS": "1", "SOURCE_DATE_EPOCH": str(_epoch())}
    _run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", work / "wheels", source, environment=environment)
    (wheel,) = (work / "wheels").glob("*.whl")
    versions = _run(*pip, "freeze", "--exclude-editable", "--exclude", "lockgate")
    (work / "constraints").write_text(versions)
    target = work / "libraries"
    _run(
        *pip,
        "install",
        "--no-compile",
        "--only-binary=:all:",
        "--constraint",
        work / "constraints",
        "--target",
        target,
        f"{wheel}[journald]",
    )
    shutil.rmtree(target / "bin", ignore_errors=True)  # commands of the libraries
    for information in list(target.glob("*.dist-info")):
        if information.name.split("-")[0].lower() in UNUSED_LIBRARIES:
            for recorded, *_ in csv.reader((information / "RECORD").read_text().splitlines()):
                (target / recorded).unlink(missing_ok=True)
            shutil.rmtree(information, ignore_errors=True)
    for path in sorted(target.rglob("*"), reverse=True):
        if path.is_dir() and (path.name in ("tests", "test", "__pycache__") or not any(path.iterdir())):
            shutil.rmtree(path)
        elif path.is_file() and path.suffix in (".pyx", ".pxd", ".pxi", ".c", ".h", ".hpp", ".pyi", ".po", ".proto"):
            path.unlink()
    for path in (*target.glob("*.dist-info/direct_url.json"), *target.glob("*.dist-info/RECORD")):
        path.unlink()  # where it was built, and a list of what was there
    _compile(target, f"/{SITE}")
    return target


def _image(name: str, debs: dict[str, Path], libraries: Path, root: Path) -> None:
    is_debug = name.endswith("-debug")
    for deb in debs.values():
        _run("dpkg-deb", "--extract", deb, root)
    kept = ("usr/sbin", "usr/bin/openssl", "usr/bin/c_rehash", "etc/ca-certificates", "usr/lib/ssl/misc") if is_debug else ()
    for pattern in UNUSED:
        if pattern not in kept:
            _remove(root / pattern)
    for path in list((root / "usr/share/doc").glob("*/*")):
        if path.name != "copyright":
            _remove(path)
    for program in (*(root / "usr/bin").glob("*"), *(root / "bin").glob("*")):
        if not is_debug and program.name != "python3.11":
            _remove(program)
    site = root / SITE
    shutil.copytree(libraries, site, symlinks=True)
    for place, text in FILES.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(text)
    (root / "usr/local/bin/lockgate").chmod(0o755)
    (root / "usr/bin/python3").symlink_to("python3.11")  # by this name the chart's init container starts it
    for directory in DIRECTORIES:
        (root / directory).mkdir(parents=True, exist_ok=True)
    authorities = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    (root / "etc/ssl/certs").mkdir(parents=True, exist_ok=True)
    (root / "etc/ssl/certs/ca-certificates.crt").write_bytes(b"".join(path.read_bytes() for path in authorities))
    if is_debug:
        listed = "".join(f"{path.relative_to(root / 'usr/share/ca-certificates')}\n" for path in authorities)
        (root / "etc/ca-certificates.conf").write_text(listed)
        (root / "etc/ca-certificates/update.d").mkdir(parents=True, exist_ok=True)
        for applet in _run(root / "bin/busybox", "--list").split():
            if not any((root / folder / applet).exists() for folder in ("bin", "usr/bin", "usr/sbin")):
                (root / "bin" / applet).symlink_to("busybox")
    else:
        _remove(root / "usr/share/ca-certificates")  # all of it is in the bundle
        _remove(root / "bin")
    _link(root)
    parts = [*_package_parts(debs), *_library_parts(site)]
    for package, deb in debs.items():
        # Where scanners look for the packages of an image without dpkg.
        status = root / "var/lib/dpkg/status.d" / package
        status.parent.mkdir(parents=True, exist_ok=True)
        status.write_text(_run("dpkg-deb", "--field", deb))
    bill = json.dumps(_bill(name, parts), indent=1, sort_keys=True) + "\n"
    (root / "usr/share/lockgate").mkdir(parents=True)
    (root / "usr/share/lockgate/sbom.cdx.json").write_text(bill)
    (OUTPUT / f"{name}.cdx.json").write_text(bill)
    _compile(root / "usr/lib/python3.11", "/usr/lib/python3.11")
    _check_links(root)
    _write_archive(name, root)


def _compile(folder: Path, place: str) -> None:
    """Compiles the modules in this folder for this place. They are never looked at again: the image's files do not change."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    if not compileall.compile_dir(folder, quiet=1, invalidation_mode=mode, stripdir=str(folder), prependdir=place):
        sys.exit(f"some modules for {place} do not compile")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link(root: Path) -> None:
    """/lib and /lib64 into /usr, as on an installed Debian; ELF programs name their loader by the latter."""
    for name in ("lib", "lib64", "bin", "sbin"):
        if (folder := root / name).is_dir() and not folder.is_symlink():
            shutil.copytree(folder, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(folder)
            folder.symlink_to(f"usr/{name}")


def _check_links(root: Path) -> None:
    """Every shared library that is asked for is there. A module of Python's whose library is not in the image is taken out of it."""
    shared = [path for path in sorted((root / "usr").rglob("*")) if path.is_file() and not path.is_symlink() and _is_elf(path)]
    there = {path.name for path in (root / "usr").rglob("*.so*")}
    for path in shared:
        asked = set(re.findall(r"\(NEEDED\).*\[(.+)\]", _run("readelf", "--dynamic", path)))
        if missing := asked - there:
            if path.parent.name != "lib-dynload":
                sys.exit(f"{path.relative_to(root)} needs {', '.join(sorted(missing))}, which no listed package has")
            print(f"left out: {path.name.split('.')[0]}, which needs {', '.join(sorted(missing))}")
            path.unlink()


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _package_parts(debs: dict[str, Path]) -> Iterator[dict[str, Any]]:
    for package, deb in debs.items():
        fields = dict(line.split(": ", 1) for line in _run("dpkg-deb", "--field", deb, "Version", "Architecture").splitlines())
        purl = f"pkg:deb/debian/{package}@{fields['Version']}?arch={fields['Architecture']}&distro={SUITE}"
        yield {"type": "library", "name": package, "version": fields["Version"], "purl": purl, "bom-ref": purl}


def _library_parts(site: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(site.glob("*.dist-info/METADATA")):
        fields = email.message_from_string(path.read_text("utf-8"))
        name, version = str(fields["Name"]), str(fields["Version"])
        purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
        part = {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}
        licence = fields["License-Expression"] or fields["License"]
        yield part | ({"licenses": [{"license": {"name": str(licence).splitlines()[0]}}]} if licence else {})


def _bill(name: str, parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    about = {"component": {"type": "container", "name": name, "version": _version()}}
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": about, "components": list(parts)}


def _version() -> str:
    match = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert match
    return match[1]


def _epoch() -> int:
    if named := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(named)
    done = subprocess.run(["git", "-C", str(ROOT), "log", "-1", "--format=%ct"], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip() else 0


def _layer(root: Path) -> bytes:
    """The tree as an uncompressed tar, the same bytes for the same content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            entry = tarfile.TarInfo(str(path.relative_to(root)))
            entry.mtime, content = _epoch(), b""
            entry.uid = entry.gid = UID if entry.name == "var/lib/lockgate" else 0
            if path.is_symlink():
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
            elif path.is_dir():
                entry.type, entry.mode = tarfile.DIRTYPE, DIRECTORIES.get(entry.name, 0o755)
            else:  # two names of one file are two files; no bit but these is kept, so none is setuid
                is_program = path.parent.name in ("bin", "sbin") or ".so" in path.name
                content, entry.mode = path.read_bytes(), 0o755 if is_program else 0o644
                entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _write_archive(name: str, root: Path) -> None:
    """An OCI image layout in a tar (OCI Image Format 1.0), which `docker load` reads too."""
    layer = _layer(root)
    packed = gzip.compress(layer, 9, mtime=0)
    created = datetime.fromtimestamp(_epoch(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    labels = {
        "org.opencontainers.image.title": name,
        "org.opencontainers.image.version": _version(),
        "org.opencontainers.image.licenses": "Apache-2.0",
    }
    config = {
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": {
            "User": f"{UID}:{UID}",
            "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/bin", "LANG=C.UTF-8"],
            "Entrypoint": ["/usr/local/bin/lockgate"],
            "WorkingDir": "/",
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created": created, "created_by": "deploy/images/build.py"}],
    }
    blobs: dict[str, bytes] = {}

    def blob(media_type: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(content)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", _json(config)),
        "layers": [blob("layer.v1.tar+gzip", packed)],
    }
    paths = list(blobs)
    top = blob("manifest.v1+json", _json(manifest)) | {"annotations": {"org.opencontainers.image.ref.name": _version()}}
    files = {
        "index.json": _json({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [top]}),
        "manifest.json": _json([{"Config": paths[0], "RepoTags": [f"{name}:{_version()}"], "Layers": paths[1:]}]),
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        **blobs,
    }
    archive = OUTPUT / f"{name}.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path, content in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mtime = len(content), _epoch()
            tar.addfile(entry, io.BytesIO(content))
    print(
        f"{archive}: {len(packed) / 1e6:.1f} MB compressed, {len(layer) / 1e6:.1f} MB unpacked, sha256:{hashlib.sha256(packed).hexdigest()}"
    )


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


if __name__ == "__main__":
    sys.exit(main())
