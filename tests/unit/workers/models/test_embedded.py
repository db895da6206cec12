"""The built-in model: its folder, its cache. That it learns is shown on a shortened recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from workers.models import embedded, loader
from workers.models.config import parse_config
from workers.models.tokenizer import Tokenizer


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_STEPS_LIMIT", 3)
    monkeypatch.setattr(embedded, "_PRETRAIN_BYTES", 40_000)
    monkeypatch.setattr(embedded, "_HELD_OUT_BYTES", 40_000)
    monkeypatch.setattr(embedded, "_BATCH", 4)


def nothing(_share: float, _text: str) -> None:
    pass


def test_it_has_eight_layers_and_less_than_two_megabytes() -> None:
    config = parse_config(embedded.CONFIG)
    assert config.layers == 8
    assert 400_000 <= config.parameters <= 500_000


@pytest.mark.usefixtures("_short")
def test_it_is_made_once_and_then_found(tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    threads = torch.get_num_threads()
    folder = embedded.ensure(tmp_path, seed=3, progress=lambda share, text: told.append((share, text)))
    assert [share for share, _ in told] == sorted(share for share, _ in told)
    assert (told[0][0], told[-1][0], len(told)) == (0.0, 1.0, 5)
    assert torch.get_num_threads() == threads

    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    told.clear()
    assert (
        embedded.ensure(tmp_path, seed=3, progress=lambda share, text: told.append((share, text))) == folder
    )
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert len(told) == 1
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.usefixtures("_short")
def test_the_same_seed_gives_the_same_model_and_another_seed_another(tmp_path: Path) -> None:
    folders = [
        embedded.ensure(tmp_path / name, seed=seed, progress=nothing)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    config = parse_config(embedded.CONFIG)
    digests = [loader.digest(loader.read_parameters(folder, config)) for folder in folders]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.usefixtures("_short")
def test_its_folder_is_complete(tmp_path: Path) -> None:
    folder = embedded.ensure(tmp_path, seed=1, progress=nothing)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert loader.load(folder).config.vocabulary_size == Tokenizer.of_folder(folder).vocabulary_size


@pytest.mark.usefixtures("_short")
def test_nothing_is_left_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_step", broken)
    with pytest.raises(KeyboardInterrupt):
        embedded.ensure(tmp_path, seed=1, progress=nothing)
    assert list(tmp_path.iterdir()) == []


def test_pre_training_lowers_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_STEPS_LIMIT", 25)
    monkeypatch.setattr(embedded, "_PRETRAIN_BYTES", 100_000)
    monkeypatch.setattr(embedded, "_BATCH", 8)
    told: list[str] = []
    embedded.pretrain(seed=1, progress=lambda _share, text: told.append(text))
    losses = [float(text.rsplit(" ", 1)[1]) for text in told]
    assert losses[0] > 5.0
    assert losses[-1] < 3.9
