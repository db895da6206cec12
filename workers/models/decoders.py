"""Which models are decoded by compiled kernels, and their compilation ahead of the first token."""

from __future__ import annotations

import functools

import numpy as np
import torch

from workers.models import gpt2_decoder, kernels, llama_decoder
from workers.models.chain import Chain
from workers.models.decoder import Decoder
from workers.models.gpt2 import Gpt2
from workers.models.llama import Llama

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
            return llama_decoder.LlamaDecoder(model, held)
        case Gpt2():
            compile_kernels(held, gpt2=True)
            return gpt2_decoder.Gpt2Decoder(model, held)
        case _:
            return None


@functools.cache
def compile_kernels(held: torch.dtype = torch.float32, *, gpt2: bool = False) -> None:
    """Compile a family's kernels for matrices held so, or read them from disk: 3 s the first time."""
    (gpt2_decoder if gpt2 else llama_decoder).compile_for(held)
    kernels.best(np.zeros(2, dtype=np.float32))
