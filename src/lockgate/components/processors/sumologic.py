"""Attributes and metrics as Sumo Logic's apps and dashboards expect them: names, nested attributes, log fields.

Behaviour: the contrib collector's `sumologicprocessor`, with these differences, each to the user's good:
- `add_cloud_namespace: false` adds no `cloud.namespace` (the original reads the setting and adds it all the same);
- a field attribute never replaces a record attribute of the same name (the original looks at the default name, whatever name is set);
- where nesting or aggregating meets a plain value, that value moves under the key "" and is not replaced; squashing never replaces another
  attribute, and a resource with a single attribute keeps its value;
- what would nest deeper than other programs can read stays as it is.

Resources are edited on the wire, each distinct one once. Records are looked into only where a setting asks for it; metrics are searched for
the names to translate before anything is parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import re2
from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from pydantic import Field

from lockgate.attributes.cache import EditCache
from lockgate.attributes.records import data_points, groups
from lockgate.attributes.values import Attributes, decode, encode, find, put
from lockgate.kit.settings import Settings
from lockgate.pipeline.contract import Batch, ComponentSettings, Context, Processor, Signal, component
from lockgate.wire.protobuf import delimited

_CLOUD_NAMESPACES = {"aws_ec2": "aws/ec2", "aws_ecs": "ecs", "aws_elastic_beanstalk": "ElasticBeanstalk"}

_ATTRIBUTES = {
    "cloud.account.id": "AccountId",
    "cloud.availability_zone": "AvailabilityZone",
    "cloud.platform": "aws_service",
    "cloud.region": "Region",
    "host.id": "InstanceId",
    "host.name": "host",
    "host.type": "InstanceType",
    "k8s.cluster.name": "Cluster",
    "k8s.container.name": "container",
    "k8s.daemonset.name": "daemonset",
    "k8s.deployment.name": "deployment",
    "k8s.namespace.name": "namespace",
    "k8s.node.name": "node",
    "k8s.service.name": "service",
    "k8s.pod.hostname": "host",
    "k8s.pod.name": "pod",
    "k8s.pod.uid": "pod_id",
    "k8s.replicaset.name": "replicaset",
    "k8s.statefulset.name": "statefulset",
    "service.name": "service",
    "log.file.path_resolved": "_sourceName",
}

_DOCKER_ATTRIBUTES = {
    "container.id": "container.FullID",
    "container.image.name": "container.ImageName",
    "container.name": "container.Name",
}

_TELEGRAF_METRICS = {
    "cpu_usage_active": "CPU_Total",
    "cpu_usage_idle": "CPU_Idle",
    "cpu_usage_iowait": "CPU_IOWait",
    "cpu_usage_irq": "CPU_Irq",
    "cpu_usage_nice": "CPU_Nice",
    "cpu_usage_softirq": "CPU_SoftIrq",
    "cpu_usage_steal": "CPU_Stolen",
    "cpu_usage_System": "CPU_Sys",
    "cpu_usage_user": "CPU_User",
    "system_load1": "CPU_LoadAvg_1min",
    "system_load5": "CPU_LoadAvg_5min",
    "system_load15": "CPU_LoadAvg_15min",
    "disk_used": "Disk_Used",
    "disk_used_percent": "Disk_UsedPercent",
    "disk_inodes_free": "Disk_InodesAvailable",
    "diskio_reads": "Disk_Reads",
    "diskio_read_bytes": "Disk_ReadBytes",
    "diskio_writes": "Disk_Writes",
    "diskio_write_bytes": "Disk_WriteBytes",
    "mem_total": "Mem_Total",
    "mem_free": "Mem_free",
    "mem_available": "Mem_ActualFree",
    "mem_used": "Mem_ActualUsed",
    "mem_used_percent": "Mem_UsedPercent",
    "mem_available_percent": "Mem_FreePercent",
    "procstat_num_threads": "Proc_Threads",
    "procstat_memory_vms": "Proc_VMSize",
    "procstat_memory_rss": "Proc_RSSize",
    "procstat_cpu_usage": "Proc_CPU",
    "procstat_major_faults": "Proc_MajorFaults",
    "procstat_minor_faults": "Proc_MinorFaults",
    "net_bytes_sent": "Net_OutBytes",
    "net_bytes_recv": "Net_InBytes",
    "net_packets_sent": "Net_OutPackets",
    "net_packets_recv": "Net_InPackets",
    "netstat_tcp_close": "TCP_Close",
    "netstat_tcp_close_wait": "TCP_CloseWait",
    "netstat_tcp_closing": "TCP_Closing",
    "netstat_tcp_established": "TCP_Established",
    "netstat_tcp_listen": "TCP_Listen",
    "netstat_tcp_time_wait": "TCP_TimeWait",
}

_MEMORY_STATS = (
    *("active_anon", "active_file", "cache", "hierarchical_memory_limit", "inactive_anon", "inactive_file", "mapped_file", "pgfault"),
    *("pgmajfault", "pgpgin", "pgpgout", "rss", "rss_huge", "unevictable", "writeback", "total_active_anon", "total_active_file"),
    *("total_cache", "total_inactive_anon", "total_mapped_file", "total_pgfault", "total_pgmajfault", "total_pgpgin", "total_pgpgout"),
    *("total_rss", "total_rss_huge", "total_unevictable", "total_writeback"),
)
_THROTTLING = ("periods", "throttled_periods", "throttled_time")
_BLOCK_IO = ("io_merged", "io_service_bytes", "io_service_time", "io_serviced", "io_time", "io_wait_time", "sectors")

_DOCKER_METRICS = {
    "container.cpu.percent": "cpu_percentage",
    "container.cpu.usage.system": "system_cpu_usage",
    "container.cpu.usage.percpu": "cpu_usage.percpu_usage",
    "container.cpu.usage.total": "cpu_usage.total_usage",
    "container.cpu.usage.kernelmode": "cpu_usage.usage_in_kernelmode",
    "container.cpu.usage.usermode": "cpu_usage.usage_in_usermode",
    "container.memory.usage.limit": "limit",
    "container.memory.usage.max": "max_usage",
    "container.memory.percent": "memory_percentage",
    "container.memory.usage.total": "usage",
    "container.blockio.io_queued_recursive": "io_queue_recursive",  # so spelt in Sumo Logic's dashboards
    **{f"container.cpu.throttling_data.{name}": f"throttling_data.{name}" for name in _THROTTLING},
    **{f"container.memory.{name}": f"stats.{name}" for name in _MEMORY_STATS},
    **{f"container.blockio.{name}_recursive": f"{name}_recursive" for name in _BLOCK_IO},
}

MAX_DEPTH = 24
"""Maps in maps that nesting makes. Protobuf's parsers read 100 messages deep; a map in a log record takes three of them."""


