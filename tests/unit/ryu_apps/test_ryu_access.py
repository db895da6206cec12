"""Who may read and write, and what is refused at the start."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from ryu_world import OPTIONS

from ryu_apps.access import Access, from_options, read_token
from ryu_apps.errors import BadRequestError, ForbiddenError, StartError, UnauthorizedError

TOKEN = "0123456789abcdef"
OPEN = Access(token=TOKEN, reads_need_token=False)
CLOSED = Access(token=TOKEN, reads_need_token=True)
MUTE = Access(token=None, reads_need_token=False)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(TOKEN + "\n")
    return path


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", f"bearer  {TOKEN} ", f"BEARER {TOKEN}"])
def test_the_token_opens_everything(header: str) -> None:
    for access in (OPEN, CLOSED):
        for writes in (True, False):
            access.check(header, writes=writes)


def test_who_has_the_token_is_known_even_where_none_is_needed() -> None:
    assert OPEN.knows(f"Bearer {TOKEN}")
    for header in (None, "", "Bearer", "Bearer wrong", "Bearer \u00e9", f"Basic {TOKEN}"):
        assert not OPEN.knows(header)
    assert not MUTE.knows(f"Bearer {TOKEN}")


def test_reads_need_no_token_unless_they_do() -> None:
    for access in (OPEN, MUTE):
        access.check(None, writes=False)
        access.check("Bearer wrong", writes=False)
    with pytest.raises(UnauthorizedError):
        CLOSED.check(None, writes=False)


@pytest.mark.parametrize("header", [None, "", "Basic dTpw", f"Token {TOKEN}", TOKEN])
def test_a_request_without_a_bearer_token_is_told_which_scheme_to_use(header: str | None) -> None:
    with pytest.raises(UnauthorizedError) as caught:
        OPEN.check(header, writes=True)
    assert caught.value.headers == {"WWW-Authenticate": 'Bearer realm="utopia northbound"'}


@pytest.mark.parametrize("token", [TOKEN[:-1], TOKEN + "0", TOKEN.upper() + "x", "="])
def test_a_wrong_token_is_called_invalid_or_malformed(token: str) -> None:
    with pytest.raises((UnauthorizedError, BadRequestError)) as caught:
        OPEN.check(f"Bearer {token}", writes=True)
    assert TOKEN not in caught.value.detail


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "Bearer a b", "Bearer é", "Bearer a,b"])
def test_a_header_that_holds_no_token_is_a_bad_request(header: str) -> None:
    with pytest.raises(BadRequestError):
        OPEN.check(header, writes=True)


def test_nobody_writes_where_no_token_is_configured() -> None:
    with pytest.raises(ForbiddenError, match="--northbound-token-file"):
        MUTE.check(f"Bearer {TOKEN}", writes=True)


def test_the_token_is_not_in_what_is_printed() -> None:
    assert TOKEN not in repr(OPEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_reads_are_open_on_this_machine(host: str, token_file: Path) -> None:
    for path in (None, str(token_file)):
        chosen = replace(OPTIONS, northbound_host=host, token_file=path)
        assert not from_options(chosen).reads_need_token


@pytest.mark.parametrize("host", ["0.0.0.0", "198.18.0.1", "::", ""])
def test_other_machines_read_with_the_token_or_by_an_explicit_word(host: str, token_file: Path) -> None:
    remote = replace(OPTIONS, northbound_host=host)
    with pytest.raises(StartError, match="--northbound-open-reads"):
        from_options(remote)
    assert from_options(replace(remote, token_file=str(token_file))).reads_need_token
    assert not from_options(replace(remote, open_reads=True)).reads_need_token
    assert not from_options(replace(remote, token_file=str(token_file), open_reads=True)).reads_need_token


def test_a_safe_file_gives_the_token(token_file: Path) -> None:
    assert read_token(token_file) == TOKEN


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_may_read_is_refused(token_file: Path, mode: int) -> None:
    token_file.chmod(mode)
    with pytest.raises(StartError, match=f"mode {mode:04o}"):
        read_token(token_file)


@pytest.mark.parametrize("content", ["", "short", "two tokens-of-some-length", "x" * 5000, "tökentökentöken"])
def test_a_file_without_one_good_token_is_refused_without_showing_it(token_file: Path, content: str) -> None:
    token_file.write_text(content)
    with pytest.raises(StartError, match="holds no single token") as caught:
        read_token(token_file)
    assert not content or content not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (tmp_path, tmp_path / "none", pipe):
        with pytest.raises(StartError, match="token file"):
            read_token(path)
