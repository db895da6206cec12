"""A node's own texts: what is read, in which order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from model_worlds import TINY, as_arrays, profile
from test_trainer import PLAN, START

from workers.config import WorkerConfig
from workers.device import Pacer
from workers.errors import ConfigError, DataError, RequestRefused
from workers.finetune.local_data import read_folder, read_text
from workers.finetune.trainer import Trainer
from workers.models.embedded import tokenizer_json
from workers.wire.frames import Frame


def lines(path: Path, *items: object) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def test_texts_and_jsonl_of_a_folder_are_read_in_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / "a.txt").write_text("first")
    lines(tmp_path / "b.jsonl", {"text": "second"}, {"prompt": "third ", "completion": "whole"})
    (tmp_path / "deeper" / "c.md").write_text("fourth")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert read_folder(tmp_path) == "first\n\nsecond\n\nthird whole\n\nfourth"


def test_no_more_is_read_than_asked_for_and_a_line_that_is_cut_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 100)
    (tmp_path / "b.txt").write_text("y" * 100)
    assert read_folder(tmp_path, max_bytes=120) == "x" * 100 + "\n\n" + "y" * 20
    path = lines(tmp_path / "c.jsonl", {"text": "whole"}, {"text": "cut"})
    assert read_text(path, max_bytes=path.stat().st_size - 4) == "whole"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "line 1: is not valid JSON"),
        ('{"text": "a"}\n[]', "line 2: has neither"),
        ('{"text": 5}', "line 1"),
    ],
)
def test_jsonl_that_is_none_is_refused_by_line(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=words):
        read_text(tmp_path / "a.jsonl", max_bytes=1000)


def test_an_empty_folder_and_a_missing_one_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.txt"):
        read_folder(tmp_path)
    values = {"node": "h1", "orchestrator": "127.0.0.1:1", "listen": "127.0.0.1:2", "state_dir": "x"}
    with pytest.raises(ConfigError, match="is no folder"):
        WorkerConfig.from_mapping({**values, "local_data": str(tmp_path / "nope")})
    assert WorkerConfig.from_mapping({**values, "local_data": str(tmp_path)}).local_data == tmp_path


def trainer(local_data: Path | None) -> Trainer:
    made = Trainer(Pacer(profile()), local_data)
    fields = {"job": "j", "version": 0, "config": TINY, "training": PLAN}
    made.handle(Frame("train.load", fields=fields, tensors=as_arrays(START), id=1))
    return made


def give(made: Trainer, **fields: object) -> dict[str, object]:
    tokens = {"tokens": np.zeros(100, dtype=np.uint8)}
    return dict(made.handle(Frame("train.data", fields={"job": "j", **fields}, tensors=tokens, id=1)).fields)


def test_a_node_trains_on_its_own_data_where_the_job_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("abc" * 30)
    made = trainer(tmp_path)
    assert give(made) == {"tokens": 100}
    assert give(made, tokenizer_json=tokenizer_json()) == {"tokens": 100, "local_tokens": 90}
    data = made._jobs["j"].data
    assert data is not None
    assert data[100:103].tolist() == list(b"abc")
    assert give(trainer(None), tokenizer_json=tokenizer_json()) == {"tokens": 100, "local_tokens": 0}


def test_own_data_that_cannot_be_read_refuse_the_data_by_name(tmp_path: Path) -> None:
    with pytest.raises(RequestRefused, match=r"no \.txt"):
        give(trainer(tmp_path), tokenizer_json=tokenizer_json())
