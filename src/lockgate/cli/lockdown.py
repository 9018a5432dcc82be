"""`lockgate netpol`, `rbac`, `netcheck` and `privileges`: what a configuration may do in a cluster, as objects and tried in a pod."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from lockgate.cli.commands import Config, Overrides, load


def netpol(*, config: Config, overrides: Overrides = None, facts: Path | None = None, explain: bool = False) -> int:
    """Render the network policies that this configuration needs: everything is denied but its flows, both ways.

    Parameters
    ----------
    facts
        A YAML file that says what a configuration cannot know: this role's labels, the pods behind each name, who may connect, where
        DNS, the API server and the backend are (docs/security.md).
    explain
        Print a table of the flows instead.
    """
    from lockgate.lockdown import flows, netpol
    from lockgate.lockdown.facts import Facts
    from lockgate.lockdown.facts import load as load_facts

    known = load_facts(str(facts)) if facts else Facts()
    derived = flows.derive(load(config, overrides).needs(), known)
    if explain:
        print(netpol.explain(derived.flows, derived.warnings))
        return 0
    _warn(derived.warnings)
    print(netpol.render(derived.flows, known), end="")
    return 0


def rbac(
    *, config: Config, overrides: Overrides = None, name: str = "lockgate", namespace: str = "default", only_namespace: bool = False
) -> int:
    """Render the RBAC roles and bindings for what this configuration asks of the Kubernetes API.

    Parameters
    ----------
    name
        Of the roles, the bindings, and the service account that they are for.
    namespace
        Of the service account.
    only_namespace
        Grant nothing outside of that namespace.
    """
    import yaml

    from lockgate.lockdown.rbac import manifests

    found, warnings = manifests(load(config, overrides).needs(), name, namespace, name, only_namespace)
    _warn(warnings)
    print(yaml.safe_dump_all(found, sort_keys=False) if found else "# this configuration asks nothing of the Kubernetes API", end="")
    return 0


def netcheck(
    *,
    config: Config,
    overrides: Overrides = None,
    canary: Annotated[list[str] | None, Parameter(negative="", consume_multiple=False)] = None,
    seconds: float = 3.0,
) -> int:
    """Try each flow of this configuration from here, inside a pod, and one that must fail. Exit status 1 where one is not as it should be.

    Parameters
    ----------
    canary
        host:port that must not be reached. Without it the API server where nothing here needs it, else the metrics port of the
        cluster's DNS: where that connects, this cluster does not enforce network policies.
    seconds
        How long each may take.
    """
    import asyncio

    from lockgate.lockdown.netcheck import check, default_canaries
    from lockgate.net.address import split_endpoint

    rows = load(config, overrides).needs()
    try:
        canaries = [split_endpoint(text) for text in canary] if canary is not None else default_canaries(rows)
    except ValueError as error:
        raise LookupError(f"--canary: {error}") from error
    checked = asyncio.run(check(rows, canaries, seconds))
    for each in checked:
        print(f"{'ok  ' if each.is_good else 'FAIL'}  {each.host}:{each.port} should be {each.wanted}: {each.found}")
        print("".join(f"      {reason}\n" for reason in each.reasons), end="")
    open_canaries = [each for each in checked if each.wanted == "closed" and each.state == "open"]
    unknown = [each for each in checked if each.wanted == "closed" and each.state == "unknown"]
    if open_canaries:
        print("A canary was reached: no network policy selects this pod, or this cluster's network plugin does not enforce policies.")
    elif unknown:
        print("A canary did not tell: name one with --canary that listens for certain, and that nothing here needs.")
    return 0 if all(each.is_good for each in checked) else 1


def privileges(*, config: Config, overrides: Overrides = None, format: Literal["text", "json"] = "text") -> int:
    """Try to read, from here, what this configuration reads of others' files, and say what it takes. Exit status 1 where that is more.

    Parameters
    ----------
    format
        Text for people or JSON for programs, as `/status` has it.
    """
    import json

    from lockgate.lockdown.privileges import look

    configuration = load(config, overrides)
    found = look([each.settings for each in configuration.used()], [need for _, need in configuration.needs()])
    print(json.dumps(found.status(), indent=2) if format == "json" else "\n".join(text for _, text in found.lines(each=True)))
    return 0 if found.is_enough else 1


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
