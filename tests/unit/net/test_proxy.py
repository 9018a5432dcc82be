"""NO_PROXY's rules, row by row as Go's httpproxy documents them."""

import pytest
from yarl import URL

from lockgate.net.proxy import parse_proxy, proxy_for, uses_proxy


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "proxied"),
    [
        pytest.param("", "example.com", 443, True, id="empty"),
        pytest.param("", "localhost", 443, False, id="localhost-never"),
        pytest.param("", "127.0.0.3", 443, False, id="loopback-never"),
        pytest.param("", "::1", 443, False, id="loopback-v6-never"),
        pytest.param("*", "example.com", 443, False, id="star"),
        pytest.param("example.com", "example.com", 443, False, id="domain"),
        pytest.param("example.com", "a.example.com", 443, False, id="domain-and-below"),
        pytest.param("example.com", "badexample.com", 443, True, id="not-a-suffix-of-a-word"),
        pytest.param(".example.com", "example.com", 443, True, id="dot-is-below-only"),
        pytest.param(".example.com", "a.b.example.com", 443, False, id="dot-below"),
        pytest.param("*.example.com", "a.example.com", 443, False, id="star-dot"),
        pytest.param("EXAMPLE.com", "Example.COM", 443, False, id="case"),
        pytest.param("example.com:80", "example.com", 443, True, id="other-port"),
        pytest.param("example.com:443", "example.com", 443, False, id="same-port"),
        pytest.param("10.0.0.0/8", "10.1.2.3", 443, False, id="cidr"),
        pytest.param("10.0.0.0/8", "11.1.2.3", 443, True, id="outside-cidr"),
        pytest.param("10.0.0.0/8", "ten.example.com", 443, True, id="cidr-is-not-for-names"),
        pytest.param("10.1.2.3", "10.1.2.3", 443, False, id="address"),
        pytest.param("10.1.2.3:80", "10.1.2.3", 443, True, id="address-other-port"),
        pytest.param("fd00::/8", "fd00::5", 443, False, id="cidr-v6"),
        pytest.param("[fd00::5]:443", "fd00::5", 443, False, id="address-v6-port"),
        pytest.param("x.org, ,svc.cluster.local", "a.b.svc.cluster.local", 4318, False, id="list-with-spaces"),
        pytest.param("not/a/cidr", "example.com", 443, True, id="nonsense"),
    ],
)
def test_no_proxy(no_proxy: str, host: str, port: int, proxied: bool) -> None:
    assert uses_proxy(host, port, no_proxy) is proxied


def test_the_urls_scheme_picks_the_proxy_in_either_case() -> None:
    environment = {"HTTP_PROXY": "plain:3128", "https_proxy": "https://user:word@secure:3129"}
    assert proxy_for(URL("http://example.com"), environment) == URL("http://plain:3128")
    assert proxy_for(URL("https://example.com"), environment) == URL("https://user:word@secure:3129")
    assert proxy_for(URL("https://example.com"), {"http_proxy": "plain:3128"}) is None


@pytest.mark.parametrize("text", ["socks5://x:1", "http://"])
def test_a_proxy_that_cannot_be_one_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="proxy"):
        parse_proxy(text)
