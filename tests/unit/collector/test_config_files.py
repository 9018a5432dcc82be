"""Files that a configuration names, tried by `validate` as start would try them."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from lockgate.collector.config import load
from lockgate.kit.document import DocumentError

CONFIGURATION = """
receivers:
  otlp:
    protocols:
      http:
        endpoint: 127.0.0.1:4318
        tls:
          cert_file: DIR/tls.crt
          key_file: DIR/tls.key
          client_ca_file: DIR/ca.crt
exporters:
  otlphttp:
    endpoint: https://b.example
    auth: {authenticator: bearertokenauth}
    tls: {ca_file: DIR/ca.crt}
  otlphttp/plain:
    endpoint: http://b.example
    tls: {ca_file: DIR/bad}
  otlphttp/unused:
    endpoint: https://b.example
    tls: {ca_file: DIR/bad}
extensions: {bearertokenauth: {filename: DIR/token}}
service:
  extensions: [bearertokenauth]
  trust: {ca_files: [DIR/ca.crt], client_certificate: {cert_file: DIR/tls.crt, key_file: DIR/tls.key}}
  pipelines: {logs: {receivers: [otlp], exporters: [otlphttp, otlphttp/plain]}}
"""
TLS = "receivers.otlp.protocols.http.tls"


class Files:
    def __init__(self, directory: Path) -> None:
        self.directory, self.config = directory / "files", directory / "c.yaml"
        self.directory.mkdir()
        self.config.write_text(CONFIGURATION.replace("DIR", str(self.directory)))
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(self.directory / "ca.crt")
        self.put(self.authority.issue_cert("lockgate"))
        (self.directory / "token").write_text("secret\n")

    def put(self, certificate: trustme.LeafCert) -> None:
        certificate.cert_chain_pems[0].write_to_path(self.directory / "tls.crt")
        certificate.private_key_pem.write_to_path(self.directory / "tls.key")

    def found(self) -> tuple[list[str], list[str]]:
        """(problems, warnings) that are about files; each `line:column: path: what`."""
        try:
            configuration = load([str(self.config)], environment={}, tries_files=True)
        except DocumentError as error:
            return [self._short(str(problem)) for problem in error.problems], []
        return [], [text for warning in configuration.warnings if "tls has no effect" not in (text := self._short(str(warning)))]

    def _short(self, text: str) -> str:
        return text.removeprefix(f"{self.config}:").replace(f"{self.directory}/", "")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_good_files_are_no_problem_and_what_start_does_not_read_is_not_tried(files: Files) -> None:
    assert files.found() == ([], [])


def test_a_file_without_a_certificate_is_a_problem_at_each_key_that_names_it(files: Files) -> None:
    (files.directory / "ca.crt").write_text("# to be filled in\n")
    assert files.found()[0] == [
        f"10:11: {TLS}.client_ca_file: cannot use TLS client_ca_file ca.crt: no PEM certificate is in it",
        "15:11: exporters.otlphttp.tls.ca_file: cannot use TLS ca_file ca.crt: no PEM certificate is in it",
        "25:22: service.trust.ca_files[0]: cannot use TLS service.trust.ca_files.0 ca.crt: no PEM certificate is in it",
    ]


def test_a_key_of_another_certificate_is_a_problem_at_the_key(files: Files) -> None:
    trustme.CA().issue_cert("x").private_key_pem.write_to_path(files.directory / "tls.key")
    first, second = files.found()[0]
    text = "cannot use TLS certificate tls.crt with key tls.key: the key does not belong to the certificate"
    assert first == f"9:11: {TLS}.key_file: {text}"
    assert second.endswith(f"service.trust.client_certificate.key_file: {text}")


def test_a_certificate_that_is_none_is_a_problem_at_the_certificate(files: Files) -> None:
    (files.directory / "tls.crt").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert [
        problem.partition(": cannot use TLS certificate tls.crt with key tls.key: ")[0].partition(" ")[2] for problem in files.found()[0]
    ] == [
        f"{TLS}.cert_file",
        "service.trust.client_certificate.cert_file",
    ]


def test_a_missing_file_is_a_problem_where_its_directory_is_and_else_a_warning(files: Files) -> None:
    (files.directory / "token").unlink()
    (problem,) = files.found()[0]
    assert problem.startswith("22:32: extensions.bearertokenauth.filename: cannot read tokens: ") and "No such file" in problem
    files.directory.rename(files.directory.with_name("elsewhere"))
    problems, warnings = files.found()
    assert problems == []
    assert len(warnings) == 8
    assert warnings[0].endswith(
        "ca.crt is not on this machine, nor its directory, so it was not tried; start refuses it where it is missing"
    )


def test_a_file_of_tokens_without_one_is_a_problem(files: Files) -> None:
    (files.directory / "token").write_text("\n")
    assert files.found()[0] == [
        "22:32: extensions.bearertokenauth.filename: cannot read tokens: token holds no token; put one on each line"
    ]


def test_expired_certificates_are_a_warning(files: Files) -> None:
    files.put(
        files.authority.issue_cert("lockgate", not_after=datetime(2020, 1, 1, tzinfo=UTC), not_before=datetime(2019, 1, 1, tzinfo=UTC))
    )
    problems, warnings = files.found()
    assert problems == []
    assert f"8:11: {TLS}.cert_file: the certificate tls.crt expired on Jan  1 00:00:00 2020 GMT: peers refuse it" in warnings


def test_no_other_command_tries_them(files: Files) -> None:
    (files.directory / "ca.crt").unlink()
    assert load([str(files.config)], environment={}).used()
