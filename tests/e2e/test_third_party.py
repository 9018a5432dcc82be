"""A component of somebody else's, installed as a package, is used by its name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.process import lockgate

from lockgate.collector.components import any_installed

PYPROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "acme-redact"
version = "1"
[project.entry-points."lockgate.components"]
"processor/redact" = "acme_redact:RedactProcessor"
"processor/broken" = "acme_redact:Missing"
[tool.setuptools]
py-modules = ["acme_redact"]
"""

MODULE = '''
"""Deletes one resource attribute."""
from lockgate.pipeline.contract import Batch, Processor, component
from lockgate.pipeline.needs import ComponentSettings

class RedactSettings(ComponentSettings):
    """What to take out."""
    word: str
    """The word that becomes ***, in string bodies of logs."""

@component("redact", RedactSettings)
class RedactProcessor(Processor[RedactSettings]):
    """Replaces a word in logs."""

    def process(self, batch: Batch) -> Batch:
        request = batch.copy_message()
        for resource in request.resource_logs:
            for scope in resource.scope_logs:
                for record in scope.log_records:
                    record.body.string_value = record.body.string_value.replace(self.settings.word, "***")
        return batch.with_message(request, batch.count)
'''

CONFIG = """
receivers: {{filelog: {{include: ["{log}"], start_at: beginning}}}}
processors: {{redact: {{word: secret}}}}
exporters: {{debug: {{verbosity: detailed}}}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines: {{logs: {{receivers: [filelog], processors: [redact], exporters: [debug]}}}}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    source, target = tmp_path_factory.mktemp("acme"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "acme_redact.py").write_text(MODULE)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run(pip, check=True, timeout=60)
    return {"PYTHONPATH": os.pathsep.join([str(target), *filter(None, [os.environ.get("PYTHONPATH")])])}


def test_an_installed_component_is_listed_and_described(installed: dict[str, str]) -> None:
    assert "redact" in lockgate("components", environment=installed).stdout
    assert "word: string, required" in lockgate("components", "redact", environment=installed).stdout
    assert "redact" not in lockgate("components").stdout


def test_an_installed_component_works_in_a_pipeline(installed: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("the secret is out\n")
    (tmp_path / "c.yaml").write_text(CONFIG.format(log=log))
    command = [sys.executable, "-m", "lockgate.cli.main", "run", "--config", str(tmp_path / "c.yaml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **installed}) as process:
        assert process.stdout
        seen = ""
        for line in process.stdout:
            seen += line
            if "the *** is out" in line:
                break
        process.terminate()
        process.stdout.read()
        assert process.wait(20) == 0
    assert "the *** is out" in seen, seen


def test_aiohttp_trusts_the_systems_authorities_only_where_somebody_elses_component_may_count_on_it(
    installed: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format(log=tmp_path))
    assert "certificate authorities" in lockgate("needs", "--config", str(tmp_path / "c.yaml"), environment=installed).stdout
    assert any_installed() is False
    trusted = "import aiohttp.connector; print(aiohttp.connector._SSL_CONTEXT_VERIFIED.cert_store_stats()['x509'])"
    lean = f"from lockgate.collector.memory import import_http_library; import_http_library(); {trusted}"
    counts = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for code in (trusted, lean)]
    if not int(counts[0]):
        pytest.skip("this system has no certificate authorities")
    assert int(counts[1]) == 0


def test_an_installed_component_that_cannot_be_imported_is_named(installed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        CONFIG.format(log=tmp_path).replace("redact: {word: secret}", "broken: {}").replace("[redact]", "[broken]")
    )
    result = lockgate("validate", "--config", str(tmp_path / "c.yaml"), environment=installed)
    assert result.returncode == 2
    assert "processor broken (acme_redact:Missing) cannot be imported" in result.stderr