class NestSettings(Settings):
    """Turns `{"k.a": 1, "k.b": 2}` into `{"k": {"a": 1, "b": 2}}`, on resources and records."""

    enabled: bool = False
    """Whether attributes are nested."""
    separator: str = Field(default=".", min_length=1)
    """What keys are split at."""
    include: list[str] = []
    """Prefixes of the keys to split; none means all."""
    exclude: list[str] = []
    """Prefixes of keys to leave as they are, even if `include` has them."""
    squash_single_values: bool = False
    """Whether a map with a single key goes: `{"k": {"a": {"b": 1, "c": 2}}}` becomes `{"k.a": {"b": 1, "c": 2}}`."""


class AggregationSettings(Settings):
    """Turns `{"pod_a": 1, "pod_b": 2}` into `{"pods": {"a": 1, "b": 2}}`, on resources and records."""

    attribute: str = Field(min_length=1)
    """The attribute that holds the map; it is not added where no key has a prefix."""
    prefixes: list[str] = []
    """Prefixes of the keys to gather, without which they stand in the map. Of two keys that become equal the last one stays."""


class FieldAttributeSettings(Settings):
    """One field of a log record as an attribute."""

    enabled: bool = False
    """Whether the field is copied."""
    name: str = ""
    """The attribute's name, if not the field's own; an attribute of that name stays as it is."""


class FieldAttributesSettings(Settings):
    """Fields of log records to copy into attributes of the record, which Sumo Logic shows as fields."""

    severity_number: FieldAttributeSettings = FieldAttributeSettings()
    """The severity as `INFO`, `WARN2`, ..., as attribute `loglevel`; nothing where it is unspecified."""
    severity_text: FieldAttributeSettings = FieldAttributeSettings()
    """The severity's text, as attribute `severitytext`."""
    span_id: FieldAttributeSettings = FieldAttributeSettings()
    """The span's id in hex, as attribute `spanid`; empty where there is none."""
    trace_id: FieldAttributeSettings = FieldAttributeSettings()
    """The trace's id in hex, as attribute `traceid`; empty where there is none."""


