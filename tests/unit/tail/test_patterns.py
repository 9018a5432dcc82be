"""Glob patterns mean what the collector's do."""

import pytest

from lockgate.tail.patterns import Patterns, check, fixed_root


def matches(pattern: str, path: str) -> bool:
    """Walks the path through the pattern's states, as the discovery does."""
    patterns = Patterns([pattern], [])
    root = next((root for root in patterns.roots if path.startswith(root.rstrip("/") + "/")), "")
    if not root:
        return False
    state = patterns.start(root)
    names = path[len(root.rstrip("/")) + 1 :].split("/")
    for name in names[:-1]:
        state, _ = patterns.step(state, name)
    return patterns.step(state, names[-1])[1]


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/var/log/pods/*/*/*.log", "/var/log/pods/ns_p_u/c/0.log", True),
        ("/var/log/pods/*/*/*.log", "/var/log/pods/ns_p_u/c/0.log.20240101-000000", False),
        ("/var/log/pods/*/*/*.log", "/var/log/pods/ns_p_u/0.log", False),
        ("/var/log/pods/*/*/*.log", "/var/log/pods/a/b/c/0.log", False),
        ("/var/log/**/*.log", "/var/log/a.log", True),
        ("/var/log/**/*.log", "/var/log/a/b/c.log", True),
        ("/var/log/**", "/var/log/a/b/c", True),
        ("/var/**/pods/*.log", "/var/log/x/pods/c.log", True),
        ("/var/**/pods/*.log", "/var/log/x/pod/c.log", False),
        ("/logs/app?.log", "/logs/app1.log", True),
        ("/logs/app?.log", "/logs/app.log", False),
        ("/logs/app[0-3].log", "/logs/app2.log", True),
        ("/logs/app[!0-3].log", "/logs/app2.log", False),
        ("/logs/app[^0-3].log", "/logs/appx.log", True),
        ("/logs/{a,b}/*.log", "/logs/b/x.log", True),
        ("/logs/{a,b}/*.log", "/logs/c/x.log", False),
        ("/logs/{a,b{1,2}}.log", "/logs/b2.log", True),
        ("/logs/\\*.log", "/logs/*.log", True),
        ("/logs/\\*.log", "/logs/x.log", False),
        ("/logs/*.log", "/logs/.hidden.log", True),
        ("/logs/exact.log", "/logs/exact.log", True),
    ],
)
def test_pattern(pattern: str, path: str, expected: bool) -> None:
    check(pattern)
    assert matches(pattern, path) is expected
    assert Patterns(["/x"], [pattern]).excluded(path) is expected


@pytest.mark.parametrize(
    ("pattern", "root"),
    [("/var/log/pods/*/*/*.log", "/var/log/pods"), ("/a/b.log", "/a"), ("/**/x", "/"), ("/a/{b,c}/d", "/a")],
)
def test_the_fixed_root_has_no_wildcard(pattern: str, root: str) -> None:
    assert fixed_root(pattern) == root


@pytest.mark.parametrize("pattern", ["logs/*.log", "/logs/../etc/*", "/logs//x", "/logs/{a,b", "/logs/[z-a].log"])
def test_what_is_no_pattern_is_an_error(pattern: str) -> None:
    with pytest.raises(ValueError, match="logs"):
        check(pattern)
