"""A limit of keys and values is judged before placing as every node of every placement would judge it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import ImpossibleRequest
from orchestrator.inference.cache_limit import check_cache_limit
from orchestrator.inference.request import DeploymentRequest
from workers.inference.assignment import Assignment
from workers.models.config import parse_config
from workers.models.kv_cache import OutOfMemory, SequenceReserve, cache_bytes
from workers.models.model_config import ModelConfig


class NoEnd:
    """A node with memory for everything."""

    def reserve(self, size_bytes: int, purpose: str) -> None:
        pass

    def release(self, size_bytes: int) -> None:
        pass


def model(layers: int, kv_heads: int) -> ModelConfig:
    return parse_config({
        "model_type": "llama", "vocab_size": 5, "hidden_size": 2 * kv_heads, "intermediate_size": 4,
        "num_hidden_layers": layers, "num_attention_heads": kv_heads, "num_key_value_heads": kv_heads,
        "head_dim": 2, "max_position_embeddings": 4096, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "eos_token_id": 4,
    })  # fmt: skip


def node_takes(config: ModelConfig, first_layer: int, end_layer: int, *, tokens: int, limit: int) -> bool:
    """Whether a node that is given these layers sets its sequence aside within its share of the limit."""
    part = Assignment(
        deployment="d", epoch=1, model="m", config=config, head=False, first_layer=first_layer,
        end_layer=end_layer, tokenizer_json=None, previous="a", next=None, context_tokens=tokens,
        request_timeout_s=1.0, ring_nodes=2, reuse=False, digest=None, kv_cache_bytes=limit,
    )  # fmt: skip
    try:
        SequenceReserve(NoEnd()).set_aside(
            cache_bytes(config, layers=part.layers, tokens=tokens), "it", limit_bytes=part.cache_limit_bytes
        )
    except OutOfMemory:
        return False
    return True


@settings(max_examples=200, deadline=None)
@given(
    layers=st.integers(1, 40),
    cuts=st.sets(st.integers(1, 39)),
    kv_heads=st.integers(1, 9),
    tokens=st.integers(16, 4096),
    spare=st.integers(-99, 99) | st.integers(-(10**6), 10**6),
)
def test_one_placement_could_hold_a_sequence_exactly_if_every_one_could(
    layers: int, cuts: set[int], kv_heads: int, tokens: int, spare: int
) -> None:
    config = model(layers, kv_heads)
    limit = max(1, cache_bytes(config, layers=layers, tokens=tokens) + spare)
    ends = [0, *sorted(cut for cut in cuts if cut < layers), layers]
    taken = {node_takes(config, *part, tokens=tokens, limit=limit) for part in pairwise(ends)}
    request = DeploymentRequest(context_tokens=tokens, kv_cache_bytes=limit)
    try:
        check_cache_limit(
            request, own_tokens=4096, kv_bytes_per_token=layers * config.kv_bytes_per_token_and_layer
        )
    except ImpossibleRequest:
        assert taken == {False}
    else:
        assert taken == {True}


def test_the_context_that_the_refusal_names_is_the_longest_that_fits() -> None:
    def check(tokens: int) -> None:
        request = DeploymentRequest(context_tokens=tokens, kv_cache_bytes=2599)
        check_cache_limit(request, own_tokens=1000, kv_bytes_per_token=64)

    with pytest.raises(ImpossibleRequest, match="shorten context_tokens to 40 at most"):
        check(41)
    check(40)
