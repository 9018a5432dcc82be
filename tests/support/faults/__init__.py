"""A laboratory for faults: real roles, a balancer that misbehaves, a kubelet that rotates, and exact books of what became of each line.

Each module plays one kind of fault with parameters and gives figures; `tests/e2e/test_faults_*.py` run them in a short form and
`tests/soak/faults.py` in a long one. A play that did not see the faults that it is about fails: see `Figures.require`.
"""

from __future__ import annotations

from typing import Any


class Figures(dict[str, Any]):
    """What a play measured, by name; printed as rows."""

    def require(self, **least: float) -> None:
        """Fails where one of these was seen less often: such a play would prove nothing."""
        vacuous = {name: (self[name], wanted) for name, wanted in least.items() if self[name] < wanted}
        assert not vacuous, f"too little was seen (seen, wanted): {vacuous}; all figures: {dict(self)}"

    def require_none(self, *names: str) -> None:
        """Fails where one of these is not 0."""
        broken = {name: self[name] for name in names if self[name]}
        assert not broken, f"{broken}; all figures: {dict(self)}"
