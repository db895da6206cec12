"""Conversations written as a model was taught to read them: the chat template of its folder.

The template is `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`, as Hugging Face writes
them. It is run in a sandbox, over the messages and nothing else. A model without one gets the plain form of
`PLAIN`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orchestrator.errors import InvalidRequest, ModelError
from orchestrator.ports import Json

PLAIN = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n{% endfor %}"
    "Assistant:"
)
_TEMPLATE_FILE = "chat_template.jinja"
_CONFIG_FILE = "tokenizer_config.json"
_LARGEST_BYTES = 1 << 20


class _Refused(jinja2.TemplateError):
    """The template called `raise_exception`."""


class ChatTemplate:
    """One model's way to write a conversation."""

    def __init__(self, source: str, *, begin_token: str = "", end_token: str = "") -> None:
        """Read a template; raises ModelError if it is none."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        self._given = {"bos_token": begin_token, "eos_token": end_token, "tools": None, "documents": None}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template cannot be read: {error}") from error

    @classmethod
    def of_folder(cls, folder: Path) -> ChatTemplate:
        """Read the template of a model folder.

        Raises:
            ModelError: it cannot be read.
        """
        config = _config(folder / _CONFIG_FILE)
        source = _read(folder / _TEMPLATE_FILE) or _default(config.get("chat_template")) or PLAIN
        return cls(
            source, begin_token=_text(config.get("bos_token")), end_token=_text(config.get("eos_token"))
        )

    def write(self, messages: Sequence[Json]) -> str:
        """Return the text after which the model is to answer.

        Raises:
            InvalidRequest: the template refuses the messages.
        """
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=True, **self._given)
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", field="messages"
            ) from error


def _refuse(reason: object) -> NoReturn:
    raise _Refused(str(reason))


def _now(form: str) -> str:
    """Return the date, which some templates tell the model."""
    return datetime.now().strftime(form)


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _read(path: Path) -> str | None:
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise ModelError(f"{path.name} of the model is larger than {_LARGEST_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path.name} of the model cannot be read: {error}") from error


def _config(path: Path) -> Json:
    text = _read(path)
    if text is None:
        return {}
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{path.name} of the model is not JSON: {error}") from error
    return document if isinstance(document, dict) else {}


def _default(template: object) -> str | None:
    """Return the template of that name where a model has several."""
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _text(token: object) -> str:
    """Return a special token's text; it is written as such, or as a map with its `content`."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else ""
