"""What `service.trust` makes of a configuration with real components."""

import pytest

from lockgate.collector.config import Configuration, check
from lockgate.kit.document import DocumentError, environment_expander, parse
from lockgate.pipeline.needs import Read

MUTUAL = """
receivers: {{otlp: {{protocols: {{http: {{}}}}}}}}
exporters: {{otlphttp: {{endpoint: "http://a:1"{tls}}}, debug: {{}}}}
service:
  trust: {{mutual_tls: {{directory: "{directory}", components: {{receivers/otlp: true, debug: false, {components}: true}}}}}}
  pipelines: {{logs: {{receivers: [otlp], exporters: [otlphttp, debug]}}}}
"""


@pytest.mark.parametrize(
    ("components", "tls", "problem"),
    [
        ("exporters/otlphtp", "", "exporters/otlphtp is not defined; did you mean exporters/otlphttp?"),
        ("otlphttp", "", "otlphttp is not defined; did you mean exporters/otlphttp?"),
        ("exporters/debug", "", "exporters/debug has no connection that could be secured"),
        ("exporters/otlphttp", ", tls: {ca_file: /x/y}", "has a tls of its own"),
    ],
)
def test_mutual_tls_names_components_that_it_can_secure(components: str, tls: str, problem: str) -> None:
    def load_with(directory: str) -> Configuration:
        text = MUTUAL.format(components=components, tls=tls, directory=directory)
        return check(parse(text, "test", environment_expander({})))

    load_with("")
    with pytest.raises(DocumentError) as refused:
        load_with("/mtls")
    assert problem in str(refused.value)


def test_the_services_trust_is_among_the_needs_of_each_client() -> None:
    text = MUTUAL.format(components="exporters/otlphttp", tls="", directory="").replace(
        "trust: {", "trust: {ca_files: [/corporate/ca.pem], "
    )
    text = text.replace("http://a", "https://a")
    rows = check(parse(text, "test", environment_expander({}))).needs()
    assert ("exporters/otlphttp", Read("/corporate", "service.trust.ca_files.0, followed as it changes")) in rows
