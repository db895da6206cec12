"""The layer graph of a transformer and where it may be cut (Koch 2025, section 3.2, Omega)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import combinations

from orchestrator.core.errors import InvalidValue
from orchestrator.core.model import HeadCost, LayerCost, ModelGraph

FLOAT_BYTES = 4


def transformer_graph(
    *,
    name: str,
    digest: str,
    layer_parameters: tuple[int, ...],
    head_parameters: int,
    vocabulary: int,
    hidden: int,
    kv_width: int,
    parameter_bytes: int = FLOAT_BYTES,
    activation_bytes: int | None = None,
    critical_layers: Collection[int] = (),
    sensitivities: Mapping[int, float] | None = None,
) -> ModelGraph:
    """Build the graph of a decoder from its parameter counts.

    A parameter takes `parameter_bytes`, a row of activations on the wire `activation_bytes` (if not those of
    fp32). The KV cache is fp32 always.

    A token costs 2 FLOP per parameter of a layer, and 2 * vocabulary * hidden for the LM head (an embedding
    is a look-up). `kv_width` is the width of the keys (as many values). Layers in `critical_layers` run on
    trusted nodes only; `sensitivities` weigh the exposure of others (P of Koch 2025, Eq. 3).

    Raises:
        InvalidValue: a layer is named that the model does not have.
    """
    weights = dict(sensitivities or {})
    row_bytes = hidden * FLOAT_BYTES if activation_bytes is None else activation_bytes
    _check_layers(name, [*critical_layers, *weights], len(layer_parameters))
    layers = tuple(
        LayerCost(
            parameter_bytes=count * parameter_bytes,
            flops_per_token=2.0 * count,
            kv_bytes_per_token=2 * kv_width * FLOAT_BYTES,
            activation_bytes=row_bytes,
            privacy_critical=index in critical_layers,
            sensitivity=weights.get(index, 0.0),
        )
        for index, count in enumerate(layer_parameters)
    )
    head = HeadCost(
        parameter_bytes=head_parameters * parameter_bytes,
        flops_per_token=2.0 * vocabulary * hidden,
        activation_bytes=row_bytes,
    )
    return ModelGraph(name=name, digest=digest, head=head, layers=layers)


def splits(layer_count: int, stages: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to cut `layer_count` layers into `stages` contiguous stages, as the stages' ends."""
    for inner in combinations(range(1, layer_count), stages - 1):
        yield (*inner, layer_count)


def even_cuts(layer_count: int, stages: int) -> tuple[int, ...]:
    """Cut as evenly as possible; earlier stages take the remainder.

    Raises:
        InvalidValue: more stages than layers, or none.
    """
    if not 1 <= stages <= layer_count:
        raise InvalidValue(f"{layer_count} layers cannot be cut into {stages} stages")
    size, rest = divmod(layer_count, stages)
    ends, end = [], 0
    for index in range(stages):
        end += size + (1 if index < rest else 0)
        ends.append(end)
    return tuple(ends)


def _check_layers(name: str, wanted: list[int], count: int) -> None:
    wrong = sorted(index for index in wanted if not 0 <= index < count)
    if wrong:
        listed = ", ".join(map(str, wrong))
        raise InvalidValue(f"model {name} has layers 0 to {count - 1}; there is no layer {listed}")
