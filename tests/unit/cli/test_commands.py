"""The list of commands."""

import importlib
import inspect

import pytest

from lockgate.cli.commands import app


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("logs", "logs"),
        ("query", "query"),
        ("where", "where"),
        ("netpol", "lockdown"),
        ("rbac", "lockdown"),
        ("netcheck", "lockdown"),
        ("privileges", "lockdown"),
    ],
)
def test_a_command_that_is_imported_when_called_says_the_same_in_the_list(command: str, module: str) -> None:
    function = getattr(importlib.import_module(f"lockgate.cli.{module}"), command)
    assert app[command].help == (inspect.getdoc(function) or "").partition("\n\nParameters")[0]


def test_every_command_is_described_in_the_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    app(["--help"], result_action="return_value")
    lines = [line.strip("│ ").split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert {"run", "where", "netcheck"} <= {line[0] for line in lines}
    assert all(len(line) == 2 for line in lines)
