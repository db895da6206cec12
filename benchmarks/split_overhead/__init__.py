"""What splitting a model costs, and how fast our engine decodes, against Hugging Face and llama.cpp.

`python -m benchmarks.split_overhead [--quick] [--part PART ...] --json FILE`. The model is a random-weight
Llama in fp32 (8 layers, hidden 512, 8 heads, 4 KV heads, FFN 1408, vocabulary 32000), so that one token reads
161 MB. Every process has one thread and one core; the orchestrator's side, which only asks and listens, is
this process and has the last core, which with two cores it shares with every second stage.

- `single`: tokens/s of one request on one worker that holds the whole model, against `generate` with its KV
  cache of the transformers library, and llama.cpp (from xllamacpp's wheel, in an environment of its own).
- `stages`: the same request over 2, 3 and 4 workers, over mutual TLS on loopback, against that one worker.
  Beside them, as `llamacpp one` and `llamacpp split`, llama.cpp in one process and its layers over as many by
  its RPC backend (a client and servers, unencrypted, in a network namespace with `lo` only), built from the
  source in llama-cpp-python's package when it is first wanted, in some minutes. No target stands on it.
- `batch`: 8 requests at once over 2 workers on 2 cores, against one worker on one core. Beside it 4 on one
  worker alone, and 4 on each of two that hold the whole model: what stages that never wait could reach.
- `hop`: from the compute thread of one worker to that of the next (serialise, encrypt, send, receive,
  decrypt, check, hand over), one row of hidden values, in both directions of a ring of two.
- `fairness`: one prompt of 900 tokens, then eight at once, enter rings of 2 and 3 in which a stream runs: the
  stream's longest gap and its 95th percentile against the time of a piece of a prompt (`gap_most_over_piece`)
  and the least that can be (`least_gap_s`), and the prompts' times to the first token, alone and so.
- `networks` (root): 2 workers in namespaces of their own over an emulated link of 0 to 100 ms, 10 to 1000
  Mbit/s and 0 or 1 % loss: the time of a token and of a prompt's first token against what physics allows
  (computing as one process does it without a link, propagation, bytes through bandwidth), and the use of the
  link by a prompt's rows, sent by stages that compute nothing so that the link is the bottleneck, beside a
  plain bulk transfer of as many bytes. Rows say whether the emulation kept up while they were taken; targets
  stand on those only.
- `correct`: random cuts of small models of every family into 2 to 6 stages, 1 to 32 requests at once; every
  token is compared with those of the unsplit model and of the transformers library (rows: `tokens` compared,
  `ties`, `differences`). Here the shard hosts are in one process, and frames go between them as bytes.
- `compute`: tokens/s of one worker that holds the parameters in fp32, bf16 or fp16.
- `wire`: bytes per token and hop, error of the rows and share of unchanged tokens where rows are sent in
  fp32, fp16 or int8, over 3 stages.
- `clients` (root): many clients (`--clients`, 200) that read streamed answers of a testbed's deployment over
  three nodes for a while (`--seconds`, 60): errors, tokens lost or doubled by their indices, answers that
  differ from an undisturbed request's, and how the memory of orchestrator and workers grows.

Everything of ours is the product: agents, links, shard hosts, and the pool of the orchestrator. What is
compared takes turns, a run of each at a time, and the first of a pair changes from pair to pair.
"""
