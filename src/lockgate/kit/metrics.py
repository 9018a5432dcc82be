"""Counters and gauges with labels, rendered as Prometheus text.

Not prometheus_client: it appends `_total` to every counter, and the collector's dashboards query names without it
(`without_type_suffix`, which Sumo Logic's chart sets).
"""

import math
from collections.abc import Callable


class Series:
    """One labelled value. `add` and `set` are safe from any thread that holds the interpreter lock."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, amount: float = 1) -> None:
        self.value += amount

    def set(self, value: float) -> None:
        self.value = value


class Metrics:
    """A process's own metrics. Asking twice for the same name and labels gives the same series."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[str, str, dict[tuple[tuple[str, str], ...], Series | Callable[[], float]]]] = {}

    def counter(self, name: str, help: str, **labels: str) -> Series:
        """A number that only rises."""
        return self._series(name, "counter", help, labels)

    def gauge(self, name: str, help: str, **labels: str) -> Series:
        """A number that rises and falls."""
        return self._series(name, "gauge", help, labels)

    def observe(self, name: str, help: str, read: Callable[[], float], *, kind: str = "gauge", **labels: str) -> None:
        """A gauge (or counter) that is read when somebody asks; `read` must be cheap and must not raise."""
        self._family(name, kind, help)[_key(labels)] = read

    def forget(self, **labels: str) -> None:
        """Every series with these labels ends."""
        ended = set(labels.items())
        for _, _, family in self._families.values():
            for key in [key for key in family if ended <= set(key)]:
                del family[key]

    def value(self, name: str, **labels: str) -> float:
        """The sum over all series of this name that carry these labels; 0 where there is none."""
        family = self._families.get(name)
        wanted = set(labels.items())
        return sum(_read(series) for key, series in family[2].items() if wanted <= set(key)) if family else 0

    def collect(self) -> list[tuple[str, dict[str, str], float]]:
        """Every series as (name, labels, value)."""
        return [(name, dict(key), _read(series)) for name, (_, _, family) in self._families.items() for key, series in family.items()]

    def render(self, counter_suffix: str = "", scope: str | None = None) -> str:
        """Prometheus text exposition format 0.0.4; counters with this suffix, every series with this `otel_scope_name`."""
        scoped = (("otel_scope_name", scope),) if scope is not None else ()
        lines: list[str] = []
        for plain_name, (kind, help, family) in sorted(self._families.items()):
            name = plain_name + counter_suffix if kind == "counter" else plain_name
            lines += [f"# HELP {name} {_escape_help(help)}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{_labels(key + scoped)} {_number(_read(series))}" for key, series in sorted(family.items())]
        return "\n".join(lines) + "\n"

    def _series(self, name: str, kind: str, help: str, labels: dict[str, str]) -> Series:
        family, key = self._family(name, kind, help), _key(labels)
        series = family.get(key)
        if not isinstance(series, Series):
            series = family[key] = Series()
        return series

    def _family(self, name: str, kind: str, help: str) -> dict[tuple[tuple[str, str], ...], Series | Callable[[], float]]:
        return self._families.setdefault(name, (kind, help, {}))[2]


def _key(labels: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


def _read(series: Series | Callable[[], float]) -> float:
    return series.value if isinstance(series, Series) else series()


def _number(value: float) -> str:
    if not math.isfinite(value):
        return {math.inf: "+Inf", -math.inf: "-Inf"}.get(value, "NaN")
    return str(int(value)) if value == int(value) else repr(value)


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _labels(key: tuple[tuple[str, str], ...]) -> str:
    if not key:
        return ""
    return "{" + ",".join(f'{name}="{_escape_help(value).replace(chr(34), chr(92) + chr(34))}"' for name, value in key) + "}"
