"""What the orchestrator asks a node in a fine-tuning job: load, train a round, take an update, end.

Serves one job; calls come from many threads, for one node at most one at a time but for its end. Whatever a
node answers is checked here before anything believes it.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import WorkerError, WorkerRefused
from orchestrator.finetune.intake import Intake, Landing
from orchestrator.finetune.parameters import MOST_UNITS, Parameters, spec_fault, value_fault
from orchestrator.ports import Answer, Clock, Json, Tensors, WorkerPool
from scenarios.schema import Training
from workers.finetune import updates
from workers.finetune.updates import UpdateFault
from workers.wire.frames import BodySink, Tensor

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0
_END_TIMEOUT_S = 10.0
_WORKERS_KEYS = {
    "local_steps",
    "batch_size",
    "sequence_length",
    "learning_rate",
    "optimiser",
    "synchronisation",
    "schedule",
    "final_learning_rate_ratio",
    "update_encoding",
    "topk_ratio",
    "lora_rank",
    "lora_alpha",
}


class Received:
    """A checked update that lies in the intake until it is added up or given up."""

    def __init__(self, landing: Landing, decoded: Tensors | None) -> None:
        """`decoded`: its tensors in fp32, where it came in another form."""
        self._landing = landing
        self._decoded = decoded

    def pieces(self) -> Iterator[tuple[str, Tensor]]:
        """Give the tensors, once, whole or piece by piece; their room is free as the next is asked for."""
        if self._decoded is None:
            yield from self._landing.pieces()
        else:
            yield from self._decoded.items()

    def close(self) -> None:
        """Give the room back."""
        self._decoded = None
        self._landing.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAnswer:
    """A node's answer to a round: its report and its update, or why it cannot be used."""

    report: Json
    update: Received | None
    round_s: float
    fault: str | None


class Traffic:
    """The bytes of a job's tensors by purpose and direction; thread-safe."""

    def __init__(self, before: Mapping[str, int]) -> None:
        """Count on from what an earlier process of the job counted."""
        self._bytes: Counter[str] = Counter(before)
        self._lock = threading.Lock()

    def add(self, purpose: str, answer: Answer) -> None:
        """Count one request and its answer."""
        with self._lock:
            self._bytes[f"{purpose}_sent_bytes"] += answer.sent_bytes
            self._bytes[f"{purpose}_received_bytes"] += answer.received_bytes

    def totals(self) -> dict[str, int]:
        """Give the bytes so far."""
        with self._lock:
            return dict(self._bytes)


