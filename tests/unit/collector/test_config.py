"""What `validate` finds, and how files, presets and overrides become one configuration."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.collector import components
from lockgate.collector.config import Configuration, check, load
from lockgate.kit.document import DocumentError, environment_expander, parse
from lockgate.pipeline.contract import Connector, Exporter, Extension, Kind, Processor, Receiver, component
from lockgate.pipeline.needs import ComponentSettings, Listen, Need, Read


class PortSettings(ComponentSettings):
    """Listens."""

    port: int = 4000
    """Where."""
    host: str = "127.0.0.1"
    """Which address."""
    storage: str = ""
    """A storage extension."""

    def needs(self) -> Iterator[Need]:
        yield Listen(self.host, self.port, "test")

    def extensions(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.storage:
            yield ("storage",), self.storage


@component("in", PortSettings)
class In(Receiver[PortSettings]):
    """Takes."""


@component("pass")
class Pass(Processor[ComponentSettings]):
    """Passes."""


@component("logsonly", signals=frozenset())
class LogsOnly(Processor[ComponentSettings]):
    """Takes nothing."""


@component("join")
class Join(Connector[ComponentSettings]):
    """Joins."""


@component("out")
class Out(Exporter[ComponentSettings]):
    """Delivers."""


@component("ext")
class Ext(Extension[ComponentSettings]):
    """Helps."""


@pytest.fixture(autouse=True)
def only_these_components(monkeypatch: pytest.MonkeyPatch) -> None:
    mine: dict[Kind, dict[str, str]] = {kind: {} for kind in Kind}
    classes = {f"test:{c.__name__}": c for c in (In, Pass, LogsOnly, Join, Out, Ext)}
    for target, cls in classes.items():
        mine[cls.kind][cls.type_name] = target
    monkeypatch.setattr(components, "known", lambda kind: mine[kind])
    monkeypatch.setattr("lockgate.collector.config.known", lambda kind: mine[kind])
    monkeypatch.setattr(
        "lockgate.collector.config.find", lambda kind, name: classes.get(mine[kind].get(name, "")) if name in mine[kind] else None
    )


GOOD = """
receivers: {in: }
exporters: {out: }
service: {pipelines: {logs: {receivers: [in], exporters: [out]}}}
"""


def problems_of(text: str) -> list[str]:
    with pytest.raises(DocumentError) as error:
        check(parse(text, "f.yaml", environment_expander({})))
    return [str(problem) for problem in error.value.problems]


def good(text: str) -> Configuration:
    return check(parse(text, "f.yaml", environment_expander({})))


def test_a_configuration_wrong_in_three_places_reports_three_errors_with_their_places() -> None:
    text = """
receivers:
  inn: {}
exporters:
  out:
    sped: 1
service:
  pipelines:
    logs:
      receivers: [in]
      exporters: [out]
"""
    assert problems_of(text) == [
        "f.yaml:3:3: receivers.inn: unknown receiver type inn; did you mean in?",
        "f.yaml:6:5: exporters.out.sped: unknown key; none is known here",
        "f.yaml:10:19: service.pipelines.logs.receivers[0]: receiver in is not defined; did you mean inn?",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("receivers: {in: }", ["no service section: nothing would be started; add service.pipelines"], id="no-service"),
        pytest.param(GOOD.replace("logs:", "lgos:"), ["lgos is no signal; did you mean logs?"], id="signal"),
        pytest.param(
            GOOD.replace("exporters: [out]", "exporters: []"), ["service.pipelines.logs.exporters: must not be empty"], id="no-exporter"
        ),
        pytest.param(GOOD + "recievers: {}", ["unknown key; did you mean receivers?"], id="section"),
        pytest.param(GOOD.replace("[in]", "[in, in]"), ["in is named 2 times; name it once"], id="twice"),
        pytest.param(
            GOOD.replace("{in: }", "[in]"), ["must be a mapping of component names", "receiver in is not defined"], id="list-for-mapping"
        ),
        pytest.param(
            GOOD.replace("exporters: [out]", "exporters: [out], processors: [logsonly]") + "processors: {logsonly: }",
            ["processor logsonly does not take logs"],
            id="signal-not-taken",
        ),
        pytest.param(
            GOOD.replace("service: {", "service: {extensions: [exx], ") + "extensions: {ext: }",
            ["extension exx is not defined; did you mean ext?"],
            id="extension",
        ),
        pytest.param(
            GOOD.replace("{in: }", "{in: {storage: ext}}") + "extensions: {ext: }",
            ["extension ext is defined but not started; add it to service.extensions"],
            id="extension-not-started",
        ),
        pytest.param(GOOD.replace("{in: }", "{in: {storage: ext}}"), ["extension ext is not defined"], id="extension-reference"),
        pytest.param(
            GOOD.replace("exporters: [out]", "exporters: [out, join]") + "connectors: {join: }",
            ["connector is used in logs, but in no pipeline's receivers"],
            id="connector-goes-nowhere",
        ),
        pytest.param(GOOD.replace("{in: }", "{in: , out: }"), ["out is one of the exporters; did you mean to write it there?"], id="kind"),
        pytest.param("receivers: [\n", ["not valid YAML"], id="yaml"),
    ],
)
def test_each_mistake_is_named_with_its_mend(text: str, expected: list[str]) -> None:
    found = problems_of(text)
    assert len(found) == len(expected)
    for problem, part in zip(found, expected, strict=True):
        assert part in problem


def test_a_type_that_several_other_kinds_have_is_not_sent_to_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {Kind.RECEIVER: {"in": "", "both": ""}, Kind.EXPORTER: {"out": "", "both": ""}, Kind.EXTENSION: {"ext": ""}}
    monkeypatch.setattr("lockgate.collector.config.known", lambda kind: here.get(kind, {}))
    (problem,) = problems_of(GOOD + "extensions: {both: }")
    assert problem.endswith("unknown extension type both; known: ext (both is among the receivers and the exporters)")


def test_a_cycle_through_connectors_is_named() -> None:
    text = """
