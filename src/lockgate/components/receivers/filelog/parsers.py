"""A file's bytes -> records: which kernel, with which resource and attributes. One parser for each file; it keeps nothing between calls."""

from __future__ import annotations

import grp
import os
import pwd
import re
from array import array
from dataclasses import dataclass

import re2

from lockgate.components.receivers.filelog.settings import ContainerOperator, FilelogSettings, Multiline
from lockgate.tail.follow import Flush, Parser
from lockgate.wire import cri, lines
from lockgate.wire.parsed import Left, Parsed
from lockgate.wire.protobuf import key_values

_FORMATS = {"": cri.AUTO, "docker": cri.DOCKER, "crio": cri.CRI, "containerd": cri.CRI}
_POD_PATH = re.compile(r"([^/_]+)_([^/_]+)_([a-f0-9-]+)/([^/._]+)/(\d+)\.log$")
"""contrib, pkg/stanza/operator/parser/container: the same shape."""
_POD_KEYS = ("k8s.namespace.name", "k8s.pod.name", "k8s.pod.uid", "k8s.container.name", "k8s.container.restart_count")


_STDOUT, _STDERR = key_values(6, [("log.iostream", "stdout")]), key_values(6, [("log.iostream", "stderr")])
_CONTAINER_FLUSH = {Flush.NOTHING: 0, Flush.QUIET: cri.FLUSH_GROUPS, Flush.END: cri.FLUSH_GROUPS | cri.FLUSH_LINE}
"""A runtime finishes the line that it writes, so a torn one is left alone until the file has ended."""


def make_parser(settings: FilelogSettings, path: str, real: str, descriptor: int) -> Parser:
    """The parser of the file at `path`, which is `real` behind links, and open as `descriptor`."""
    operator = settings.operators[0] if settings.operators else None
    resource = dict(settings.resource)
    if operator is not None and operator.add_metadata_from_filepath:
        resource |= pod_attributes(path) or pod_attributes(real)
    return _parser(
        settings, operator, key_values(1, resource.items()), key_values(6, _file_attributes(settings, path, real, descriptor).items())
    )


def pod_attributes(path: str) -> dict[str, str]:
    """What the kubelet writes into a log file's path; nothing where it is no such path."""
    # Only the last components can match, so that long paths cost no backtracking.
    found = _POD_PATH.fullmatch("/".join(path.rsplit("/", 3)[-3:]))
    return dict(zip(_POD_KEYS, found.groups(), strict=True)) if found else {}


def _file_attributes(settings: FilelogSettings, path: str, real: str, descriptor: int) -> dict[str, str]:
    attributes = dict(settings.attributes)
    if settings.include_file_name:
        attributes["log.file.name"] = os.path.basename(path)  # noqa: PTH119 - text, not a file
    if settings.include_file_path:
        attributes["log.file.path"] = path
    if settings.include_file_name_resolved:
        attributes["log.file.name_resolved"] = os.path.basename(real)  # noqa: PTH119
    if settings.include_file_path_resolved:
        attributes["log.file.path_resolved"] = real
    if settings.include_file_owner_name:
        attributes["log.file.owner.name"] = _owner(os.fstat(descriptor).st_uid)
    if settings.include_file_owner_group_name:
        attributes["log.file.owner.group.name"] = _group(os.fstat(descriptor).st_gid)
    return attributes


def _owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _parser(settings: FilelogSettings, operator: ContainerOperator | None, resource: bytes, attributes: bytes) -> Parser:
    trim = (0 if settings.preserve_leading_whitespaces else cri.TRIM_LEADING) | (
        0 if settings.preserve_trailing_whitespaces else cri.TRIM_TRAILING
    )
    if operator is not None:
        return _container(operator, trim, resource, attributes)
    if settings.multiline is not None:
        return _multiline(settings.multiline, settings.max_log_size, trim, resource, attributes)

    def parse(chunk: bytes, max_records: int, flush: Flush, observed_unix_nano: int) -> Parsed:
        flags = trim | (cri.FLUSH_LINE if flush else 0)
        return lines.parse(chunk, resource, attributes, observed_unix_nano, max_records, settings.max_log_size, flags)

    return parse


def _container(operator: ContainerOperator, trim: int, resource: bytes, attributes: bytes) -> Parser:
    return _Container(resource, attributes, operator.max_log_size, _FORMATS[operator.format], trim)


@dataclass(frozen=True, slots=True)
class _Container:
    """A container's log. No closure: there are thousands, and an object with slots is a fifth of one."""

    resource: bytes
    attributes: bytes
    max_log_size: int
    line_format: int
    trim: int

    def __call__(self, chunk: bytes, max_records: int, flush: Flush, observed_unix_nano: int) -> Parsed:
        by_stream = (_STDOUT + self.attributes, _STDERR + self.attributes, self.attributes)
        flags = self.trim | _CONTAINER_FLUSH[flush]
        return cri.parse(chunk, self.resource, by_stream, observed_unix_nano, max_records, self.max_log_size, self.line_format, flags)


def _multiline(multiline: Multiline, limit: int, trim: int, resource: bytes, attributes: bytes) -> Parser:
    """As contrib's split functions (pkg/stanza/split), except that ^ does not match in the middle of a line."""
    at_start = bool(multiline.line_start_pattern)
    find = re2.compile(b"(?m)" + (multiline.line_start_pattern or multiline.line_end_pattern).encode()).finditer
    omit = multiline.omit_pattern

    def parse(chunk: bytes, max_records: int, flush: Flush, observed_unix_nano: int) -> Parsed:
        spans: array[int] = array("q")
        ends: list[int] = []
        """Where each span's bytes are used up, which with omit_pattern is behind its end."""
        begin = body = 0
        for match in find(chunk):
            start, end = match.span()
            if len(ends) > max_records:
                break
            if at_start:
                if start > begin:
                    spans.extend((body, start))
                    ends.append(start)
                begin, body = start, end if omit else start
            elif end > begin and (end < len(chunk) or flush):
                spans.extend((begin, start if omit else end))
                ends.append(end)
                begin = body = end
        if flush and begin < len(chunk) and len(ends) <= max_records:
            spans.extend((body, len(chunk)))
            ends.append(len(chunk))
        if not ends:
            return Parsed(b"", 0, 0, 0, 0, 0, 0, 0, 0, Left.GROUP)
        parsed = lines.parse_spans(chunk, spans, resource, attributes, observed_unix_nano, max_records, limit, trim)
        consumed = ends[parsed.lines - 1] if parsed.lines else 0
        left = Left.LIMIT if parsed.lines < len(ends) else Left.GROUP if consumed < len(chunk) else Left.NOTHING
        return parsed._replace(consumed=consumed, left=left)

    return parse