class NodeCalls:
    """The requests of one job to its nodes."""

    def __init__(
        self,
        *,
        job: str,
        pool: WorkerPool,
        clock: Clock,
        seed: int,
        nodes: tuple[str, ...],
        config: Json,
        training: Training,
        epochs: int,
        partitions: Mapping[str, NDArray[Any]],
        timeout_s: float,
        traffic: Traffic,
        base: Parameters,
        digest: Callable[[Parameters], str],
        intake: Intake,
        known: bool,
        tokenizer_json: str | None = None,
    ) -> None:
        """`base` stays as it is under adapters, and is empty where all parameters are trained.

        `known`: nodes may hold the job from an earlier process; `tokenizer_json`: for own data.
        """
        self._job = job
        self._pool = pool
        self._clock = clock
        self._seed = seed
        self._nodes = nodes
        self._config = config
        self._training = training
        self._epochs = epochs
        self._partitions = partitions
        self._timeout_s = timeout_s
        self._asked = set(nodes) if known else set()
        self._holds: dict[str, int] = {}
        self._traffic = traffic
        self._base = base
        self._digest_of = digest
        self._digests: dict[tuple[int, bool], str] = {}
        self._digests_lock = threading.Lock()
        self._tokenizer_json = tokenizer_json
        self._local_tokens: dict[str, int] = {}
        self._intake = intake

    def load(self, node: str, version: int, parameters: Parameters, *, data: bool) -> None:
        """Bring the model, and the node's data if it needs them; what it holds from before, it keeps.

        Raises:
            WorkerError: it cannot be loaded, or holds something else afterwards.
        """
        if not self._take_up(node, version, parameters, data=data):
            fields = {
                "job": self._job,
                "version": version,
                "config": self._config,
                "training": worker_training(self._training, epochs=self._epochs),
            }
            everything = {**self._base, **parameters}
            answer = self._bulk(node, "train.load", fields, everything, purpose="load")
            _check_digest(node, version, answer, self._digest(version, everything, whole=True))
            if data:
                self._send_data(node)
        self._holds[node] = version

    def _send_data(self, node: str) -> None:
        tokens = self._partitions[node]
        fields: Json = {"job": self._job}
        if self._tokenizer_json is not None:
            fields["tokenizer_json"] = self._tokenizer_json
        answer = self._bulk(node, "train.data", fields, {"tokens": tokens}, purpose="load")
        if answer.fields.get("tokens") != len(tokens):
            raise WorkerError(f"node {node} took {answer.fields.get('tokens')} of {len(tokens)} tokens")
        own = answer.fields.get("local_tokens", 0)
        if isinstance(own, int) and own > 0:
            self._local_tokens[node] = own

    def local_tokens(self) -> dict[str, int]:
        """Give how many tokens nodes said to have of their own."""
        return dict(self._local_tokens)

    def _digest(self, version: int, parameters: Parameters, *, whole: bool) -> str:
        """Give the digest of a version, made once however many nodes it is sent to."""
        with self._digests_lock:
            key = (version, whole and bool(self._base))
            if key not in self._digests:
                self._digests[key] = self._digest_of(parameters)
                for old in [known for known in self._digests if known[0] < version - 2]:
                    del self._digests[old]
            return self._digests[key]

    def _take_up(self, node: str, version: int, parameters: Parameters, *, data: bool) -> bool:
        """Have a node that was loaded before go on with what it still holds; False if it does not."""
        asked_before = node in self._asked
        self._asked.add(node)
        if not asked_before:
            return False
        try:
            held = self._bulk(node, "train.holding", {"job": self._job}, None, purpose="load").fields
        except WorkerRefused as error:
            log.info("job %s: %s: it is loaded anew", self._job, error)
            return False
        if data and held.get("data_digest") != hashlib.sha256(self._partitions[node].tobytes()).hexdigest():
            return False
        log.info("job %s: node %s still holds data and version %s", self._job, node, held.get("version"))
        digest = self._digest(version, parameters, whole=False)
        if (held.get("version"), held.get("digest")) != (version, digest):
            self._update(node, version, parameters, anew=True, purpose="load")
        return True

    def round(self, node: str, epoch: int, version: int, parameters: Parameters) -> RoundAnswer:
        """Have a node train an epoch; it is sent the parameters if it holds older ones.

        Raises:
            WorkerError: it did not answer, or refused.
        """
        fields = {
            "job": self._job,
            "epoch": epoch,
            "version": version,
            "seed": self._round_seed(node, epoch),
        }
        fresh = self._holds.get(node) == version
        landing = self._landing(parameters)
        started_s = self._clock.monotonic_s()
        try:
            answer = self._bulk(
                node, "train.run", fields, None if fresh else parameters, purpose="round", into=landing.take
            )
            round_s = self._clock.monotonic_s() - started_s
            self._holds[node] = version
            reason = answer_fault(answer.fields, epoch, version, samples=weight_unit(self._training))
            reason = reason or landing.fault
            update = self._read(landing, parameters) if reason is None else None
        except UpdateFault as error:
            reason, update = str(error), None
        except BaseException:
            landing.close()
            raise
        if update is None:
            landing.close()
        return RoundAnswer(report=answer.fields, update=update, round_s=round_s, fault=reason)

    def _landing(self, parameters: Parameters) -> Landing:
        if self._training.update_encoding == "fp32":
            return self._intake.landing(
                check=lambda specs: spec_fault(specs, parameters), check_values=value_fault
            )
        return self._intake.landing(check=lambda specs: None, check_values=lambda name, values: None)

    def _read(self, landing: Landing, parameters: Parameters) -> Received:
        """Give the update that has landed; one in another form than fp32 is decoded and checked here."""
        if self._training.update_encoding == "fp32":
            return Received(landing, None)
        shapes = {name: array.shape for name, array in parameters.items()}
        update = updates.decode(
            landing.arrays(), shapes, self._training.update_encoding, ratio=self._training.topk_ratio
        )
        for name, values in update.items():
            reason = value_fault(name, values)
            if reason is not None:
                raise UpdateFault(reason)
        return Received(landing, update)

    def sync(self, node: str, version: int, parameters: Parameters) -> None:
        """Bring newer parameters to a node that takes no part.

        Raises:
            WorkerError: it did not take them.
        """
        self._update(node, version, parameters, anew=False, purpose="sync")
        self._holds[node] = version

    def _update(self, node: str, version: int, parameters: Parameters, *, anew: bool, purpose: str) -> None:
        fields = {"job": self._job, "version": version, **({"anew": True} if anew else {})}
        answer = self._bulk(node, "train.update", fields, parameters, purpose=purpose)
        _check_digest(node, version, answer, self._digest(version, parameters, whole=False))

    def end(self, node: str) -> None:
        """Have a node forget the job; one that does not answer forgets it at its next job."""
        try:
            self._pool.request(node, "bulk", "train.end", {"job": self._job}, timeout_s=_END_TIMEOUT_S)
        except WorkerError as error:
            log.info("job %s: %s", self._job, error)

    def _bulk(
        self,
        node: str,
        kind: str,
        fields: Json,
        tensors: Tensors | None,
        *,
        purpose: str,
        into: BodySink | None = None,
    ) -> Answer:
        # The engine decides when a round has taken too long; this is only the end of waiting.
        timeout_s = self._timeout_s + _PATIENCE_S
        answer = self._pool.request(node, "bulk", kind, fields, tensors, timeout_s=timeout_s, into=into)
        self._traffic.add(purpose, answer)
        return answer

    def _round_seed(self, node: str, epoch: int) -> int:
        sequence = np.random.SeedSequence([self._seed, self._nodes.index(node), epoch])
        return int(sequence.generate_state(1)[0])


