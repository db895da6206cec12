"""Fine-tuning on a node: holds a job's parameters and data, runs local steps, answers the difference.

Serves `train.*` of docs/wire_protocol.md. The work is real; `device.Span.finish` then waits until a device
of this node's power would have been done.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from workers import fields, updates
from workers.device import Pacer, Timing, training_s
from workers.errors import DataError, ModelError, RequestRefused
from workers.link import Reply
from workers.local_data import read_folder
from workers.lora import Lora, adapter_shapes
from workers.lora_layers import attach
from workers.models.architecture import Architecture, Shapes, architecture
from workers.models.chain import check_parameters
from workers.models.loader import digest
from workers.models.tokenizer import Tokenizer
from workers.models.trainable import build
from workers.models.trainable import loss as loss_of
from workers.schedule import SCHEDULES, Schedule
from workers.updates import Update, UpdateFault
from workers.wire import Frame, Tensor

logger = logging.getLogger(__name__)

MAX_JOBS = 8
_TOKENIZER_LIMIT = 16 * 1024 * 1024
GRADIENT_NORM = 1.0
"""Gradients are scaled down to this norm, so that one odd batch cannot throw a node far off."""
_ADAM_BETAS = (0.9, 0.95)

Parameters = dict[str, torch.Tensor]
Trained = dict[str, torch.nn.Parameter]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a node does in one epoch."""

    local_steps: int
    batch_size: int
    sequence_length: int
    learning_rate: float
    optimiser: str
    synchronisation: str
    schedule: Schedule
    encoding: str
    topk_ratio: float
    lora: Lora | None

    @classmethod
    def parse(cls, section: Mapping[str, Any]) -> Plan:
        """Check the `training` map of `train.load`."""
        return cls(
            local_steps=fields.integer(section, "local_steps", least=1, most=100_000),
            batch_size=fields.integer(section, "batch_size", least=1, most=4_096),
            sequence_length=fields.integer(section, "sequence_length", least=8, most=65_536),
            learning_rate=fields.number(section, "learning_rate", most=10.0),
            optimiser=fields.choice(section, "optimiser", ("adamw", "sgd")),
            synchronisation=fields.choice(section, "synchronisation", ("local_steps", "gradient")),
            schedule=Schedule(
                kind=fields.choice(section, "schedule", SCHEDULES),
                total_steps=fields.integer(section, "total_steps", least=1),
                warmup_steps=fields.integer(section, "warmup_steps"),
                final_ratio=fields.number(section, "final_learning_rate_ratio", above=-1e-9, most=1.0),
            ),
            encoding=fields.choice(section, "update_encoding", updates.ENCODINGS),
            topk_ratio=fields.number(section, "topk_ratio", most=1.0),
            lora=_lora(section),
        )

    @property
    def samples(self) -> int:
        """Sequences of one epoch."""
        return self.local_steps * self.batch_size

    @property
    def tokens(self) -> int:
        """Tokens of one epoch."""
        return self.samples * self.sequence_length


class Job:
    """One fine-tuning job on this node. Commands of a job are served one at a time, under `lock`."""

    def __init__(
        self, config: Architecture, plan: Plan, version: int, parameters: Parameters, base: Parameters
    ) -> None:
        """`parameters` are trained; `base` are those under adapters, none without them."""
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.config = config
        self.plan = plan
        self.held = (version, parameters)
        self.base = base
        self.data: torch.Tensor | None = None
        self.data_digest: str | None = None
        """SHA-256 of the tokens that came; the node's own are not in it."""
        self.residual: Update = {}
        """What top-k has not sent yet; a node that is loaded anew begins without."""

    @property
    def version(self) -> int:
        """Version of the parameters held."""
        return self.held[0]

    @property
    def parameters(self) -> Parameters:
        """The parameters held; replaced as a whole, never changed."""
        return self.held[1]

    def again(self) -> Job:
        """Return the same job, not ended and with nothing running."""
        job = Job(self.config, self.plan, *self.held, self.base)
        job.data, job.data_digest = self.data, self.data_digest
        job.residual = self.residual
        return job


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
        trained, base = _shapes(config, plan)
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
                update, loss = _train(job, job.data, seed=seed, epoch=epoch, device=self._device)
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
        job.held = (version, _checked(_shapes(job.config, job.plan)[0], frame.tensors))

    def _job(self, frame: Frame) -> Job:
        name = fields.text(frame.fields, "job")
        with self._lock:
            job = self._jobs.get(name)
        if job is None:
            raise RequestRefused("no-such-job", f"job {name!r} is not loaded here; send train.load first")
        return job


def _lora(section: Mapping[str, Any]) -> Lora | None:
    rank = fields.integer(section, "lora_rank", most=1024)
    alpha = fields.number(section, "lora_alpha", most=10_000)
    return Lora(rank=rank, alpha=alpha) if rank else None


