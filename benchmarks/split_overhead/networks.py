"""The part `networks`: two stages over an emulated link, against what physics allows."""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.split_overhead import hop, limits
from benchmarks.split_overhead.emulated_link import CONTROL, DATA, Cell, EmulatedLink, emulated_link
from benchmarks.split_overhead.nodes import Site, Workers
from topologies.links import shaper
from workers.inference.shard import ShardHost
from workers.inference.stage import Stage

DELAYS_S, RATES_BPS, LOSS_RATIOS = (0.0, 0.01, 0.05, 0.1), (10e6, 100e6, 1000e6), (0.0, 0.01)
_QUICK = (Cell(delay_s=0.01, rate_bps=100e6, loss_ratio=0.0),)
_BARE = "bare"
_BARE_CONTEXT_TOKENS = 17_000
_PROMPT_TOKENS = 768
_BULK_PORT = 7200
_SAMPLE_S = 0.002
_SETTLE_S = 0.3
_DECODE_S = 3.0
_TURNS = 4
_TIMEOUT_S = 60.0
Progress = Callable[[str], None]
Made = TypeVar("Made")


class BareShardHost(ShardHost):
    """A shard host whose deployments called `bare` compute nothing: their rows go on as they come."""

    def _make_stage(self, assignment: Any, parameters: Any, link: Any, deployment: Any) -> Stage:
        kind = hop.TimingStage if assignment.deployment == _BARE else Stage
        return kind(
            assignment, parameters, link=link, pacer=self._pacer, deployment=deployment, ending=self._ending
        )


def cells(asked: Sequence[tuple[float, float, float]] | None, *, quick: bool) -> Sequence[Cell]:
    """List what the link does in turn; what needs no delay line comes first, while there is none.

    `asked`: (delay in s, bit/s, loss ratio) instead of the usual ones.
    """
    if asked:
        return [Cell(delay_s=delay_s, rate_bps=bps, loss_ratio=loss) for delay_s, bps, loss in asked]
    if quick:
        return _QUICK
    return [
        Cell(delay_s=delay_s, rate_bps=rate_bps, loss_ratio=loss_ratio)
        for delay_s in DELAYS_S
        for loss_ratio in LOSS_RATIOS
        for rate_bps in RATES_BPS
    ]