def worker_training(training: Training, *, epochs: int) -> Json:
    """Give what a worker is told of the training of a job of `epochs` (`training` of train.load)."""
    total_steps = epochs * training.local_steps
    return {
        **training.model_dump(include=_WORKERS_KEYS),
        "total_steps": total_steps,
        "warmup_steps": round(training.warmup_ratio * total_steps),
    }


def _check_digest(node: str, version: int, answer: Answer, expected: str) -> None:
    found = str(answer.fields.get("digest"))
    if found != expected:
        raise WorkerError(
            f"node {node} holds other parameters than version {version}: digest {found[:16]}, "
            f"should be {expected[:16]}"
        )


def weight_unit(training: Training) -> float:
    """Return the samples that a node is asked to train on in a round: the usual weight of its update."""
    return float(training.local_steps * training.batch_size)


def answer_fault(report: Json, epoch: int, version: int, *, samples: float) -> str | None:
    """Say what is wrong with the fields of an answer to `train.run`; None if nothing is.

    `samples` is what was asked for: it is the update's weight, which a node must not choose as it likes.
    """
    if (report.get("epoch"), report.get("version")) != (epoch, version):
        return (
            f"the answer is for epoch {report.get('epoch')} and version {report.get('version')}, "
            f"asked were {epoch} and {version}"
        )
    for name in ("train_s", "real_s", "late_s", "loss"):
        value = report.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"{name} is {value!r}, not a finite number"
        if value < 0:
            return f"{name} is {value!r}, below 0"
    told = report.get("samples")
    if isinstance(told, bool) or not isinstance(told, int) or told < 1:
        return f"samples is {told!r}, not a whole number above 0"
    if told > MOST_UNITS * samples:
        return f"samples is {told}, more than {MOST_UNITS:g} times the {samples:g} that were asked for"
    return None
