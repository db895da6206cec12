"""The fine-tuning engine on a virtual clock: a flow-level network, modelled devices, a model of the loss."""

from orchestrator.simulation.measuring import Observer
from orchestrator.simulation.node_run import NodeUse
from orchestrator.simulation.run import Result, SimulationError, simulate
from orchestrator.simulation.world import Fault, Link, Measuring, Node, Orchestrator, Task, Work, World

__all__ = [
    "Fault",
    "Link",
    "Measuring",
    "Node",
    "NodeUse",
    "Observer",
    "Orchestrator",
    "Result",
    "SimulationError",
    "Task",
    "Work",
    "World",
    "simulate",
]