def measure(
    folder: Path,
    cores: Sequence[int],
    document: dict[str, Any],
    parameters: dict[str, torch.Tensor],
    *,
    asked: Sequence[tuple[float, float, float]] | None,
    quick: bool,
    seed: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Measure every cell; each has connections of its own, as young in all of them."""
    rows = []
    with emulated_link(seed=seed) as link:
        sites = [Site(address=address, netns=link.namespace(end)) for end, address in enumerate(DATA)]
        control = Site(address=CONTROL[0], netns=link.namespace(0))
        pinned = [cores[end % len(cores)] for end in range(2)]
        with Workers(folder, pinned, make_shards=BareShardHost, sites=sites, control=control) as workers:
            layers = document["num_hidden_layers"]
            halves = [(0, layers // 2), (layers // 2, layers)]
            bed = _Bed(link, workers, document, parameters, halves, quick=quick)
            workers.deploy("one", document, parameters, [(0, layers)])
            todo = cells(asked, quick=quick)
            for number, cell in enumerate(todo, start=1):
                progress(f"networks {number} of {len(todo)}: {cell.describe()}")
                rows += bed.cell(cell)
    return rows


class _Bed:
    def __init__(
        self,
        link: EmulatedLink,
        workers: Workers,
        document: dict[str, Any],
        parameters: dict[str, torch.Tensor],
        halves: Sequence[tuple[int, int]],
        *,
        quick: bool,
    ) -> None:
        self._link = link
        self._workers = workers
        self._document = document
        self._bare_document = {**document, "max_position_embeddings": _BARE_CONTEXT_TOKENS}
        self._parameters = parameters
        self._halves = halves
        self._quick = quick

    def cell(self, cell: Cell) -> list[dict[str, Any]]:
        """Measure one cell: decoding, a prompt through the model, rows alone, and a bulk transfer.

        Connections are made when the link is as it is to be: TCP remembers the round trips of before.
        """
        prompt_compute_s = self._computing_prompt()
        self._link.become(cell)
        with self._deployed("split", self._document):
            found = [self._decode(cell), self._prompt(cell, prompt_compute_s)]
        with self._deployed(_BARE, self._bare_document):
            found.append(self._rows_alone(cell))
        found.append(self._bulk(cell, found[-1]["payload_bytes"]))
        found[-2]["use_of_bulk"] = _ratio(found[-2]["link_bps"], found[-1]["link_bps"])
        conditions = {"delay_s": cell.delay_s, "rate_bps": cell.rate_bps, "loss_ratio": cell.loss_ratio}
        return [{"part": limits.PART, "cell": cell.describe(), **conditions, **row} for row in found]

    @contextmanager
    def _deployed(self, name: str, document: dict[str, Any]) -> Iterator[None]:
        self._workers.deploy(name, document, self._parameters, self._halves)
        yield
        self._workers.retire(name, 2)

    def _computing(self, tokens: int) -> list[float]:
        """Return what one process takes for each of so many tokens, without any link."""
        told = self._workers.generate("one", tokens=tokens + 1)[0]
        return [fields["elapsed_s"] for fields in told[1:]]

    def _computing_prompt(self) -> float:
        """Return what one process takes for the prompt, without any link."""
        self._workers.generate("one", tokens=2)
        told = self._workers.generate("one", tokens=1, prompt=self._prompt_tokens())[0]
        return float(told[0]["elapsed_s"])

    def _decode(self, cell: Cell) -> dict[str, Any]:
        """Time tokens over the link and within one process by turns: a machine's pace changes in seconds."""
        wanted = int(_DECODE_S / (2 * cell.delay_s + 0.02))
        tokens = 4 if self._quick else max(16, min(120, wanted)) // _TURNS
        self._workers.generate("split", tokens=3)
        self._link.emulation()
        prompt_bytes = self._passing(lambda: self._workers.generate("split", tokens=1))[1]
        all_bytes = self._passing(lambda: self._workers.generate("split", tokens=tokens + 1))[1]
        round_bytes = (all_bytes - prompt_bytes) / tokens
        took: list[float] = []
        alone: list[float] = []
        for _ in range(1 if self._quick else _TURNS):
            alone += self._computing(tokens)
            told = self._workers.generate("split", tokens=tokens + 1)[0]
            took += [fields["elapsed_s"] for fields in told[1:]]
        compute_s = statistics.median(alone)
        least_s = limits.token_s(
            compute_s=compute_s,
            delay_s=cell.delay_s,
            round_bytes=round_bytes,
            rate_bps=cell.rate_bps,
            burst_bytes=shaper.burst_bytes(cell.rate_bps) if self._link.backend == "nfqueue" else 0,
        )
        median_s, mean_s = statistics.median(took), statistics.fmean(took)
        return {
            "arm": "decode",
            "tokens": len(took),
            "token_s": median_s,
            "token_s_mean": mean_s,
            "token_s_most": max(took),
            "limit_s": least_s,
            "compute_s": compute_s,
            "round_bytes": round_bytes,
            "median_over_limit": median_s / least_s,
            "mean_over_limit": mean_s / least_s,
            **self._link.emulation(),
        }

    def _prompt(self, cell: Cell, compute_s: float) -> dict[str, Any]:
        """Time a prompt through both halves of the model; the second one on these connections counts."""
        prompt = self._prompt_tokens()
        cold = self._workers.generate("split", tokens=1, prompt=prompt)[0][0]["elapsed_s"]
        with _sampled(self._link) as samples:
            warm = self._workers.generate("split", tokens=1, prompt=prompt)[0][0]["elapsed_s"]
        sent = samples[-1][1] - samples[0][1]
        least_s = limits.prompt_s(
            compute_s=compute_s, delay_s=cell.delay_s, sent_bytes=sent, rate_bps=cell.rate_bps
        )
        return {
            "arm": "prompt",
            "tokens": len(prompt),
            "first_token_s": warm,
            "first_token_s_cold": cold,
            "limit_s": least_s,
            "over_limit": warm / least_s,
            "compute_s": compute_s,
            "sent_bytes": sent,
            "link_is_bottleneck": 8 * sent / cell.rate_bps > compute_s / 2,
            **self._link.emulation(),
        }

    def _rows_alone(self, cell: Cell) -> dict[str, Any]:
        """Send a prompt's rows through stages that compute nothing, so that the link is the bottleneck."""
        prompt = [7] * self._bare_tokens(cell)
        payload = len(prompt) * 4 * self._document["hidden_size"]
        rates: list[float | None] = []
        sent = 0
        for _ in range(2):
            with _sampled(self._link) as samples:
                self._workers.generate(_BARE, tokens=1, prompt=prompt)
            rates.append(limits.transfer_bps(samples, payload))
            sent = samples[-1][1] - samples[0][1]
        return {"arm": "prompt rows", "tokens": len(prompt), **self._transferred(cell, payload, sent, rates)}

    def _bulk(self, cell: Cell, size: int) -> dict[str, Any]:
        """Send as many bytes over plain TCP, twice on a new connection as the rows were."""
        rates: list[float | None] = []
        sent = 0
        with _connection(self._link) as (sending, receiving):
            for _ in range(2):
                with _sampled(self._link) as samples:
                    _send(sending, receiving, size)
                rates.append(limits.transfer_bps(samples, size))
                sent = samples[-1][1] - samples[0][1]
        return {"arm": "bulk", **self._transferred(cell, size, sent, rates)}

    def _transferred(
        self, cell: Cell, payload: int, sent: int, rates: Sequence[float | None]
    ) -> dict[str, Any]:
        return {
            "payload_bytes": payload,
            "sent_bytes": sent,
            "link_bps": rates[-1],
            "use_of_rate": _ratio(rates[-1], cell.rate_bps),
            "use_of_rate_cold": _ratio(rates[0], cell.rate_bps),
            **self._link.emulation(),
        }

    def _passing(self, generate: Callable[[], Made]) -> tuple[Made, int]:
        """Return what `generate` makes, and the bytes that have reached both ends over the link meanwhile."""
        time.sleep(_SETTLE_S)
        before = self._passed()
        made = generate()
        time.sleep(_SETTLE_S)
        return made, self._passed() - before

    def _passed(self) -> int:
        return sum(self._link.counters(end)[0] for end in (0, 1))

    def _prompt_tokens(self) -> list[int]:
        count = 64 if self._quick else _PROMPT_TOKENS
        return [(11 + 7 * place) % self._document["vocab_size"] for place in range(count)]

    def _bare_tokens(self, cell: Cell) -> int:
        """Return rows for a second on the link, or eight round trips."""
        seconds = 0.05 if self._quick else max(1.0, 16 * cell.delay_s)
        row_bytes = 4 * self._document["hidden_size"]
        return max(64, min(_BARE_CONTEXT_TOKENS - 1000, int(cell.rate_bps / 8 * seconds / row_bytes)))


def _ratio(value: float | None, of: float | None) -> float | None:
    return None if value is None or not of else value / of


@contextmanager
def _sampled(link: EmulatedLink) -> Iterator[list[tuple[float, int]]]:
    """Collect (seconds, bytes that have reached the second end) while the body runs."""
    time.sleep(_SETTLE_S)  # what was under way before has passed
    samples = [(time.monotonic(), link.counters(1)[0])]
    ended = threading.Event()

    def collect() -> None:
        while not ended.wait(_SAMPLE_S):
            samples.append((time.monotonic(), link.counters(1)[0]))

    thread = threading.Thread(target=collect, name="sample the link", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


@contextmanager
def _connection(link: EmulatedLink) -> Iterator[tuple[socket.socket, socket.socket]]:
    listening = link.inside(1, lambda: socket.create_server((DATA[1], _BULK_PORT)))
    with listening:
        sending = link.inside(0, lambda: socket.create_connection((DATA[1], _BULK_PORT), _TIMEOUT_S))
        with sending:
            listening.settimeout(_TIMEOUT_S)
            receiving, _ = listening.accept()
            with receiving:
                receiving.settimeout(_TIMEOUT_S)
                yield sending, receiving


def _send(sending: socket.socket, receiving: socket.socket, size: int) -> None:
    """Send so many bytes from one socket to the other."""

    def receive() -> None:
        left, buffer = size, bytearray(1 << 20)
        while left > 0 and (count := receiving.recv_into(buffer)):
            left -= count

    thread = threading.Thread(target=receive, name="receive in bulk", daemon=True)
    thread.start()
    sending.sendall(bytes(size))
    thread.join(_TIMEOUT_S)
