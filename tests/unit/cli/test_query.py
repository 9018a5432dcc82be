"""How `lockgate query` shows what it found."""

import pytest

from lockgate.cli.query import _table

WIDE = {f"column{number}": f"value {number} " + "x" * 40 for number in range(20)}


def test_a_pipe_gets_a_row_in_a_line_however_wide(capsys: pytest.CaptureFixture[str]) -> None:
    _table(list(WIDE), [WIDE, WIDE])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(value in lines[1] for value in WIDE.values())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.usefixtures("terminal")
def test_a_terminal_gets_rows_upright_where_columns_would_be_too_narrow(capsys: pytest.CaptureFixture[str]) -> None:
    _table(list(WIDE), [WIDE, WIDE])
    out = capsys.readouterr().out
    assert out.count("column7") == out.count(WIDE["column7"]) == 2
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.usefixtures("terminal")
def test_a_terminal_gets_a_table_where_it_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    _table(["pod", "body"], [{"pod": "a", "body": "z" * 200}])
    out = capsys.readouterr().out
    assert out.count("body") == 1 and out.count("z") == 200
