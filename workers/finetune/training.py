"""The steps of an epoch: a node's own training, from the parameters and data of a job to its update."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from workers.errors import RequestRefused
from workers.finetune.training_job import Job, Parameters, Plan
from workers.finetune.updates import Update
from workers.models.lora_layers import attach
from workers.models.trainable import build
from workers.models.trainable import loss as loss_of

GRADIENT_NORM = 1.0
"""Gradients are scaled down to this norm, so that one odd batch cannot throw a node far off."""
_ADAM_BETAS = (0.9, 0.95)

Trained = dict[str, torch.nn.Parameter]


def train(
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
