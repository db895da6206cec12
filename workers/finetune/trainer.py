"""Fine-tuning on a node: holds the jobs' parameters and data, has their steps run, answers the differences.

Serves `train.*` of docs/wire_protocol.md. The work is real; `device.Span.finish` then waits until a device
of this node's power would have been done.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workers import fields
from workers.device import Pacer, Timing, training_s
from workers.errors import DataError, ModelError, RequestRefused
from workers.finetune import updates
from workers.finetune.local_data import read_folder
from workers.finetune.training import train
from workers.finetune.training_job import Job, Parameters, Plan
from workers.finetune.updates import Update, UpdateFault
from workers.models.architecture import Architecture, Shapes, architecture
from workers.models.chain import check_parameters
from workers.models.loader import digest
from workers.models.tokenizer import Tokenizer
from workers.wire.frames import Frame, Tensor
from workers.wire.link import Reply

logger = logging.getLogger(__name__)

MAX_JOBS = 8
_TOKENIZER_LIMIT = 16 * 1024 * 1024


class Trainer:
    """Serves the `train.*` requests of one node; thread-safe."""

    def __init__(self, pacer: Pacer, local_data: Path | None = None) -> None:
        self._pacer = pacer
        self._local_data = local_data
        self._device = torch.device(pacer.profile.device)
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._commands = {
            "train.load": self._load,
            "train.data": self._take_data,
            "train.run": self._run,
            "train.update": self._update,
            "train.holding": self._holding,
            "train.end": self._end,
        }

    def handle(self, frame: Frame) -> Reply:
        """Serve one request.

        Raises:
            RequestRefused: unknown job, wrong field or parameters, too little data, or no finite result.
        """
        command = self._commands.get(frame.kind)
        if command is None:
            raise RequestRefused("not-served", f"a trainer does not know {frame.kind!r}")
        try:
            return command(frame)
        except ModelError as error:
            raise RequestRefused("bad-model", str(error)) from error

    def close(self) -> None:
        """End all jobs; a running one stops at its next step."""
        with self._lock:
            jobs, self._jobs = list(self._jobs.values()), {}
        for job in jobs:
            job.ended.set()

    def _load(self, frame: Frame) -> Reply:
        name = fields.text(frame.fields, "job")
        config = architecture(fields.section(frame.fields, "config"))
        plan = Plan.parse(fields.section(frame.fields, "training"))
        trained, base = plan.shapes(config)
        everything = _checked({**base, **trained}, frame.tensors)
        job = Job(
            config,
            plan,
            fields.integer(frame.fields, "version"),
            {name: everything[name] for name in trained},
            {name: everything[name] for name in base},
        )
        with self._lock:
            if name not in self._jobs and len(self._jobs) >= MAX_JOBS:
                raise RequestRefused("busy", f"{MAX_JOBS} jobs are loaded; end one with train.end first")
            replaced = self._jobs.get(name)
            self._jobs[name] = job
        if replaced:
            replaced.ended.set()
        return Reply({"version": job.version, "digest": digest(everything)})

    def _take_data(self, frame: Frame) -> Reply:
        job = self._job(frame)
        tokens = frame.tensors.get("tokens")
        if tokens is None or tokens.ndim != 1 or tokens.dtype not in (np.int32, np.uint8):
            raise RequestRefused("bad-tensor", "tokens must be a 1-d tensor of i32 or u8")
        if len(tokens) <= job.plan.sequence_length:
            raise RequestRefused(
                "too-little-data",
                f"{len(tokens)} tokens; one sequence needs {job.plan.sequence_length + 1}",
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= job.config.vocabulary_size:
            raise RequestRefused(
                "bad-tensor", f"tokens from {low} to {high}; the vocabulary has {job.config.vocabulary_size}"
            )
        own = self._own_tokens(frame, job.config)
        with job.lock:
            job.data_digest = hashlib.sha256(tokens.tobytes()).hexdigest()
            job.data = torch.from_numpy(tokens.copy())
            if len(own):
                job.data = torch.cat([job.data.int(), torch.from_numpy(own)])
        wanted = "tokenizer_json" in frame.fields
        return Reply({"tokens": len(tokens), **({"local_tokens": len(own)} if wanted else {})})

    def _own_tokens(self, frame: Frame, config: Architecture) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Tokenise the node's own data, if it has any and the job wants them."""
        if self._local_data is None or "tokenizer_json" not in frame.fields:
            return np.empty(0, dtype=np.int32)
        tokenizer = Tokenizer(fields.text(frame.fields, "tokenizer_json", longest=_TOKENIZER_LIMIT))
        try:
            own = np.array(tokenizer.encode(read_folder(self._local_data)), dtype=np.int32)
        except DataError as error:
            raise RequestRefused("bad-data", str(error)) from error
        if own.max(initial=0) >= config.vocabulary_size:
            raise RequestRefused("bad-model", "the tokeniser has tokens that the model has not")
        return own

    def _update(self, frame: Frame) -> Reply:
        job = self._job(frame)
        with job.lock:
            self._replace(job, frame)
        return _versioned(job)

    def _holding(self, frame: Frame) -> Reply:
        """Say what is held of a job, and stop what runs of it: whoever asks has lost track of it.

        Parameters and data are never changed in place, so the new job may share them with the stopped one.
        """
        name = fields.text(frame.fields, "job")
        stopped = self._job(frame)
        job = stopped.again()
        with self._lock:
            if self._jobs.get(name) is not stopped:
                raise RequestRefused("no-such-job", f"job {name!r} was ended or replaced meanwhile")
            self._jobs[name] = job
        stopped.ended.set()
        version, parameters = job.held
        return Reply({"version": version, "digest": digest(parameters), "data_digest": job.data_digest})

    def _end(self, frame: Frame) -> Reply:
        with self._lock:
            job = self._jobs.pop(fields.text(frame.fields, "job"), None)
        if job:
            job.ended.set()
        return Reply()

    def _run(self, frame: Frame) -> Reply:
        job = self._job(frame)
        epoch = fields.integer(frame.fields, "epoch")
        seed = fields.integer(frame.fields, "seed")
        with job.lock:
            if frame.tensors:
                self._replace(job, frame)
            wanted = fields.integer(frame.fields, "version")
            if wanted != job.version:
                raise RequestRefused(
                    "wrong-version", f"this node has version {job.version}, not {wanted}; send the parameters"
                )
            if job.data is None:
                raise RequestRefused("no-data", "this node has no data of the job; send train.data first")
            span = self._pacer.begin()
            try:
                update, loss = train(job, job.data, seed=seed, epoch=epoch, device=self._device)
                sent = _encoded(job, update)
                timing = span.finish(self._modelled_s(job), interrupt=job.ended)
            finally:
                span.abandon()
        if job.ended.is_set():
            raise RequestRefused("ended", "the job was ended while it ran")
        logger.info(
            "epoch %d: loss %.3f in %.2f s (late %.2f s)", epoch, loss, timing.elapsed_s, timing.late_s
        )
        return Reply(_report(job, epoch, loss, timing), sent)

    def _modelled_s(self, job: Job) -> float:
        adapters = 0 if job.plan.lora is None else sum(value.numel() for value in job.parameters.values())
        return training_s(
            self._pacer.profile,
            parameters=job.config.parameters + adapters,
            trained=adapters or None,
            layers=job.config.layers,
            tokens=job.plan.tokens,
            steps=job.plan.local_steps,
        )

    def _replace(self, job: Job, frame: Frame) -> None:
        """Take the frame's parameters as the job's; `job.lock` is held."""
        version = fields.integer(frame.fields, "version")
        if version < job.version and frame.fields.get("anew") is not True:
            raise RequestRefused(
                "wrong-version", f"version {version} is older than {job.version}, which is held"
            )
        job.held = (version, _checked(job.plan.shapes(job.config)[0], frame.tensors))

    def _job(self, frame: Frame) -> Job:
        name = fields.text(frame.fields, "job")
        with self._lock:
            job = self._jobs.get(name)
        if job is None:
            raise RequestRefused("no-such-job", f"job {name!r} is not loaded here; send train.load first")
        return job


