"""The configuration file: what is taken and what is refused."""

from __future__ import annotations

import json

import pytest

from orchestrator import config
from orchestrator.errors import ConfigError

GOOD = {"northbound_url": "http://127.0.0.1:8080", "data_address": "198.18.0.1", "state_dir": "/tmp/x"}


def load(tmp_path, document):
    file = tmp_path / "c.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return config.load(file)


def test_the_defaults_keep_the_api_on_this_machine(tmp_path):
    made = load(tmp_path, GOOD)
    assert (made.api_host, made.data_netns, made.emulated) == ("127.0.0.1", None, False)


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ({**GOOD, "api_prot": 1}, "api_prot: unknown key; known keys: api_host"),
        ({**GOOD, "api_port": 0}, "api_port: 0"),
        ({**GOOD, "data_address": "orch"}, "data_address: 'orch'"),
        ({"data_address": "198.18.0.1"}, "northbound_url: is missing"),
        ("{", "is not valid JSON"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, document, word):
    with pytest.raises(ConfigError) as refusal:
        load(tmp_path, document)
    assert word in str(refusal.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.json: cannot be read"):
        config.load(tmp_path / "nothing.json")
