"""What a user writes for filelog: the collector's keys (opentelemetry-collector-contrib, receiver/filelogreceiver)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Literal

import re2
from pydantic import Field, field_validator, model_validator

from lockgate.kit.document import Path
from lockgate.kit.units import Duration, Size
from lockgate.pipeline.needs import ComponentSettings, Need, Read, Tried
from lockgate.pipeline.retry import RetryOnFailure
from lockgate.tail.options import Options
from lockgate.tail.patterns import check, fixed_root
from lockgate.tail.sample import try_reading

# Log text is an attacker's: linear time or nothing.
re2.set_fallback_notification(re2.FALLBACK_EXCEPTION)

ENCODINGS = {"utf-8", "utf8", "utf-8-raw", "ascii", "us-ascii"}

_UNSUPPORTED = {
    "header": "parse headers behind the receiver",
    "ordering_criteria": "every matching file is followed, and each keeps its own order",
    "compression": "what a kubelet compressed of a followed log is read without it; other compressed files are not",
    "delete_after_read": "Lockgate never deletes a log",
    "acquire_fs_lock": "no file is locked; leave it out",
    "include_file_record_number": "a record's number is not known after a restart; the path and the time tell records apart",
    "polls_to_archive": "positions are kept as long as their files exist; leave it out",
}


class Multiline(ComponentSettings):
    """Where a record of several lines begins or ends. Regular expressions are RE2's, as in the collector; ^ and $ match at lines."""

    line_start_pattern: str = ""
    """A record begins where this matches."""
    line_end_pattern: str = ""
    """A record ends behind what this matches."""
    omit_pattern: bool = False
    """Whether what the pattern matches is left out of the record."""

    @field_validator("line_start_pattern", "line_end_pattern")
    @classmethod
    def _is_regular_expression(cls, pattern: str) -> str:
        try:
            re2.compile(b"(?m)" + pattern.encode())
        except re2.error as error:
            raise ValueError(f"is no RE2 regular expression: {error}") from None
        except ValueError as error:  # what `re` could do and RE2 cannot: look-around, back-references
            raise ValueError(f"cannot be matched in linear time: {error}; RE2 has no look-around and no back-references") from None
        return pattern

    @model_validator(mode="after")
    def _exactly_one(self) -> Multiline:
        if bool(self.line_start_pattern) == bool(self.line_end_pattern):
            raise ValueError("needs exactly one of line_start_pattern and line_end_pattern")
        return self


class ContainerOperator(ComponentSettings):
    """Parses what container runtimes write, joins partial lines for each stream, and takes the pod's name from the path."""

    type: Literal["container"]
    """Which operator: `container`."""
    id: str = "container"
    """A name for it."""
    format: Literal["", "docker", "crio", "containerd"] = ""
    """The runtime's format; found out line by line where it is not given."""
    add_metadata_from_filepath: bool = True
    """Whether resource attributes k8s.namespace.name, k8s.pod.name, k8s.pod.uid, k8s.container.name and k8s.container.restart_count are
    taken from a path such as /var/log/pods/NAMESPACE_POD_UID/CONTAINER/RESTARTS.log (of the file, or of what a link leads to)."""
    max_log_size: Size = Field(1 << 20, ge=1)
    """Bytes of one joined record; a longer one is cut and flagged `log.record.truncated`. There is no unlimited: memory is bounded."""
    on_error: Literal["send", "send_quiet"] = "send"
    """A line in no known format is always sent on as it is, and counted in lockgate_filelog_malformed_lines."""


