"""The texts that are found on every Python."""

from __future__ import annotations

from workers.models import corpus


def test_texts_are_the_same_for_the_same_seed_and_differ_by_seed() -> None:
    assert corpus.finetune_text(50_000, 7) == corpus.finetune_text(50_000, 7)
    assert corpus.finetune_text(50_000, 7) != corpus.finetune_text(50_000, 8)
    assert corpus.pretrain_text(50_000, 7) == corpus.pretrain_text(50_000, 7)
    assert corpus.pretrain_text(50_000, 7) != corpus.pretrain_text(50_000, 8)


def test_texts_have_the_size_asked_for_and_are_utf8() -> None:
    for size in (10, 1_000, 400_000):
        text = corpus.finetune_text(size, 3)
        assert size - 4 < len(text) <= size
        text.decode()
    assert 300_000 - 4 < len(corpus.pretrain_text(300_000, 3)) <= 300_000


def test_more_prose_than_the_language_reference_is_found_in_docstrings() -> None:
    small, large = corpus.finetune_text(10**9, 1), corpus.finetune_text(600_000, 1)
    assert len(large) == 600_000
    assert len(small) > 1_000_000  # all that there is


def test_pre_training_does_not_see_what_fine_tuning_uses() -> None:
    seen = corpus.pretrain_text(2_000_000, 1).decode()
    paragraphs = [part for part in corpus.finetune_text(600_000, 1).decode().split("\n\n") if len(part) > 300]
    assert len(paragraphs) > 200
    assert sum(part in seen for part in paragraphs) < len(paragraphs) / 100
