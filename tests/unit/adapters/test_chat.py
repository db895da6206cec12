"""Conversations are written by the template of the model's folder, and refused where it refuses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.adapters.chat import ChatTemplate
from orchestrator.errors import InvalidRequest, ModelError

CHATML = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message.role == 'system' and not loop.first %}\n"
    "        {{ raise_exception('the system speaks first') }}\n"
    "    {% endif %}\n"
    "<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi"}]


def folder(tmp_path: Path, config: object = None, template: str | None = None) -> Path:
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    return tmp_path


EXPECTED = (
    "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.mark.parametrize("begin", ["<s>", {"content": "<s>", "lstrip": False}])
def test_the_template_of_the_folder_is_used(tmp_path: Path, begin: object) -> None:
    made = ChatTemplate.of_folder(folder(tmp_path, {"chat_template": CHATML, "bos_token": begin}))
    assert made.write(TALK) == EXPECTED


def test_a_file_of_its_own_goes_before_and_of_several_the_default_is_taken(tmp_path: Path) -> None:
    several = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    config = {"chat_template": several}
    assert ChatTemplate.of_folder(folder(tmp_path, config)).write(TALK) == "yes"
    assert ChatTemplate.of_folder(folder(tmp_path, config, "of the file")).write(TALK) == "of the file"


def test_a_template_finds_what_transformers_gives_it() -> None:
    source = (
        "{% if tools is not none or documents is not none %}tools{% endif %}"
        "{% if strftime_now is defined %}{{ strftime_now('%Y') | int > 2000 }}{% endif %}"
        "{{ messages[1].content }}"
    )
    assert ChatTemplate(source).write(TALK) == "TrueHi"


def test_a_model_without_a_template_gets_the_plain_form(tmp_path: Path) -> None:
    assert ChatTemplate.of_folder(tmp_path).write(TALK) == "System:  Be brief. \nUser: Hi\nAssistant:"


def test_what_the_template_refuses_is_the_clients_fault(tmp_path: Path) -> None:
    made = ChatTemplate.of_folder(folder(tmp_path, {"chat_template": CHATML}))
    with pytest.raises(InvalidRequest, match="the system speaks first") as refused:
        made.write(TALK[::-1])
    assert refused.value.field == "messages"


@pytest.mark.parametrize("reach", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ 1 // 0 }}"])
def test_a_template_reaches_nothing_but_the_messages(reach: str) -> None:
    with pytest.raises(InvalidRequest):
        ChatTemplate(reach + "{{ missing.key }}").write(TALK)


def test_a_template_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="chat template"):
        ChatTemplate("{% for %}")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json"):
        ChatTemplate.of_folder(tmp_path)
