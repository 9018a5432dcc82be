"""Arguments that are read without the parser are read as the parser reads them; the rest is left to it."""

import pytest
from cyclopts import CycloptsError

from lockgate.cli import commands, running


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["run", "--config", "a.yaml"], id="one"),
        pytest.param(["run", "--config=a.yaml", "--config", "b=c.yaml", "--set", "k=v", "--set=a::b=c=d"], id="several"),
        pytest.param(["run", "--set", "k=", "--config", "logs_collector"], id="an-empty-value"),
    ],
)
def test_plain_arguments_mean_what_the_parser_says(arguments: list[str]) -> None:
    _, bound, _ = commands.app.parse_args(arguments, exit_on_error=False, print_error=False)
    assert running.plain_arguments(arguments) == (bound.arguments["config"], bound.arguments.get("overrides", []))


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="nothing"),
        pytest.param(["run"], id="no-configuration"),
        pytest.param(["run", "--config"], id="no-value"),
        pytest.param(["run", "--config", "--set"], id="an-option-for-a-value"),
        pytest.param(["run", "--config", "a.yaml", "b.yaml"], id="a-word-too-many"),
        pytest.param(["run", "--confg", "a.yaml"], id="a-misspelt-option"),
        pytest.param(["run", "--config=", "--set", "a=b"], id="an-empty-one"),
    ],
)
def test_whatever_is_not_plain_is_the_parsers(arguments: list[str]) -> None:
    assert running.plain_arguments(arguments) is None


def test_what_the_parser_refuses_is_not_plain() -> None:
    for arguments in (["run", "--config"], ["run", "--confg", "a.yaml"], ["run", "--config", "a", "b"]):
        with pytest.raises(CycloptsError):
            commands.app.parse_args(arguments, exit_on_error=False, print_error=False)
