"""Read and write Hugging Face model folders: `config.json`, safetensors, `tokenizer.json`.

Only the tensors asked for are read, so a node never holds more than its shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from workers.models.config import LlamaConfig, parameter_shapes, parse_config
from workers.models.errors import BrokenModel, UnsupportedModel
from workers.models.llama import Llama, build, check_parameters

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_JSON_BYTES = 64 * 1024 * 1024
_FLOATS = ("F32", "F16", "BF16")


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
    config: LlamaConfig,
    *,
    first_layer: int = 0,
    end_layer: int | None = None,
    head: bool = True,
) -> dict[str, Tensor]:
    """Read the parameters of layers [first_layer, end_layer), and the head's if asked, as fp32.

    Names, shapes and types are checked in the files' headers before anything is read.

    Raises:
        BrokenModel: files or tensors are missing or misshapen.
        UnsupportedModel: a tensor is quantised.
    """
    folder = Path(folder)
    expected = parameter_shapes(config, first_layer=first_layer, end_layer=end_layer, head=head)
    parameters: dict[str, Tensor] = {}
    for path, names in _files_of(folder, expected).items():
        wanted = {name: expected[name] for name in names}
        with _opened(path) as file:
            _check_headers(file, wanted, path)
            for name in names:
                parameters[name] = file.get_tensor(name).to(torch.float32)
    return parameters


def load(folder: Path | str) -> Llama:
    """Load the whole model of a folder."""
    config = parse_config(read_config(folder))
    return build(config, read_parameters(folder, config))


def write_folder(
    folder: Path | str, config: Mapping[str, object], parameters: Mapping[str, Tensor], tokenizer_json: str
) -> None:
    """Write a model folder that appears whole or not at all; `folder` must not exist yet.

    Raises:
        BrokenModel: the parameters are not what the configuration asks for.
        OSError: the folder exists and is not empty, or cannot be written.
    """
    folder = Path(folder)
    expected = parameter_shapes(parse_config(config))
    check_parameters(expected, {name: tuple(value.shape) for name, value in parameters.items()})
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        whole = Path(scratch) / "model"
        whole.mkdir()
        (whole / CONFIG_FILE).write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
        (whole / TOKENIZER_FILE).write_text(tokenizer_json, encoding="utf-8")
        tensors = {name: parameters[name].detach().contiguous() for name in sorted(expected)}
        save_file(tensors, str(whole / WEIGHTS_FILE), metadata={"format": "pt"})
        os.rename(whole, folder)


def digest(parameters: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, hex, over the parameters in order of name: name, then little-endian fp32 bytes."""
    state = hashlib.sha256()
    for name in sorted(parameters):
        state.update(name.encode())
        state.update(parameters[name].detach().to(torch.float32).contiguous().numpy().data)
    return state.hexdigest()


def _files_of(folder: Path, names: Iterable[str]) -> dict[Path, list[str]]:
    """Return which file holds which of the tensors, by the index if there is one."""
    if not (folder / INDEX_FILE).exists():
        return {folder / WEIGHTS_FILE: list(names)}
    index = _read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(index, dict):
        raise BrokenModel(f"{folder / INDEX_FILE}: has no weight_map")
    files: dict[Path, list[str]] = {}
    for name in names:
        file = index.get(name)
        if not isinstance(file, str):
            raise BrokenModel(f"{folder / INDEX_FILE}: does not say which file holds {name}")
        if Path(file).name != file:
            raise BrokenModel(f"{folder / INDEX_FILE}: {name} is said to be in {file!r}, outside the folder")
        files.setdefault(folder / file, []).append(name)
    return files


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise BrokenModel(f"{path}: cannot be read: {error}") from error


def _check_headers(file: safe_open, wanted: Mapping[str, tuple[int, ...]], path: Path) -> None:
    present = set(file.keys())
    headers = {name: file.get_slice(name) for name in wanted if name in present}
    shapes = {name: tuple(header.get_shape()) for name, header in headers.items()}
    check_parameters(wanted, shapes, source=str(path))
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
