"""A configuration: YAML files, presets and `--set` arguments, merged in order, checked as a whole.

Everything that start would refuse is found here, all of it at once, each with file, line and column.
"""

from __future__ import annotations

import os
import ssl
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from importlib import resources
from pathlib import Path as FilePath
from typing import Any, Literal

from pydantic import Field, field_validator

from lockgate.batch import Signal
from lockgate.collector.components import UnusableComponent, any_installed, find, known
from lockgate.kit.document import Document, DocumentError, Mark, Path, Problem, environment_expander, merge, parse
from lockgate.kit.settings import Settings, nearest, validate
from lockgate.kit.units import Duration
from lockgate.lockdown.interpreter import interpreter_needs
from lockgate.lockdown.sandbox import Mode, is_shared
from lockgate.net.address import split_endpoint
from lockgate.net.trust import TrustSettings, under
from lockgate.pipeline.contract import Component, Kind
from lockgate.pipeline.needs import ComponentSettings, Listen, Need, Read, followed, name_resolution


class LogSettings(Settings):
    """How the program itself logs, to its standard error."""

    level: Literal["debug", "info", "warn", "error", "DEBUG", "INFO", "WARN", "ERROR"] = "info"
    """The lowest level that is written."""
    encoding: Literal["console", "json"] = "console"
    """`console` for people, `json` for machines: one object a line."""
    initial_fields: dict[str, str] = {}
    """Added to every line."""


class PrometheusSettings(ComponentSettings):
    """Where the program's own metrics are served as Prometheus text."""

    host: str = "localhost"
    """The address to listen on; empty is every address."""
    port: int = Field(8888, ge=0, le=65535)
    """The port, under `/metrics`; 0 takes a free one."""
    without_type_suffix: bool = True
    """Counters keep the collector's short names; false appends `_total`."""
    without_units: bool = True
    """No unit suffix. The metrics here have no units but counts and bytes, which are part of their names; false changes nothing."""
    without_scope_info: bool = True
    """No `otel_scope_name` label; false adds it."""


class _Pull(Settings):
    """A reader that is asked."""

    class _Exporter(Settings):
        """What answers."""

        prometheus: PrometheusSettings = PrometheusSettings()
        """Prometheus text."""

    exporter: _Exporter = _Exporter()
    """What answers the reader."""


class _Reader(Settings):
    """One way of reading the program's own metrics."""

    pull: _Pull = _Pull()
    """On request; pushing them is not offered: scrape them, or let a receiver do it."""


class MetricSettings(Settings):
    """The program's own metrics."""

    level: Literal["none", "basic", "normal", "detailed"] = "normal"
    """`none` serves no metrics; the other levels serve all of them (there are few, and of bounded cardinality)."""
    readers: list[_Reader] = Field([_Reader()], max_length=1)
    """Where they can be read: one place, or none."""
    address: str = ""
    """host:port, as older collectors spell the reader; wins over `readers`."""

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, text: str) -> str:
        if text:
            split_endpoint(text)
        return text

    def prometheus(self) -> PrometheusSettings | None:
        """Where to serve, if at all."""
        if self.level == "none" or not (self.readers or self.address):
            return None
        if self.address:
            host, port = split_endpoint(self.address)
            return PrometheusSettings(host=host, port=port)
        return self.readers[0].pull.exporter.prometheus


class TelemetrySettings(ComponentSettings):
    """What the program says of itself."""

    logs: LogSettings = LogSettings()
    """Its log."""
    metrics: MetricSettings = MetricSettings()
    """Its metrics."""
    resource: dict[str, str] = {}
    """Attributes of the program itself; shown on every log line."""

    def needs(self) -> Iterator[Need]:
        if (prometheus := self.metrics.prometheus()) is not None:
            yield Listen(prometheus.host, prometheus.port, "own metrics")