class FilelogSettings(ComponentSettings):
    """Which files to follow, and what to make of their lines."""

    include: list[str] = Field(min_length=1)
    """Glob patterns of files to follow: absolute; `*`, `**`, `?`, `[a-z]`, `{one,two}`."""
    exclude: list[str] = []
    """Glob patterns of files to leave out, by their path or by what a link leads to."""
    exclude_older_than: Duration = 0.0
    """Files last written to longer ago than this are left out; 0 is none."""
    start_at: Literal["beginning", "end"] = "end"
    """Where to begin with files that are there at the first start. Positions in storage, and files that appear later, are not affected."""
    symlink_roots: list[str] = ["/var/log/pods", "/var/lib/docker/containers"]
    """Directories, besides those of include, into which symbolic links may lead. A link to anywhere else is refused and counted."""
    include_file_name: bool = True
    """Whether records carry `log.file.name`."""
    include_file_path: bool = False
    """Whether records carry `log.file.path`."""
    include_file_name_resolved: bool = False
    """Whether records carry `log.file.name_resolved`: the name behind symbolic links."""
    include_file_path_resolved: bool = False
    """Whether records carry `log.file.path_resolved`: the path behind symbolic links."""
    include_file_owner_name: bool = False
    """Whether records carry `log.file.owner.name`."""
    include_file_owner_group_name: bool = False
    """Whether records carry `log.file.owner.group.name`."""
    poll_interval: Duration = Field(0.2, gt=0)
    """At most one round of reading in this time, unless more is waiting; and how often files are looked at where inotify does not work."""
    inotify: bool = True
    """Whether the kernel is asked to tell of changes; false polls, for network file systems that do not tell."""
    fingerprint_size: Size = Field(1000, ge=16)
    """How many first bytes, with device and inode, tell one file from another."""
    max_log_size: Size = Field(1 << 20, ge=1)
    """Bytes of one record; a longer one is cut and flagged `log.record.truncated`."""
    max_concurrent_files: int = Field(1024, ge=1)
    """Files open at once. Beyond it, those that have been quiet for longest are closed, and opened again when they grow."""
    max_deleted_size: Size = 64 << 20
    """Bytes of deleted files that may wait to be read, in an outage that outlasts the queue. They still take space on the node; beyond this
    the oldest are let go, counted as lost. (Not a key of the collector's.)"""
    max_batches: int = Field(0, ge=0)
    """No effect: every round is bounded, and files take turns."""
    initial_buffer_size: Size = 16 << 10
    """No effect: buffers are as large as what is read."""
    encoding: str = "utf-8"
    """utf-8 and its subsets. Bodies that are not valid UTF-8 are kept as bytes."""
    multiline: Multiline | None = None
    """Records of several lines."""
    force_flush_period: Duration = Field(0.5, ge=0)
    """An unfinished record is given out after so long without a new byte; 0 is never. With the container operator: 5s where not set, and
    only for joined lines, because a runtime finishes the line that it writes."""
    preserve_leading_whitespaces: bool = False
    """Whether white space before a record is kept."""
    preserve_trailing_whitespaces: bool = False
    """Whether white space after a record is kept."""
    attributes: dict[str, str] = {}
    """Attributes for every record."""
    resource: dict[str, str] = {}
    """Attributes for the resource of every record."""
    storage: str = ""
    """The storage extension that keeps positions; without one a restart begins anew, as start_at says."""
    retry_on_failure: RetryOnFailure = RetryOnFailure()
    """How often to try again."""
    operators: list[ContainerOperator] = Field([], max_length=1)
    """What to make of lines; `container` is what there is."""
    header: Any = None
    """Not supported."""
    ordering_criteria: Any = None
    """Not supported."""
    compression: str = ""
    """Not supported."""
    delete_after_read: bool = False
    """Not supported."""
    acquire_fs_lock: bool = False
    """Not supported."""
    include_file_record_number: bool = False
    """Not supported."""
    polls_to_archive: int = 0
    """Not supported."""

    @field_validator(*_UNSUPPORTED)
    @classmethod
    def _is_not_supported(cls, value: Any, info: Any) -> Any:
        if value:
            raise ValueError(f"is not supported: {_UNSUPPORTED[info.field_name]}")
        return value

    @field_validator("include", "exclude")
    @classmethod
    def _are_patterns(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            check(pattern)
        return patterns

    @field_validator("symlink_roots")
    @classmethod
    def _are_absolute(cls, roots: list[str]) -> list[str]:
        for root in roots:
            if not root.startswith("/"):
                raise ValueError(f"{root!r} must be an absolute path")
        return roots

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str) -> str:
        if encoding.lower() not in ENCODINGS:
            raise ValueError(f"{encoding!r} is not supported; supported: {', '.join(sorted(ENCODINGS))}")
        return encoding

    @field_validator("attributes", "resource")
    @classmethod
    def _are_plain(cls, values: dict[str, str]) -> dict[str, str]:
        for key, value in values.items():
            if value.startswith("EXPR("):
                raise ValueError(f"{key}: expressions are not supported here; set it with the attributes processor")
        return values

    @field_validator("operators", mode="before")
    @classmethod
    def _are_supported(cls, operators: Any) -> Any:
        for operator in operators if isinstance(operators, list) else []:
            name = operator.get("type") if isinstance(operator, dict) else operator
            if name != "container" and not isinstance(operator, ContainerOperator):
                raise ValueError(f"operator {name!r} is not supported; supported: container")
        return operators

    @model_validator(mode="after")
    def _fits_together(self) -> FilelogSettings:
        if self.multiline is not None and self.operators:
            raise ValueError("multiline would glue together the lines that the container operator parses; remove one of them")
        return self

    @property
    def flush_seconds(self) -> float:
        """How long an unfinished record is waited for."""
        return 5.0 if self.operators and "force_flush_period" not in self.model_fields_set else self.force_flush_period

    def needs(self) -> Iterator[Need]:
        roots = sorted({fixed_root(pattern) for pattern in self.include})
        for root in roots:
            yield Read(root, "log files")
        for root in self.symlink_roots:
            if root not in roots:
                yield Read(root, "log files behind symbolic links", optional="symlink_roots" not in self.model_fields_set)
        if self.include_file_owner_name or self.include_file_owner_group_name:
            for path in ("/etc/nsswitch.conf", "/etc/passwd", "/etc/group"):
                yield Read(path, "names of files' owners", optional=True)

    def try_reading(self) -> Iterator[Tried]:
        age = self.exclude_older_than
        options = Options(tuple(self.include), tuple(self.exclude), tuple(self.symlink_roots), exclude_older_than_seconds=age)
        yield from try_reading(options, time.time_ns)

    def extensions(self) -> Iterator[tuple[Path, str]]:
        if self.storage:
            yield ("storage",), self.storage

    def warnings(self) -> Iterator[str]:
        yield from super().warnings()
        if not self.storage:
            yield "no storage: a restart reads files again from their beginning, or not from where it stopped; name a file_storage"
        if self.max_batches:
            yield "max_batches has no effect: every round is bounded, and files take turns"
        if "initial_buffer_size" in self.model_fields_set:
            yield "initial_buffer_size has no effect: buffers are as large as what is read"
