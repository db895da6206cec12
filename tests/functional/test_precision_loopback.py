"""A GPT-2 stored in bf16, over three real nodes in several precisions, answers as the whole model."""

from __future__ import annotations

import pytest
import torch
from loopback_orchestrator import system_of

from workers.models import generate
from workers.models.embedded import tokenizer_json

transformers = pytest.importorskip("transformers")

FLOPS = {"h1": 4e9, "h2": 4e9, "h3": 2e9}
PROMPT = "Hello there"


def test_a_gpt2_stored_in_16_bits_is_served_by_three_nodes(tmp_path):
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=258, n_embd=32, n_layer=6, n_head=4, n_positions=128, bos_token_id=256, eos_token_id=256,
        initializer_range=0.2,
    )  # fmt: skip
    folder = tmp_path / "gpt2"
    transformers.GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    expected = generate(folder, PROMPT, 16)[0]
    assert len(set(expected)) > 3
    with system_of(tmp_path, FLOPS, trusted=("h1", "h2")) as system:
        system.wait(
            lambda: system.get("/api/v1/network")["nodes"][0]["to_orchestrator"]["delay_s"]["value"],
            what="paths are measured",
        )
        for compute, wire in (("bf16", "fp32"), ("bf16", "int8")):
            asked = {"model": str(folder), "min_nodes": 3, "compute": compute, "wire": wire}
            made = system.post("/api/v1/deployments", {**asked, "context_tokens": 64})
            path = f"/api/v1/deployments/{made['id']}"
            system.wait(lambda path=path: system.get(path)["state"] == "serving", what="it serves")
            body = {"model": made["id"], "prompt": PROMPT, "max_tokens": 16}
            tokens = system.post("/v1/completions", body)["utopia"]["tokens"]
            assert len(tokens) == 16
            assert wire != "fp32" or tokens == expected
            system.delete(path)
