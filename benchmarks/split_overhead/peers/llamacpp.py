"""llama.cpp, fp32 weights, on one core, by the wheel of xllamacpp.

`python -m benchmarks.split_overhead.peers.llamacpp FOLDER CORE TOKENS PROMPT`; a prompt is `11,12,13`.
Writes the folder's model as GGUF beside it first. llama.cpp turns pairs of neighbours where Hugging Face
turns halves, so that the rows of queries and keys are put in its order, as its own converter does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import xllamacpp
from safetensors.numpy import load_file

from benchmarks.split_overhead.peers import answering

_HEAD = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_BYTE, _NORMAL, _UNKNOWN, _CONTROL = 6, 1, 2, 3
_BYTES = 256


def main() -> None:
    """Convert the model, answer a run per line."""
    answer = answering.take_answers_apart()
    folder, core, tokens, prompt = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    path = Path(folder).with_suffix(".gguf")
    _convert(Path(folder), path)
    options = xllamacpp.CommonParams()
    options.model.path = str(path)
    options.n_ctx = 1024
    options.n_parallel = 1
    options.cpuparams.n_threads = 1
    options.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(options)
    asked = {
        "prompt": [int(token) for token in prompt.split(",")],
        "n_predict": int(tokens),
        "temperature": 0.0,
        "ignore_eos": True,
        "cache_prompt": False,
        "return_tokens": True,
    }

    def one_run() -> dict[str, Any]:
        reply = server.handle_completions(asked)
        document = json.loads(reply) if isinstance(reply, str | bytes) else reply
        timings = document["timings"]
        if timings["predicted_n"] != int(tokens):
            raise RuntimeError(f"{timings['predicted_n']} tokens came, not {tokens}")
        # The first of the tokens comes of the prompt, whose time is not in predicted_ms.
        return {"tokens_per_s": 1000 * (int(tokens) - 1) / timings["predicted_ms"]}

    answering.serve(one_run, answer)
    os._exit(0)  # the server's threads are not waited for


def _convert(folder: Path, path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_vocabulary(writer, config["vocab_size"])
    for name, value in load_file(folder / "model.safetensors").items():
        if name.endswith("q_proj.weight"):
            value = _turned(value, heads)
        elif name.endswith("k_proj.weight"):
            value = _turned(value, kv_heads)
        writer.add_tensor(_name(name), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, size: int) -> None:
    """Give every token a text, in the form that llama.cpp asks of a SentencePiece vocabulary."""
    head = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(_BYTES))]
    words = head + [f"t{number}" for number in range(size - len(head))]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL] + [_BYTE] * _BYTES + [_NORMAL] * (size - len(head))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * size)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _name(name: str) -> str:
    if name in _HEAD:
        return _HEAD[name]
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{_LAYER[part.removesuffix('.weight')]}.weight"


def _turned(value: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Interleave the two halves of each head's rows."""
    outputs, inputs = value.shape
    halves = value.reshape(heads, 2, outputs // heads // 2, inputs)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(outputs, inputs))


if __name__ == "__main__":
    main()