class SumologicProcessorSettings(ComponentSettings):
    """The steps are taken in this order: cloud namespace, attribute names, nesting, aggregation, field attributes, metric names."""

    add_cloud_namespace: bool = True
    """Whether `cloud.namespace` is set on resources whose `cloud.platform` is AWS EC2, ECS or Elastic Beanstalk."""
    translate_attributes: bool = True
    """Whether resource attributes of logs and metrics get Sumo Logic's names: `k8s.pod.name` becomes `pod`, `host.name` becomes `host`, and
    so on. A resource that has the new name already keeps both. Of two attributes that become one the first stays."""
    translate_telegraf_attributes: bool = True
    """Whether metrics of Telegraf get Sumo Logic's names: `cpu_usage_idle` becomes `CPU_Idle`, and so on."""
    translate_docker_metrics: bool = False
    """Whether metrics of the docker_stats receiver, and three attributes of their resources, get the names that Telegraf gives them:
    `container.cpu.percent` becomes `cpu_percentage`, `container.id` becomes `container.FullID`, and so on."""
    nest_attributes: NestSettings = NestSettings()
    """Maps from keys with separators."""
    aggregate_attributes: list[AggregationSettings] = []
    """Maps from keys with common prefixes, after nesting, in order."""
    field_attributes: FieldAttributesSettings = FieldAttributesSettings()
    """Fields of log records as attributes."""


@component("sumologic", SumologicProcessorSettings, aliases=("sumologic_schema",))
class SumologicProcessor(Processor[SumologicProcessorSettings]):
    """Keeps order and counts. Which steps there are is decided once, by settings and signal."""

    def __init__(self, settings: SumologicProcessorSettings, context: Context) -> None:
        super().__init__(settings, context)
        signal, metrics = context.signal, context.signal is Signal.METRICS
        docker = settings.translate_docker_metrics and metrics
        both: list[Callable[[Attributes], None]] = []
        if settings.nest_attributes.enabled or settings.aggregate_attributes:
            both.append(lambda attributes: restructure(attributes, settings.nest_attributes, settings.aggregate_attributes))

        self._resource: list[Callable[[Attributes], None]] = [add_cloud_namespace] if settings.add_cloud_namespace else []
        if settings.translate_attributes and signal is not Signal.TRACES:
            self._resource.append(lambda attributes: rename(attributes, _ATTRIBUTES))
        self._resource += both
        if docker:
            self._resource.append(lambda attributes: rename(attributes, _DOCKER_ATTRIBUTES))
        self._cache: EditCache[None] = EditCache(self._edit)

        self._record: list[Callable[[Any], None]] = [_on_attributes(step) for step in both]
        fields = settings.field_attributes
        if signal is Signal.LOGS:
            self._record += [
                copy_field(each.name or name, read)
                for each, name, read in (
                    (fields.severity_number, "loglevel", _severity),
                    (fields.severity_text, "severitytext", lambda record: record.severity_text),
                    (fields.span_id, "spanid", lambda record: _hex(record.span_id)),
                    (fields.trace_id, "traceid", lambda record: _hex(record.trace_id)),
                )
                if each.enabled
            ]
        self._names: dict[str, str] = {}
        if metrics and settings.translate_telegraf_attributes:
            self._names |= _TELEGRAF_METRICS
        if docker:
            self._names |= _DOCKER_METRICS
        self._named = _search(self._names)

    def process(self, batch: Batch) -> Batch:
        if self._resource:
            batch = batch.map_resources(self._cache.bound(None))
        renames = bool(self._names) and self._named(batch.payload)
        return self._edit_records(batch, renames) if renames or self._record else batch

    def _edit(self, raw: bytes, _: None) -> bytes:
        resource = Resource.FromString(raw)
        for step in self._resource:
            step(resource.attributes)
        return resource.SerializeToString()

    def _edit_records(self, batch: Batch, renames: bool) -> Batch:
        request = batch.copy_message()
        for _, _, records in groups(batch.signal, request):
            for record in records:
                if renames and record.name in self._names:
                    record.name = self._names[record.name]
                if self._record:
                    for holder in data_points(record) if batch.signal is Signal.METRICS else (record,):
                        for step in self._record:
                            step(holder)
        return batch.with_message(request, batch.count)


def add_cloud_namespace(attributes: Attributes) -> None:
    """Sets `cloud.namespace`, over an existing one, where the platform has one."""
    platform = find(attributes, "cloud.platform")
    if platform is not None and (name := _CLOUD_NAMESPACES.get(platform.string_value)):
        put(attributes, "cloud.namespace").string_value = name