def _shapes(config: Architecture, plan: Plan) -> tuple[Shapes, Shapes]:
    """Return the shapes of what is trained, and of what stays as it is under it."""
    if plan.lora is None:
        return config.shapes, {}
    return adapter_shapes(config.projections, plan.lora), config.shapes


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


def _train(
    job: Job, data: torch.Tensor, *, seed: int, epoch: int, device: torch.device
) -> tuple[Update, float]:
    """Train from the job's parameters; return the update, and the mean loss in nats.

    The update is trained minus start, or minus the mean gradient. The same parameters, data, seed and epoch
    give the same result. The job's parameters stay as they are.
    """
    model, trained = _learner(job, device)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    whole = job.plan.synchronisation == "gradient"
    losses = (_gradients if whole else _local_steps)(job, model, trained, data, generator, epoch)
    update = _negative_gradient(trained) if whole else _difference(trained, job.parameters)
    broken = [name for name, value in update.items() if not np.isfinite(value).all()]
    if broken:
        raise RequestRefused("not-finite", f"{broken[0]} is no longer finite; use a smaller learning rate")
    return update, sum(losses) / len(losses)


def _learner(job: Job, device: torch.device) -> tuple[nn.Module, Trained]:
    """Make the model around copies of what is trained, on `device`; return it and them by name."""
    copies = {name: value.to(device, copy=True) for name, value in job.parameters.items()}
    if job.plan.lora is None:
        model = build(job.config, copies)
        return model, dict(model.named_parameters())
    model = build(job.config, {name: value.to(device) for name, value in job.base.items()})
    return model, attach(model, copies, job.plan.lora.scale)


def _local_steps(
    job: Job, model: nn.Module, trained: Trained, data: torch.Tensor, generator: torch.Generator, epoch: int
) -> list[float]:
    """Take the epoch's optimiser steps; return their losses."""
    optimiser = _optimiser(trained, job.plan)
    losses = []
    for step in range(job.plan.local_steps):
        optimiser.zero_grad()
        losses.append(_backward(job, model, data, generator, step))
        torch.nn.utils.clip_grad_norm_(trained.values(), GRADIENT_NORM)
        factor = job.plan.schedule.factor(epoch * job.plan.local_steps + step)
        for group in optimiser.param_groups:
            group["lr"] = job.plan.learning_rate * factor
        optimiser.step()
    return losses


def _gradients(
    job: Job, model: nn.Module, trained: Trained, data: torch.Tensor, generator: torch.Generator, _epoch: int
) -> list[float]:
    """Leave the mean gradient over the epoch's batches with the model; return their losses."""
    losses = [_backward(job, model, data, generator, step) for step in range(job.plan.local_steps)]
    for parameter in trained.values():
        if parameter.grad is not None:
            parameter.grad /= job.plan.local_steps
    torch.nn.utils.clip_grad_norm_(trained.values(), GRADIENT_NORM)
    return losses


def _backward(job: Job, model: nn.Module, data: torch.Tensor, generator: torch.Generator, step: int) -> float:
    """Add one batch's gradients to the model's; return its loss."""
    if job.ended.is_set():
        raise RequestRefused("ended", "the job was ended while it ran")
    batch = _sample(data, job.plan, generator)
    loss = loss_of(model, batch.to(next(model.parameters()).device))
    loss.backward()
    value = float(loss.detach())
    if not np.isfinite(value):
        raise RequestRefused(
            "not-finite", f"the loss of step {step + 1} is {value}; use a smaller learning rate"
        )
    return value


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


def _optimiser(trained: Trained, plan: Plan) -> torch.optim.Optimizer:
    parameters = list(trained.values())
    if plan.optimiser == "sgd":
        return torch.optim.SGD(parameters, lr=plan.learning_rate)
    return torch.optim.AdamW(parameters, lr=plan.learning_rate, betas=_ADAM_BETAS)


def _sample(data: torch.Tensor, plan: Plan, generator: torch.Generator) -> torch.Tensor:
    """Draw a batch of sequences, [batch, length + 1], from anywhere in the data."""
    length = plan.sequence_length
    starts = torch.randint(0, len(data) - length, (plan.batch_size,), generator=generator).tolist()
    return torch.stack([data[start : start + length + 1] for start in starts]).long()


def _difference(trained: Trained, start: Parameters) -> Update:
    return {name: (trained[name].detach().cpu() - value).numpy() for name, value in start.items()}


def _negative_gradient(trained: Trained) -> Update:
    return {
        name: np.zeros(tuple(value.shape), np.float32) if value.grad is None else -value.grad.cpu().numpy()
        for name, value in trained.items()
    }
