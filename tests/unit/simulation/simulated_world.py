"""A small world to simulate: four nodes behind one link of the orchestrator."""

from __future__ import annotations

from orchestrator.core.jsonable import to_json
from orchestrator.finetune.messages import JobSpec
from orchestrator.simulation import Link, Node, Task, Work, World, simulate
from orchestrator.simulation.loss import Curve, FittedLoss

RATES_BPS = {"h1": 8e6, "h2": 4e6, "h3": 2e6, "h4": 1e6}
CURVE = Curve(start=2.4, floor=1.0, scale=2.0, power=0.5, noise=0.1, memory=0.3, rounds=10)


def make_world(*, loss_ratio: float = 0.0, shared_bps: float = 1e9, congestion_control: str = "bbr") -> World:
    links = [
        Link(name="orch-c1", rate_bps=shared_bps, delay_s=0.001),
        Link(name="c1-orch", rate_bps=shared_bps, delay_s=0.001),
    ]
    nodes = []
    for name, rate_bps in RATES_BPS.items():
        for direction in (f"c1-{name}", f"{name}-c1"):
            links.append(Link(name=direction, rate_bps=rate_bps, delay_s=0.009, loss_ratio=loss_ratio))
        nodes.append(
            Node(
                name=name,
                down=("orch-c1", f"c1-{name}"),
                up=(f"{name}-c1", "c1-orch"),
                compute_flops=1e9,
                power=25.0,
            )
        )
    return World(links=tuple(links), nodes=tuple(nodes), congestion_control=congestion_control)


def make_work(*, tokens: int = 1000, model_bytes: int = 1448 * 1000) -> Work:
    task = Task(data_bytes=1448 * 100, tokens=tokens, steps=1, samples=32)
    return Work(
        parameters=100_000,
        layers=0,
        model_bytes=model_bytes,
        update_bytes=model_bytes,
        tasks=dict.fromkeys(RATES_BPS, task),
    )


class Simulated:
    """Runs jobs on the small world."""

    def __call__(self, *, policy: str = "all", epochs: int = 3, seed: int = 1, spec=None, world=None, **more):
        values = {"nodes": tuple(RATES_BPS), "epochs": epochs, "policy": policy}
        values |= dict.fromkeys(("round_timeout_s", "load_timeout_s", "sync_timeout_s"), 1e6)
        job = JobSpec(job="job-1", **(values | (spec or {})))
        return simulate(
            job,
            world=world or make_world(),
            work=more.pop("work", None) or make_work(),
            loss=FittedLoss(CURVE, samples_per_round=32),
            seed=seed,
            **more,
        )

    @staticmethod
    def text(result) -> str:
        return repr(to_json(result))
