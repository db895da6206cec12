"""Measure what one layer of a model takes on this device, pacing included."""

from __future__ import annotations

import statistics
import threading

import torch

from workers.device import Pacer, forward_s
from workers.models.chain import Chain
from workers.models.decoder import Decoder
from workers.models.decoders import decoder_of
from workers.models.kv_cache import KvCache, MemoryBudget, cache_bytes
from workers.models.model_config import ModelConfig, parameter_shapes
from workers.models.precision import bytes_of, dtype_of
from workers.models.split import build

DECODE_RUNS = 7
PREFILL_ROWS = 64


def probe_layer(
    config: ModelConfig,
    pacer: Pacer,
    budget: MemoryBudget,
    *,
    compute: str = "fp32",
    ending: threading.Event,
) -> dict[str, float]:
    """Return `decode_s`, one token through one layer (median), and `prefill_s_per_token`, in seconds.

    The layer has random parameters: the time does not depend on them.

    Raises:
        OutOfMemory: one layer and a short cache do not fit what the node may hold now.
    """
    rows = min(PREFILL_ROWS, config.context_tokens - DECODE_RUNS - 1)
    size_bytes = config.layer_parameters * bytes_of(compute) + cache_bytes(
        config, layers=1, tokens=rows + DECODE_RUNS + 1
    )
    budget.reserve(size_bytes, "measuring one layer")
    try:
        layer = build(config, _random(config, dtype_of(compute)), first_layer=0, end_layer=1, head=False)
        decoder = decoder_of(layer)
        cache = KvCache(config, first_layer=0, end_layer=1, limit_tokens=rows + DECODE_RUNS + 1)

        def timed_s(count: int) -> float:
            return _timed_s(layer, decoder if count == 1 else None, cache, pacer, count, ending)

        timed_s(rows)  # the first run is slow for reasons of its own
        cache.go_to(0)
        prefill_s = timed_s(rows)
        decodes_s = [timed_s(1) for _ in range(DECODE_RUNS)]
    finally:
        budget.release(size_bytes)
    return {"decode_s": statistics.median(decodes_s), "prefill_s_per_token": prefill_s / rows}


def _random(config: ModelConfig, held: torch.dtype) -> dict[str, torch.Tensor]:
    """Return parameters of the first layer, of the size that training leaves."""
    shapes = parameter_shapes(config, first_layer=0, end_layer=1, head=False)
    return {name: torch.empty(shape, dtype=held).normal_(0, 0.02) for name, shape in shapes.items()}


def _timed_s(
    layer: Chain,
    decoder: Decoder | None,
    cache: KvCache,
    pacer: Pacer,
    rows: int,
    ending: threading.Event,
) -> float:
    """Run rows through the layer and return the seconds the device took."""
    config = layer.config
    x = torch.randn(1, rows, config.hidden_size)
    span = pacer.begin()
    try:
        if decoder is not None:
            cache.make_room(rows)
            decoder.run(x[0].numpy(), [cache.tokens], [cache])
        else:
            with torch.inference_mode():
                layer.run_layers(x, position=cache.tokens, cache=cache)
        modelled_s = forward_s(pacer.profile, parameters=config.layer_parameters, layers=1, rows=rows)
        return span.finish(modelled_s, interrupt=ending).elapsed_s
    finally:
        span.abandon()
