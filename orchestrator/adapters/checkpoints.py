"""Checkpoints of fine-tuning jobs on disk: the newest two of each job, checked before they are believed.

`<folder>/<job>/v<version>.safetensors` holds the parameters (`parameters/...`) and what the outer optimiser
remembers (`outer/...`); `v<version>.json` beside it holds the job's state and the size and SHA-256 of the
tensors. Both are written under another name, forced to the disk and renamed, the JSON last: what has its
JSON is whole, and whatever is not is passed over in favour of the one before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from orchestrator.errors import CheckpointError
from orchestrator.ports import Checkpoint, Json

log = logging.getLogger(__name__)

FORMAT = 1
KEPT = 2
_MAX_JSON_BYTES = 64 * 1024 * 1024
_BLOCK_BYTES = 1 << 20
_JOB = re.compile(r"[A-Za-z0-9-]{1,64}")
_STATE_FILE = re.compile(r"v(\d{8})\.json")
_ATTEMPTS = "attempts.json"


class CheckpointFolder:
    """Keeps checkpoints under `folder`; one writer per job."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, checkpoint: Checkpoint) -> int:
        """Write a checkpoint, then remove all but the newest two; answers its bytes.

        Raises:
            CheckpointError: it cannot be written (a full disk, say); those before it are untouched.
        """
        folder = self._of(checkpoint.job)
        name = f"v{checkpoint.version:08d}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            size = _write_tensors(folder / f"{name}.safetensors", checkpoint)
            document = {
                "format": FORMAT,
                "job": checkpoint.job,
                "version": checkpoint.version,
                "state": checkpoint.state,
                "tensor_bytes": size,
                "tensor_sha256": _sha256(folder / f"{name}.safetensors"),
            }
            text = json.dumps({**document, "digest": _digest(document)}, allow_nan=False)
            _write_text(folder / f"{name}.json", text)
            self._thin_out(folder)
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint of {checkpoint.job}, version {checkpoint.version}, cannot be written to "
                f"{folder}: {error}; the one before it is kept. Make room there or move state_dir"
            ) from error
        return size + len(text)

    def load(self, job: str) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """Read the newest checkpoint of a job that is whole, and say what is wrong with newer ones."""
        faults = []
        for version in self._versions(self._of(job)):
            try:
                return self._read(job, version), tuple(faults)
            except CheckpointError as error:
                log.warning("%s", error)
                faults.append(str(error))
        return None, tuple(faults)

    def discard(self, job: str) -> None:
        """Remove what is kept of a job."""
        shutil.rmtree(self._of(job), ignore_errors=True)

    def keep_only(self, jobs: Collection[str]) -> None:
        """Remove what is kept of all other jobs: they ended while the process did."""
        for path in self._folder.glob("*"):
            if path.name not in jobs and _JOB.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def count_attempt(self, job: str, version: int) -> int:
        """Note that a job is resumed from `version`; answers how often it was by now."""
        folder = self._of(job)
        try:
            known = json.loads(_text(folder / _ATTEMPTS))
            count = int(known["count"]) + 1 if known["version"] == version else 1
        except (CheckpointError, KeyError, TypeError, ValueError):
            count = 1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_text(folder / _ATTEMPTS, json.dumps({"version": version, "count": count}))
        except OSError as error:
            log.warning("that %s is resumed cannot be noted in %s: %s", job, folder, error)
        return count

    def _of(self, job: str) -> Path:
        if _JOB.fullmatch(job) is None:
            raise CheckpointError(f"{job!r} is no job's name; checkpoints are kept by job")
        return self._folder / job

    def _read(self, job: str, version: int) -> Checkpoint:
        path = self._of(job) / f"v{version:08d}.json"
        document = _document(path)
        if (document.get("format"), document.get("job"), document.get("version")) != (FORMAT, job, version):
            raise CheckpointError(
                f"{path}: is format {document.get('format')!r} of {document.get('job')!r}, version "
                f"{document.get('version')!r}; read is format {FORMAT} of {job!r}, version {version}"
            )
        tensors = _tensors(path.with_suffix(".safetensors"), document)
        state = document["state"]
        if not isinstance(state, dict):
            raise CheckpointError(f"{path}: its state is no map")
        return Checkpoint(
            job=job,
            version=version,
            state=state,
            parameters=_under("parameters/", tensors),
            outer=_under("outer/", tensors),
        )

    @staticmethod
    def _versions(folder: Path) -> list[int]:
        names = (_STATE_FILE.fullmatch(path.name) for path in folder.glob("v*.json"))
        return sorted((int(name[1]) for name in names if name), reverse=True)

    def _thin_out(self, folder: Path) -> None:
        kept = {f"v{version:08d}" for version in self._versions(folder)[:KEPT]}
        for path in folder.glob("v*"):
            if path.name.split(".")[0] not in kept:
                path.unlink(missing_ok=True)


def _write_tensors(path: Path, checkpoint: Checkpoint) -> int:
    tensors = {
        **{
            f"parameters/{name}": np.ascontiguousarray(array) for name, array in checkpoint.parameters.items()
        },
        **{f"outer/{name}": np.ascontiguousarray(array) for name, array in checkpoint.outer.items()},
    }
    with _replacing(path) as scratch:
        save_file(tensors, str(scratch))
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
    return path.stat().st_size


def _write_text(path: Path, text: str) -> None:
    with _replacing(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a name to write under; it becomes `path` at the end, or nothing is left of it."""
    scratch = path.with_name(f".{path.name}.part")
    try:
        yield scratch
        os.replace(scratch, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        scratch.unlink(missing_ok=True)


def _document(path: Path) -> Json:
    try:
        document = json.loads(_text(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: is not valid JSON, perhaps cut short: {error}") from error
    if not isinstance(document, dict) or "state" not in document:
        raise CheckpointError(f"{path}: is no checkpoint")
    if document.pop("digest", None) != _digest(document):
        raise CheckpointError(f"{path}: its digest is not that of its content; it was changed or damaged")
    return document


def _tensors(path: Path, document: Json) -> dict[str, NDArray[Any]]:
    try:
        size = path.stat().st_size
        if size != document["tensor_bytes"]:
            raise CheckpointError(f"{path}: has {size} bytes, should have {document['tensor_bytes']}")
        if _sha256(path) != document["tensor_sha256"]:
            raise CheckpointError(f"{path}: its SHA-256 is not the one noted when it was written")
        tensors: dict[str, NDArray[Any]] = load_file(str(path))
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return tensors


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: is larger than {_MAX_JSON_BYTES} bytes, too large for a state")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _sha256(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()


def _digest(document: Json) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _under(prefix: str, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
