"""Which models are decoded by compiled kernels, and their compilation ahead of the first token."""

from __future__ import annotations

import functools

import numpy as np
import torch

from workers.models import kernels
from workers.models.chain import Chain
from workers.models.decoder import Decoder, matrix
from workers.models.gpt2 import Gpt2
from workers.models.gpt2_decoder import Gpt2Decoder
from workers.models.llama import Llama
from workers.models.llama_decoder import LlamaDecoder

_MOST_THREADS = 2
"""With more, torch's own products read memory faster than one core can."""


def decoder_of(model: Chain) -> Decoder | None:
    """Return what is to decode with a model, compiled; None where the model itself is to."""
    few = torch.get_num_threads() <= _MOST_THREADS
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not few or not on_cpu:
        return None
    held = next(value.dtype for value in model.parameters() if value.dim() == 2)
    match model:
        case Llama():
            compile_kernels(held)
            return LlamaDecoder(model)
        case Gpt2():
            compile_kernels(held, gpt2=True)
            return Gpt2Decoder(model)
        case _:
            return None


@functools.cache
def compile_kernels(held: torch.dtype = torch.float32, *, gpt2: bool = False) -> None:
    """Compile a family's kernels for matrices held so, or read them from disk: 3 s the first time."""
    row, cache = np.zeros(2, dtype=np.float32), np.zeros((2, 1, 1, 2), dtype=np.float32)
    w, rows = matrix(torch.zeros(2, 2, dtype=held)), np.zeros((1, 2), dtype=np.float32)
    if gpt2:
        kernels.project_centred(rows, row, row, 1.0, w, row, rows, rows)
        kernels.finish_centred(rows, rows, w, row, row, row, 1.0, w, row, w, row, rows, rows)
    else:
        kernels.project(rows, row, 1.0, w, w, w, row, row, row, rows, rows, rows, rows)
        kernels.normalise_heads(rows, row, 1.0)
        kernels.finish(rows, rows, w, row, row, 1.0, w, w, w, rows, rows, rows)
    kernels.multiply(w, rows, rows)
    kernels.attend(row, row, row, row, row, cache, 0, 0, row, row)
    kernels.best(row)
