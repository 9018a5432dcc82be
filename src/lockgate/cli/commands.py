"""The commands. Each imports what it calls when it is called, so that none pays for another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from lockgate.cli import running

app = App(name="lockgate", help="Kubernetes telemetry collection for locked-down clusters.", version_flags=["--version"])

Config = Annotated[
    list[str],
    Parameter(
        name="--config",
        negative="",
        consume_multiple=False,
        help="A YAML file, or a preset's name; given several times they are merged in order.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        negative="",
        consume_multiple=False,
        help="key=value laid on top, such as exporters.otlphttp.endpoint=http://127.0.0.1:4318 (:: separates keys that hold dots).",
    ),
]


@app.command
def run(*, config: Config, overrides: Overrides = None) -> int:
    """Run a configuration until SIGTERM; SIGHUP reads it again."""
    return running.run(config, overrides or [])


@app.command
def validate(*, config: Config, overrides: Overrides = None) -> int:
    """Check a configuration: everything that start would refuse, all at once, each with file, line and column."""
    from lockgate.collector.config import load as load_configuration

    configuration = load_configuration(config, overrides or [], tries_files=True)
    for warning in configuration.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"valid: {len(configuration.used())} components in {len(configuration.pipelines)} pipelines")
    return 0


@app.command
def needs(*, config: Config, overrides: Overrides = None, format: Literal["table", "json"] = "table") -> int:
    """List what running a configuration opens, reads, writes and asks of the Kubernetes API, each with the reason.

    Parameters
    ----------
    format
        A table for people or JSON for programs.
    """
    from lockgate.collector.describe import needs_json, needs_table

    configuration = load(config, overrides)
    print(needs_json(configuration) if format == "json" else needs_table(configuration))
    return 0


@app.command
def components(name: str = "", /) -> int:
    """List the components there are, or print one component's keys with types, defaults and meaning.

    Parameters
    ----------
    name
        A component's type (otlp), or its kind and type where one name is several things (receivers/otlp).
    """
    from lockgate.collector.describe import component_list, component_reference

    print(component_reference(name) if name else component_list())
    return 0


@app.command
def up(*, state: Path = Path(".lockgate"), lines_per_second: float = 20, context: str = "", kubeconfig: Path | None = None) -> int:
    """Run every role on this machine, with the embedded backend and a sample cluster, until Ctrl-C.

    Parameters
    ----------
    state
        The directory for everything that is written: database, checkpoints, logs of the roles.
    lines_per_second
        How fast each sample pod logs.
    context
        Collect from this machine as a node of a real cluster instead: metadata from the API server of this kubeconfig context, logs
        from /var/log/pods. There is no default, and KUBECONFIG is not read.
    kubeconfig
        The file that holds the context; ~/.kube/config where not given.
    """
    from lockgate.presets.up import up as run_up

    if kubeconfig and not context:
        raise LookupError("--kubeconfig says where --context is found; give both")
    return run_up(state, lines_per_second=lines_per_second, context=context, kubeconfig=kubeconfig)


# Imported when they are called, so what `--help` says of them stands here as well.
for _target, _help in {
    "logs:logs": "Show log lines from a running store, the newest last.",
    "query:query": "Ask a running store in SQL (DuckDB's dialect): the views are logs, metrics and traces. Nothing can be changed.",
    "where:where": "Show where lines are now: on disk and unread, waiting, delivered, rejected or lost, and why.\n\n"
    "Exit status 0: nothing was lost; 3: something was rejected, or gone before it was read; 1: it cannot be told.",
    "lockdown:netpol": "Render the network policies that this configuration needs: everything is denied but its flows, both ways.",
    "lockdown:rbac": "Render the RBAC roles and bindings for what this configuration asks of the Kubernetes API.",
    "lockdown:netcheck": "Try each flow of this configuration from here, inside a pod, and one that must fail. "
    "Exit status 1 where one is not as it should be.",
    "lockdown:privileges": "Try to read, from here, what this configuration reads of others' files, and say what it takes. "
    "Exit status 1 where that is more.",
}.items():
    app.command(f"lockgate.cli.{_target}", help=_help)


def load(config: list[str], overrides: list[str] | None):  # type: ignore[no-untyped-def]  # imported below, when asked for
    """The configuration that these arguments name."""
    from lockgate.collector.config import load as load_configuration

    return load_configuration(config, overrides or [])
