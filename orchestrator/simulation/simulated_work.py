"""What a round asks of simulated nodes, as the live driver and the nodes' devices would say it."""

from __future__ import annotations

from orchestrator.core.workload import Workload
from orchestrator.finetune import messages as m
from orchestrator.simulation.world import Node, Work, World
from workers.device import BACKWARD_FACTOR, DeviceProfile, training_flops, training_s


def train_s(node: Node, work: Work, name: str) -> float:
    """Say how long a node computes in an epoch."""
    task = work.tasks[name]
    profile = DeviceProfile(
        device="cpu",
        cpu_count=1,
        memory_bytes=1,
        compute_flops=node.compute_flops,
        layer_overhead_s=node.layer_overhead_s,
        power=node.power,
        emulated=True,
        pacing=True,
        torch="",
        pid=0,
    )
    return training_s(
        profile,
        parameters=work.parameters,
        trained=work.trained,
        layers=work.layers,
        tokens=task.tokens,
        steps=task.steps,
    )


def workload(spec: m.JobSpec, work: Work, world: World) -> Workload:
    """Say what the live driver would say of a round; where nodes' rounds differ, of the mean one."""
    tasks = {name: work.tasks[name] for name in spec.nodes if name in work.tasks}
    passes = 1 + BACKWARD_FACTOR
    count = max(len(tasks), 1)
    tokens = round(sum(task.tokens for task in tasks.values()) / count)
    steps = sum(task.steps for task in tasks.values()) / count
    return Workload(
        model_bytes=work.model_bytes,
        update_bytes=work.update_bytes,
        data_bytes={name: task.data_bytes for name, task in tasks.items()},
        base_bytes=work.base_bytes,
        flops=training_flops(parameters=work.parameters, trained=work.trained, tokens=tokens) or None,
        layer_passes=round(steps * passes * work.layers),
        samples={name: float(task.samples) for name, task in tasks.items()},
        makeup=work.makeup,
        congestion_control=world.congestion_control,
        orchestrator_bps=_shared_bps(spec, world),
    )


def _shared_bps(spec: m.JobSpec, world: World) -> float | None:
    """Return the rate of the link that all the nodes' downward paths begin with, if they share it."""
    first = {node.down[0] for node in world.nodes if node.name in spec.nodes}
    rates = {link.name: link.rate_bps for link in world.links}
    return rates[first.pop()] if len(first) == 1 else None
