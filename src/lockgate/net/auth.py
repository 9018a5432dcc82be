"""The extension that gives a client's credentials, or checks those of a server's clients (the collector's `configauth`)."""

from collections.abc import Iterator

from lockgate.kit.document import Path
from lockgate.pipeline.needs import ComponentSettings


class AuthSettings(ComponentSettings):
    """Who gives, or checks, credentials."""

    authenticator: str
    """The id of the extension, such as `bearertokenauth` or `basicauth/backend`."""

    def extensions(self) -> Iterator[tuple[Path, str]]:
        yield ("authenticator",), self.authenticator
