"""Which proxy a request goes through: HTTP_PROXY, HTTPS_PROXY and NO_PROXY as Go's httpproxy reads them, so that a pod's environment
means to Lockgate what it means to the collector (golang.org/x/net/http/httpproxy, "FromEnvironment", "Config.NoProxy")."""

import base64
import ipaddress
from collections.abc import Mapping

from yarl import URL


def proxy_for(url: URL, environment: Mapping[str, str]) -> URL | None:
    """The proxy for this request, or None for a direct connection. Raises ValueError for a proxy URL that cannot be one."""
    scheme = "https" if url.scheme == "https" else "http"
    text = _variable(environment, f"{scheme}_proxy")
    if not text or not uses_proxy(url.host or "", url.port or 0, _variable(environment, "no_proxy")):
        return None
    return parse_proxy(text)


def parse_proxy(text: str) -> URL:
    """A proxy's URL; one without a scheme is an HTTP proxy. Raises ValueError."""
    url = URL(text if "://" in text else f"http://{text}")
    if url.scheme not in ("http", "https"):
        raise ValueError(f"proxy scheme {url.scheme} is not supported; use an http or https proxy")
    if not url.host:
        raise ValueError("a proxy URL names no host; write http://host:port")
    return url


def proxy_credentials(proxy: URL | None) -> dict[str, str]:
    """The header that lets us through this proxy; none where its URL names no user."""
    if proxy is None or not proxy.user:
        return {}
    return {"Proxy-Authorization": f"Basic {base64.b64encode(f'{proxy.user}:{proxy.password or str()}'.encode()).decode()}"}


def uses_proxy(host: str, port: int, no_proxy: str) -> bool:
    """Whether NO_PROXY lets requests to this host and port go through the proxy. Loopback never does."""
    host = host.lower().strip("[]").rstrip(".")
    address = _address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return False
    for entry in no_proxy.split(","):
        pattern = entry.strip().lower()
        if not pattern:
            continue
        if pattern == "*" or _matches(pattern, host, address, port):
            return False
    return True


def _matches(pattern: str, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int) -> bool:
    if "/" in pattern:
        try:
            return address is not None and address in ipaddress.ip_network(pattern, strict=False)
        except ValueError:
            return False
    name, wanted_port = _split_port(pattern)
    if wanted_port is not None and wanted_port != port:
        return False
    if (listed := _address(name)) is not None:
        return listed == address
    if not name or address is not None:
        return False
    # "example.com" is the domain and all below it; ".example.com" and "*.example.com" are only those below.
    name = name.removeprefix("*")
    return host.endswith(name) if name.startswith(".") else host == name or host.endswith(f".{name}")


def _split_port(pattern: str) -> tuple[str, int | None]:
    if pattern.startswith("["):
        name, _, rest = pattern[1:].partition("]")
        return name, int(rest[1:]) if rest[1:].isdigit() else None
    name, colon, port = pattern.rpartition(":")
    return (name, int(port)) if colon and ":" not in name and port.isdigit() else (pattern, None)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _variable(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name.upper()) or environment.get(name) or ""
