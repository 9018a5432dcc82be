"""Which pods a component follows and which of these it leaves alone: settings, and the selectors that follow from them."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field

from lockgate.kit.regex import Regex
from lockgate.kit.settings import Settings


class LabelFilter(Settings):
    """A condition on the pods to follow."""

    key: str = Field(min_length=1)
    """The label."""
    value: str = ""
    """What it is compared with."""
    op: Literal["equals", "not-equals", "exists", "does-not-exist", "not-exists"] = "equals"
    """How; `not-exists` is another spelling of `does-not-exist`."""


class FieldFilter(Settings):
    """A condition on the pods to follow, by a field that the API server can select by."""

    key: str = Field(min_length=1)
    """The field, such as `status.phase`."""
    value: str = ""
    """What it is compared with."""
    op: Literal["equals", "not-equals"] = "equals"
    """How."""


class Filter(Settings):
    """Which pods to follow; the others are unknown to this processor. On a node's agent, its own node's pods are enough."""

    node: str = ""
    """Pods of this node alone."""
    node_from_env_var: str = ""
    """Pods of the node alone that this environment variable names (set from spec.nodeName by the downward API); it must be set."""
    namespace: str = ""
    """Pods of this namespace alone."""
    fields: tuple[FieldFilter, ...] = ()
    """Further conditions on fields; all must hold."""
    labels: tuple[LabelFilter, ...] = ()
    """Further conditions on labels; all must hold."""

    def label_selector(self) -> str:
        spelled = {"equals": "{key}={value}", "not-equals": "{key}!={value}", "exists": "{key}"}
        return ",".join(spelled.get(each.op, "!{key}").format(key=each.key, value=each.value) for each in self.labels)

    def field_selector(self, node: str | None = None) -> str:
        """`node` is what `node_from_env_var` holds."""
        terms = [f"{each.key}{'=' if each.op == 'equals' else '!='}{escape(each.value)}" for each in self.fields]
        if node := node or self.node:
            terms.append(f"spec.nodeName={escape(node)}")
        return ",".join(terms)

    def node_from_environment(self) -> str | None:
        """What `node_from_env_var` holds, None where it is not set. Raises ValueError where it holds nothing."""
        name = self.node_from_env_var
        if not name:
            return None
        if not os.environ.get(name):
            # An empty filter would follow the pods of the whole cluster from every node.
            raise ValueError(f"filter.node_from_env_var: {name} is not set; set it from spec.nodeName with the downward API")
        return os.environ[name]


class ExcludedPod(Settings):
    """Pods to leave alone."""

    name: Regex
    """Found anywhere in the pod's name."""


def escape(value: str) -> str:
    """A field selector's value (k8s.io/apimachinery, fields.EscapeValue)."""
    return value.replace("\\", "\\\\").replace(",", "\\,").replace("=", "\\=")
