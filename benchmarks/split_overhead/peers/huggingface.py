"""`generate` of the transformers library, greedy, with its KV cache, on one core.

`python -m benchmarks.split_overhead.peers.huggingface FOLDER CORE TOKENS PROMPT`; a prompt is `11,12,13`.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch
import transformers

from benchmarks.split_overhead.peers import answering


class _Clock(transformers.generation.streamers.BaseStreamer):  # type: ignore[misc]
    """Notes when each token came."""

    def __init__(self) -> None:
        self.at_s: list[float] = []

    def put(self, value: Any) -> None:
        """Take the prompt, then each token."""
        self.at_s.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""


def main() -> None:
    """Load the model, answer a run per line."""
    answer = answering.take_answers_apart()
    folder, core, tokens, prompt = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = torch.tensor([[int(token) for token in prompt.split(",")]])
    count = int(tokens)

    def one_run() -> dict[str, Any]:
        clock = _Clock()
        with torch.inference_mode():
            made = model.generate(
                rows,
                attention_mask=torch.ones_like(rows),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
                streamer=clock,
            )
        decode_s = clock.at_s[-1] - clock.at_s[1]
        return {"tokens_per_s": (count - 1) / decode_s, "tokens": made[0, rows.shape[1] :].tolist()}

    answering.serve(one_run, answer)


if __name__ == "__main__":
    main()