def _checked(expected: Shapes, tensors: Mapping[str, Tensor]) -> Parameters:
    check_parameters(expected, {name: tensor.shape for name, tensor in tensors.items()})
    return fields.parameters(tensors)


def _versioned(job: Job) -> Reply:
    with job.lock:
        return Reply({"version": job.version, "digest": digest(job.parameters)})


def _report(job: Job, epoch: int, loss: float, timing: Timing) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "version": job.version,
        "train_s": timing.elapsed_s,
        "real_s": timing.real_s,
        "late_s": timing.late_s,
        "samples": job.plan.samples,
        "tokens": job.plan.tokens,
        "loss": loss,
    }


def _encoded(job: Job, update: Update) -> Update:
    """Put an update into its form on the wire, and keep what top-k leaves out for the next."""
    plan = job.plan
    if plan.encoding == "topk" and job.residual:
        update = {name: value + job.residual[name] for name, value in update.items()}
    try:
        sent = updates.encode(update, plan.encoding, ratio=plan.topk_ratio)
    except UpdateFault as error:
        raise RequestRefused("not-finite", str(error)) from error
    if plan.encoding == "topk":
        shapes = {name: value.shape for name, value in update.items()}
        arrived = updates.decode(sent, shapes, plan.encoding, ratio=plan.topk_ratio)
        job.residual = {name: value - arrived[name] for name, value in update.items()}
    return sent
