"""Read and write Hugging Face model folders: `config.json`, safetensors, `tokenizer.json`.

Only the tensors asked for are read, so a node never holds more than its shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from workers.models.architecture import Architecture, architecture
from workers.models.chain import Chain, check_parameters
from workers.models.config import parse_config
from workers.models.errors import BrokenModel, UnsupportedModel
from workers.models.model_config import ModelConfig, parameter_shapes
from workers.models.precision import as_array, dtype_of
from workers.models.split import build

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_JSON_BYTES = 64 * 1024 * 1024
_FLOATS = ("F32", "F16", "BF16")
_BESIDE = (
    "added_tokens.json", "chat_template.jinja", "generation_config.json", "merges.txt",
    "special_tokens_map.json", "tokenizer_config.json", "vocab.json",
)  # fmt: skip
"""What a folder may have besides, and a tuned model keeps."""


def read_config(folder: Path | str) -> dict[str, object]:
    """Return the content of the folder's `config.json`, as it is sent to workers.

    Raises:
        BrokenModel: there is none, or it is no JSON map.
    """
    return _read_json(Path(folder) / CONFIG_FILE)


def read_tokenizer_json(folder: Path | str) -> str:
    """Return the text of the folder's `tokenizer.json`.

    Raises:
        BrokenModel: it cannot be read.
    """
    return _read_text(Path(folder) / TOKENIZER_FILE)


def read_parameters(
    folder: Path | str,
    config: ModelConfig,
    *,
    first_layer: int = 0,
    end_layer: int | None = None,
    head: bool = True,
    compute: str = "fp32",
) -> dict[str, Tensor]:
    """Read the parameters of layers [first_layer, end_layer), and the head's if asked, as they will be held.

    Names, shapes and types are checked in the files' headers before anything is read.

    Raises:
        BrokenModel: files or tensors are missing or misshapen.
        UnsupportedModel: a tensor is quantised.
    """
    expected = parameter_shapes(config, first_layer=first_layer, end_layer=end_layer, head=head)
    return _read(Path(folder), expected, prefix=config.prefix, held=dtype_of(compute))


def read_whole(folder: Path | str, found: Architecture) -> dict[str, Tensor]:
    """Read all parameters of a model that is to be trained, as fp32, under their names in the library.

    Raises:
        BrokenModel, UnsupportedModel: as `read_parameters`.
    """
    return _read(Path(folder), found.shapes, prefix=found.prefix)


def check_folder(folder: Path | str, shapes: Mapping[str, tuple[int, ...]], *, prefix: str) -> None:
    """Check names, shapes and types in the headers of a folder's files; no tensor is read.

    Raises:
        BrokenModel, UnsupportedModel: as `read_parameters`.
    """
    for path, names in _files_of(Path(folder), shapes, prefix).items():
        with _opened(path) as file:
            _check_headers(file, names, shapes, path)


def _read(
    folder: Path,
    expected: Mapping[str, tuple[int, ...]],
    *,
    prefix: str = "",
    held: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    parameters: dict[str, Tensor] = {}
    for path, names in _files_of(folder, expected, prefix).items():
        with _opened(path) as file:
            _check_headers(file, names, expected, path)
            for name, stored in names.items():
                parameters[name] = file.get_tensor(stored).to(held)
    return {name: parameters[name] for name in expected}


def load(folder: Path | str) -> Chain:
    """Load the whole model of a folder."""
    config = parse_config(read_config(folder))
    return build(config, read_parameters(folder, config))


def write_folder(
    folder: Path | str,
    config: Mapping[str, object],
    parameters: Mapping[str, Tensor],
    tokenizer_json: str,
    *,
    beside: Path | None = None,
) -> None:
    """Write a model folder that appears whole or not at all; `folder` must not exist yet.

    `beside`: the folder whose further files (the tokeniser's settings, the way to generate) it gets, too.

    Raises:
        BrokenModel: the parameters are not what the configuration asks for.
        OSError: the folder exists and is not empty, or cannot be written.
    """
    folder = Path(folder)
    expected = architecture(config).shapes
    check_parameters(expected, {name: tuple(value.shape) for name, value in parameters.items()})
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        whole = Path(scratch) / "model"
        whole.mkdir()
        (whole / CONFIG_FILE).write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
        (whole / TOKENIZER_FILE).write_text(tokenizer_json, encoding="utf-8")
        for name in _BESIDE if beside is not None else ():
            if (beside / name).is_file():
                (whole / name).write_text(_read_text(beside / name), encoding="utf-8")
        tensors = {name: parameters[name].detach().contiguous() for name in sorted(expected)}
        save_file(tensors, str(whole / WEIGHTS_FILE), metadata={"format": "pt"})
        os.rename(whole, folder)


def digest(parameters: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, hex, over the parameters in order of name: name, then little-endian bytes."""
    state = hashlib.sha256()
    for name in sorted(parameters):
        state.update(name.encode())
        state.update(as_array(parameters[name].contiguous()).data)
    return state.hexdigest()


def digest_of_folder(folder: Path | str, found: Architecture) -> str:
    """Return the `digest` of a folder's parameters in fp32; a tensor at a time, so it takes little memory.

    Raises:
        BrokenModel, UnsupportedModel: as `read_parameters`.
    """
    state = hashlib.sha256()
    places = {
        name: (path, stored)
        for path, names in _files_of(Path(folder), found.shapes, found.prefix).items()
        for name, stored in names.items()
    }
    check_folder(folder, found.shapes, prefix=found.prefix)
    with ExitStack() as stack:
        paths = {path for path, _ in places.values()}
        files = {path: stack.enter_context(_opened(path)) for path in paths}
        for name in sorted(places):
            path, stored = places[name]
            state.update(name.encode())
            state.update(files[path].get_tensor(stored).to(torch.float32).contiguous().numpy().data)
    return state.hexdigest()


def _files_of(folder: Path, names: Iterable[str], prefix: str = "") -> dict[Path, dict[str, str]]:
    """Return which file holds which of the tensors under which name, by the index if there is one.

    A folder written from the bare model has none of its names with `prefix`.
    """
    if not (folder / INDEX_FILE).exists():
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            raise BrokenModel(
                f"{path}: cannot be read: there is neither it nor {INDEX_FILE}; only safetensors are read"
            )
        with _opened(path) as file:
            stored = set(file.keys())
        return {path: _stored_names(stored, names, prefix)}
    index = _read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(index, dict):
        raise BrokenModel(f"{folder / INDEX_FILE}: has no weight_map")
    files: dict[Path, dict[str, str]] = {}
    for name, known in _stored_names(set(index), names, prefix).items():
        file = index.get(known)
        if not isinstance(file, str):
            raise BrokenModel(f"{folder / INDEX_FILE}: does not say which file holds {name}")
        if Path(file).name != file:
            raise BrokenModel(f"{folder / INDEX_FILE}: {name} is said to be in {file!r}, outside the folder")
        files.setdefault(folder / file, {})[name] = known
    return files


def _stored_names(stored: set[str], names: Iterable[str], prefix: str) -> dict[str, str]:
    bare = bool(prefix) and not any(name.startswith(prefix) for name in stored)
    return {name: name.removeprefix(prefix) if bare else name for name in names}


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise BrokenModel(f"{path}: cannot be read: {error}") from error


def _check_headers(
    file: safe_open, names: Mapping[str, str], expected: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    """Check the tensors of a file that are wanted; `names` gives those that they are stored under."""
    present = set(file.keys())
    headers = {name: file.get_slice(stored) for name, stored in names.items() if stored in present}
    shapes = {name: tuple(header.get_shape()) for name, header in headers.items()}
    check_parameters({name: expected[name] for name in names}, shapes, source=str(path))
    for name, header in headers.items():
        if header.get_dtype() not in _FLOATS:
            raise UnsupportedModel(
                f"{path}: {name} is {header.get_dtype()}; only {', '.join(_FLOATS)} can be read"
            )


def _read_json(path: Path) -> dict[str, object]:
    try:
        document = json.loads(_read_text(path))
    except ValueError as error:
        raise BrokenModel(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise BrokenModel(f"{path}: must hold a map, holds {type(document).__name__}")
    return document


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise BrokenModel(
                f"{path}: is larger than {_MAX_JSON_BYTES} bytes, too large to be what its name says"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BrokenModel(f"{path}: cannot be read: {error}") from error
