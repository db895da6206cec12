"""In which precision the parameters of a deployment are held and read: fp32, bf16 or fp16.

Sums, activations and the KV cache are fp32 in every case, so that the answers do not depend on how a model is
split: a model held in bf16 says what the library's own says in fp32 with its parameters rounded to bf16.

Numpy has no bfloat16: where arrays carry one, on the wire too, it is the uint16 of the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPUTE = tuple(_DTYPES)
_BLOCK_NUMBERS = 1 << 18
"""As many numbers are widened at a time, so that they stay in a core's own cache."""

Array = np.ndarray[Any, Any]


def dtype_of(compute: str) -> torch.dtype:
    """Return how parameters are held; raises KeyError for what is not in `COMPUTE`."""
    return _DTYPES[compute]


def bytes_of(compute: str) -> int:
    """Return the bytes of one parameter."""
    return _DTYPES[compute].itemsize


def as_array(tensor: Tensor) -> Array:
    """Return a tensor's memory as an array; bfloat16 as the uint16 of the same bits."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    array: Array = tensor.numpy()
    return array


def as_tensor(array: Array) -> Tensor:
    """Return an array's memory as a tensor; uint16 as the bfloat16 of the same bits."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def widened(array: Array) -> Array:
    """Return numbers as `as_array` gives them in fp32."""
    if array.dtype == np.uint16:
        wide: Array = (array.astype(np.uint32) << 16).view(np.float32)
        return wide
    return array.astype(np.float32, copy=False)


def all_finite(tensor: Tensor) -> bool:
    """Say whether a tensor holds neither NaN nor infinity; takes next to no memory."""
    flat = tensor.reshape(-1)
    return all(bool(torch.isfinite(block).all()) for block in flat.split(_BLOCK_NUMBERS))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x [..., I] times the transpose of weight [O, I], plus bias [O], in the precision of x.

    A weight of another precision is widened piece by piece, always in the same memory; without gradients.
    """
    if weight.dtype == x.dtype:
        return functional.linear(x, weight, bias)
    out = x.new_empty((*x.shape[:-1], len(weight)))
    start = 0
    for piece in _widened_pieces(weight, x.dtype):
        out[..., start : start + len(piece)] = functional.linear(x, piece)
        start += len(piece)
    return out if bias is None else out.add_(bias)


def linear_transposed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x [..., I] times weight [I, O], plus bias [O], in the precision of x; as `linear` otherwise."""
    if weight.dtype == x.dtype:
        return x @ weight + bias
    out = bias.expand(*x.shape[:-1], -1).clone()
    start = 0
    for piece in _widened_pieces(weight, x.dtype):
        out += x[..., start : start + len(piece)] @ piece
        start += len(piece)
    return out


def _widened_pieces(weight: Tensor, wide: torch.dtype) -> Iterator[Tensor]:
    """Yield the rows of a matrix, some at a time, in memory that the next ones are put into."""
    rows = max(1, _BLOCK_NUMBERS // weight.shape[1])
    held = torch.empty((min(rows, len(weight)), weight.shape[1]), dtype=wide, device=weight.device)
    for piece in weight.split(rows):
        yield held[: len(piece)].copy_(piece)
