"""Real journal files, written by systemd-journal-remote from the journal export format, and journalctl to compare with."""

import json
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

_REMOTE = Path("/lib/systemd/systemd-journal-remote")
needs_journal = pytest.mark.skipif(
    not (_REMOTE.exists() and shutil.which("journalctl")), reason="systemd-journal-remote is not installed (see tests/install-debian.sh)"
)
BOOT = "0123456789abcdef0123456789abcdef"


def write(file: Path, entries: Iterable[dict[str, Any]], first_second: int = 1_700_000_000) -> None:
    """Appends entries to this journal file, a second apart. Values are text, bytes or lists of them."""
    stream = b""
    for number, entry in enumerate(entries):
        stream += b"__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=%d\n" % ((first_second + number) * 10**6, first_second + number)
        stream += b"_BOOT_ID=%s\n" % BOOT.encode()
        for name, values in entry.items():
            for value in values if isinstance(values, list) else [values]:
                raw = value if isinstance(value, bytes) else str(value).encode()
                stream += name.encode() + b"\n" + len(raw).to_bytes(8, "little") + raw + b"\n"
        stream += b"\n"
    subprocess.run([_REMOTE, "-o", file, "-"], input=stream, check=True, capture_output=True, timeout=30)


def journalctl(directory: Path, *options: str) -> list[dict[str, Any]]:
    """What journalctl shows of this directory."""
    command = ["journalctl", "--directory", str(directory), "--output=json", "--all", "--no-pager", "--quiet", *options]
    return [json.loads(line) for line in subprocess.run(command, check=True, capture_output=True, timeout=30).stdout.splitlines()]


def options(settings: dict[str, Any]) -> Sequence[str]:
    """The options that the collector gives journalctl for these settings."""
    found = [f"--unit={unit}" for unit in settings.get("units", ())]
    found += [f"--identifier={name}" for name in settings.get("identifiers", ())]
    found += [f"--priority={settings.get('priority', 'info')}"]
    found += [f"--grep={settings['grep']}"] if "grep" in settings else []
    for number, match in enumerate(settings.get("matches", ())):
        found += ["+"] if number else []
        found += [f"{name}={value}" for name, value in match.items()]
    return found
