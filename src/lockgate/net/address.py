"""`host:port` as the collector writes endpoints."""


def split_endpoint(text: str) -> tuple[str, int]:
    """Host and port of `host:port`, `[::1]:port` or `:port`; raises ValueError saying how to write it."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdigit() or int(port) > 65535 or (":" in bare and not host.startswith("[")):
        raise ValueError(f"{text!r} is no host:port; write it like 0.0.0.0:4318 or [::]:4318")
    return bare, int(port)
