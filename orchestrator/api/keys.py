"""Who may ask for completions: the keys in a file, one on each line."""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from pathlib import Path

from flask import Flask, Response, request

from orchestrator.api.problems import problem
from orchestrator.errors import ConfigError

_SHORTEST = 16


class ApiKeys:
    """The keys that are taken, kept as digests: comparing those tells nothing of a key by its time."""

    def __init__(self, keys: frozenset[bytes]) -> None:
        self._digests = keys

    @classmethod
    def of_file(cls, path: Path) -> ApiKeys:
        """Read the keys; empty lines and those that begin with # are none.

        Raises:
            ConfigError: the file cannot be read, has no key, or one that is too short.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_keys_file {path}: cannot be read: {error}") from error
        keys = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
        if not keys:
            raise ConfigError(f"api_keys_file {path}: has no key; write one on a line, or leave the file out")
        short = next((number for number, key in enumerate(keys, 1) if len(key) < _SHORTEST), None)
        if short is not None:
            raise ConfigError(f"api_keys_file {path}: key {short} has fewer than {_SHORTEST} characters")
        return cls(frozenset(map(_digest, keys)))

    def guard(self, app: Flask) -> None:
        """Refuse what comes to /v1 without a key."""
        app.before_request(self._check)

    def _check(self) -> Response | None:
        if not request.path.startswith("/v1/"):
            return None
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _digest(key.strip()) in self._digests:
            return None
        said = "the API key is not known" if key else "an API key is needed"
        answer = problem(HTTPStatus.UNAUTHORIZED, f"{said}; send `Authorization: Bearer KEY`")
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