def rename(attributes: Attributes, names: Mapping[str, str]) -> None:
    """Gives attributes new keys; one whose new key was there before keeps its own, of several with one new key the first stays."""
    before = {attribute.key for attribute in attributes}
    taken: set[str] = set()
    goes = []
    for index, attribute in enumerate(attributes):
        new = names.get(attribute.key)
        if new is None or new in before:
            continue
        if new in taken:
            goes.append(index)
        else:
            taken.add(new)
            attribute.key = new
    for index in reversed(goes):
        del attributes[index]


def copy_field(name: str, read: Callable[[Any], str | None]) -> Callable[[Any], None]:
    """A step that sets this record attribute, unless it is there or `read` gives None."""

    def copy(record: Any) -> None:
        if find(record.attributes, name) is None and (value := read(record)) is not None:
            record.attributes.add(key=name).value.string_value = value

    return copy


def restructure(attributes: Attributes, nesting: NestSettings, aggregations: Sequence[AggregationSettings]) -> None:
    """Nests, squashes and aggregates these attributes in place."""
    before = {attribute.key: decode(attribute.value) for attribute in attributes}
    after = nest(before, nesting) if nesting.enabled else before
    for aggregation in aggregations:
        after = aggregate(after, aggregation)
    if after != before or len(before) != len(attributes):
        del attributes[:]
        for key, value in after.items():
            attributes.add(key=key, value=encode(value))


def nest(attributes: Mapping[str, Any], settings: NestSettings) -> dict[str, Any]:
    """These attributes with those keys split that the settings say; the order is that of each map's first key."""
    include, exclude = tuple(settings.include), tuple(settings.exclude)
    result: dict[str, Any] = {}
    for key, value in attributes.items():
        splits = (not include or key.startswith(include)) and not key.startswith(exclude)
        # Counted before splitting: a key of a megabyte of separators must not become a list.
        splits = splits and key.count(settings.separator) + 1 + _depth(value) <= MAX_DEPTH
        _insert(result, key.split(settings.separator) if splits else [key], value)
    return _squash(result, settings.separator) if settings.squash_single_values else result


def aggregate(attributes: Mapping[str, Any], settings: AggregationSettings) -> dict[str, Any]:
    """These attributes with the keys that have one of the prefixes gathered in one map; the prefixes are asked in their order."""
    result, gathered = dict(attributes), {}
    for prefix in settings.prefixes:
        for key in [key for key in result if key.startswith(prefix) and _depth(result[key]) < MAX_DEPTH]:
            gathered[key[len(prefix) :]] = result.pop(key)
    if gathered:
        _insert(result, [settings.attribute], gathered)
    return result


def _insert(target: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Puts a value at this path; where a map and a plain value meet, the plain one stands in the map under ""."""
    *way, last = path
    for step in way:
        inner = target.get(step)
        if not isinstance(inner, dict):
            inner = target[step] = {"": inner} if step in target else {}
        target = inner
    there = target.get(last)
    if isinstance(value, dict):
        # A map of our own in any case: what is inserted later must not change what was given.
        inner = target[last] = there if isinstance(there, dict) else {"": there} if last in target else {}
        for key, item in value.items():
            _insert(inner, [key], item)
    elif isinstance(there, dict):
        _insert(there, [""], value)
    else:
        target[last] = value


def _squash(attributes: dict[str, Any], separator: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in attributes.items():
        name, inner = key, value
        while isinstance(inner, dict) and len(inner) == 1:
            ((step, inner),) = inner.items()
            name = f"{name}{separator}{step}"
        if name != key and (name in attributes or name in result):
            name, inner = key, value
        result[name] = _squash(inner, separator) if isinstance(inner, dict) else inner
    return result


def _depth(value: Any) -> int:
    """Maps and lists in one another; 0 for a plain value."""
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _on_attributes(step: Callable[[Attributes], None]) -> Callable[[Any], None]:
    return lambda record: step(record.attributes)


def _severity(record: Any) -> str | None:
    number = record.severity_number
    return SeverityNumber.Name(number).removeprefix("SEVERITY_NUMBER_") if 1 <= number <= 24 else None


def _hex(id: bytes) -> str:
    return id.hex() if any(id) else ""


def _search(names: Mapping[str, str]) -> Callable[[bytes], bool]:
    """Whether one of these names may stand in a request's bytes as a metric's (opentelemetry.proto, Metric: field 1).

    One pass of RE2's automaton, instead of parsing every request for names that hardly ever occur in Kubernetes.
    """
    alternatives = b"|".join(re2.escape(delimited(1, name.encode())) for name in names)
    search = re2.compile(alternatives).search
    return lambda payload: search(payload) is not None
