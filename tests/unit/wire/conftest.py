"""Each kernel in both forms: as installed (compiled where there is a compiler) and as plain Python."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import lockgate.wire


def both_forms(name: str) -> list[ModuleType]:
    """The kernel as installed, and its source loaded uncompiled under another name."""
    source = Path(lockgate.wire.__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"uncompiled_{name}", source)
    assert spec is not None and spec.loader is not None
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    assert not plain.compiled
    return [importlib.import_module(f"lockgate.wire.{name}"), plain]


@pytest.fixture(scope="session")
def cri_forms() -> list[ModuleType]:
    return both_forms("cri")


@pytest.fixture(scope="session")
def otlp_forms() -> list[ModuleType]:
    return both_forms("otlp")


@pytest.fixture(scope="session")
def series_forms() -> list[ModuleType]:
    return both_forms("series")