receivers: {in: }
connectors: {join: , join/2: }
exporters: {out: }
service:
  pipelines:
    logs/a: {receivers: [in, join/2], exporters: [join]}
    logs/b: {receivers: [join], exporters: [join/2, out]}
"""
    assert any("pipelines form a cycle: logs/a -> logs/b -> logs/a" in problem for problem in problems_of(text))


def test_cycles_and_ports_are_looked_at_where_other_things_are_wrong_too() -> None:
    text = """
receivers: {in: , in/2: , in/3: {host: 5, prt: 1}}
connectors: {join: {wrong: 1}}
exporters: {out: }
service:
  extensions: [none]
  pipelines:
    logs/a: {receivers: [in, in/2, in/3, join], exporters: [join, out, lost]}
"""
    found = problems_of(text)
    assert len(found) == 6
    assert any("pipelines form a cycle: logs/a -> logs/a" in problem for problem in found)
    assert any("port 4000/tcp is already used by receivers/in" in problem for problem in found)


@pytest.mark.parametrize(
    ("telemetry", "part"),
    [
        ("metrics: {address: 8888}", "'8888' is no host:port"),
        ("metrics: {address: 'a:99999'}", "'a:99999' is no host:port"),
        ("metrics: {readers: [{}, {}]}", "at most 1 item"),
    ],
)
def test_own_metrics_that_could_not_be_served_are_refused(telemetry: str, part: str) -> None:
    (problem,) = problems_of(GOOD.replace("service: {", f"service: {{telemetry: {{{telemetry}}}, "))
    assert part in problem and problem.startswith("f.yaml:")


def test_own_metrics_are_served_where_an_older_collectors_key_says() -> None:
    service = good(GOOD.replace("service: {", "service: {telemetry: {metrics: {address: '[::1]:8889'}}, ")).service
    served = service.telemetry.metrics.prometheus()
    assert served is not None and (served.host, served.port) == ("::1", 8889)


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("localhost", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
    ],
)
def test_a_port_used_twice_is_an_error_only_where_the_addresses_meet(first: str, second: str, clash: bool) -> None:
    text = f"""
receivers: {{in: {{host: {first}}}, in/2: {{host: "{second}"}}}}
exporters: {{out: }}
service: {{pipelines: {{logs: {{receivers: [in, in/2], exporters: [out]}}}}}}
"""
    if clash:
        assert "port 4000/tcp is already used by receivers/in" in problems_of(text)[0]
    else:
        assert sum(isinstance(need, Listen) for _, need in good(text).needs()) == 3  # the two, and the own metrics


def test_a_port_that_only_an_unused_component_names_is_no_clash() -> None:
    configuration = good(GOOD.replace("{in: }", "{in: , in/unused: }"))
    assert [configured.id for configured in configuration.used()] == ["in", "out"]


def test_own_metrics_port_counts_as_used() -> None:
    assert "port 8888/tcp is already used by service" in problems_of(GOOD.replace("{in: }", "{in: {port: 8888, host: ''}}"))[0]


def test_files_and_overrides_merge_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yaml").write_text("receivers: {in: {port: 1}}")
    a, b = str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")
    settings = (
        load([a, b], ["receivers::in::host=::1", "receivers.in.port=${env:PORT}"], {"PORT": "7"}).components[Kind.RECEIVER, "in"].settings
    )
    assert isinstance(settings, PortSettings)
    assert (settings.port, settings.host) == (7, "::1")


def test_a_configuration_is_read_again_in_its_directory_but_not_all_of_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reads(path: Path) -> list[str]:
        path.write_text(GOOD)
        return [need.path for _, need in load([str(path)], [], {}).needs() if isinstance(need, Read) and need.reason == "configuration"]

    (tmp_path / "own").mkdir()
    assert reads(tmp_path / "own" / "a.yaml") == [str(tmp_path / "own")]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert reads(tmp_path / "a.yaml") == [str(tmp_path / "a.yaml")]


def test_an_override_is_named_as_the_place_of_its_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    with pytest.raises(DocumentError) as error:
        load([str(tmp_path / "a.yaml")], ["receivers.in.prot=1"], {})
    assert str(error.value) == "--set receivers.in.prot: receivers.in.prot: unknown key; did you mean port?"


def test_a_file_that_is_missing_and_one_that_is_broken_are_both_reported(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(DocumentError) as error:
        load([str(tmp_path / "none.yaml"), str(tmp_path / "broken.yaml")], [], {})
    assert len(error.value.problems) == 2


def test_an_unset_variable_is_a_warning_with_its_place() -> None:
    configuration = good(GOOD.replace("{in: }", "{in: {host: '${env:NOPE}'}}"))
    assert [str(warning) for warning in configuration.warnings] == [
        "f.yaml:2:24: receivers.in.host: environment variable NOPE is not set; it reads as empty"
    ]
