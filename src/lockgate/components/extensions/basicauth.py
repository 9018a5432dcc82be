"""User names and passwords: checks those of a server's clients against an htpasswd file, and gives a client its own (`basicauth`)."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterator, Mapping
from typing import Self

from pydantic import model_validator

from lockgate.kit.settings import Secret
from lockgate.net.followed import FollowedFile
from lockgate.pipeline.contract import Context, Extension, component
from lockgate.pipeline.needs import ComponentSettings, Need, followed

_CACHED = 1024


class HtpasswdSettings(ComponentSettings):
    """Whose requests a server accepts: `name:hash` per line, with hashes of `htpasswd -B` (bcrypt), `-s` (SHA), {SSHA}, or plain text."""

    file: str = ""
    """An htpasswd file, followed as it changes."""
    inline: Secret = Secret("")
    """The same, written here; where a name is in both, this counts."""

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if not self.file and not self.inline.get_secret_value():
            raise ValueError("needs file or inline")
        return self

    def needs(self) -> Iterator[Need]:
        yield from _reads(self.file)


class ClientAuthSettings(ComponentSettings):
    """Who a client is."""

    username: str = ""
    """The name."""
    password: Secret = Secret("")
    """The password."""
    username_file: str = ""
    """A file with the name, followed as it changes."""
    password_file: str = ""
    """A file with the password, followed as it changes."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.username) == bool(self.username_file):
            raise ValueError("needs one of username and username_file")
        if bool(self.password.get_secret_value()) == bool(self.password_file):
            raise ValueError("needs one of password and password_file")
        return self

    def needs(self) -> Iterator[Need]:
        yield from _reads(self.username_file, self.password_file)


class BasicAuthSettings(ComponentSettings):
    """A server's users, or a client's own name and password."""

    htpasswd: HtpasswdSettings | None = None
    """For servers."""
    client_auth: ClientAuthSettings | None = None
    """For clients."""

    @model_validator(mode="after")
    def _one_side(self) -> Self:
        if (self.htpasswd is None) == (self.client_auth is None):
            raise ValueError("needs one of htpasswd (for servers) and client_auth (for clients)")
        return self


def _reads(*paths: str) -> Iterator[Need]:
    for path in paths:
        if path:
            yield from followed(path, "user names and passwords, followed as they change")


@component("basicauth", BasicAuthSettings)
class BasicAuthExtension(Extension[BasicAuthSettings]):
    """Checks, and gives, user names and passwords."""

    def __init__(self, settings: BasicAuthSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._files: dict[str, FollowedFile] = {}
        self._accepted: set[bytes] = set()

    async def start(self) -> None:
        # A missing file, or a hash that cannot be checked here, ends the start, not the first request.
        if self.settings.client_auth is not None:
            await self.authorize_headers()
        else:
            for name, stored in self._users().items():
                _check_hash(name, stored)

    async def authorize_headers(self) -> Mapping[str, str]:
        client = self.settings.client_auth
        if client is None:
            raise LookupError(f"extension {self.context.id} has no client_auth, so it gives no credentials")
        name = client.username or self._text(client.username_file)
        password = client.password.get_secret_value() or self._text(client.password_file)
        return {"Authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}

    async def authenticate(self, headers: Mapping[str, str]) -> None:
        if self.settings.htpasswd is None:
            raise PermissionError(f"extension {self.context.id} has no htpasswd, so it accepts nobody")
        scheme, _, encoded = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            raise PermissionError("no Basic credentials")
        try:
            name, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise PermissionError("the credentials are malformed") from None
        stored = self._users().get(name)
        if not colon or stored is None:
            raise PermissionError("the name or the password is not accepted")
        # bcrypt takes a tenth of a second by design: once per client and password, not once per request.
        key = hashlib.sha256("\0".join((name, password, stored)).encode()).digest()
        if key in self._accepted:
            return
        if not await self.in_thread(_matches, password, stored):
            raise PermissionError("the name or the password is not accepted")
        if len(self._accepted) >= _CACHED:
            self._accepted.clear()
        self._accepted.add(key)

    def _users(self) -> dict[str, str]:
        htpasswd = self.settings.htpasswd
        assert htpasswd is not None
        lines = (self._text(htpasswd.file) if htpasswd.file else "").splitlines() + htpasswd.inline.get_secret_value().splitlines()
        pairs = (line.strip().partition(":") for line in lines if line.strip() and not line.lstrip().startswith("#"))
        return {name: stored for name, _, stored in pairs}

    def _text(self, path: str) -> str:
        if path not in self._files:
            self._files[path] = FollowedFile(path, self.context.clock)
        return self._files[path].text().strip()


def _check_hash(name: str, stored: str) -> None:
    if stored.startswith("$2"):
        try:
            import bcrypt  # noqa: F401
        except ImportError:
            raise ValueError(f"the password of {name} is hashed with bcrypt; install lockgate[bcrypt]") from None
    elif stored.startswith("$") or not stored:
        raise ValueError(f"the password of {name} is hashed in a way that is not supported; write it with `htpasswd -B`")


def _matches(password: str, stored: str) -> bool:
    try:
        if stored.startswith("$2"):
            import bcrypt

            # 72 bytes are all that bcrypt looks at; longer ones are an error to this library, not to the others.
            return bcrypt.checkpw(password.encode()[:72], stored.encode())
        if stored.startswith("{SHA}"):
            return hmac.compare_digest(hashlib.sha1(password.encode()).digest(), base64.b64decode(stored[5:]))
        if stored.startswith("{SSHA}"):
            raw = base64.b64decode(stored[6:])
            return hmac.compare_digest(hashlib.sha1(password.encode() + raw[20:]).digest(), raw[:20])
    except (ValueError, ImportError):
        return False
    return not stored.startswith(("$", "{")) and bool(stored) and hmac.compare_digest(password.encode(), stored.encode())
