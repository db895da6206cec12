"""llama.cpp, fp32 weights, on one core, by the wheel of xllamacpp.

`python -m benchmarks.split_overhead.peers.llamacpp FOLDER CORE TOKENS PROMPT`; a prompt is `11,12,13`.
The folder's model is written as GGUF beside it first.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import xllamacpp

from benchmarks.split_overhead.peers import answering, gguf_file


def main() -> None:
    """Load the model, answer a run per line."""
    answer = answering.take_answers_apart()
    folder, core, tokens, prompt = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    options = xllamacpp.CommonParams()
    options.model.path = str(gguf_file.beside(Path(folder)))
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


if __name__ == "__main__":
    main()
