"""What training can do and what it withstands, with an orchestrator and workers as real processes."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from loopback_orchestrator import system_of

from workers.models.embedded import tokenizer_json
from workers.models.loader import load

FLOPS = {"h1": 4e9, "h2": 4e9, "h3": 2e9}
TRAINING = {"local_steps": 4, "batch_size": 4, "sequence_length": 32, "learning_rate": 3e-3}
JOB = {"epochs": 3, "policy": "all", "seed": 11, "data_bytes": 60_000, "round_timeout_s": 30}


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    with system_of(tmp_path_factory.mktemp("training"), FLOPS) as made:
        yield made


def run(system, **values):
    made = system.post("/api/v1/jobs", {**JOB, "model": system.model, **values})
    shown = system.wait_state(f"/api/v1/jobs/{made['id']}", ("completed", "failed"))
    assert shown["state"] == "completed", (shown["reason"], system.log("orchestrator"))
    return shown


def test_adapters_alone_cross_the_wire_and_the_merged_model_is_an_ordinary_folder(system):
    training = {
        **TRAINING,
        "learning_rate": 2e-2,
        "lora_rank": 4,
        "schedule": "cosine",
        "update_encoding": "int8",
        "outer_optimiser": "nesterov",
        "outer_momentum": 0.5,
    }
    summary = run(system, training=training, partition="dirichlet")["summary"]
    assert summary["final_loss"] < summary["start_loss"] - 0.05
    model_bytes = sum(value.numel() * 4 for value in load(system.model).state_dict().values())
    assert summary["bytes"]["round_received_bytes"] < 0.1 * model_bytes * len(FLOPS) * JOB["epochs"]
    assert len(set(summary["node_tokens"].values())) > 1
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(summary["model_folder"]).eval()
    tokens = torch.tensor([list(b"The network measures ")])
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(tokens).logits, load(summary["model_folder"])(tokens), rtol=1e-4, atol=1e-4
        )


def test_a_folder_of_the_library_is_trained_from_jsonl_and_a_broken_one_refused_at_once(system, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    sizes = {"vocab_size": 258, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    made = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=256, eos_token_id=256))
    made.save_pretrained(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "tokenizer.json").write_text(tokenizer_json())
    lines = [json.dumps({"text": f"node {i} trains, and its link is measured. "}) for i in range(800)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    summary = run(system, model=str(tmp_path / "gpt2"), data=str(tmp_path / "text.jsonl"), training=TRAINING)[
        "summary"
    ]
    assert summary["final_loss"] < summary["start_loss"] - 0.2
    tuned = transformers.AutoModelForCausalLM.from_pretrained(summary["model_folder"])
    assert type(tuned).__name__ == "GPT2LMHeadModel"
    document = json.loads((tmp_path / "gpt2" / "config.json").read_text())
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps({**document, "n_layer": 3}))
    answer = system.session.post(
        f"{system.url}/api/v1/jobs", json={**JOB, "model": str(tmp_path / "gpt2")}, timeout=20
    )
    assert answer.status_code in (400, 409, 422)
    assert "missing, among them transformer.h.2" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("encoding", "share"), [("fp32", 1.0), ("fp16", 0.5), ("int8", 0.26), ("topk", 0.101)]
)
def test_smaller_updates_take_their_share_of_the_bytes_and_still_train(system, encoding, share):
    training = {**TRAINING, "update_encoding": encoding, "topk_ratio": 0.05}
    summary = run(system, epochs=2, training=training)["summary"]
    model_bytes = sum(value.numel() * 4 for value in load(system.model).parameters())
    assert summary["bytes"]["round_received_bytes"] / (2 * len(FLOPS) * model_bytes) <= share + 0.02
    assert summary["final_loss"] < summary["start_loss"] - 0.1


def test_a_killed_and_a_hung_worker_cost_their_own_part_and_who_comes_back_trains_again(system):
    made = system.post("/api/v1/jobs", {**JOB, "epochs": 40, "model": system.model, "training": TRAINING})
    address = f"/api/v1/jobs/{made['id']}"
    system.wait(lambda: system.get(address)["epochs"], what="the first epoch is done")
    hung = system.workers["h2"]
    os.kill(hung, signal.SIGSTOP)
    try:
        system.kill("h3")
        system.wait(lambda: system.alive() == {"h1"}, what="one is found dead, the other silent")
        system.wait(
            lambda: system.get(address)["epochs"][-1]["contributed"] == ["h1"], what="epochs go on without"
        )
    finally:
        os.kill(hung, signal.SIGCONT)
    system.wait(
        lambda: system.get(address)["epochs"][-1]["contributed"] == ["h1", "h2"],
        what="the one that is back contributes again",
    )
    failed = [name for epoch in system.get(address)["epochs"] for name in epoch["failed"]]
    assert {"h2", "h3"} <= set(failed), "the record says who failed"
    system.delete(address)
    system.wait_state(address, ("cancelled", "completed"))
