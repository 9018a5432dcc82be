"""What a user writes for journald: the collector's keys (opentelemetry-collector-contrib, receiver/journaldreceiver)."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import field_validator, model_validator

from lockgate.kit import regex
from lockgate.kit.document import Path
from lockgate.pipeline.needs import ComponentSettings, Need, Read, Tried
from lockgate.pipeline.retry import RetryOnFailure

DEFAULT_DIRECTORIES = ("/var/log/journal", "/run/log/journal")
JOURNAL_FILES = (".journal", ".journal~")
"""How their names end."""
_PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
_SUFFIXES = ["service", "socket", "device", "mount", "automount", "swap", "target", "path", "timer", "slice", "scope"]
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}")
_FIELD = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
_UNSUPPORTED = {
    "operators": "change records with processors behind the receiver",
    "namespace": "name the namespace's own directory, such as /var/log/journal/MACHINE_ID.NAMESPACE",
}


class JournaldSettings(ComponentSettings):
    """Which journal to read, and which of its entries. Filters mean what journalctl's options of these names mean."""

    directory: str = ""
    """The directory that holds the journal's files, or directories of them. Without it and without `files`: /var/log/journal, or
    /run/log/journal where that does not exist."""
    files: list[str] = []
    """Journal files to read, instead of a directory; absolute paths. Files that appear later are not noticed: name a directory for that."""
    start_at: Literal["beginning", "end"] = "end"
    """Where to begin at the first start. A cursor in storage goes before."""
    units: list[str] = []
    """Units whose entries to read; also what systemd says about them, and their core dumps. `.service` is added to a bare name."""
    identifiers: list[str] = []
    """Values of SYSLOG_IDENTIFIER to read."""
    priority: str = "info"
    """The least urgent priority to read (a name or 0 to 7), or a range such as `warning..emerg`. `debug` is everything, and what has no
    priority."""
    matches: list[dict[str, str]] = []
    """Entries that have all the fields of one of these maps."""
    grep: str = ""
    """A regular expression (RE2's) that MESSAGE must match; without a capital letter in it, case does not count."""
    dmesg: bool = False
    """Whether to read the kernel's entries alone. Unlike journalctl's option, of every boot: the last words of one are worth reading."""
    all: bool = False
    """No effect: fields are always given whole. (The collector gives null for long ones unless this is set.)"""
    convert_message_bytes: bool = False
    """No effect: text is always text, and what is no UTF-8 is bytes. (The collector gives a list of numbers unless this is set.)"""
    merge: bool = False
    """No effect: all files of a directory are read as one journal, whichever machine wrote them."""
    attributes: dict[str, str] = {}
    """Attributes for every record."""
    resource: dict[str, str] = {}
    """Attributes for the resource of every record."""
    storage: str = ""
    """The storage extension that keeps the cursor; without one a restart begins anew, as start_at says."""
    retry_on_failure: RetryOnFailure = RetryOnFailure()
    """How often to try again."""
    operators: list[Any] = []
    """Not supported."""
    namespace: str = ""
    """Not supported."""

    @field_validator(*_UNSUPPORTED)
    @classmethod
    def _is_not_supported(cls, value: Any, info: Any) -> Any:
        if value:
            raise ValueError(f"is not supported: {_UNSUPPORTED[info.field_name]}")
        return value

    @field_validator("directory", "files")
    @classmethod
    def _are_absolute(cls, value: Any) -> Any:
        for path in [value] if isinstance(value, str) else value:
            if path and not path.startswith("/"):
                raise ValueError(f"{path!r} must be an absolute path")
            if "*" in path or "?" in path:
                raise ValueError(f"{path!r}: patterns are not supported; name the directory")
        return value

    @field_validator("units")
    @classmethod
    def _are_units(cls, units: list[str]) -> list[str]:
        for unit in units:
            if not _UNIT.fullmatch(unit):
                raise ValueError(f"{unit!r} is no unit's name (patterns are not supported); list the units, or use matches")
        return [unit if unit.rpartition(".")[2] in _SUFFIXES else f"{unit}.service" for unit in units]

    @field_validator("priority")
    @classmethod
    def _is_a_priority(cls, value: str) -> str:
        priorities(value)
        return value

    @field_validator("grep")
    @classmethod
    def _is_a_regular_expression(cls, value: str) -> str:
        regex.compile(value)
        return value

    @field_validator("matches")
    @classmethod
    def _name_fields(cls, matches: list[dict[str, str]]) -> list[dict[str, str]]:
        for match in matches:
            if not match:
                raise ValueError("an empty match matches nothing; remove it")
            for name in match:
                if not _FIELD.fullmatch(name):
                    raise ValueError(f"{name!r} is no journal field; write it like _SYSTEMD_UNIT")
        return matches

    @field_validator("attributes", "resource")
    @classmethod
    def _are_plain(cls, values: dict[str, str]) -> dict[str, str]:
        for key, value in values.items():
            if value.startswith("EXPR("):
                raise ValueError(f"{key}: expressions are not supported here; set it with the attributes processor")
        return values

    @model_validator(mode="after")
    def _can_run(self) -> JournaldSettings:
        if self.directory and self.files:
            raise ValueError("has both directory and files; keep one")
        if importlib.util.find_spec("cysystemd") is None:
            raise ValueError("needs libsystemd, which the extra `journald` brings: pip install 'lockgate[journald]'")
        return self

    def needs(self) -> Iterator[Need]:
        named = self.files or ([self.directory] if self.directory else [])
        for path in named or DEFAULT_DIRECTORIES:
            yield Read(path, "the journal", optional=not named)

    @property
    def where(self) -> str:
        """The directory of the journal; the first of the usual ones where none exists."""
        there = (path for path in DEFAULT_DIRECTORIES if os.path.exists(path))  # noqa: PTH110  # Path.exists raises where it may not look
        return self.directory or next(there, DEFAULT_DIRECTORIES[0])

    def try_reading(self) -> Iterator[Tried]:
        if self.files:
            yield from map(_try_file, self.files)
            return
        closed: list[OSError] = []
        for directory, _, names in os.walk(self.where, onerror=closed.append):
            yield from (Tried(error.filename, True, error) for error in closed)
            closed.clear()
            yield Tried(directory, True)
            for name in names:
                if name.endswith(JOURNAL_FILES) and not isinstance((tried := _try_file(f"{directory}/{name}")).error, FileNotFoundError):
                    yield tried
        yield from (Tried(error.filename, True, error) for error in closed)

    def extensions(self) -> Iterator[tuple[Path, str]]:
        if self.storage:
            yield ("storage",), self.storage

    def warnings(self) -> Iterator[str]:
        yield from super().warnings()
        if not self.storage:
            yield "no storage: a restart begins where start_at says, and not where it stopped; name a file_storage"

    def conditions(self) -> list[list[list[str]]]:
        """What an entry must be: all of these; each is met by one of its groups; a group by all its fields (and by one of several values
        of a field). The same matches as journalctl adds (systemd, journalctl.c and logs-show.c, add_matches_for_unit)."""
        found = [[["_TRANSPORT=kernel"]]] if self.dmesg else []
        if self.units:
            found.append([group for unit in self.units for group in _unit_groups(unit)])
        if self.identifiers:
            found.append([[f"SYSLOG_IDENTIFIER={name}" for name in self.identifiers]])
        if (wanted := priorities(self.priority)) != range(8):
            found.append([[f"PRIORITY={number}" for number in wanted]])
        if self.matches:
            found.append([[f"{name}={value}" for name, value in match.items()] for match in self.matches])
        return found


def _try_file(path: str) -> Tried:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return Tried(path, False, error)
    return Tried(path, False)


def _unit_groups(unit: str) -> Iterator[list[str]]:
    yield [f"_SYSTEMD_UNIT={unit}"]
    yield ["MESSAGE_ID=fc2e22bc6ee647b6b90729ab34a250b1", "_UID=0", f"COREDUMP_UNIT={unit}"]
    yield ["_PID=1", f"UNIT={unit}"]
    yield ["_UID=0", f"OBJECT_SYSTEMD_UNIT={unit}"]
    if unit.endswith(".slice"):
        yield [f"_SYSTEMD_SLICE={unit}"]


def priorities(text: str) -> range:
    """The priorities that `priority` stands for; raises ValueError."""
    first, dots, last = text.partition("..")
    ends = sorted(_priority(each) for each in ((first, last) if dots else ("0", first)))
    return range(ends[0], ends[1] + 1)


def _priority(text: str) -> int:
    if text in _PRIORITIES:
        return _PRIORITIES.index(text)
    if len(text) == 1 and text in "01234567":
        return int(text)
    raise ValueError(f"{text!r} is no priority; write a number from 0 to 7 or one of {', '.join(_PRIORITIES)}")
