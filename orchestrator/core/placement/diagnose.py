"""Say why no placement meets the constraints: the first binding one, with its figures and a way out."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.cost import Problem, bytes_beside, free_bytes, node_problem, path_problem, shard_bytes
from orchestrator.core.cost_tables import CostTables
from orchestrator.core.errors import Infeasible
from orchestrator.core.model import NodeState, Shard
from orchestrator.core.placement.space import usable_nodes


def infeasibility(problem: Problem, *, cuts: tuple[int, ...] | None = None) -> Infeasible:
    """Explain why a search over `problem` found nothing."""
    usable = usable_nodes(problem)
    for check in (_nodes, _head, _count, _memory, _paths):
        found = check(problem, usable)
        if found is not None:
            return found
    pairs, unusable = _unusable_paths(problem, usable)
    if unusable:
        return Infeasible(
            "paths",
            f"{len(unusable)} of {pairs} paths between nodes cannot be used, as {unusable[0]}; no ring over "
            f"the others meets memory, trust and min_nodes {problem.min_nodes} together",
        )
    same = f" with the cuts at layers {', '.join(map(str, cuts))}" if cuts is not None else ""
    return Infeasible(
        "search",
        f"no ring over {_names(usable)} meets memory, trust and min_nodes {problem.min_nodes} "
        f"together{same}; give nodes more memory, trust more nodes, or lower min_nodes",
    )


def _nodes(problem: Problem, usable: Sequence[NodeState]) -> Infeasible | None:
    if usable:
        return None
    reasons = [reason for node in problem.nodes if (reason := node_problem(node, problem.model))]
    why = "; ".join(reasons) or "none is enrolled"
    return Infeasible("no-nodes", f"no node can take a shard: {why}")


def _head(problem: Problem, usable: Sequence[NodeState]) -> Infeasible | None:
    trusted = [node for node in usable if node.trusted]
    if not trusted:
        return Infeasible("trusted-head", _no_trusted(problem, usable))
    if problem.pinned_head is not None and problem.pinned_head not in {node.name for node in trusted}:
        return Infeasible(
            "pinned",
            f"the head is pinned to {problem.pinned_head}, which is not a living trusted node; "
            f"those are {_names(trusted)}",
        )
    heads = [node for node in trusted if problem.pinned_head in (None, node.name)]
    head = _shard("head", 0, 0)
    needed = shard_bytes(problem, head)
    free = {node.name: _free_for(problem, node, head) for node in heads}
    if max(free.values()) < needed:
        each = ", ".join(f"{name} {available:,}" for name, available in free.items())
        return Infeasible("memory", f"the head needs {needed:,} bytes; free are {each}")
    return None


def _no_trusted(problem: Problem, usable: Sequence[NodeState]) -> str:
    down = [node_problem(node, problem.model) for node in problem.nodes if node.trusted]
    why = "; ".join(filter(None, down)) or "no node is trusted"
    return (
        f"no trusted node for the head (embedding and LM head stay on trusted nodes): {why}; "
        f"usable, not trusted: {_names(usable)}"
    )


def _count(problem: Problem, usable: Sequence[NodeState]) -> Infeasible | None:
    able = [node for node in usable if node.trusted or not problem.all_trusted]
    if len(able) >= problem.min_nodes:
        return None
    which = "trusted and usable" if problem.all_trusted else "usable"
    return Infeasible(
        "min-nodes",
        f"min_nodes is {problem.min_nodes} but {len(able)} are {which}: {_names(able)}; "
        "lower min_nodes or enrol more",
    )


def _memory(problem: Problem, usable: Sequence[NodeState]) -> Infeasible | None:
    able = [node for node in usable if node.trusted or not problem.all_trusted]
    whole = shard_bytes(problem, _shard("head", 0, len(problem.model.layers)))
    room = CostTables(problem, able).room_bytes()
    together = int(room.sum())
    if whole > together:
        return Infeasible(
            "memory",
            f"the model needs {whole:,} bytes, the {len(able)} usable nodes together have {together:,} free "
            f"({problem.workload.context_tokens} tokens of context included)",
        )
    sizes = [shard_bytes(problem, _shard("stage", i, i + 1)) for i in range(len(problem.model.layers))]
    largest = int(room.max())
    if max(sizes) > largest:
        return Infeasible(
            "memory",
            f"layer {sizes.index(max(sizes))} alone needs {max(sizes):,} bytes, "
            f"the largest node has {largest:,} free",
        )
    return None


def _paths(problem: Problem, usable: Sequence[NodeState]) -> Infeasible | None:
    pairs, unusable = _unusable_paths(problem, usable)
    if not unusable or len(unusable) < pairs / 2:
        return None
    return Infeasible(
        "paths", f"{len(unusable)} of {pairs} paths between nodes cannot be used, as {unusable[0]}"
    )


def _unusable_paths(problem: Problem, usable: Sequence[NodeState]) -> tuple[int, list[str]]:
    """Count the paths between nodes, and say what is wrong with those that cannot be used."""
    pairs = [(a.name, b.name) for a in usable for b in usable if a is not b]
    problems = [reason for pair in pairs if (reason := path_problem(problem.network.path(*pair)))]
    return len(pairs), problems


def _free_for(problem: Problem, node: NodeState, shard: Shard) -> int:
    held = problem.held.get(node.name)
    return free_bytes(node) - (bytes_beside(problem, held, shard) if held is not None else 0)


def _shard(role: str, first: int, end: int) -> Shard:
    return Shard(node="", roles=(role,), first_layer=first, end_layer=end, previous="", next="")


def _names(nodes: Sequence[NodeState]) -> str:
    return ", ".join(sorted(node.name for node in nodes)) or "none"
