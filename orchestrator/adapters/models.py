"""Models in folders, and what needs torch at the orchestrator: reading, evaluating, saving."""

from __future__ import annotations

import logging
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.adapters.chat import ChatTemplate
from orchestrator.core.model import ModelGraph
from orchestrator.core.partition import transformer_graph
from orchestrator.errors import InvalidRequest, ModelError, NotFound
from orchestrator.ports import Json, Model, Tensors
from workers.errors import DataError
from workers.errors import ModelError as WorkersModelError
from workers.finetune import local_data
from workers.inference import activations
from workers.models import corpus, embedded, loader
from workers.models.architecture import Architecture, architecture
from workers.models.config import parse_config
from workers.models.model_config import ModelConfig, parameter_shapes
from workers.models.precision import as_array, bytes_of
from workers.models.tokenizer import Tokenizer
from workers.models.trainable import build
from workers.models.trainable import loss as loss_of

log = logging.getLogger(__name__)
Result = TypeVar("Result")

EMBEDDED = "embedded"
FOUND = "found"
_JOB = re.compile(r"job:([A-Za-z0-9-]{1,64})")
_EVALUATION_BATCH = 16


class FolderModels:
    """Reads Hugging Face folders; tuned ones lie in `tuned_dir`, the embedded model in `cache_dir`."""

    def __init__(self, *, cache_dir: Path, tuned_dir: Path, seed: int) -> None:
        self._cache_dir = cache_dir
        self._tuned_dir = tuned_dir
        self._seed = seed
        self._making = threading.Lock()
        self._known: dict[Path, Model] = {}
        self._chats: dict[Path, ChatTemplate] = {}

    def describe(self, name: str) -> Architecture:
        """Say what a model is made of, by its configuration and the headers of its files."""
        if name == EMBEDDED:
            return architecture(embedded.CONFIG)
        return _translated(lambda: _describe_folder(self._folder(name)))

    def check_split(self, name: str) -> ModelConfig:
        """Check a model to be split by its configuration, its tokeniser and its files' headers."""
        if name == EMBEDDED:
            return parse_config(embedded.CONFIG)
        return _translated(lambda: _check_split_folder(self._folder(name)))

    def check_data(self, data: str) -> None:
        """Refuse a text that cannot be read, without reading it.

        Raises:
            InvalidRequest: `data` is neither `found` nor a file that can be read.
        """
        if data != FOUND:
            _check_text(data)

    def resolve(self, name: str, *, progress: Callable[[float, str], None]) -> Model:
        """Read a model; the embedded one is made on first use, which takes up to a minute."""
        if name == EMBEDDED:
            with self._making:
                folder = _translated(
                    lambda: embedded.ensure(self._cache_dir, seed=self._seed, progress=progress)
                )
        else:
            folder = self._folder(name)
        with self._making:
            if folder not in self._known:
                self._known[folder] = _translated(lambda: _read(name, folder))
            return self._known[folder]

    def parameters(self, model: Model) -> dict[str, NDArray[np.float32]]:
        """Read all parameters by their Hugging Face names."""
        return _translated(lambda: _arrays(loader.read_whole(model.folder, architecture(model.config))))

    def shard(self, model: Model, *, first_layer: int, end_layer: int, head: bool) -> dict[str, NDArray[Any]]:
        """Read the parameters of layers [first_layer, end_layer) and, for the head, the rest."""
        return _translated(
            lambda: _arrays(
                loader.read_parameters(
                    model.folder,
                    parse_config(model.config),
                    first_layer=first_layer,
                    end_layer=end_layer,
                    head=head,
                    compute=model.compute,
                )
            )
        )

    def digest(self, parameters: Tensors) -> str:
        """Give the digest of parameters, as workers compute it."""
        return loader.digest({name: torch.from_numpy(array) for name, array in parameters.items()})

    def tokens(self, model: Model, *, data: str, max_bytes: int, seed: int) -> NDArray[np.int32]:
        """Tokenise the fine-tuning text: `found`, or a text or JSONL file's path."""
        if data == FOUND:
            text = corpus.finetune_text(max_bytes, seed).decode("utf-8", errors="ignore")
        else:
            text = _read_text(data, max_bytes)
        tokenizer = _translated(lambda: Tokenizer(model.tokenizer_json))
        return np.array(tokenizer.encode(text), dtype=np.int32)

    def loss(self, model: Model, parameters: Tensors, tokens: NDArray[np.int32], *, sequence: int) -> float:
        """Give the mean next-token loss in nats over `tokens`, cut into rows of `sequence` predictions."""
        count = (len(tokens) - 1) // sequence
        if count < 1:
            raise InvalidRequest(
                f"{len(tokens)} held-out tokens are fewer than one sequence of {sequence}; "
                "raise data_bytes or held_out_ratio",
                field="data_bytes",
            )
        rows = np.stack([tokens[i * sequence : (i + 1) * sequence + 1] for i in range(count)])
        network = build(
            architecture(model.config), {name: _tensor(array) for name, array in parameters.items()}
        ).eval()
        total = 0.0
        with torch.inference_mode():
            for start in range(0, count, _EVALUATION_BATCH):
                batch = torch.from_numpy(rows[start : start + _EVALUATION_BATCH].astype(np.int64))
                total += float(loss_of(network, batch)) * len(batch)
        return total / count

    def save(self, model: Model, parameters: Tensors, *, job: str) -> Path:
        """Write a Hugging Face folder with `parameters`, to be found as `job:<id>`."""
        folder = self._tuned_dir / job
        tensors = {name: _tensor(array) for name, array in parameters.items()}
        try:
            if folder.exists():  # of the same job, by a process that was killed before it could say so
                shutil.rmtree(folder)
            config = {key: value for key, value in model.config.items() if key != "torch_dtype"}
            loader.write_folder(
                folder, {**config, "dtype": "float32"}, tensors, model.tokenizer_json, beside=model.folder
            )
        except OSError as error:
            raise ModelError(f"the tuned model cannot be written to {folder}: {error}") from error
        return folder

    def chat_prompt(self, model: Model, messages: Sequence[Json]) -> str:
        """Write a conversation as the model was taught to read it."""
        with self._making:
            if model.folder not in self._chats:
                self._chats[model.folder] = ChatTemplate.of_folder(model.folder)
            template = self._chats[model.folder]
        return template.write(messages)

    def count_tokens(self, model: Model, text: str) -> int:
        """Say how many tokens `text` has."""
        return len(_translated(lambda: Tokenizer(model.tokenizer_json)).encode(text))

    def graph(self, model: Model, *, wire: str) -> ModelGraph:
        """Describe the model's layers and what they cost, their rows sent in the precision `wire`."""
        config = parse_config(model.config)
        return transformer_graph(
            name=model.name,
            digest=model.digest,
            layer_parameters=(config.layer_parameters,) * config.layers,
            head_parameters=config.head_parameters,
            vocabulary=config.vocabulary_size,
            hidden=config.hidden_size,
            kv_width=config.kv_heads * config.head_size,
            parameter_bytes=bytes_of(model.compute),
            activation_bytes=activations.bytes_of(wire, config.hidden_size),
        )

    def _folder(self, name: str) -> Path:
        job = _JOB.fullmatch(name)
        if job is None:
            folder = Path(name)
            if not _is_folder(folder):
                raise NotFound(
                    f"model {name!r} is no folder here; give 'embedded', 'job:<id>' or a Hugging Face folder"
                )
            return folder
        folder = self._tuned_dir / job[1]
        if not folder.is_dir():
            tuned = sorted(path.name for path in self._tuned_dir.glob("*") if path.is_dir())
            raise NotFound(f"job {job[1]!r} has left no model; jobs that have: {', '.join(tuned) or 'none'}")
        return folder


