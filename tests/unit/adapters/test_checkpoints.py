"""Checkpoints on disk: what comes back, and what is believed after a crash, damage or a full disk."""

from __future__ import annotations

import json
import resource
import signal
from contextlib import contextmanager

import numpy as np
import pytest

from orchestrator.adapters.checkpoints import CheckpointFolder
from orchestrator.errors import CheckpointError
from orchestrator.ports import Checkpoint


def checkpoint(version, **values):
    parameters = {"w": np.full((3, 2), version, dtype=np.float32), "b": np.arange(4, dtype=np.float32)}
    given = {"job": "job-1", "state": {"losses": {"1": 2.5}}, "parameters": parameters, **values}
    return Checkpoint(version=version, **given)


@pytest.fixture
def folder(tmp_path):
    return CheckpointFolder(tmp_path)


def newest(folder, job="job-1"):
    return folder.load(job)[0]


def test_what_was_saved_comes_back(folder):
    outer = {"momentum/w": np.ones((3, 2))}
    assert folder.save(checkpoint(3, outer=outer)) > 0
    found, faults = folder.load("job-1")
    assert (found.job, found.version, found.state, faults) == ("job-1", 3, {"losses": {"1": 2.5}}, ())
    np.testing.assert_array_equal(found.parameters["w"], np.full((3, 2), 3, dtype=np.float32))
    np.testing.assert_array_equal(found.outer["momentum/w"], np.ones((3, 2)))
    assert set(found.parameters) == {"w", "b"}


def test_two_are_kept(folder, tmp_path):
    for version in (1, 2, 3):
        folder.save(checkpoint(version))
    assert newest(folder).version == 3
    assert sorted(path.stem for path in (tmp_path / "job-1").iterdir()) == [
        "v00000002", "v00000002", "v00000003", "v00000003",
    ]  # fmt: skip


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))


def forge(path):
    document = json.loads(path.read_text())
    document["state"] = {"losses": {}}
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("suffix", "damage", "words"),
    [
        ("safetensors", cut, "bytes, should have"),
        ("safetensors", flip, "SHA-256"),
        ("safetensors", lambda path: path.unlink(), "cannot be read"),
        ("json", cut, "cut short"),
        ("json", forge, "digest"),
        ("json", lambda path: path.write_text("[]"), "is no checkpoint"),
        ("json", lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read"),
    ],
)
def test_what_is_not_whole_is_passed_over_for_the_one_before_and_said(
    folder, tmp_path, suffix, damage, words
):
    folder.save(checkpoint(1))
    folder.save(checkpoint(2))
    damage(tmp_path / "job-1" / f"v00000002.{suffix}")
    found, faults = folder.load("job-1")
    assert found.version == 1
    assert len(faults) == 1
    assert words in faults[0]
    assert "v00000002" in faults[0]


def test_tensors_without_their_state_are_no_checkpoint(folder, tmp_path):
    folder.save(checkpoint(1))
    folder.save(checkpoint(2))
    (tmp_path / "job-1" / "v00000002.json").unlink()
    assert folder.load("job-1")[0].version == 1


@contextmanager
def files_of_at_most(size_bytes):
    """Have the kernel refuse to let files grow beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("room_bytes", [10, 280])
def test_a_disk_that_is_full_leaves_the_older_one_and_no_remains(folder, tmp_path, room_bytes):
    folder.save(checkpoint(1))
    before = sorted((tmp_path / "job-1").iterdir())
    large = checkpoint(2, state={"words": "x" * 1000})
    with files_of_at_most(room_bytes), pytest.raises(CheckpointError, match="the one before it is kept"):
        folder.save(large)
    assert folder.load("job-1")[0].version == 1
    left = [path for path in (tmp_path / "job-1").iterdir() if path.suffix == ".part"]
    assert left == []
    folder.save(checkpoint(3))
    assert folder.load("job-1")[0].version == 3
    assert len(before) == 2


def test_jobs_are_apart_and_forgotten_one_by_one(folder):
    folder.save(checkpoint(1))
    folder.save(checkpoint(5, job="job-2"))
    folder.keep_only(["job-2"])
    assert newest(folder) is None
    assert newest(folder, "job-2").version == 5
    folder.discard("job-2")
    assert newest(folder, "job-2") is None


def test_attempts_are_counted_per_version_by_every_process(folder, tmp_path):
    assert [folder.count_attempt("job-1", 4) for _ in range(2)] == [1, 2]
    assert CheckpointFolder(tmp_path).count_attempt("job-1", 4) == 3
    assert folder.count_attempt("job-1", 5) == 1


@pytest.mark.parametrize("job", ["../x", "a/b", "", "x" * 65])
def test_a_name_that_is_no_jobs_touches_nothing(folder, tmp_path, job):
    with pytest.raises(CheckpointError, match="no job's name"):
        folder.save(checkpoint(1, job=job))
    assert list(tmp_path.iterdir()) == []