class PipelineSettings(Settings):
    """One road: from all its receivers, through its processors in order, to all its exporters."""

    receivers: list[str] = Field(min_length=1)
    """Receivers, and connectors that feed this pipeline."""
    processors: list[str] = []
    """Processors in the order in which they see a batch."""
    exporters: list[str] = Field(min_length=1)
    """Exporters, and connectors that this pipeline feeds."""


class ServiceSettings(Settings):
    """What is started."""

    pipelines: dict[str, PipelineSettings] = {}
    """`signal` or `signal/name`: logs, metrics or traces. None at all is for a role that is made of extensions."""
    extensions: list[str] = []
    """The extensions to start."""
    telemetry: TelemetrySettings = TelemetrySettings()
    """What the program says of itself."""
    sandbox: Mode = "best-effort"
    """How the process confines itself to its needs (`lockgate needs`) at start: `best-effort` as far as the kernel can, with a warning of
    what it cannot; `require` refuses to run without; `off` not at all. See docs/security.md."""
    trust: TrustSettings = TrustSettings()
    """Whom every component trusts, what it presents and which proxy it goes through, unless it says so itself. See docs/security.md."""
    shutdown_timeout: Duration = 20.0
    """How long SIGTERM may drain before what is left is cancelled; below Kubernetes' grace period of 30 s."""
    reload: Literal["on_signal", "on_change"] = "on_signal"
    """When the configuration is read again: at SIGHUP, or also when one of its files has changed (looked at every 5 s)."""


@dataclass(frozen=True, slots=True)
class Configured:
    """One configured component."""

    kind: Kind
    id: str
    component: type[Component[Any]]
    settings: ComponentSettings

    @property
    def key(self) -> str:
        return f"{self.kind.value}/{self.id}"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One configured pipeline, all its references known to be good."""

    id: str
    signal: Signal
    receivers: tuple[str, ...]
    processors: tuple[str, ...]
    exporters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration that can be started."""

    components: Mapping[tuple[Kind, str], Configured]
    pipelines: tuple[Pipeline, ...]
    service: ServiceSettings
    files: tuple[str, ...]
    warnings: tuple[Problem, ...] = field(default=())

    def used(self) -> list[Configured]:
        """The components that are started: the extensions in order, then what a pipeline names."""
        names = dict.fromkeys((Kind.EXTENSION, id) for id in self.service.extensions)
        for pipeline in self.pipelines:
            for kind, id in _references(pipeline):
                names |= dict.fromkeys((k, id) for k in ((kind, Kind.CONNECTOR) if kind is not Kind.PROCESSOR else (kind,)))
        return [self.components[name] for name in names if name in self.components]

    def behind(self, receiver: str) -> list[tuple[Pipeline, str]]:
        """The exporters that what this receiver (or connector) brings may reach, each with the pipeline that it is reached by."""
        ahead = [(pipeline, id) for pipeline in self.pipelines if receiver in pipeline.receivers for id in pipeline.exporters]
        found = [[(pipeline, id)] if (Kind.EXPORTER, id) in self.components else self.behind(id) for pipeline, id in ahead]
        return list(dict.fromkeys(pair for pairs in found for pair in pairs))

    def routes(self, receiver: str, crossed: tuple[str, ...] = ()) -> list[tuple[str, tuple[str, ...]]]:
        """The pipelines that what this receiver (or connector) brings may reach, each with the pipelines that it has crossed before."""
        own = [pipeline for pipeline in self.pipelines if receiver in pipeline.receivers]
        ahead = [(pipeline.id, id) for pipeline in own for id in pipeline.exporters if (Kind.CONNECTOR, id) in self.components]
        further = [route for pipeline, id in ahead for route in self.routes(id, (*crossed, pipeline))]
        return [*((pipeline.id, crossed) for pipeline in own), *further]

    def forks(self) -> tuple[set[str], set[str]]:
        """The pipelines that some receiver reaches by several ways, and those that are crossed on these ways."""
        joined, crossed = set[str](), set[str]()
        for receiver in {id for pipeline in self.pipelines for id in pipeline.receivers if (Kind.RECEIVER, id) in self.components}:
            routes = self.routes(receiver)
            reached = [pipeline for pipeline, _ in routes]
            several = {pipeline for pipeline in reached if reached.count(pipeline) > 1}
            joined |= several
            crossed |= {name for pipeline, way in routes if pipeline in several for name in way}
        return joined, crossed

    def needs(self) -> list[tuple[str, Need]]:
        """(who, what) for everything that running this configuration opens, reads, writes or asks."""
        rows: list[tuple[str, Need]] = [("service", need) for file in self.files for need in _followed_alone(file)]
        rows += [("service", need) for need in interpreter_needs()]
        rows += [("service", need) for need in self.service.telemetry.needs()]
        if any_installed():  # then aiohttp makes its default TLS context when it is imported, whether or not anything speaks TLS
            rows += [("service", Read(path, "the system's certificate authorities")) for path in _system_authorities()]
        for configured in self.used():
            rows += [(configured.key, need) for need in configured.settings.needs()]
        rows += [("service", need) for need in name_resolution(need for _, need in rows)]
        return list(dict.fromkeys(rows))


