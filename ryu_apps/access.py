"""Who may call the northbound API: writes, and reads from other machines, need a bearer token (RFC 6750)."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path

from ryu_apps.errors import BadRequestError, ForbiddenError, StartError, UnauthorizedError
from ryu_apps.options import Options

MIN_TOKEN_CHARACTERS = 16
MAX_FILE_BYTES = 4096
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
"""RFC 6750, section 2.1: b64token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The rules; without a token nobody writes."""

    token: str | None = field(repr=False)
    reads_need_token: bool

    def check(self, authorization: str | None, *, writes: bool) -> None:
        """Let a request with this Authorization header pass.

        Raises:
            UnauthorizedError: it needs the token and has none, or a wrong one.
            BadRequestError: the header is malformed.
            ForbiddenError: it writes, and no token was configured.
        """
        if not writes and not self.reads_need_token:
            return
        if self.token is None:
            raise ForbiddenError(
                "this controller takes no writes: it was started without --northbound-token-file FILE"
            )
        given = _given(authorization)
        if given is None:
            raise UnauthorizedError(
                "this needs a token; send the header Authorization: Bearer TOKEN", error=None
            )
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            raise UnauthorizedError("the token is not this controller's", error="invalid_token")

    def knows(self, authorization: str | None) -> bool:
        """Tell whether a request has the token, where none is needed."""
        try:
            given = _given(authorization)
        except BadRequestError:
            return False
        return None not in (given, self.token) and hmac.compare_digest(
            str(given).encode(), str(self.token).encode()
        )


def _given(authorization: str | None) -> str | None:
    """Return the token of an Authorization header, None if it has another scheme."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    if scheme.lower() != "bearer":
        return None
    if not _TOKEN.fullmatch(token.strip()):
        raise BadRequestError("the header Authorization: Bearer holds no token of RFC 6750, section 2.1")
    return token.strip()


def from_options(options: Options) -> Access:
    """Return the rules that the controller was started with.

    Raises:
        StartError: the file is no safe token, or everybody could read what nobody said is open.
    """
    token = None if options.token_file is None else read_token(Path(options.token_file))
    remote = not _is_loopback(options.northbound_host)
    if remote and token is None and not options.open_reads:
        raise StartError(
            f"--wsapi-host {options.northbound_host} lets other machines read; "
            "give --northbound-token-file FILE, or allow it with --northbound-open-reads"
        )
    return Access(token=token, reads_need_token=remote and not options.open_reads)


def _is_loopback(host: str) -> bool:
    """Tell whether every address of `host` is this machine's own."""
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(item[4][0]).is_loopback for item in found)


def read_token(path: Path) -> str:
    """Return the token in a file that nobody but its owner may read.

    Raises:
        StartError: it cannot be read, is open to others, or holds no token.
    """
    way_out = "make one with: (umask 077; openssl rand -hex 32 > FILE)"
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            content = file.read(MAX_FILE_BYTES + 1) if stat.S_ISREG(about.st_mode) else b""
    except OSError as error:
        raise StartError(f"token file {path} cannot be read: {error.strerror}; {way_out}") from error
    if not stat.S_ISREG(about.st_mode):
        raise StartError(f"token file {path} is no regular file; {way_out}")
    if about.st_mode & 0o077 or about.st_uid not in (0, os.geteuid()):
        raise StartError(
            f"token file {path} has mode {stat.S_IMODE(about.st_mode):04o} and owner {about.st_uid}: others "
            f"could know or change it; chown it to {os.geteuid()} and chmod it to 0600"
        )
    token = content.decode("ascii", errors="replace").strip()
    if len(content) > MAX_FILE_BYTES or len(token) < MIN_TOKEN_CHARACTERS or not _TOKEN.fullmatch(token):
        raise StartError(
            f"token file {path} holds no single token of {MIN_TOKEN_CHARACTERS} or more letters, digits "
            f"and -._~+/ ; {way_out}"
        )
    return token
