"""Needs are collected from wherever settings nest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from lockgate.kit.settings import Settings
from lockgate.pipeline.errors import Permanent, Refusal, Retryable
from lockgate.pipeline.needs import (
    ComponentSettings,
    Connect,
    Exec,
    Kubernetes,
    Listen,
    Need,
    Read,
    Write,
    followed,
    is_covered,
    name_resolution,
)


class Server(ComponentSettings):
    """Listens."""

    port: int = 1
    """Where."""

    def needs(self) -> Iterator[Need]:
        yield Listen("", self.port, "serves")


class Outer(ComponentSettings):
    """Holds parts."""

    one: Server = Server(port=1)
    """Itself."""
    several: list[Server] = []
    """In a list."""
    named: dict[str, Server] = {}
    """In a mapping."""
    maybe: Server | None = None
    """Or not."""

    def needs(self) -> Iterator[Need]:
        yield Connect("backend", 443, "sends")
        yield from super().needs()


def test_a_part_adds_its_needs_from_lists_mappings_and_fields() -> None:
    outer = Outer(several=[Server(port=2), Server(port=3)], named={"x": Server(port=4)})
    assert list(outer.needs()) == [Connect("backend", 443, "sends"), *(Listen("", port, "serves") for port in (1, 2, 3, 4))]


def test_refusals_are_one_family_and_keep_their_reason() -> None:
    refusal = Retryable("later", after=2.5)
    assert isinstance(refusal, Refusal) and isinstance(Permanent("no"), Refusal) and not isinstance(Permanent("no"), Retryable)
    assert (str(refusal), refusal.after, Retryable("x").after) == ("later", 2.5, None)
    assert issubclass(ComponentSettings, Settings)


def dns(*needs: Need, resolv_conf: str) -> tuple[set[str], list[tuple[str, Literal["tcp", "udp"]]]]:
    """(files but for resolv.conf, (name server, protocol))."""
    found = list(name_resolution(needs, resolv_conf))
    assert all(need.port == 53 for need in found if isinstance(need, Connect))
    servers = [(need.host, need.protocol) for need in found if isinstance(need, Connect)]
    return {need.path for need in found if isinstance(need, Read)} - {resolv_conf}, servers


@pytest.fixture
def resolv_conf(tmp_path: Path) -> str:
    path = tmp_path / "resolv.conf"
    path.write_text("# made by hand\nsearch shop.svc\nnameserver 10.0.0.10\nnameserver fd00::10\noptions ndots:5\n")
    return str(path)


def test_names_are_resolved_once_by_the_name_servers_of_the_machine(resolv_conf: str) -> None:
    needs: list[Need] = [
        Connect("backend", 443, "sends"),
        Connect("Backend.", 80, "sends"),
        Connect("kube", 443, "asks"),
        Listen("", 1, "serves"),
    ]
    files, servers = dns(*needs, resolv_conf=resolv_conf)
    assert "/etc/hosts" in files
    assert servers == [("10.0.0.10", "udp"), ("10.0.0.10", "tcp"), ("fd00::10", "udp"), ("fd00::10", "tcp")]
    reasons = {need.reason for need in name_resolution(needs, resolv_conf) if isinstance(need, Connect)}
    assert reasons == {"DNS, to resolve backend, kube"}


@pytest.mark.parametrize("host", ["10.1.2.3", "::1", "[fd00::1]", ""])
def test_addresses_need_no_name_resolution(host: str, resolv_conf: str) -> None:
    assert list(name_resolution([Connect(host, 443, "sends"), Listen(host, 1, "serves")], resolv_conf)) == []


@pytest.mark.parametrize("need", [Connect("localhost", 1, "sends"), Listen("localhost", 1, "serves"), Connect("a.localhost", 1, "sends")])
def test_localhost_is_read_from_files_and_asks_no_server(need: Need, resolv_conf: str) -> None:
    files, servers = dns(need, resolv_conf=resolv_conf)
    assert "/etc/hosts" in files
    assert servers == []


def test_without_a_name_server_it_is_the_one_on_this_machine(tmp_path: Path) -> None:
    _, servers = dns(Connect("backend", 1, "sends"), resolv_conf=str(tmp_path / "none"))
    assert servers == [("127.0.0.1", "udp"), ("127.0.0.1", "tcp")]


def test_a_linked_resolv_conf_is_followed_in_the_directory_where_it_is_replaced(tmp_path: Path, resolv_conf: str) -> None:
    elsewhere = tmp_path / "etc" / "resolv.conf"
    elsewhere.parent.mkdir()
    elsewhere.symlink_to(resolv_conf)
    files, servers = dns(Connect("backend", 1, "sends"), resolv_conf=str(elsewhere))
    assert str(tmp_path) in files
    assert servers[0] == ("10.0.0.10", "udp")


def test_a_followed_file_is_its_directory_and_where_links_lead_out_of_it(tmp_path: Path) -> None:
    mount, other = tmp_path / "mount", tmp_path / "other"
    (mount / "..2026").mkdir(parents=True)
    other.mkdir()
    for name in ("mount/..2026/token", "other/ca.pem"):
        (tmp_path / name).touch()
    (mount / "..data").symlink_to("..2026")
    (mount / "token").symlink_to("..data/token")
    (mount / "ca.pem").symlink_to(other / "ca.pem")
    assert list(followed(f"{mount}/token", "why")) == [Read(str(mount), "why")]
    assert list(followed(f"{mount}/ca.pem", "why")) == [Read(str(mount), "why"), Read(str(other), "why")]
    assert list(followed(f"{mount}/later", "why")) == [Read(str(mount), "why")]


GRANTED: list[Need] = [
    Listen("127.0.0.1", 4318, "here"),
    Listen("", 4317, "everywhere"),
    Listen("0.0.0.0", 24321, "every IPv4 address"),
    Connect("Collector.example.", 443, "there"),
    Read("/var/log/pods", "logs"),
    Write("/var/lib/lockgate", "state"),
    Exec("/usr/bin/python3", "pods"),
    Kubernetes(("get", "list"), "", "pods", "pods"),
    Kubernetes(("watch",), "", "pods", "pods of one namespace", "shop"),
]


@pytest.mark.parametrize(
    "need",
    [
        Listen("127.0.0.1", 4318, "for another reason"),
        Listen("::1", 4317, ""),
        Listen("localhost", 4317, ""),
        Listen("10.0.0.1", 24321, ""),
        Connect("collector.example", 443, ""),
        Read("/var/log/pods", ""),
        Read("/var/log/pods/a/../b", ""),
        Read("/var/lib/lockgate/queue", "what may be written may be read"),
        Write("/var/lib/lockgate/other", ""),
        Exec("/usr/bin/python3", ""),
        Kubernetes(("list",), "", "pods", "", "shop"),
        Kubernetes(("get", "list", "watch"), "", "pods", "", "shop"),
    ],
)
def test_what_is_granted_covers_the_same_and_what_is_within_it(need: Need) -> None:
    assert is_covered(need, GRANTED)


@pytest.mark.parametrize(
    "need",
    [
        Listen("", 4318, "everywhere is more than here"),
        Listen("127.0.0.2", 4318, ""),
        Listen("127.0.0.1", 4318, "", "udp"),
        Listen("127.0.0.1", 0, "any port is not this one"),
        Listen("::1", 24321, ""),
        Connect("collector.example", 80, ""),
        Connect("other.example", 443, ""),
        Read("/var/log", "above"),
        Read("/var/log/pods/../secrets", ""),
        Read("/var/log/pods2", "begins alike"),
        Write("/var/log/pods", "what may be read may not be written"),
        Exec("/bin/sh", ""),
        Kubernetes(("watch",), "", "pods", "", "other"),
        Kubernetes(("list",), "", "pods/log", ""),
        Kubernetes(("list",), "apps", "pods", ""),
    ],
)
def test_what_is_granted_covers_nothing_else(need: Need) -> None:
    assert not is_covered(need, GRANTED)
