"""The fine-tuning engine on a virtual clock: a flow-level network, modelled devices, a model of the loss."""

from orchestrator.simulation.run import SimulationError, simulate
from orchestrator.simulation.world import Fault, Link, Measuring, Node, Orchestrator, Task, Workload, World

__all__ = [
    "Fault",
    "Link",
    "Measuring",
    "Node",
    "Orchestrator",
    "SimulationError",
    "Task",
    "Workload",
    "World",
    "simulate",
]
