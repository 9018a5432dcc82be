"""The commands as a user types them, and the wheel that a user installs."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.process import lockgate

from lockgate.collector.components import all_types
from lockgate.collector.config import preset_names

ROOT = Path(__file__).parents[2]


def test_validate_reports_every_mistake_with_its_place_and_exits_with_2(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("""
receivers:
  otpl: {}
exporters:
  otlphttp:
    endpoint: http://127.0.0.1:1
    compresion: gzip
service:
  pipelines:
    logs: {receivers: [otpl], exporters: [otlphttp, debugg]}
""")
    result = lockgate("validate", "--config", str(config))
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"{config}:3:3: receivers.otpl: unknown receiver type otpl; did you mean otlp?",
        f"{config}:7:5: exporters.otlphttp.compresion: unknown key; did you mean compression?",
        f"{config}:10:53: service.pipelines.logs.exporters[1]: exporter debugg is not defined; known: otlphttp",
        "lockgate: 3 problems in the configuration",
    ]


def test_a_variable_that_is_not_set_is_named_beside_the_mistake_that_comes_of_it(tmp_path: Path) -> None:
    (config := tmp_path / "c.yaml").write_text("""
receivers: {otlp: {protocols: {http: }}}
exporters: {otlphttp: {endpoint: "${LOCKGATE_TEST_UNSET}"}}
service: {pipelines: {logs: {receivers: [otlp], exporters: [otlphttp]}}}
""")
    result = lockgate("validate", "--config", str(config))
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"warning: {config}:3:34: exporters.otlphttp.endpoint: environment variable LOCKGATE_TEST_UNSET is not set; it reads as empty",
        f"{config}:3:13: exporters.otlphttp: needs an endpoint, such as https://host:4318",
        "lockgate: 1 problem in the configuration",
    ]


@pytest.mark.parametrize(
    ("command", "status", "complaint"),
    [
        pytest.param(["query", "SELECT 1", "--state", "none"], 2, "lockgate: no store is running here: none/query.json", id="no-store"),
        pytest.param(["logs", "--state", "none"], 2, "lockgate: no store is running here: none/query.json", id="no-store-for-logs"),
        pytest.param(["where", "a/b", "--state", "none"], 1, "lockgate: no role with a ledger is running here", id="no-ledger"),
        pytest.param(["components", "otpl"], 2, "lockgate: there is no component otpl; did you mean otlp?", id="no-component"),
        pytest.param(["netpol", "--config", "backend", "--facts", "none"], 2, "none: cannot be read: No such file", id="no-facts"),
        pytest.param(["validate", "--config", "none"], 2, "none: cannot be read: No such file", id="no-configuration"),
    ],
)
def test_what_a_command_cannot_find_is_said_in_a_line(command: list[str], status: int, complaint: str) -> None:
    result = lockgate(*command)
    assert (result.returncode, result.stderr.startswith(complaint)) == (status, True), result.stderr
    assert len(result.stderr.splitlines()) <= 2


def test_a_running_program_holds_no_command_line_parser(tmp_path: Path) -> None:
    (config := tmp_path / "c.yaml").write_text("exporters: {otlphttp: {endpoint: http://127.0.0.1:1}}")
    command = [sys.executable, "-X", "importtime", "-m", "lockgate.cli.main", "run", "--config", str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")}
    assert ended.returncode == 2
    assert {"aiohttp", "lockgate.sending.exporter"} <= imported, "nothing was configured: this would prove nothing"
    assert not {name for name in imported if name.partition(".")[0] in ("cyclopts", "rich", "grpclib", "google", "duckdb")}


def test_validate_finds_a_setting_that_does_not_fit_the_pipelines_signal(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("""
receivers: {otlp: {protocols: {http: }}}
processors:
  attributes:
    include: {match_type: strict, span_names: [a]}
    actions: [{action: insert, key: a, value: b}]
  filter:
    spans: {exclude: {match_type: strict, log_bodies: [a]}}
exporters: {debug: }
service:
  pipelines:
    logs: {receivers: [otlp], processors: [attributes], exporters: [debug]}
    traces: {receivers: [otlp], processors: [attributes, filter], exporters: [debug]}
""")
    first, second, _ = lockgate("validate", "--config", str(config)).stderr.splitlines()
    assert first.startswith(f"{config}:5:5: processors.attributes.include: span_names: logs have no such property; known: attributes,")
    assert first.endswith("; it is used in a pipeline of logs")
    assert second.startswith(f"{config}:8:13: processors.filter.spans.exclude: log_bodies: traces have no such property;")


def test_validate_tries_certificates_as_start_does(tmp_path: Path) -> None:
    config, authority = tmp_path / "c.yaml", tmp_path / "ca.crt"
    authority.write_text("none")
    config.write_text(f"""
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:0"}}}}}}}}
exporters:
  otlphttp:
    endpoint: https://127.0.0.1:1
    tls: {{ca_file: {authority}}}
service: {{telemetry: {{metrics: {{level: none}}}}, pipelines: {{logs: {{receivers: [otlp], exporters: [otlphttp]}}}}}}
""")
    reason = f"cannot use TLS ca_file {authority}: no PEM certificate is in it"
    result, started = (lockgate(command, "--config", str(config)) for command in ("validate", "run"))
    assert (result.returncode, result.stderr.splitlines()[0]) == (2, f"{config}:6:11: exporters.otlphttp.tls.ca_file: {reason}")
    assert started.returncode == 1 and reason in started.stderr + started.stdout


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_valid_and_says_what_it_needs(preset: str) -> None:
    result = lockgate("validate", "--config", preset)
    assert (result.returncode, result.stderr) == (0, "")
    needs = json.loads(lockgate("needs", "--config", preset, "--format", "json").stdout)
    assert all(need["reason"] for need in needs)
    assert lockgate("needs", "--config", preset).stdout.startswith("COMPONENT")


def test_a_configuration_that_is_not_there_names_the_presets() -> None:
    result = lockgate("run", "--config", "logs_colector")
    assert result.returncode == 2
    assert "logs_colector: cannot be read: No such file or directory; name a file, or a preset: backend, " in result.stderr


def test_components_lists_all_and_prints_the_keys_of_one() -> None:
    listed = lockgate("components").stdout.splitlines()[1:]
    assert [tuple(line.split()[:2]) for line in listed] == [(kind.singular, name) for kind, name in all_types()]
    assert "unusable" not in "\n".join(listed)
    reference = lockgate("components", "exporters/otlphttp").stdout
    assert "retry_on_failure.initial_interval: duration = 1s" in reference
    assert lockgate("components", "otlphtp").stderr.strip() == "lockgate: there is no component otlphtp; did you mean otlphttp?"


def test_the_wheel_holds_compiled_kernels_and_presets_and_no_sources_of_theirs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, timeout=300, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.endswith((".c", ".pyx", ".html"))] == []
    assert {f"lockgate/presets/{preset}.yaml" for preset in preset_names()} <= set(names)
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, timeout=60, capture_output=True)
    code = "import lockgate.wire.cri as cri, lockgate.wire.otlp as otlp; print(cri.__file__, cri.compiled, otlp.compiled)"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert ran.stdout.startswith(str(site))
    assert ran.stdout.split()[1:] == ["True", "True"]
