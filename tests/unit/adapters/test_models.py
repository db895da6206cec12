"""What the orchestrator refuses as a model or a text before it starts anything."""

from __future__ import annotations

import os

import pytest

from orchestrator.adapters.models import FolderModels
from orchestrator.errors import InvalidRequest, NotFound


@pytest.fixture
def models(tmp_path):
    return FolderModels(cache_dir=tmp_path / "cache", tuned_dir=tmp_path / "tuned", seed=1)


@pytest.mark.parametrize("name", ["nope", "x" * 5000, "a\0b", "job:nope", "job:../../etc"])
def test_a_model_that_is_no_folder_is_not_found_whatever_its_name(models, name):
    with pytest.raises(NotFound):
        models.describe(name)


def test_found_text_and_a_readable_file_are_accepted(models, tmp_path):
    (tmp_path / "text").write_text("words")
    models.check_data("found")
    models.check_data(str(tmp_path / "text"))


@pytest.mark.parametrize("data", ["/nope", "/dev/zero", "/", "a\0b", "x" * 5000])
def test_data_that_is_no_file_is_refused_by_field_before_the_job_starts(models, data):
    with pytest.raises(InvalidRequest, match="give 'found' or a text file") as refused:
        models.check_data(data)
    assert refused.value.field == "data"


def test_a_pipe_is_no_text_and_is_refused_without_waiting_for_a_writer(models, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequest, match="is no file"):
        models.check_data(str(tmp_path / "pipe"))
