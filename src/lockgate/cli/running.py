"""`lockgate run`, and its arguments read without the parser: a process that runs for months holds nothing that it used for a moment."""

from __future__ import annotations

from collections.abc import Sequence


def plain_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """Configurations and overrides of `run --config A --set key=value ...`; None for whatever else it is, which the parser is to judge.

    The parser costs 4 MB of memory and 50 ms.
    """
    values: dict[str, list[str]] = {"--config": [], "--set": []}
    if arguments[:1] != ["run"]:
        return None
    rest = iter(arguments[1:])
    for argument in rest:
        option, equals, value = argument.partition("=")
        if not equals:
            value = next(rest, "")
        if option not in values or not value or value.startswith("-"):
            return None
        values[option].append(value)
    return (values["--config"], values["--set"]) if values["--config"] else None


def run(config: list[str], overrides: list[str]) -> int:
    """Runs what these make together; the exit status."""
    from lockgate.collector.components import any_installed
    from lockgate.collector.memory import import_http_library

    if not any_installed():  # somebody else's component may count on what aiohttp trusts
        import_http_library()
    from lockgate.collector.config import load
    from lockgate.collector.program import run as run_program

    return run_program(load(config, overrides), lambda: load(config, overrides))
