"""The parts: what is started for each, and how the runs take turns."""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.round_overhead.arms import Arm
from benchmarks.split_overhead import (
    clients,
    correct,
    emulated_link,
    fairness,
    figures,
    hop,
    model,
    networks,
    wires,
)
from benchmarks.split_overhead.nodes import Workers
from benchmarks.split_overhead.peer_arms import Peers
from workers.inference.head import CHUNK_ROWS
from workers.models.precision import COMPUTE

_REQUESTS = 8
Run = Callable[[], dict[str, Any]]
_FIGURES = (
    "tokens_per_s", "bytes_per_token", "encrypted", "same_tokens", "first_difference", "margin_there"
)  # fmt: skip
_CLEAR_MARGIN = 1e-4
"""Logits nearer to each other than this may change places by rounding (DESIGN.md, section 7)."""


class Bench:
    """The benchmark's parts; each answers its rows. `notes` gets what a reader should know beside them."""

    def __init__(
        self, folder: Path, cores: Sequence[int], options: argparse.Namespace, notes: list[str]
    ) -> None:
        self._folder = folder
        self._cores = cores
        self._options = options
        self._notes = notes
        self._document = model.config(quick=options.quick)
        self._tokens = 16 if options.quick else 128
        self._pairs = 1 if options.quick else options.pairs
        self._started = 0

    def single(self) -> list[dict[str, Any]]:
        """Compare one worker with Hugging Face and llama.cpp."""
        rows: list[dict[str, Any]] = []
        with ExitStack() as stack:
            workers = stack.enter_context(self._workers(1))
            self._deploy(workers, "one", 1)
            runs: dict[str, Run] = {"ours": lambda: self._one_request(workers, "one")}
            for peer in self._peers.whole(stack):
                runs[peer.plan.name] = peer.round
            for _ in range(2):
                runs["ours"]()
            for pair in range(self._pairs):
                found = {name: runs[name]() for name in _in_turn(runs, pair)}
                for name, told in found.items():
                    row = {"part": "single", "arm": name, "pair": pair, "tokens_per_s": told["tokens_per_s"]}
                    rows.append({**row, **self._compared(name, told, found["ours"])})
        return rows

    def stages(self) -> list[dict[str, Any]]:
        """Compare rings of 2, 3 and 4 workers with one; beside them, llama.cpp over as many processes."""
        rows = []
        with ExitStack() as stack:
            workers = stack.enter_context(self._workers(max(figures.STAGES)))
            counts = (1, *figures.STAGES)
            for count in counts:
                self._deploy(workers, str(count), count)
                ours = self._one_request(workers, str(count))
            peers = self._peers.rpc(stack, counts)
            for count in figures.STAGES:
                runs: dict[str, Run] = {
                    "one": lambda: self._one_request(workers, "1"),
                    "split": lambda count=count: self._one_request(workers, str(count)),
                }
                if peers:
                    runs[figures.RPC_ONE] = lambda: self._beside(peers[1], ours)
                    runs[figures.RPC_SPLIT] = lambda count=count: self._beside(peers[count], ours)
                rows += self._paired(f"stages {count}", **runs)
        self._notes += filter(None, [figures.rpc_kept(rows)])
        return rows

    def batch(self) -> list[dict[str, Any]]:
        """Compare a ring of 2 with one worker under 8 requests at once; and under 4, as a stage has them.

        These once by one worker alone, and once by each of two that share what the memory gives.
        """
        with self._workers(2) as workers:
            self._deploy(workers, "one", 1)
            self._deploy(workers, "other", 1, begin=1)
            self._deploy(workers, "split", 2, ranges=self._even_work())
            for name in ("one", "other", "split"):
                self._many_requests(workers, name)
            return self._paired(
                "batch",
                one=lambda: self._many_requests(workers, "one"),
                half=lambda: self._many_requests(workers, "one", requests=_REQUESTS // 2),
                halves=lambda: self._many_requests(workers, "one", "other"),
                split=lambda: self._many_requests(workers, "split"),
            )

    def hop(self) -> list[dict[str, Any]]:
        """Time a row from compute thread to compute thread, both ways."""
        rows = []
        with self._workers(2, make_shards=hop.TimingShardHost) as workers:
            self._deploy(workers, "hop", 2)
            for repeat in range(1 + self._pairs):
                told = workers.generate("hop", tokens=4 * self._tokens)[0]
                hops = [hop.hops_us(fields["margin"]) for fields in told[8:]]
                if repeat:
                    for arm, values in zip(("there", "back"), zip(*hops, strict=True), strict=True):
                        row = {"part": "hop", "arm": arm, "pair": repeat - 1, "tokens": len(values)}
                        most = statistics.quantiles(values, n=100)[-1]
                        rows.append({**row, "hop_us": statistics.median(values), "hop_us_p99": most})
        return rows

    def fairness(self) -> list[dict[str, Any]]:
        """Have prompts enter rings of 2 and 3 while a stream runs in them."""
        rows = []
        tokens = 128 if self._options.quick else 900
        document = {"context": self._document["max_position_embeddings"]}
        document["vocabulary"] = self._document["vocab_size"]
        with self._workers(3) as workers:
            for count in (1, 2, 3):
                self._deploy(workers, str(count), count)
                fairness.measure(workers, str(count), tokens=tokens, **document)
            for pair in range(min(2, self._pairs)):
                whole = fairness.measure(workers, "1", tokens=tokens, **document)
                piece_s = whole["first_token_alone_s"] / math.ceil(tokens / CHUNK_ROWS)
                for count in (2, 3):
                    alone = fairness.measure(workers, str(count), tokens=tokens, **document)
                    for prompts in (1, fairness.MANY):
                        row = fairness.disturbed(workers, str(count), alone, piece_s=piece_s, prompts=prompts)
                        rows.append({"part": f"{fairness.PART} {count}", "pair": pair, **row})
        return rows

    def networks(self) -> list[dict[str, Any]]:
        """Run two stages over an emulated link, in many conditions."""
        reason = emulated_link.lacking()
        if reason is not None:
            self._notes.append(f"networks not measured: {reason}")
            return []
        return networks.measure(
            self._folder / "networks",
            self._cores,
            self._document,
            self._parameters,
            asked=self._options.cell,
            quick=self._options.quick,
            seed=self._options.seed,
            progress=_tell,
        )

    def correct(self) -> list[dict[str, Any]]:
        """Compare random splits of every family with the whole model and with Hugging Face."""
        torch.set_num_threads(1)
        return correct.rows(self._options.seed, 1 if self._options.quick else self._options.cases)

    def compute(self) -> list[dict[str, Any]]:
        """Compare parameters of 16 bits with those of 32, on one worker."""
        with self._workers(1) as workers:
            for held in COMPUTE:
                self._deploy(workers, held, 1, compute=held)
                self._one_request(workers, held)
            runs = {held: lambda held=held: self._one_request(workers, held) for held in COMPUTE}
            return self._paired("compute", **runs)

    def wire(self) -> list[dict[str, Any]]:
        """Tell what each precision of the wire saves and costs."""
        torch.set_num_threads(1)
        found = wires.rows(self._document, self._parameters, tokens=self._tokens, seed=self._options.seed)
        self._notes += filter(None, [wires.note(found)])
        return found

    def clients(self) -> list[dict[str, Any]]:
        """Have many clients read streamed answers of a testbed's deployment at once."""
        reason = emulated_link.lacking()
        if reason is not None:
            self._notes.append(f"clients not measured: {reason}")
            return []
        count, seconds = (8, 4.0) if self._options.quick else (self._options.clients, self._options.seconds)
        return clients.measure(clients=count, seconds=seconds, seed=self._options.seed, progress=_tell)

    @cached_property
    def _peers(self) -> Peers:
        peers = Peers(self._folder, self._cores, self._tokens, self._options, self._notes)
        peers.write(self._document, self._parameters)
        return peers

    @cached_property
    def _parameters(self) -> dict[str, torch.Tensor]:
        return model.parameters(self._document, seed=self._options.seed)

    def _workers(self, count: int, **more: Any) -> Workers:
        """Start workers, one core after the other."""
        self._started += 1
        cores = [self._cores[place % len(self._cores)] for place in range(count)]
        return Workers(self._folder / f"workers-{self._started}", cores, **more)

    def _deploy(
        self,
        workers: Workers,
        name: str,
        count: int,
        *,
        ranges: Sequence[tuple[int, int]] | None = None,
        compute: str = "fp32",
        begin: int = 0,
    ) -> None:
        layers = self._document["num_hidden_layers"]
        cuts = [layers * place // count for place in range(count + 1)]
        even = list(itertools.pairwise(cuts))
        workers.deploy(name, self._document, self._parameters, ranges or even, compute=compute, begin=begin)

    def _even_work(self) -> list[tuple[int, int]]:
        """Cut in two where both halves read the same number of bytes, the LM head counted."""
        layers = self._document["num_hidden_layers"]
        head = self._parameters["lm_head.weight"].numel()
        layer = (sum(value.numel() for value in self._parameters.values()) - 2 * head) / layers
        first = max(1, min(layers - 1, round((layers - head / layer) / 2)))
        return [(0, first), (first, layers)]

    def _one_request(self, workers: Workers, name: str) -> dict[str, Any]:
        told = workers.generate(name, tokens=self._tokens)[0]
        decode_s = sum(fields["elapsed_s"] for fields in told[1:])
        return {
            "tokens_per_s": (len(told) - 1) / decode_s,
            "tokens": [fields["token"] for fields in told],
            "margins": [fields["margin"] for fields in told],
        }

    def _many_requests(self, workers: Workers, *names: str, requests: int = _REQUESTS) -> dict[str, Any]:
        """Measure from when the last request has its first token to when the first has its last.

        Answers so short that they never all run at once are asked for again, twice as long.
        """
        most = self._document["max_position_embeddings"] - len(model.PROMPT)
        tokens = self._tokens
        while tokens <= most:
            answers = workers.generate(*names, tokens=tokens, requests=requests)
            since_s = max(told[0]["heard_s"] for told in answers)
            until_s = min(told[-1]["heard_s"] for told in answers)
            count = sum(since_s < fields["heard_s"] <= until_s for told in answers for fields in told)
            if count:
                return {"tokens_per_s": count / (until_s - since_s)}
            tokens *= 2
        raise RuntimeError(
            f"{requests} requests of up to {most} tokens never ran at once; the machine is too busy"
        )

    def _paired(self, part: str, **runs: Run) -> list[dict[str, Any]]:
        rows = []
        for pair in range(self._pairs):
            for name in _in_turn(runs, pair):
                told = runs[name]()
                rows.append({"part": part, "arm": name, "pair": pair, **_figures(told)})
        return rows

    def _beside(self, peer: Arm, ours: Mapping[str, Any]) -> dict[str, Any]:
        told = peer.round()
        return {**told, **self._compared(peer.plan.name, told, ours)}

    def _compared(self, name: str, told: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
        """Say whether a peer that tells its tokens made ours; a difference at a tie is no difference."""
        if name == "ours" or "tokens" not in told:
            return {"same_tokens": None}
        place = figures.first_difference(ours["tokens"], told["tokens"])
        if place is None:
            return {"same_tokens": True}
        margin = ours["margins"][place]
        return {"same_tokens": margin < _CLEAR_MARGIN, "first_difference": place, "margin_there": margin}


def _figures(told: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what stands in a row."""
    return {name: told[name] for name in _FIGURES if name in told}


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _in_turn(names: Mapping[str, Any], pair: int) -> list[str]:
    """Give the order within a pair: another one begins each time."""
    order = list(names)
    return order[pair % len(order) :] + order[: pair % len(order)]
