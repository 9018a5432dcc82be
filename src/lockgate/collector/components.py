"""Every built-in component, by kind and type. One line registers one; third parties use the entry point group `lockgate.components`.

A class is imported when a configuration names it, and not before: what is not configured costs nothing.
"""

import importlib
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points, requires
from typing import Any

from lockgate.pipeline.contract import Component, Kind

ENTRY_POINTS = "lockgate.components"
"""An entry point's name is `kind/type` (`processor/redact`), its object the component class."""

BUILT_IN: dict[Kind, dict[str, str]] = {
    Kind.RECEIVER: {
        "filelog": "filelog:FilelogReceiver",
        "fluentforward": "fluentforward:FluentForwardReceiver",
        "jaeger": "jaeger:JaegerReceiver",
        "journald": "journald:JournaldReceiver",
        "opencensus": "opencensus:OpenCensusReceiver",
        "otlp": "otlp:OtlpReceiver",
        "prometheusremotewrite": "prometheusremotewrite:PrometheusRemoteWriteReceiver",
        "raw_k8s_events": "raw_k8s_events:RawK8sEventsReceiver",
        "sumologic": "sumologic:SumologicReceiver",
    },
    Kind.PROCESSOR: {
        "attributes": "attributes:AttributesProcessor",
        "batch": "batch:BatchProcessor",
        "filter": "filter:FilterProcessor",
        "groupbyattrs": "groupbyattrs:GroupByAttrsProcessor",
        "k8s_tagger": "k8s_tagger:K8sTaggerProcessor",
        "k8sattributes": "k8sattributes:K8sAttributesProcessor",
        "memory_limiter": "memory_limiter:MemoryLimiterProcessor",
        "resource": "resource:ResourceProcessor",
        "source": "source:SourceProcessor",
        "sumologic": "sumologic:SumologicProcessor",
    },
    Kind.CONNECTOR: {
        "forward": "forward:ForwardConnector",
    },
    Kind.EXPORTER: {
        "debug": "debug:DebugExporter",
        "otlp": "otlp:OtlpExporter",
        "otlphttp": "otlphttp:OtlpHttpExporter",
        "store": "store:StoreExporter",
        "sumologic": "sumologic:SumologicExporter",
    },
    Kind.EXTENSION: {
        "basicauth": "basicauth:BasicAuthExtension",
        "bearertokenauth": "bearertokenauth:BearerTokenAuthExtension",
        "file_storage": "file_storage:FileStorageExtension",
        "health_check": "health_check:HealthCheckExtension",
        "ledger": "ledger:LedgerExtension",
        "memory_ballast": "memory_ballast:MemoryBallastExtension",
        "pprof": "pprof:PprofExtension",
        "query": "query:QueryExtension",
        "sample_cluster": "sample_cluster:SampleClusterExtension",
    },
}

UPSTREAM_SPELLINGS: dict[Kind, dict[str, str]] = {
    Kind.RECEIVER: {"file_log": "filelog", "fluent_forward": "fluentforward"},
    Kind.PROCESSOR: {"k8s_attributes": "k8sattributes", "sumologic_schema": "sumologic"},
    Kind.EXPORTER: {"otlp_http": "otlphttp", "otlp_grpc": "otlp"},
}
"""Other names under which the collector's newer versions know a component."""


class UnusableComponent(Exception):
    """A component is listed but its module cannot be imported, or is no component; the text says which and why."""


def known(kind: Kind) -> dict[str, str]:
    """All types of this kind, built-in and installed, with the `module:Class` behind each."""
    built_in = {name: f"lockgate.components.{kind.value}.{target}" for name, target in BUILT_IN[kind].items()}
    return {point.name.partition("/")[2]: point.value for point in _entry_points(kind)} | built_in


def find(kind: Kind, type_name: str) -> type[Component[Any]] | None:
    """The component class of this type, imported now; None where there is none. Raises UnusableComponent."""
    type_name = UPSTREAM_SPELLINGS.get(kind, {}).get(type_name, type_name)
    if (built_in := BUILT_IN[kind].get(type_name)) is not None:
        target = f"lockgate.components.{kind.value}.{built_in}"
    elif (installed := known(kind).get(type_name)) is not None:  # reads the metadata of every package there is
        target = installed
    else:
        return None
    module, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnusableComponent(f"{kind.singular} {type_name} ({target}) cannot be imported: {error}; {_mend(error)}") from error
    if not (isinstance(found, type) and issubclass(found, Component) and found.kind is kind):
        raise UnusableComponent(f"{target} is no {kind.singular}: subclass lockgate.pipeline.contract.{kind.singular.title()}")
    return found


def _mend(error: ImportError | AttributeError) -> str:
    """Which of our extras brings the module that is missing, if one does."""
    for requirement in requires("lockgate") or ():
        if found := re.match(r"([\w.-]+).*;.*extra == [\"'](\w+)", requirement):
            package, extra = found.groups()
            if package == error.name:
                return f"pip install 'lockgate[{extra}]'"
    return "install what it names"


def any_installed() -> bool:
    """Whether any package brings components of its own."""
    return bool(entry_points(group=ENTRY_POINTS))


def summary(kind: Kind, type_name: str) -> str:
    """What a component does: the first sentence of its module. Raises UnusableComponent."""
    find(kind, type_name)
    module = known(kind)[type_name].partition(":")[0]
    return " ".join((importlib.import_module(module).__doc__ or "").strip().partition("\n\n")[0].split())


def all_types() -> Iterator[tuple[Kind, str]]:
    """Every (kind, type) there is, in order."""
    for kind in Kind:
        for type_name in sorted(known(kind)):
            yield kind, type_name


def _entry_points(kind: Kind) -> list[EntryPoint]:
    return [point for point in entry_points(group=ENTRY_POINTS) if point.name.partition("/")[0] == kind.singular]