def _describe_folder(folder: Path) -> Architecture:
    found = architecture(loader.read_config(folder))
    loader.check_folder(folder, found.shapes, prefix=found.prefix)
    loader.read_tokenizer_json(folder)
    return found


def _check_split_folder(folder: Path) -> ModelConfig:
    config = parse_config(loader.read_config(folder))
    loader.check_folder(folder, parameter_shapes(config), prefix=config.prefix)
    Tokenizer.of_folder(folder)
    return config


def _read(name: str, folder: Path) -> Model:
    document: Json = dict(loader.read_config(folder))
    config = architecture(document)
    return Model(
        name=name,
        folder=folder,
        config=document,
        tokenizer_json=loader.read_tokenizer_json(folder),
        parameter_bytes=config.parameters * 4,
        digest=loader.digest_of_folder(folder, config),
        layers=config.layers,
        context_tokens=config.context_tokens,
    )


def _translated(action: Callable[[], Result]) -> Result:
    try:
        return action()
    except WorkersModelError as error:
        raise ModelError(str(error)) from error


def _arrays(parameters: dict[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
    return {name: as_array(tensor.contiguous()) for name, tensor in parameters.items()}


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name too long, say: no folder either
        return False


def _check_text(path: str) -> None:
    """Refuse what is no file that can be read; a device or a pipe would never end."""
    try:
        if not Path(path).is_file():
            raise InvalidRequest(
                f"data {path!r} is no file here; give 'found' or a text file's path", field="data"
            )
        with Path(path).open("rb"):
            pass
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"data {path!r} cannot be read: {error}; give 'found' or a text file's path",
            field="data",
        ) from error


def _read_text(path: str, max_bytes: int) -> str:
    _check_text(path)
    try:
        return local_data.read_text(Path(path), max_bytes=max_bytes)
    except DataError as error:
        raise InvalidRequest(str(error), field="data") from error
