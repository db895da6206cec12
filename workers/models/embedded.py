"""The built-in small model: a proper Hugging Face Llama folder, made on first use and cached.

Eight layers, hidden 64, a byte-level vocabulary: 0.41 million parameters. It is pre-trained on Python modules
(`corpus.pretrain_text`) for well under a minute on one core, and only until its loss on English prose that
it has not seen is near 2.4 nats per byte, so that fine-tuning on prose has something to gain.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from workers.models import corpus, llama_config
from workers.models.llama import Llama
from workers.models.loader import write_folder

log = logging.getLogger(__name__)

RECIPE = 2
"""Version of everything below that changes the resulting model; part of the cache's key."""
END_TOKEN = 256
CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": END_TOKEN,
    "pad_token_id": 257,
    "torch_dtype": "float32",
}

_TARGET_LOSS = 2.38
_STEPS_LIMIT = 400
_FIRST_CHECK_STEP = 100
_CHECK_INTERVAL_STEPS = 10
_WARM_UP_STEPS = 20
_BATCH, _LENGTH = 16, 128
_LEARNING_RATE = 3e-3
_PRETRAIN_BYTES = 1_000_000
_HELD_OUT_BYTES = 450_000
_HELD_OUT_SEQUENCES = 64


def ensure(cache_dir: Path | str, *, seed: int, progress: Callable[[float, str], None]) -> Path:
    """Return the folder of the built-in model, making it first if the cache does not hold it.

    `progress` is called with the share done, 0 to 1, and what is being done. The same seed and Python
    version give the same model. The folder appears whole or not at all.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    folder = Path(cache_dir) / f"embedded-r{RECIPE}-s{seed}-py{python}"
    if (folder / "model.safetensors").exists():
        progress(1.0, f"the built-in model is in {folder}")
        return folder
    progress(0.0, "collecting text to pre-train the built-in model")
    with _one_thread():  # as fast at this size, leaves the other cores alone, and sums in one order
        model = pretrain(seed=seed, progress=progress)
    try:
        write_folder(folder, CONFIG, model.state_dict(), tokenizer_json())
    except OSError:
        if not (folder / "model.safetensors").exists():  # else another process was first
            raise
    progress(1.0, f"the built-in model is in {folder}")
    return folder


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def tokenizer_json() -> str:
    """Return the `tokenizer.json`: token n is byte n, then an end and a padding token."""
    letters = {value: letter for letter, value in _byte_letters().items()}
    vocabulary = {letters[value]: value for value in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|pad|>", special=True)])
    return tokenizer.to_str()


def _byte_letters() -> dict[str, int]:
    """Return the letter by which byte-level tokenizers write each byte (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [value for value in range(256) if value not in printable]
    table = {chr(value): value for value in printable}
    table.update({chr(256 + index): value for index, value in enumerate(others)})
    return table


def pretrain(*, seed: int, progress: Callable[[float, str], None]) -> Llama:
    """Train the built-in model from scratch until its loss on unseen prose is near 2.4 nats per byte."""
    generator = torch.Generator().manual_seed(seed)
    model = _initialised(generator)
    data = _as_tokens(corpus.pretrain_text(_PRETRAIN_BYTES, seed))
    held_out = _held_out(_as_tokens(corpus.finetune_text(_HELD_OUT_BYTES, seed)))
    optimiser = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    start_loss = math.log(float(model.config.vocabulary_size))
    for step in range(1, _STEPS_LIMIT + 1):
        loss = _step(model, optimiser, _batch(data, generator), step)
        share = (start_loss - loss) / (start_loss - _TARGET_LOSS)
        progress(
            min(0.95, max(0.0, share, step / _STEPS_LIMIT)), f"pre-training, step {step}, loss {loss:.2f}"
        )
        if step >= _FIRST_CHECK_STEP and step % _CHECK_INTERVAL_STEPS == 0:
            with torch.no_grad():
                prose_loss = float(model.loss(held_out))
            log.debug("step %d: loss on code %.3f, on unseen prose %.3f", step, loss, prose_loss)
            if prose_loss <= _TARGET_LOSS:
                return model
    log.warning(
        "the built-in model stays above %.2f nats per byte after %d steps", _TARGET_LOSS, _STEPS_LIMIT
    )
    return model


def _initialised(generator: torch.Generator) -> Llama:
    config = llama_config.parse(CONFIG)
    model = Llama(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / math.sqrt(2 * config.layers) if residual else 0.02
                parameter.normal_(0, std, generator=generator)
    return model


def _step(model: Llama, optimiser: torch.optim.Optimizer, batch: Tensor, step: int) -> float:
    for group in optimiser.param_groups:
        group["lr"] = _LEARNING_RATE * min(1.0, step / _WARM_UP_STEPS)
    optimiser.zero_grad()
    loss = model.loss(batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return float(loss.detach())


def _batch(data: Tensor, generator: torch.Generator) -> Tensor:
    starts = torch.randint(0, len(data) - _LENGTH, (_BATCH,), generator=generator)
    return torch.stack([data[start : start + _LENGTH + 1] for start in starts.tolist()])


def _held_out(data: Tensor) -> Tensor:
    """Return sequences spread evenly over the prose."""
    stride = (len(data) - _LENGTH - 1) // _HELD_OUT_SEQUENCES
    return torch.stack([data[i * stride : i * stride + _LENGTH + 1] for i in range(_HELD_OUT_SEQUENCES)])


def _as_tokens(text: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).astype(np.int64))
