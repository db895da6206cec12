"""The configuration of the orchestrator process: read once, at the start."""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path
from typing import Annotated

from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, ValidationError, field_validator

from orchestrator.errors import ConfigError

Port = Annotated[int, Field(ge=1, le=65535)]


class Config(BaseModel):
    """Where the process listens, what it reads and where it keeps its state."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_host: str = "127.0.0.1"
    api_port: Port = 8181
    api_keys_file: Path | None = None
    """Keys, one on each line, of which completions (`/v1`) need one; null: they need none."""
    northbound_url: AnyHttpUrl
    northbound_token_file: Path | None = None
    """The controller's token, where reading needs one; null: reads are open."""
    data_address: str
    data_port: Port = 7000
    data_netns: Path | None = None
    """The namespace in which the data-plane socket is made (`/proc/<pid>/ns/net`); null: this one."""
    state_dir: Path
    cache_dir: Path | None = None
    """Where the embedded model is kept; null: `utopia` in the user's cache directory."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 7
    emulated: bool = False

    @field_validator("data_address")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        try:
            return str(ipaddress.ip_address(value))
        except ValueError as error:
            raise ValueError("must be an IP address of this machine in the data network") from error


def cache_directory() -> Path:
    """Return where things that can be made again are kept for this user."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "utopia"


def load(path: Path | str) -> Config:
    """Read and check the JSON file at `path`.

    Raises:
        ConfigError: it cannot be read, is not JSON or breaks the schema; the text names the field.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration {path}: cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path}: is not valid JSON: {error}") from error
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        lines = "\n".join(f"  {_explain(item)}" for item in error.errors())
        raise ConfigError(f"configuration {path}:\n{lines}") from error


def _explain(item: object) -> str:
    """One line for one pydantic error: field, value, way out."""
    assert isinstance(item, dict)
    field = ".".join(str(part) for part in item["loc"]) or "(whole file)"
    if item["type"] == "extra_forbidden":
        return f"{field}: unknown key; known keys: {', '.join(sorted(Config.model_fields))}"
    if item["type"] == "missing":
        return f"{field}: is missing; add it"
    return f"{field}: {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
