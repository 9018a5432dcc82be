"""The documentation says what is: its configurations load, its links lead somewhere, its table of metrics is complete."""

import re
from pathlib import Path

import pytest

from lockgate.collector.config import check
from lockgate.kit.document import environment_expander, parse
from lockgate.kit.settings import validate
from lockgate.lockdown.facts import Facts

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


# What docs/kubernetes.md shows are values of the chart; tests/e2e/test_chart.py renders them.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "kubernetes.md"], ids=lambda page: page.name)
def test_every_configuration_in_a_page_is_valid(page: Path) -> None:
    for text in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S):
        document = parse(text, page.name, environment_expander({}))
        if "service" in document.value:
            assert check(document).pipelines
        else:  # the other kind of file that there is: what a policy must know of a cluster
            assert not validate(Facts, document, ())[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_metric_is_documented() -> None:
    documented = set(re.findall(r"`((?:otelcol|lockgate)_\w+)`", (ROOT / "docs" / "operating.md").read_text()))
    # `..._added`, `_updated`: the table's short form for endings.
    named = set()
    for path in (ROOT / "src").rglob("*.py"):
        if path.name not in ("up.py",):  # it reads metrics, it makes none
            named |= set(re.findall(r'f?"((?:otelcol|lockgate)_[a-z0-9_{}.()]+)"', path.read_text()))
    assert len(named) > 20, "found no metrics: this test would prove nothing"
    for name in named:
        pattern = re.sub(r"\\{.*?\\}", r"\\w+", re.escape(name))
        assert any(re.fullmatch(pattern, known) for known in documented), f"{name} is not in docs/operating.md"