def load(
    sources: Sequence[str], overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None, *, tries_files: bool = False
) -> Configuration:
    """The configuration that these files, preset names and `key=value` overrides make together; raises DocumentError as `check` does."""
    document, files = read(sources, overrides, os.environ if environment is None else environment)
    return check(document, files, tries_files=tries_files)


def preset_names() -> list[str]:
    """The presets that come with the program."""
    folder = resources.files("lockgate.presets")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read(sources: Sequence[str], overrides: Sequence[str], environment: Mapping[str, str]) -> tuple[Document, tuple[str, ...]]:
    """The merged document and the files it was read from; raises DocumentError."""
    expand = environment_expander(environment)
    documents, files, problems = [], [], []
    for source in sources:
        try:
            if source in preset_names():
                text = resources.files("lockgate.presets").joinpath(f"{source}.yaml").read_text("utf-8")
                documents.append(parse(text, f"preset {source}", expand))
            else:
                text = FilePath(source.removeprefix("file:")).read_text("utf-8")
                documents.append(parse(text, source, expand))
                files.append(source.removeprefix("file:"))
        except DocumentError as error:
            problems += error.problems
        except UnicodeDecodeError as error:
            problems.append(Problem(Mark(source), (), f"not UTF-8 text: {error}"))
        except OSError as error:
            problems.append(
                Problem(Mark(source), (), f"cannot be read: {error.strerror}", f"name a file, or a preset: {', '.join(preset_names())}")
            )
    for override in overrides:
        key, equals, text = override.partition("=")
        mark = Mark(f"--set {key}")
        if not equals or not key:
            problems.append(Problem(Mark(f"--set {override}"), (), "is no key=value", "write --set exporters.otlphttp.endpoint=http://..."))
            continue
        try:
            value = parse(text, str(mark), expand)
        except DocumentError as error:
            problems += error.problems
            continue
        path = tuple(key.split("::" if "::" in key else "."))
        documents.append(Document(_nested(path, value.value if text.strip() else ""), {path[:n]: mark for n in range(1, len(path) + 1)}))
    if problems:
        raise DocumentError(problems)
    document = reduce(merge, documents, Document({}))
    if not isinstance(document.value, dict):
        raise DocumentError([Problem(document.mark(()), (), "a configuration is a mapping", f"start with {', '.join(_SECTIONS)}")])
    return document, tuple(files)


def check(document: Document, files: tuple[str, ...] = (), *, tries_files: bool = False) -> Configuration:
    """The configuration in this document; raises DocumentError with every problem that there is.

    With `tries_files` also those of the certificates, keys and tokens on this machine that start would refuse.
    """
    return _Check(document, files).configuration(tries_files=tries_files)


_SECTIONS = [*(kind.value for kind in Kind), "service"]


