"""The list of components."""

import sys

import pytest

from lockgate.collector.components import UnusableComponent, find
from lockgate.pipeline.contract import Kind


def test_a_component_whose_extra_is_not_installed_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith(("lockgate.components.exporters.store", "lockgate.store"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(UnusableComponent, match=r"duckdb.*; pip install 'lockgate\[backend\]'"):
        find(Kind.EXPORTER, "store")
