"""bearertokenauth and basicauth, both sides: what a client sends is what a server accepts, and nothing else."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from support import VirtualClock, context

from lockgate.components.extensions.basicauth import BasicAuthExtension, BasicAuthSettings
from lockgate.components.extensions.bearertokenauth import BearerTokenAuthExtension, BearerTokenAuthSettings
from lockgate.pipeline.contract import Extension, Kind
from lockgate.pipeline.needs import Read


def bearer(clock: Any = None, **settings: Any) -> BearerTokenAuthExtension:
    return BearerTokenAuthExtension(BearerTokenAuthSettings.model_validate(settings), context("bearer", Kind.EXTENSION, clock=clock))


def basic(clock: Any = None, **settings: Any) -> BasicAuthExtension:
    return BasicAuthExtension(BasicAuthSettings.model_validate(settings), context("basic", Kind.EXTENSION, clock=clock))


async def is_accepted(server: Extension[Any], client: Extension[Any]) -> bool:
    headers = {name.lower(): value for name, value in (await client.authorize_headers()).items()}
    try:
        await server.authenticate(headers)
    except PermissionError:
        return False
    return True


@pytest.mark.parametrize(
    ("server", "client", "accepted"),
    [
        pytest.param({"token": "a"}, {"token": "a"}, True, id="same"),
        pytest.param({"token": "a"}, {"token": "b"}, False, id="other"),
        pytest.param({"token": "a"}, {"token": "a", "scheme": "Token"}, False, id="other-scheme"),
        pytest.param({"token": "a"}, {"token": "a", "header": "X-Key"}, False, id="other-header"),
        pytest.param(
            {"token": "a", "header": "X-Key", "scheme": ""}, {"token": "a", "header": "x-key", "scheme": ""}, True, id="own-header"
        ),
        pytest.param({"tokens": ["a", "b"]}, {"tokens": ["b", "c"]}, True, id="any-of-several"),
        pytest.param({"token": "ä"}, {"token": "ä"}, True, id="not-ascii"),
    ],
)
async def test_a_bearer_token(server: dict[str, Any], client: dict[str, Any], accepted: bool) -> None:
    assert await is_accepted(bearer(**server), bearer(**client)) is accepted


async def test_a_request_without_a_token_is_refused() -> None:
    with pytest.raises(PermissionError, match="no Authorization header"):
        await bearer(token="a").authenticate({})


async def test_tokens_follow_their_file_and_survive_its_absence(tmp_path: Path) -> None:
    file, clock = tmp_path / "token", VirtualClock()
    file.write_text("old\n")
    server = bearer(clock, filename=str(file))
    async with server:
        assert await is_accepted(server, bearer(token="old"))
        file.write_text("new\nnewer\n")
        await clock.advance(2)
        assert [await is_accepted(server, bearer(token=token)) for token in ("old", "new", "newer")] == [False, True, True]
        file.unlink()
        await clock.advance(2)
        assert await is_accepted(server, bearer(token="new"))


async def test_a_missing_or_empty_token_file_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with bearer(filename=str(tmp_path / "none")):
            pass
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="holds no token"):
        async with bearer(filename=str(tmp_path / "empty")):
            pass


def test_the_files_directory_is_a_need_and_the_token_never_prints() -> None:
    settings = BearerTokenAuthSettings.model_validate({"filename": "/etc/token/t"})
    assert [need.path for need in settings.needs() if isinstance(need, Read)] == ["/etc/token"]
    assert "s3cret" not in repr(BearerTokenAuthSettings.model_validate({"tokens": ["s3cret"]}))


def sha(password: str) -> str:
    return "{SHA}" + base64.b64encode(hashlib.sha1(password.encode()).digest()).decode()


def ssha(password: str) -> str:
    return "{SSHA}" + base64.b64encode(hashlib.sha1(password.encode() + b"salt").digest() + b"salt").decode()


@pytest.mark.parametrize("hashed", [sha, ssha, str, lambda word: bcrypt.hashpw(word.encode(), bcrypt.gensalt(4)).decode()])
async def test_a_password_is_accepted_however_it_is_hashed(hashed: Any) -> None:
    server = basic(htpasswd={"inline": f"# users\nann:{hashed('right')}\n\nbob:{hashed('other')}"})
    async with server:
        assert await is_accepted(server, basic(client_auth={"username": "ann", "password": "right"}))
        assert await is_accepted(server, basic(client_auth={"username": "ann", "password": "right"}))  # from the cache
        for name, word in (("ann", "wrong"), ("bob", "right"), ("eve", "right"), ("ann", hashed("right"))):
            if word != "right" or name != "ann":
                assert not await is_accepted(server, basic(client_auth={"username": name, "password": word}))


@pytest.mark.parametrize("header", ["", "Bearer x", "Basic !!!", "Basic " + base64.b64encode(b"ann").decode(), "Basic /w=="])
async def test_malformed_credentials_are_refused(header: str) -> None:
    with pytest.raises(PermissionError):
        await basic(htpasswd={"inline": "ann:x"}).authenticate({"authorization": header})


async def test_a_password_that_is_changed_in_the_file_counts_at_once(tmp_path: Path) -> None:
    file, clock = tmp_path / "htpasswd", VirtualClock()
    file.write_text(f"ann:{sha('old')}")
    server = basic(clock, htpasswd={"file": str(file)})
    old = basic(client_auth={"username": "ann", "password": "old"})
    async with server:
        assert await is_accepted(server, old)
        file.write_text(f"ann:{sha('new!')}")
        await clock.advance(2)
        assert not await is_accepted(server, old)


async def test_a_hash_that_cannot_be_checked_ends_the_start() -> None:
    with pytest.raises(ValueError, match="htpasswd -B"):
        async with basic(htpasswd={"inline": "ann:$apr1$abc$def"}):
            pass


@pytest.mark.parametrize("settings", [{}, {"htpasswd": {}}, {"client_auth": {"username": "a"}}, {"client_auth": {"password": "a"}}])
def test_incomplete_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs"):
        BasicAuthSettings.model_validate(settings)


@pytest.mark.parametrize("settings", [{}, {"token": "a", "filename": "b"}])
def test_a_bearer_token_has_one_source(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        BearerTokenAuthSettings.model_validate(settings)
