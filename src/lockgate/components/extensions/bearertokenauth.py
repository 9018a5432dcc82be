"""Bearer tokens: checks those of a server's clients, and gives a client its own (the collector's `bearertokenauth`)."""

import hmac
from collections.abc import Iterator, Mapping
from typing import Self

from pydantic import model_validator

from lockgate.kit.clock import SystemClock
from lockgate.kit.settings import Secret
from lockgate.net.followed import FollowedFile
from lockgate.pipeline.contract import Context, Extension, component
from lockgate.pipeline.needs import ComponentSettings, Need, Unusable, elsewhere, followed


class BearerTokenAuthSettings(ComponentSettings):
    """Which tokens, and in which header."""

    scheme: str = "Bearer"
    """The word before the token; empty for the token alone."""
    token: Secret = Secret("")
    """The token."""
    tokens: tuple[Secret, ...] = ()
    """Several tokens: a server accepts any of them, a client sends the first."""
    filename: str = ""
    """A file with one token per line, followed as it changes; with it, `token` and `tokens` may not be set."""
    header: str = "Authorization"
    """The header that carries the token."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum((bool(self.token.get_secret_value()), bool(self.tokens), bool(self.filename))) != 1:
            raise ValueError("needs exactly one of token, tokens and filename")
        return self

    def needs(self) -> Iterator[Need]:
        yield from super().needs()
        if self.filename:
            yield from followed(self.filename, "bearer tokens, followed as they change")

    def unusable(self) -> Iterator[Unusable]:
        yield from super().unusable()
        if not self.filename:
            return
        if found := elsewhere(("filename",), self.filename):
            yield found
            return
        try:
            _tokens_in(FollowedFile(self.filename, SystemClock()), self.filename)
        except (OSError, ValueError) as error:
            yield Unusable(("filename",), f"cannot read tokens: {error}")


@component("bearertokenauth", BearerTokenAuthSettings)
class BearerTokenAuthExtension(Extension[BearerTokenAuthSettings]):
    """Checks, and gives, bearer tokens."""

    def __init__(self, settings: BearerTokenAuthSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._file = FollowedFile(settings.filename, context.clock) if settings.filename else None

    async def start(self) -> None:
        self._tokens()  # a missing or empty file ends the start, not the first request

    async def authorize_headers(self) -> Mapping[str, str]:
        return {self.settings.header: self._value(self._tokens()[0])}

    async def authenticate(self, headers: Mapping[str, str]) -> None:
        sent = headers.get(self.settings.header.lower())
        if sent is None:
            raise PermissionError(f"no {self.settings.header} header")
        # All are compared, each in constant time: how long it takes says nothing of which came close.
        if not sum(hmac.compare_digest(sent.encode(), self._value(token).encode()) for token in self._tokens()):
            raise PermissionError("the token is not accepted")

    def _value(self, token: str) -> str:
        return f"{self.settings.scheme} {token}".strip()

    def _tokens(self) -> list[str]:
        if self._file is None:
            return [token.get_secret_value() for token in (self.settings.tokens or (self.settings.token,))]
        return _tokens_in(self._file, self.settings.filename)


def _tokens_in(file: FollowedFile, name: str) -> list[str]:
    tokens = [line.strip() for line in file.text().splitlines() if line.strip()]
    if not tokens:
        raise ValueError(f"{name} holds no token; put one on each line")
    return tokens
