"""What the nodes of a deployment are asked about their shards, and what those take of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from orchestrator.core.model import Shard
from orchestrator.errors import OrchestratorError, WorkerError
from orchestrator.inference import messages as m
from orchestrator.inference.left import Left
from orchestrator.ports import Json, Model, ModelStore, WorkerPool

log = logging.getLogger(__name__)

PREPARE_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 10.0
_THREADS = 16
Put = Callable[..., None]


class ShardCalls:
    """Carries out the engine's instructions on nodes, in a pool of threads; answers by `put(event, values)`.

    To be closed. `model` and `context_tokens` are set before the first shard is prepared.
    """

    def __init__(
        self,
        deployment: str,
        *,
        pool: WorkerPool,
        models: ModelStore,
        put: Put,
        request_timeout_s: float,
        wire: str = "fp32",
        kv_cache_bytes: int | None = None,
    ) -> None:
        self._deployment = deployment
        self._pool = pool
        self._models = models
        self._put = put
        self._request_timeout_s = request_timeout_s
        self._wire = wire
        self._kv_cache_bytes = kv_cache_bytes
        self._lock = threading.Lock()
        self._shards: dict[tuple[int, str], Shard] = {}
        self._memory: dict[tuple[int, str], int] = {}
        self._executor = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix=deployment)
        self.model: Model | None = None
        self.context_tokens = 0

    def close(self) -> None:
        """Wait for what is under way."""
        self._executor.shutdown(wait=True, cancel_futures=False)

    def memory(self) -> dict[str, int]:
        """Give what this deployment takes of each node, in bytes; the largest of its route epochs' shards."""
        with self._lock:
            taken: dict[str, int] = {}
            for (_, node), size in self._memory.items():
                taken[node] = max(size, taken.get(node, 0))
            return taken

    def restore(self, left: Left) -> None:
        """Count what an earlier process left as taken, until it is freed."""
        with self._lock:
            for shard in left.shards():
                self._shards[left.epoch, shard.node] = shard
                if shard.node in left.memory_bytes:
                    self._memory[left.epoch, shard.node] = left.memory_bytes[shard.node]

    def emptied(self, left: Left) -> frozenset[str]:
        """Ask the nodes of what was left which of them hold their shard no more; the silent ones do not."""
        assert self.model is not None
        if left.model != self.model.digest:
            return frozenset(shard.node for shard in left.shards())
        held = self._executor.map(self._holds, left.shards())
        return frozenset(shard.node for shard, holds in zip(left.shards(), held, strict=True) if not holds)

    def prepare(self, instruction: m.PrepareShard) -> None:
        """Have a node get a shard ready."""
        with self._lock:
            self._shards[instruction.epoch, instruction.shard.node] = instruction.shard
        self._executor.submit(self._guarded, self._prepare, instruction)

    def commit(self, instruction: m.CommitShard) -> None:
        """Have a node switch to an epoch."""
        self._executor.submit(self._guarded, self._commit, instruction)

    def abort(self, node: str, epoch: int) -> None:
        """Have a node forget what it prepared for an epoch."""
        self._forget(node, lambda known: known == epoch)
        self._executor.submit(self.command, node, "shard.abort", epoch=epoch)

    def retire(self, node: str, epoch: int) -> None:
        """Have a node give up its shards up to an epoch."""
        self._forget(node, lambda known: known <= epoch)
        self._executor.submit(self.command, node, "shard.retire", epoch=epoch)

    def command(self, node: str, kind: str, **fields: Any) -> None:
        """Tell a node something whose answer nobody waits for."""
        try:
            self._ask(node, kind, **fields)
        except WorkerError as error:
            log.info("deployment %s: %s", self._deployment, error)

    def _ask(self, node: str, kind: str, **fields: Any) -> Json:
        named = {"deployment": self._deployment, **fields}
        return self._pool.request(node, "control", kind, named, timeout_s=COMMAND_TIMEOUT_S).fields

    def _guarded(self, action: Callable[[Any], None], instruction: Any) -> None:
        try:
            action(instruction)
        except Exception:
            # Every foreseen failure is an event already; this one must not pass unseen.
            log.exception("deployment %s: %r failed", self._deployment, instruction)

    def _holds(self, shard: Shard) -> bool:
        assert self.model is not None
        try:
            told = self._ask(shard.node, "shard.holding", model=self.model.digest)
        except WorkerError as error:
            log.info("deployment %s: %s", self._deployment, error)
            return False
        layers = told.get("layers")
        known: Iterable[Any] = layers if isinstance(layers, list) else ()
        has_layers = set(range(shard.first_layer, shard.end_layer)) <= set(known)
        return has_layers and ("head" not in shard.roles or told.get("head") is True)

    def _prepare(self, instruction: m.PrepareShard) -> None:
        shard, epoch = instruction.shard, instruction.epoch
        try:
            fields = self._prepare_fields(epoch, shard, reuse=instruction.reuse)
            answer = self._pool.request(
                shard.node,
                "bulk",
                "shard.prepare",
                fields,
                None if instruction.reuse else self._parameters(shard),
                timeout_s=PREPARE_TIMEOUT_S,
            )
        except OrchestratorError as error:
            self._put(m.PrepareFailed, node=shard.node, epoch=epoch, reason=str(error))
            return
        except Exception as error:
            log.exception("deployment %s: preparing %s failed", self._deployment, shard.node)
            reason = f"{type(error).__name__}: {error}"
            self._put(m.PrepareFailed, node=shard.node, epoch=epoch, reason=reason)
            return
        memory = answer.fields.get("memory_bytes")
        memory_bytes = memory if isinstance(memory, int) and memory >= 0 else None
        with self._lock:
            if memory_bytes is not None and (epoch, shard.node) in self._shards:
                self._memory[epoch, shard.node] = memory_bytes
        self._put(m.Prepared, node=shard.node, epoch=epoch, memory_bytes=memory_bytes)

    def _prepare_fields(self, epoch: int, shard: Shard, *, reuse: bool) -> Json:
        model = self.model
        assert model is not None
        fields: Json = {
            "deployment": self._deployment,
            "epoch": epoch,
            "model": model.digest,
            "config": model.config,
            "roles": list(shard.roles),
            "first_layer": shard.first_layer,
            "end_layer": shard.end_layer,
            "previous": shard.previous,
            "next": self._neighbour(shard.next),
            "context_tokens": self.context_tokens,
            "request_timeout_s": self._request_timeout_s,
            "ring_nodes": shard.ring_nodes,
            "reuse": reuse,
            "compute": model.compute,
            "wire": self._wire,
            "kv_cache_bytes": self._kv_cache_bytes,
        }
        if "head" in shard.roles:
            fields["tokenizer_json"] = model.tokenizer_json
        return fields

    def _neighbour(self, node: str) -> Json:
        record = self._pool.node(node)
        if not record.alive or record.address is None:
            raise WorkerError(f"the next node {node} is not attached: {record.reason}")
        return {"node": node, "address": record.address, "port": record.port}

    def _parameters(self, shard: Shard) -> Mapping[str, Any]:
        assert self.model is not None
        return self._models.shard(
            self.model,
            first_layer=shard.first_layer,
            end_layer=shard.end_layer,
            head="head" in shard.roles,
        )

    def _commit(self, instruction: m.CommitShard) -> None:
        node, epoch = instruction.node, instruction.epoch
        try:
            answer = self._ask(node, "shard.commit", epoch=epoch)
        except OrchestratorError as error:
            self._put(m.CommitFailed, node=node, epoch=epoch, reason=str(error))
            return
        if answer.get("epoch") != epoch:
            reason = f"node {node} committed epoch {answer.get('epoch')}, asked was {epoch}"
            self._put(m.CommitFailed, node=node, epoch=epoch, reason=reason)
            return
        self._put(m.Committed, node=node, epoch=epoch)

    def _forget(self, node: str, old: Callable[[int], bool]) -> None:
        with self._lock:
            for key in [key for key in self._shards if key[1] == node and old(key[0])]:
                del self._shards[key]
                self._memory.pop(key, None)