def _nested(path: Sequence[str], value: Any) -> Any:
    return reduce(lambda inner, key: {key: inner}, reversed(path), value)


def _references(pipeline: Pipeline) -> Iterator[tuple[Kind, str]]:
    yield from ((Kind.RECEIVER, id) for id in pipeline.receivers)
    yield from ((Kind.PROCESSOR, id) for id in pipeline.processors)
    yield from ((Kind.EXPORTER, id) for id in pipeline.exporters)


class _Check:
    def __init__(self, document: Document, files: tuple[str, ...]) -> None:
        self.document, self.files = document, files
        self.problems: list[Problem] = []
        self.warnings = list(document.warnings)
        self.components: dict[tuple[Kind, str], Configured] = {}
        self.defined: set[tuple[Kind, str]] = set()

    def configuration(self, *, tries_files: bool) -> Configuration:
        for key in self.document.value:
            if key not in _SECTIONS:
                self._problem((key,), "unknown key", nearest(key, _SECTIONS))
        for kind in Kind:
            self._section(kind)
        service = self._service()
        pipelines = self._pipelines(service) if service else ()
        if service:
            self._extensions(service)
            self._trust(service.trust)
            configuration = Configuration(self.components, pipelines, service, self.files, tuple(self.warnings))
            self._cycles(pipelines)
            self._ports(configuration)
            if tries_files:
                self._files(configuration)
        if self.problems:
            raise DocumentError(sorted(self.problems, key=_place), self.document.warnings)
        assert service is not None
        return Configuration(self.components, pipelines, service, self.files, tuple(self.warnings))

    def _problem(self, path: Path, what: str, mend: str = "") -> None:
        self.problems.append(Problem(self.document.mark(path), path, what, mend))

    def _section(self, kind: Kind) -> None:
        section = self.document.value.get(kind.value)
        if section is None:
            return
        if not isinstance(section, dict):
            self._problem((kind.value,), "must be a mapping of component names", f"write `{kind.value}:` and indent `type:` below it")
            return
        for id in section:
            path = (kind.value, id)
            type_name, slash, name = id.partition("/")
            self.defined.add((kind, id))
            if slash and not name:
                self._problem(path, "no name after the slash", f"write {type_name}, or {type_name}/name")
            try:
                component = find(kind, type_name)
            except UnusableComponent as error:
                self._problem(path, str(error))
                continue
            if component is None:
                self._problem(path, f"unknown {kind.singular} type {type_name}", _nearest_type(kind, type_name))
                continue
            settings, problems = validate(component.settings_type, self.document, path)
            self.problems += problems
            if settings is not None:
                self.components[kind, id] = Configured(kind, id, component, settings)
                self.warnings += [Problem(self.document.mark(path), path, text) for text in settings.warnings()]

    def _service(self) -> ServiceSettings | None:
        if "service" not in self.document.value:
            self._problem((), "no service section: nothing would be started", "add service.pipelines")
            return None
        service, problems = validate(ServiceSettings, self.document, ("service",))
        self.problems += problems
        if service and not service.pipelines and not service.extensions:
            self._problem(("service",), "nothing would be started", "add service.pipelines")
        return service or self._salvaged()

    def _trust(self, trust: TrustSettings) -> None:
        """Gives every component what the service says of trust."""
        where: Path = ("service", "trust", "mutual_tls", "components")
        mutual = trust.mutual_tls
        for name in [name for name, secures in mutual.components.items() if secures] if mutual.directory else ():
            from lockgate.net.mutual_tls import secured

            section, _, id = name.partition("/")
            key = next(((kind, id) for kind in Kind if kind.value == section), None)
            if key is None or key not in self.defined:
                self._problem((*where, name), f"{name} is not defined", nearest(name, [f"{kind.value}/{id}" for kind, id in self.defined]))
            elif configured := self.components.get(key):
                try:
                    settings = secured(configured.settings, mutual)
                except ValueError as error:
                    self._problem((key[0].value, id), str(error))
                    continue
                if settings is None:
                    self._problem((*where, name), f"{name} has no connection that could be secured", "take it out")
                else:
                    self.components[key] = replace(configured, settings=settings)
        for key, configured in self.components.items():
            self.components[key] = replace(configured, settings=under(configured.settings, trust))

    def _salvaged(self) -> ServiceSettings | None:
        """What can be read of a service section with problems, so that the references in it are checked in the same run."""
        section = self.document.value["service"]
        if not isinstance(section, dict):
            return None
        pipelines, extensions = section.get("pipelines"), section.get("extensions")
        readable = {}
        for id in pipelines if isinstance(pipelines, dict) else ():
            pipeline, _ = validate(PipelineSettings, self.document, ("service", "pipelines", id))
            if pipeline is not None:
                readable[id] = pipeline
        names = [id for id in extensions if isinstance(id, str)] if isinstance(extensions, list) else []
        return ServiceSettings.model_construct(pipelines=readable, extensions=names)

    def _pipelines(self, service: ServiceSettings) -> tuple[Pipeline, ...]:
        found = []
        feeds: dict[str, list[str]] = defaultdict(list)
        fed: dict[str, list[str]] = defaultdict(list)
        for id, settings in service.pipelines.items():
            path = ("service", "pipelines", id)
            signal_name = id.partition("/")[0]
            if signal_name not in list(Signal):
                self._problem(path, f"{signal_name} is no signal", nearest(signal_name, Signal))
                continue
            signal = Signal(signal_name)
            for section, kind in (("receivers", Kind.RECEIVER), ("processors", Kind.PROCESSOR), ("exporters", Kind.EXPORTER)):
                for index, reference in enumerate(getattr(settings, section)):
                    self._reference((*path, section, index), kind, reference, signal)
                for reference, times in Counter(getattr(settings, section)).items():
                    if times > 1:
                        self._problem((*path, section), f"{reference} is named {times} times", "name it once")
            for reference in settings.exporters:
                feeds[reference].append(id)
            for reference in settings.receivers:
                fed[reference].append(id)
            found.append(Pipeline(id, signal, tuple(settings.receivers), tuple(settings.processors), tuple(settings.exporters)))
        for kind, id in self.defined:
            if kind is Kind.CONNECTOR and (id in feeds) != (id in fed):
                missing, where = ("receivers", feeds[id]) if id in feeds else ("exporters", fed[id])
                self._problem(
                    (kind.value, id),
                    f"connector is used in {', '.join(where)}, but in no pipeline's {missing}",
                    f"name it under the {missing} of another pipeline as well",
                )
        return tuple(found)

    def _reference(self, path: Path, kind: Kind, id: str, signal: Signal) -> None:
        kinds = (kind,) if kind is Kind.PROCESSOR else (kind, Kind.CONNECTOR)
        hits = [(k, id) for k in kinds if (k, id) in self.defined]
        if not hits:
            names = [name for k, name in self.defined if k in kinds]
            self._problem(path, f"{kind.singular} {id} is not defined", nearest(id, names) if names else f"define it under {kind.value}")
        for hit in hits:
            configured = self.components.get(hit)
            if configured and signal not in configured.component.signals:
                able = ", ".join(sorted(configured.component.signals))
                self._problem(path, f"{hit[0].singular} {id} does not take {signal}", f"it takes {able}")
            elif configured:
                for inner, what in configured.settings.conflicts(signal):
                    self._problem((hit[0].value, id, *inner), what, f"it is used in a pipeline of {signal}")

    def _extensions(self, service: ServiceSettings) -> None:
        names = [name for kind, name in self.defined if kind is Kind.EXTENSION]
        for index, id in enumerate(service.extensions):
            if (Kind.EXTENSION, id) not in self.defined:
                self._problem(("service", "extensions", index), f"extension {id} is not defined", nearest(id, names))
        for configured in self.components.values():
            for path, id in configured.settings.extensions():
                at = (configured.kind.value, configured.id, *path)
                if id not in names:
                    self._problem(at, f"extension {id} is not defined", nearest(id, names))
                elif id not in service.extensions:
                    self._problem(at, f"extension {id} is defined but not started", "add it to service.extensions")

    def _cycles(self, pipelines: Iterable[Pipeline]) -> None:
        """Pipelines joined by connectors must not come back to where they began: a batch would go round for ever."""
        below = {
            pipeline.id: [
                other.id
                for id in pipeline.exporters
                if (Kind.CONNECTOR, id) in self.defined
                for other in pipelines
                if id in other.receivers
            ]
            for pipeline in pipelines
        }
        done: set[str] = set()

        def follow(id: str, way: tuple[str, ...]) -> None:
            if id in way:
                cycle = " -> ".join((*way[way.index(id) :], id))
                self._problem(("service", "pipelines", id), f"pipelines form a cycle: {cycle}", "take one connector out of it")
                done.update(way)
            elif id not in done:
                for next_id in below[id]:
                    follow(next_id, (*way, id))
                done.add(id)

        for id in below:
            follow(id, ())

    def _files(self, configuration: Configuration) -> None:
        from lockgate.net.tls import unusable_authorities, unusable_certificate

        trust, where = configuration.service.trust, ("service", "trust")
        found = [each for i, path in enumerate(trust.ca_files) for each in unusable_authorities(path, (*where, "ca_files", i))]
        if (own := trust.client_certificate) is not None:
            keys = [(*where, "client_certificate", key) for key in ("cert_file", "key_file")]
            found += unusable_certificate(own.cert_file, own.key_file, *keys)
        for each in configuration.used():
            found += [replace(it, where=(each.kind.value, each.id, *it.where)) for it in each.settings.unusable()]
        for unusable in found:
            if unusable.is_refused:
                self._problem(unusable.where, unusable.what)
            else:
                self.warnings.append(Problem(self.document.mark(unusable.where), unusable.where, unusable.what))

    def _ports(self, configuration: Configuration) -> None:
        taken: dict[tuple[str, int], list[tuple[str, str]]] = defaultdict(list)
        for who, need in configuration.needs():
            if not isinstance(need, Listen) or need.port == 0:
                continue
            for other, host in taken[need.protocol, need.port]:
                if _meet(host, need.host):
                    path = tuple(who.split("/", 1)) if "/" in who else ("service", "telemetry", "metrics")
                    self._problem(path, f"port {need.port}/{need.protocol} is already used by {other}", "give one of them another port")
                    break
            taken[need.protocol, need.port].append((who, need.host))


def _followed_alone(file: str) -> Iterator[Need]:
    """As `followed`; the file alone where everybody keeps something beside it."""
    for need in followed(file, "configuration"):
        yield Read(str(FilePath(file).resolve()), "configuration") if is_shared(need.path) else need


def _system_authorities() -> list[str]:
    paths = ssl.get_default_verify_paths()
    return [str(FilePath(path).resolve()) for path in (paths.cafile, paths.capath) if path]


def _meet(host: str, other: str) -> bool:
    hosts = {host.strip("[]"), other.strip("[]")}
    return len(hosts) == 1 or bool(hosts & {"", "0.0.0.0", "::"}) or ("localhost" in hosts and bool(hosts & {"127.0.0.1", "::1"}))


def _nearest_type(kind: Kind, type_name: str) -> str:
    others = [other.value for other in Kind if other is not kind and type_name in known(other)]
    if len(others) == 1:
        return f"{type_name} is one of the {others[0]}; did you mean to write it there?"
    return nearest(type_name, known(kind)) + (f" ({type_name} is among the {' and the '.join(others)})" if others else "")


def _place(problem: Problem) -> tuple[str, int, int]:
    return (problem.mark.source, problem.mark.line, problem.mark.column) if problem.mark else ("", 0, 0)
