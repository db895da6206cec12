"""Our model as llama.cpp reads it: a GGUF file, its parameters in fp32.

llama.cpp turns pairs of neighbours where Hugging Face turns halves, so that the rows of queries and keys are
put in its order, as its own converter does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

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


def beside(folder: Path) -> Path:
    """Write the model of a Hugging Face folder beside it, if no one has yet; returns the file."""
    path = folder.with_suffix(".gguf")
    if not path.exists():
        unfinished = folder.with_suffix(".gguf.unfinished")
        _convert(folder, unfinished)
        unfinished.rename(path)
    return path


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
